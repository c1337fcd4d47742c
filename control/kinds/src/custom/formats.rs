//! The string formats that Kubernetes checks; any other is passed over, with a warning to the author
//! of the schema.

use base64::Engine as _;
use jiff::Timestamp;
use rimward_api::names;

const STRINGS: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// A format's name as it is looked up: dashes do not count.
fn normal(format: &str) -> String {
    format.replace('-', "")
}

/// Whether a format means something for a value of that type.
pub fn is_known(kind: &str, format: &str) -> bool {
    match kind {
        "" | "string" => STRINGS.contains(&normal(format).as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// Whether a string is of a format; true for formats that are not known.
pub fn matches(format: &str, text: &str) -> bool {
    match normal(format).as_str() {
        "bsonobjectid" => text.len() == 24 && hex(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "cidr" => cidr(text),
        "creditcard" => credit_card(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => date_time(text),
        "duration" => duration(text),
        "email" => email(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && hex(digits)
        }
        "hostname" => hostname(text),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "k8slongname" => names::dns1123_subdomain(text).is_empty(),
        "k8sshortname" => names::dns1123_label(text).is_empty(),
        "mac" => mac(text),
        "rgbcolor" => rgb(text),
        "ssn" => groups(text, &['-', ' '], &[3, 2, 4]),
        "uri" => uri(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some('3')),
        "uuid4" => uuid(text, Some('4')),
        "uuid5" => uuid(text, Some('5')),
        _ => true,
    }
}

fn hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    let max = if address.is_ipv4() { 32 } else { 128 };
    digits(bits) && bits.parse::<u8>().is_ok_and(|b| b <= max)
}

fn date_time(text: &str) -> bool {
    // A time of day with a zone: a date alone is none.
    let zoned = text.ends_with(['Z', 'z'])
        || text.len() > 6 && matches!(text.as_bytes()[text.len() - 6], b'+' | b'-');
    text.contains(['T', 't']) && zoned && text.parse::<Timestamp>().is_ok()
}

/// Go's `1h30m`, or a number with a unit in words: `22 ns`, `3 days`.
fn duration(text: &str) -> bool {
    let text = text.trim();
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    if body == "0" {
        return true;
    }
    let mut rest = body;
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (count, after) = rest.split_at(number);
        let after = after.trim_start();
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (word, more) = after.split_at(unit);
        let known = [
            "ns",
            "us",
            "µs",
            "μs",
            "ms",
            "s",
            "m",
            "h",
            "d",
            "w",
            "nano",
            "micro",
            "milli",
            "sec",
            "second",
            "seconds",
            "min",
            "minute",
            "minutes",
            "hr",
            "hour",
            "hours",
            "hrs",
            "day",
            "days",
            "week",
            "weeks",
            "nanosecond",
            "nanoseconds",
            "nanos",
            "micros",
            "microsecond",
            "microseconds",
            "millis",
            "millisecond",
            "milliseconds",
            "wk",
        ];
        if count.parse::<f64>().is_err() || !known.contains(&word.trim()) {
            return false;
        }
        parts += 1;
        rest = more;
    }
    parts > 0
}

fn email(text: &str) -> bool {
    // `Name <a@b>` too, as Go's mail.ParseAddress reads it.
    let address = match (text.find('<'), text.ends_with('>')) {
        (Some(at), true) => &text[at + 1..text.len() - 1],
        _ => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |s: &str| {
        !s.is_empty()
            && s.split('.').all(|part| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c))
            })
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (atom(local) || quoted) && atom(domain)
}

fn hostname(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    !name.is_empty() && name.len() <= 255 && name.split('.').all(label)
}

fn isbn10(text: &str) -> bool {
    let plain: Vec<char> = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let weighed = |(i, c): (usize, &char)| match c {
        'X' if i == 9 => Some(10 * 10),
        c => Some((i as u32 + 1) * c.to_digit(10)?),
    };
    let sum: Option<u32> = plain.iter().enumerate().map(weighed).sum();
    plain.len() == 10 && sum.is_some_and(|s| s.is_multiple_of(11))
}

fn isbn13(text: &str) -> bool {
    let plain: Option<Vec<u32>> =
        text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_digit(10)).collect();
    let Some(plain) = plain.filter(|p| p.len() == 13) else { return false };
    let sum: u32 = plain.iter().enumerate().map(|(i, d)| d * if i % 2 == 0 { 1 } else { 3 }).sum();
    sum.is_multiple_of(10)
}

fn credit_card(text: &str) -> bool {
    let card: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let odd = card.len() % 2;
    let sum: u32 = card
        .iter()
        .enumerate()
        .map(|(i, d)| match i % 2 == odd {
            true if *d > 4 => d * 2 - 9,
            true => d * 2,
            false => *d,
        })
        .sum();
    (13..=16).contains(&card.len()) && matches!(card[0], 3..=6) && sum.is_multiple_of(10)
}

fn mac(text: &str) -> bool {
    let bytes = |separator: char, width: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        parts.iter().all(|p| p.len() == width && hex(p))
            && matches!(parts.len() * width / 2, 6 | 8 | 20)
    };
    bytes(':', 2) || bytes('-', 2) || bytes('.', 4)
}

