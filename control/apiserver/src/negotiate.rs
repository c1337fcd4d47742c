//! Which form of an answer a client accepts.

use http::HeaderMap;
use rimward_api::{Reason, Status, status::Details};

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

/// What an object is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `PartialObjectMetadata`, in a list `PartialObjectMetadataList`.
    Metadata,
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub encoding: Encoding,
    pub shape: Shape,
}

const AVAILABLE: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The first media type of the Accept header that we can answer in, by weight.
pub fn accepted(headers: &HeaderMap) -> Result<Form, Status> {
    const PLAIN: Form = Form { encoding: Encoding::Json, shape: Shape::Object };
    let Some(accept) = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()) else {
        return Ok(PLAIN);
    };
    let mut best: Option<(f32, Form)> = None;
    for range in accept.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (weight, form) = match parse(range) {
            Some(found) => found,
            None => continue,
        };
        if best.is_none_or(|(w, _)| weight > w) {
            best = Some((weight, form));
        }
    }
    best.map(|(_, form)| form).ok_or_else(not_acceptable)
}

fn parse(range: &str) -> Option<(f32, Form)> {
    let mut parts = range.split(';').map(str::trim);
    let encoding = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return None,
    };
    let (mut weight, mut shape) = (1.0, Shape::Object);
    for part in parts {
        match part.split_once('=')? {
            ("q", q) => weight = q.parse().ok()?,
            ("as", "Table") => shape = Shape::Table,
            ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => {
                shape = Shape::Metadata
            }
            ("as", _) => return None,
            ("g", "meta.k8s.io") | ("v", "v1") => {}
            // A transform of another group or version is one that we do not have.
            ("g" | "v", _) => return None,
            _ => {}
        }
    }
    Some((weight, Form { encoding, shape }))
}

fn not_acceptable() -> Status {
    Status {
        code: 406,
        reason: Reason::NotAcceptable,
        message: format!("406: Not Acceptable\n\nAvailable representations: {AVAILABLE}"),
        details: Some(Box::new(Details::default())),
    }
}

/// Whether the client takes gzip.
pub fn gzip(headers: &HeaderMap) -> bool {
    let accepts = headers.get(http::header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    accepts.is_some_and(|list| {
        list.split(',').any(|e| e.split(';').next().map(str::trim) == Some("gzip"))
    })
}

/// The encoding of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Json,
    Yaml,
    Protobuf,
}

/// The encoding of a request's body, by its Content-Type. None is JSON, as kubectl's raw requests are.
pub fn sent(headers: &HeaderMap) -> Result<Sent, Status> {
    let sent =
        headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match sent.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(Sent::Json),
        "application/yaml" => Ok(Sent::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Sent::Protobuf),
        _ => Err(Status::new(
            415,
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {AVAILABLE}"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept() {
        #[track_caller]
        fn check(accept: &str, expected: Option<(Encoding, Shape)>) {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().expect("a header"));
            assert_eq!(
                accepted(&headers).ok().map(|f| (f.encoding, f.shape)),
                expected,
                "{accept}"
            );
        }
        check("application/json", Some((Encoding::Json, Shape::Object)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Encoding::Json, Shape::Table)),
        );
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Encoding::Json, Shape::Object)),
        );
        check("application/json;q=0.5,application/yaml", Some((Encoding::Yaml, Shape::Object)));
        check("text/html", None);
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Encoding::Json, Shape::Metadata)),
        );
    }
}
