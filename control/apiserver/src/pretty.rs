//! JSON for people: indented for browsers and command line tools, or whoever asks with `?pretty`.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http_body_util::BodyExt as _;

use crate::body::{self, Response};
use crate::request::Call;

/// Agents behind which a person sits, by how they begin.
const PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

pub fn wanted(call: &Call) -> bool {
    match call.query.flag("pretty") {
        Some(said) => said,
        None => {
            let agent = call.headers.get(USER_AGENT).and_then(|v| v.to_str().ok());
            agent.is_some_and(|a| PEOPLE.iter().any(|p| a.starts_with(p)))
        }
    }
}

/// The answer, indented if it is JSON.
pub async fn pretty(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let json = parts.headers.get(CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if !json || parts.headers.contains_key(CONTENT_ENCODING) {
        return Response::from_parts(parts, body);
    }
    match body.collect().await {
        Ok(whole) => {
            parts.headers.remove(http::header::CONTENT_LENGTH);
            Response::from_parts(parts, body::full(indented(&whole.to_bytes())))
        }
        Err(e) => {
            let failed = body::stream(futures::stream::once(async move { Err(e) }));
            Response::from_parts(parts, failed)
        }
    }
}

/// Valid JSON with Go's `MarshalIndent(…, "", "  ")` white space; the order of members stays.
fn indented(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 3 / 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    };
    let mut bytes = json.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if in_string {
            out.push(byte);
            (in_string, escaped) = match (byte, escaped) {
                (_, true) => (true, false),
                (b'\\', _) => (true, true),
                (b'"', _) => (false, false),
                _ => (true, false),
            };
            continue;
        }
        match byte {
            b'"' => {
                in_string = true;
                out.push(byte);
            }
            b'{' | b'[' => {
                out.push(byte);
                while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
                match bytes.next_if(|b| matches!(b, b'}' | b']')) {
                    Some(close) => out.push(close),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            b if b.is_ascii_whitespace() => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation() {
        let check = |compact: &str, expected: &str| {
            let out = String::from_utf8(indented(compact.as_bytes())).expect("is UTF-8");
            assert_eq!(out, expected);
        };
        check(
            r#"{"b":{},"a":[1,{"x":"y,{\"z"}],"e":[]}"#,
            "{\n  \"b\": {},\n  \"a\": [\n    1,\n    {\n      \"x\": \"y,{\\\"z\"\n    }\n  ],\n  \"e\": []\n}",
        );
        check("null", "null");
    }
}
