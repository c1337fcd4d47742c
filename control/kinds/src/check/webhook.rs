//! How a webhook is reached and what it is asked about.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use crate::path::{Errors, Path};

const FORM: &str = "; desired format: https://host[/path]";

/// The `url` of a client configuration: https, with nothing but a host and a path.
pub fn url(text: &str, path: &Path<'_>, e: &mut Errors) {
    let parts = match Parts::of(text) {
        Ok(parts) => parts,
        Err(why) => return e.required(path, &format!("url must be a valid URL: {why}{FORM}")),
    };
    if parts.scheme != "https" {
        e.invalid(path, parts.scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if parts.host.is_empty() {
        e.invalid(path, "", &format!("host must be provided{FORM}"));
    }
    if let Some(user) = parts.user {
        e.invalid(path, user, "user information is not permitted in the URL");
    }
    if !parts.fragment.is_empty() {
        e.invalid(path, parts.fragment, "fragments are not permitted in the URL");
    }
    if !parts.query.is_empty() {
        e.invalid(path, parts.query, "query parameters are not permitted in the URL");
    }
}

/// A URL in the pieces that Go's parser makes of it.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    query: &'a str,
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err(format!("parse {text:?}: net/url: invalid control character in URL"));
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (scheme, rest) = match rest.split_once(':') {
            Some(("", _)) => return Err(format!("parse {text:?}: missing protocol scheme")),
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => ("", rest),
        };
        let authority =
            rest.strip_prefix("//").map_or("", |r| r.split('/').next().unwrap_or_default());
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if let Some(bad) = host.chars().find(|c| " \"<>\\^`{|}".contains(*c)) {
            return Err(format!(
                "parse {text:?}: invalid character {:?} in host name",
                bad.to_string()
            ));
        }
        let port = host.rsplit_once(':').filter(|(_, p)| !p.contains(']')).map(|(_, p)| p);
        if let Some(port) = port
            && !port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(format!("parse {text:?}: invalid port \":{port}\" after host"));
        }
        Ok(Self { scheme, user, host, query, fragment })
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// The `path` of a service reference: names between slashes.
pub fn service_path(text: &str, path: &Path<'_>, e: &mut Errors) {
    match text {
        "" | "/" => return,
        "//" => return e.invalid(path, text, "segment[0] may not be empty"),
        _ => {}
    }
    if !text.starts_with('/') {
        e.invalid(path, text, "must start with a '/'");
    }
    // Whatever the first character is, Kubernetes looks at what follows it.
    let rest: &str = text.char_indices().nth(1).map_or("", |(at, _)| &text[at..]);
    for (i, segment) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if segment.is_empty() {
            e.invalid(path, text, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for wrong in names::dns1123_subdomain(segment) {
            e.invalid(path, text, &format!("segment[{i}]: {wrong}"));
        }
    }
}

/// Resources of a rule that say the same twice.
pub fn resources(values: &[Value], path: &Path<'_>, e: &mut Errors) {
    let (mut parents, mut subs) = (HashSet::new(), HashSet::new());
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        let Some((parent, sub)) = value.split_once('/') else { continue };
        if parents.contains(parent) {
            let why = format!("if '{parent}/*' is present, must not specify {value}");
            e.invalid(&path.index(i), value, &why);
        }
        if subs.contains(sub) {
            let why = format!("if '*/{sub}' is present, must not specify {value}");
            e.invalid(&path.index(i), value, &why);
        }
        if sub == "*" {
            parents.insert(parent);
        }
        if parent == "*" {
            subs.insert(sub);
        }
    }
    let shown = || Value::Array(values.to_vec());
    if values.len() > 1 && values.iter().any(|v| v == "*/*") {
        e.invalid(path, shown(), "if '*/*' is present, must not specify other resources");
    }
    let plain = |v: &Value| v.as_str().is_some_and(|t| t != "*" && !t.contains('/'));
    if values.iter().any(|v| v == "*") && values.iter().any(plain) {
        e.invalid(
            path,
            shown(),
            "if '*' is present, must not specify other resources without subresources",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(check: impl FnOnce(&Path<'_>, &mut Errors)) -> Vec<String> {
        let mut e = Errors::default();
        check(&Path::Root.field("f"), &mut e);
        e.into_vec().into_iter().map(|e| e.message).collect()
    }

    #[test]
    fn urls() {
        #[track_caller]
        fn check(text: &str, expected: &[&str]) {
            assert_eq!(texts(|path, e| url(text, path, e)), expected, "{text}");
        }
        check("https://example.com:8443/a", &[]);
        check("https://127.0.0.1:8443", &[]);
        check(
            "http://example.com",
            &[
                r#"Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
            ],
        );
        check(
            "https:///p",
            &[r#"Invalid value: "": host must be provided; desired format: https://host[/path]"#],
        );
        check(
            "https://u:p@h/?a=1#x",
            &[
                r#"Invalid value: "u:p": user information is not permitted in the URL"#,
                r#"Invalid value: "x": fragments are not permitted in the URL"#,
                r#"Invalid value: "a=1": query parameters are not permitted in the URL"#,
            ],
        );
    }

    #[test]
    fn paths() {
        #[track_caller]
        fn check(text: &str, expected: usize) {
            assert_eq!(texts(|path, e| service_path(text, path, e)).len(), expected, "{text}");
        }
        check("/a/b/", 0);
        check("//", 1);
        check("a", 2);
        check("/a//b", 1);
        check("/A", 1);
    }

    #[test]
    fn rules_that_overlap() {
        let list = json!(["pods/*", "pods/status", "*", "services"]);
        let list = list.as_array().expect("a list");
        assert_eq!(texts(|path, e| resources(list, path, e)).len(), 2);
    }
}