fn rgb(text: &str) -> bool {
    let inside = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')'));
    let Some(inside) = inside else { return false };
    let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| digits(p) && p.parse::<u8>().is_ok())
}

/// Groups of digits of these lengths, with or without one of the separators between.
fn groups(text: &str, separators: &[char], lengths: &[usize]) -> bool {
    let mut rest = text;
    for (i, length) in lengths.iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(separators).unwrap_or(rest);
        }
        let Some((group, more)) = rest.split_at_checked(*length) else { return false };
        if !digits(group) {
            return false;
        }
        rest = more;
    }
    rest.is_empty()
}

/// An absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes it.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, _)) = text.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn uuid(text: &str, version: Option<char>) -> bool {
    let mut plain = String::with_capacity(32);
    let mut rest = text;
    for (i, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some((group, more)) = rest.split_at_checked(length) else { return false };
        if !hex(group) {
            return false;
        }
        plain.push_str(group);
        rest = more;
    }
    let at = |i: usize| plain.as_bytes()[i].to_ascii_lowercase() as char;
    let right_version = version.is_none_or(|v| at(12) == v);
    let right_variant =
        !matches!(version, Some('4' | '5')) || matches!(at(16), '8' | '9' | 'a' | 'b');
    rest.is_empty() && right_version && right_variant
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        #[track_caller]
        fn check(format: &str, right: &[&str], wrong: &[&str]) {
            assert!(is_known("string", format), "{format}");
            right.iter().for_each(|t| assert!(matches(format, t), "{t} is {format}"));
            wrong.iter().for_each(|t| assert!(!matches(format, t), "{t} is no {format}"));
        }
        check(
            "date-time",
            &["2014-12-15T19:30:20.000Z", "2014-12-15T19:30:20+01:00"],
            &["2014-12-15", "x", ""],
        );
        check("date", &["2006-01-02"], &["2006-13-02", "2006-1-2", "x"]);
        check("duration", &["22 ns", "1h30m", "1.5s", "3 days"], &["x", "", "5", "h"]);
        check("email", &["a@b.c", "A <a@b.c>"], &["a", "@b", "a@"]);
        check("hostname", &["a.b", "x", "a.b."], &["", "-a", "a..b"]);
        check("ipv4", &["1.2.3.4"], &["1.2.3", "::1"]);
        check("ipv6", &["::1"], &["1.2.3.4", "x"]);
        check("cidr", &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33", "x/8"]);
        check("mac", &["01:23:45:67:89:ab", "0123.4567.89ab"], &["01:23", "x"]);
        check("uuid", &["00000000-0000-0000-0000-000000000000"], &["x", "0000"]);
        check(
            "uuid4",
            &["9e2b9b3e-3b3a-4b3a-8b3a-9e2b9b3e3b3a"],
            &["9e2b9b3e-3b3a-3b3a-8b3a-9e2b9b3e3b3a"],
        );
        check("isbn", &["0321751043", "978-0321751041"], &["0321751044"]);
        check("creditcard", &["4111 1111 1111 1111"], &["4111111111111112", "x"]);
        check("ssn", &["111-11-1111"], &["111-1-1111"]);
        check("hexcolor", &["#FFFFFF", "abc"], &["#ff", "zzz"]);
        check("rgbcolor", &["rgb(255,255,2)"], &["rgb(256,0,0)", "255,255,2"]);
        check("byte", &["", "aGk="], &["a"]);
        check("uri", &["http://a/b", "/a"], &["a", "", "http://a b"]);
        check("k8s-short-name", &["a-b"], &["A", "a.b"]);
        check("k8s-long-name", &["a.b"], &["A_b"]);
        check("bsonobjectid", &["507f1f77bcf86cd799439011"], &["507f"]);
        check("password", &["anything"], &[]);
        assert!(!is_known("string", "made-up") && matches("made-up", "x"));
        assert!(is_known("integer", "int32") && !is_known("integer", "date"));
    }
}
