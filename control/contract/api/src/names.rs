//! The name rules of apimachinery's `util/validation`. Each returns the texts of what is wrong,
//! none when the name is good; the texts are Kubernetes' own, since clients show them.

const DNS1123_LABEL_RE: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_RE: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn max_len(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn regex_error(text: &str, re: &str, examples: &[&str]) -> String {
    let quoted: Vec<String> = examples.iter().map(|e| format!("'{e}'")).collect();
    format!("{text} (e.g. {}, regex used for validation is '{re}')", quoted.join(",  or "))
}

fn is_label_char(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'
}

fn is_dns1123_label(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty() && b.iter().all(|c| is_label_char(*c)) && b[0] != b'-' && b[b.len() - 1] != b'-'
}

/// RFC 1123 label, at most 63 bytes.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > 63 {
        errors.push(max_len(63));
    }
    if !is_dns1123_label(s) {
        // A name of several labels has dots, and nothing else wrong with it.
        errors.push(if s.split('.').all(is_dns1123_label) {
            "must not contain dots".to_owned()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                DNS1123_LABEL_RE,
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

/// RFC 1123 subdomain, at most 253 bytes.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > 253 {
        errors.push(max_len(253));
    }
    if !s.split('.').all(is_dns1123_label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &format!("{DNS1123_LABEL_RE}(\\.{DNS1123_LABEL_RE})*"),
            &["example.com"],
        ));
    }
    errors
}

/// RFC 1035 label (Services): starts with a letter.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > 63 {
        errors.push(max_len(63));
    }
    if !is_dns1123_label(s) || !s.as_bytes()[0].is_ascii_lowercase() {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

fn is_qualified_part(s: &str) -> bool {
    let b = s.as_bytes();
    let good = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    !b.is_empty()
        && b.iter().all(good)
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
}

/// A label key, annotation key or resource name: `[prefix/]name`.
pub fn qualified_name(s: &str) -> Vec<String> {
    let name_rule = || {
        regex_error(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            QUALIFIED_RE,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut errors = Vec::new();
    let name = match s.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")),
                );
            }
            *name
        }
        _ => {
            let rule = regex_error(
                "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
                QUALIFIED_RE,
                &["MyName", "my.name", "123-abc"],
            );
            return vec![format!(
                "{rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", max_len(63)));
    }
    if !is_qualified_part(name) {
        errors.push(name_rule());
    }
    errors
}

/// A label's value: empty, or like the name part of a key.
pub fn label_value(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > 63 {
        errors.push(max_len(63));
    }
    if !s.is_empty() && !is_qualified_part(s) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        #[track_caller]
        fn check(rule: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
            good.iter().for_each(|s| assert_eq!(rule(s), Vec::<String>::new(), "{s}"));
            bad.iter().for_each(|s| assert_ne!(rule(s), Vec::<String>::new(), "{s}"));
        }
        check(dns1123_label, &["a", "0-a"], &["", "-a", "a.b", "A", &"a".repeat(64)]);
        check(dns1123_subdomain, &["a.b", "a"], &["", "a..b", "a_b", "Bad_Name"]);
        check(dns1035_label, &["a1"], &["1a", ""]);
        check(qualified_name, &["a", "x.y/a_B.c"], &["", "/a", "a/", "a/b/c", "-a"]);
        check(label_value, &["", "a_b"], &["-a", "a b"]);
    }
}
