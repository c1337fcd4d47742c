//! Texts with a form: names of ports, keys and variables, paths, header names. Each function
//! returns what is wrong, nothing when the text is good.

use crate::path::{Errors, Path};

/// The range that a port must be in.
pub const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

pub fn is_port(number: i64) -> bool {
    (1..=65_535).contains(&number)
}

/// An IANA service name: `http`, `h2-8080`.
pub fn port_name(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let bytes = name.as_bytes();
    if name.len() > 15 {
        wrong.push("must be no more than 15 characters");
    }
    if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        wrong.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        wrong.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong.push("must not begin or end with a hyphen");
    }
    wrong.into_iter().map(str::to_owned).collect()
}

/// A variable's name: printable ASCII but `=`.
pub fn env_name(name: &str) -> Vec<String> {
    if name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// A key of a ConfigMap or Secret.
pub fn config_key(key: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if key.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.is_empty() || !key.bytes().all(good) {
        wrong.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match key {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// A version as semver.org 2.0.0 has it: `1.2.3-alpha.1+build`.
pub fn is_semantic_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(r, b)| (r, Some(b)));
    let (core, before) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && before.is_none_or(|b| b.split('.').all(|p| word(p) && (!digits(p) || number(p))))
        && build.is_none_or(|b| b.split('.').all(word))
}

/// How many bytes a text in base64 stands for.
pub fn base64_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// A header's name.
pub fn http_header(name: &str) -> Vec<String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !name.is_empty() && name.bytes().all(good) {
        return Vec::new();
    }
    vec!["a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".to_owned()]
}

/// The last segment of a URL path: names of roles and bindings.
pub fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." | ".." => return vec![format!("may not be '{name}'")],
        _ => {}
    }
    ['/', '%']
        .iter()
        .filter(|c| name.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// A path below some directory: relative, without `..`.
pub fn descending_path(path: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if path.starts_with('/') {
        wrong.push("must be a relative path".to_owned());
    }
    wrong.extend(no_backsteps(path));
    wrong
}

pub fn no_backsteps(path: &str) -> Option<String> {
    path.split('/').any(|part| part == "..").then(|| "must not contain '..'".to_owned())
}

/// As [`descending_path`], without the names that the kubelet's atomic writer uses.
pub fn volume_path(path: &str) -> Vec<String> {
    let mut wrong = descending_path(path);
    // A component that is `..` itself is refused already.
    if path.starts_with("..") && !path.starts_with("../") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// `*.example.com`.
pub fn wildcard_dns1123_subdomain(name: &str) -> Vec<String> {
    let good = name
        .strip_prefix("*.")
        .is_some_and(|rest| rimward_api::names::dns1123_subdomain(rest).is_empty());
    if good && name.len() <= 253 {
        return Vec::new();
    }
    vec!["a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()]
}

/// `IsDomainPrefixedPath`: a DNS subdomain, then `/` and a path, such as `example.com/controller`.
pub fn domain_prefixed(name: &str, path: &Path<'_>, e: &mut Errors) {
    let parts =
        name.split_once('/').filter(|(domain, rest)| !domain.is_empty() && !rest.is_empty());
    match (name, parts) {
        ("", _) => e.required(path, ""),
        (_, None) => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            e.invalid(path, name, why);
        }
        (_, Some((domain, rest))) => {
            e.invalid_each(path, domain, rimward_api::names::dns1123_subdomain(domain));
            let good = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !rest.bytes().all(good) {
                let why = r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";
                e.invalid(path, rest, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        #[track_caller]
        fn check(rule: fn(&str) -> Vec<String>, good: &[&str], bad: &[(&str, usize)]) {
            good.iter().for_each(|s| assert_eq!(rule(s), Vec::<String>::new(), "{s}"));
            bad.iter().for_each(|(s, n)| assert_eq!(rule(s).len(), *n, "{s}: {:?}", rule(s)));
        }
        check(
            port_name,
            &["http", "h2-1"],
            &[("", 1), ("80", 1), ("a--b", 1), ("-a", 1), ("A", 2)],
        );
        check(config_key, &["a", ".b", "KEY_1"], &[("", 1), ("..", 1), ("..a", 1), ("a/b", 1)]);
        check(env_name, &["a", "A b"], &[("a=b", 1), ("é", 1)]);
        check(volume_path, &["a/b", ".a"], &[("/a", 1), ("../a", 1), ("..a", 1), ("/..", 2)]);
        check(wildcard_dns1123_subdomain, &["*.a.b"], &[("*", 1), ("a.*", 1), ("*.A", 1)]);
        check(path_segment, &["a b", "A"], &[("a/b", 1), ("..", 1), ("a%/", 2)]);
        for (version, good) in
            [("1.2.3", true), ("1.0.0-rc.1+b", true), ("01.2.3", false), ("1.2", false)]
        {
            assert_eq!(is_semantic_version(version), good, "{version}");
        }
        assert_eq!(base64_len("dg=="), 1);
    }
}
