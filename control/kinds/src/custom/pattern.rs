//! Go's regular expressions on ours. Both are RE2's dialect; they differ in what is Unicode, and in what
//! counts as a literal where no operator can be.

use regex::{Regex, RegexBuilder};

/// Bytes of a compiled pattern, and of its lazily built automaton.
const COMPILED_BYTES_MAX: usize = 4 << 20;

/// Compiles a pattern of Go's syntax; the error is a text for the user.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translated(pattern))
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(250)
        .build()
        .map_err(|e| {
            let last = e.to_string().lines().last().unwrap_or_default().to_owned();
            let why = last.trim_start_matches("error: ");
            format!("error parsing regexp: {why}: `{pattern}`")
        })
}

/// The pattern in our dialect: `\d`, `\w`, `\s` and `\b` are ASCII to Go, `{` is itself unless it
/// repeats, and a class knows no nesting.
fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        if c == '\\' {
            rest = escape(after, in_class, &mut out);
            continue;
        }
        if in_class {
            if c == '[' && after.starts_with(':') {
                let end = after.find(":]").map_or(after.len(), |at| at + 2);
                out.push('[');
                out.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            match c {
                ']' => {
                    in_class = false;
                    out.push(']');
                }
                '[' | '&' | '~' => {
                    out.push('\\');
                    out.push(c);
                }
                c => out.push(c),
            }
            rest = after;
            continue;
        }
        rest = after;
        match c {
            '[' => {
                in_class = true;
                out.push('[');
                if let Some(more) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = more;
                }
                // A bracket that comes first is itself.
                if let Some(more) = rest.strip_prefix(']') {
                    out.push_str("\\]");
                    rest = more;
                }
            }
            '{' if !repeats(rest) => out.push_str("\\{"),
            c => out.push(c),
        }
    }
    out
}

/// Writes what a backslash introduces; answers what follows it.
fn escape<'p>(after: &'p str, in_class: bool, out: &mut String) -> &'p str {
    let Some(c) = after.chars().next() else {
        out.push('\\');
        return after;
    };
    let rest = &after[c.len_utf8()..];
    let ascii = match (c, in_class) {
        ('d', false) => "[0-9]",
        ('d', true) => "0-9",
        ('D', _) => "[^0-9]",
        ('w', false) => "[0-9A-Za-z_]",
        ('w', true) => "0-9A-Za-z_",
        ('W', _) => "[^0-9A-Za-z_]",
        ('s', false) => "[\\t\\n\\f\\r ]",
        ('s', true) => "\\t\\n\\f\\r ",
        ('S', _) => "[^\\t\\n\\f\\r ]",
        ('b', false) => "(?-u:\\b)",
        ('B', false) => "(?-u:\\B)",
        ('Q', false) => {
            let end = rest.find("\\E").unwrap_or(rest.len());
            out.push_str(&regex::escape(&rest[..end]));
            return rest[end..].strip_prefix("\\E").unwrap_or_default();
        }
        _ => {
            out.push('\\');
            out.push(c);
            return rest;
        }
    };
    out.push_str(ascii);
    rest
}

/// Whether what follows a brace makes it a repetition: `2}`, `2,}`, `2,3}`.
fn repeats(rest: &str) -> bool {
    let Some((inside, _)) = rest.split_once('}') else { return false };
    let (min, max) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    !min.is_empty() && digits(min) && digits(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_patterns() {
        #[track_caller]
        fn check(pattern: &str, matching: &[&str], others: &[&str]) {
            let compiled = compile(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            for text in matching {
                assert!(compiled.is_match(text), "{pattern} must match {text}");
            }
            for text in others {
                assert!(!compiled.is_match(text), "{pattern} must not match {text}");
            }
        }
        check(r"^\d+$", &["12"], &["١٢", "a"]);
        check(r"^[\w-]+$", &["a-b_1"], &["é", ""]);
        check(r"^{[a-z]}$", &["{x}"], &["x"]);
        check(r"^a{2,3}$", &["aa", "aaa"], &["a", "aaaa"]);
        check(r"^[[a]+$", &["[a"], &["b"]);
        check(r"^[]a]+$", &["]a"], &["b"]);
        check(r"^[[:alpha:]]+$", &["ab"], &["1"]);
        check(r"^\Qa.b\E$", &["a.b"], &["axb"]);
        check(r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", &["* * * * */5"], &["x"]);
        assert!(compile("[").is_err());
        assert!(compile("a{1000}{1000}{1000}").is_err(), "a pattern that explodes is refused");
    }
}
