//! Scalars that Kubernetes writes in one canonical form: quantities, times, base64. Complaints are Go's.

use jiff::Timestamp;
use rimward_api::Quantity;

/// The canonical form of a quantity.
pub(crate) fn quantity(text: &str) -> Result<String, String> {
    Quantity::parse(text.trim()).map(|q| q.to_string()).map_err(|wrong| {
        if has_wrong_suffix(text.trim()) {
            "unable to parse quantity's suffix".to_owned()
        } else {
            wrong.to_string()
        }
    })
}

/// Whether it is a number followed only by letters that suffixes are made of: then Kubernetes blames
/// the suffix and not the form.
fn has_wrong_suffix(text: &str) -> bool {
    let rest = text.trim_start_matches(['+', '-']);
    let number = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = &rest[..rest.len() - number.len()];
    let tail = number.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let exponent = tail.strip_prefix(['+', '-']).unwrap_or(tail);
    !digits.is_empty()
        && digits.matches('.').count() < 2
        && !number.is_empty()
        && exponent.bytes().all(|b| b.is_ascii_digit())
}

/// RFC 3339 in UTC with whole seconds: `metav1.Time`.
pub(crate) fn time(text: &str) -> Result<String, String> {
    let at = parse_time(text, "2006-01-02T15:04:05Z07:00")?;
    Ok(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// RFC 3339 in UTC with microseconds: `metav1.MicroTime`.
pub(crate) fn micro_time(text: &str) -> Result<String, String> {
    let at = parse_time(text, "2006-01-02T15:04:05.000000Z07:00")?;
    Ok(at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

/// Reads a time as Go's `time.Parse` does with an RFC 3339 layout, and complains as it does.
fn parse_time(text: &str, layout: &str) -> Result<Timestamp, String> {
    const PARTS: [(&str, usize); 11] = [
        ("2006", 4),
        ("-", 0),
        ("01", 2),
        ("-", 0),
        ("02", 2),
        ("T", 0),
        ("15", 2),
        (":", 0),
        ("04", 2),
        (":", 0),
        ("05", 2),
    ];
    let complain = |rest: &str, part: &str| {
        format!(
            "parsing time {} as {}: cannot parse {} as {}",
            quote(text),
            quote(layout),
            quote(rest),
            quote(part)
        )
    };
    let mut rest = text;
    for (part, digits) in PARTS {
        let len = digits.max(1);
        let good = rest.len() >= len
            && if digits == 0 {
                rest.starts_with(part)
            } else {
                rest.as_bytes()[..len].iter().all(u8::is_ascii_digit)
            };
        if !good {
            return Err(complain(rest, part));
        }
        rest = &rest[len..];
    }
    let fraction = rest.strip_prefix(['.', ',']).unwrap_or_default();
    let digits = fraction.len() - fraction.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if layout.contains(".000000") {
        // A layout with a fraction takes just as many digits, one without takes any number.
        if digits < 6 {
            return Err(complain(rest, ".000000"));
        }
        rest = &fraction[6..];
    } else if digits > 0 {
        rest = &fraction[digits..];
    }
    let zone_end = match rest.as_bytes() {
        [b'Z', ..] => 1,
        [b'+' | b'-', h1, h2, b':', m1, m2, ..]
            if [h1, h2, m1, m2].iter().all(|c| c.is_ascii_digit()) =>
        {
            6
        }
        _ => return Err(complain(rest, "Z07:00")),
    };
    if rest.len() > zone_end {
        return Err(format!(
            "parsing time {}: extra text: {}",
            quote(text),
            quote(&rest[zone_end..])
        ));
    }
    let number = |range: std::ops::Range<usize>| text[range].parse::<u32>().unwrap_or(u32::MAX);
    let bounds = [
        ("month", number(5..7), 1..=12),
        ("day", number(8..10), 1..=31),
        ("hour", number(11..13), 0..=23),
        ("minute", number(14..16), 0..=59),
        ("second", number(17..19), 0..=59),
    ];
    if let Some((part, ..)) = bounds.into_iter().find(|(_, n, good)| !good.contains(n)) {
        return Err(format!("parsing time {}: {part} out of range", quote(text)));
    }
    text.replace(',', ".")
        .parse()
        .map_err(|_| format!("parsing time {}: day out of range", quote(text)))
}

/// A string as Go's `%q` prints it, near enough for messages.
pub(crate) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Base64 in canonical form. Line breaks are passed over, as Go does.
pub(crate) fn base64(text: &str) -> Result<String, String> {
    let corrupt = |at: usize| Err(format!("illegal base64 data at input byte {at}"));
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    let mut out = String::with_capacity(text.len());
    let mut bytes = text.bytes().enumerate().filter(|(_, b)| !matches!(b, b'\r' | b'\n'));
    while let Some((at, byte)) = bytes.next() {
        if is_digit(byte) {
            out.push(char::from(byte));
            continue;
        }
        // Padding: one or two signs that complete the last group of four, and nothing after.
        if byte != b'=' || out.len() % 4 < 2 {
            return corrupt(at);
        }
        out.push('=');
        if out.len() % 4 == 3 {
            match bytes.next() {
                Some((_, b'=')) => out.push('='),
                Some((at, _)) => return corrupt(at),
                None => return corrupt(text.len()),
            }
        }
        if let Some((at, _)) = bytes.next() {
            return corrupt(at);
        }
    }
    if !out.len().is_multiple_of(4) {
        return corrupt(text.len() - text.len() % 4);
    }
    zero_trailing_bits(&mut out);
    Ok(out)
}

/// Clears the bits of the last digit that no byte holds: Go drops them when it encodes again.
fn zero_trailing_bits(text: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    if padding == 0 {
        return;
    }
    let at = text.len() - padding - 1;
    let value = DIGITS.iter().position(|d| *d == text.as_bytes()[at]).unwrap_or(0);
    let kept = value & if padding == 1 { !0b11 } else { !0b1111 };
    text.replace_range(at..=at, char::from(DIGITS[kept]).encode_utf8(&mut [0; 4]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        canonical: fn(&str) -> Result<String, String>,
        text: &str,
        expected: Result<&str, &str>,
    ) {
        let got = canonical(text);
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text}");
    }

    #[test]
    fn times() {
        check(time, "2026-01-02T03:04:05Z", Ok("2026-01-02T03:04:05Z"));
        check(time, "2026-01-02T03:04:05.999+02:00", Ok("2026-01-02T01:04:05Z"));
        check(micro_time, "2026-01-02T03:04:05.123456+01:00", Ok("2026-01-02T02:04:05.123456Z"));
        check(
            micro_time,
            "2026-01-02T03:04:05Z",
            Err(
                r#"parsing time "2026-01-02T03:04:05Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#,
            ),
        );
        check(
            time,
            "x",
            Err(r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#),
        );
        check(
            time,
            "",
            Err(r#"parsing time "" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006""#),
        );
        check(
            time,
            "2026-01-02",
            Err(
                r#"parsing time "2026-01-02" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#,
            ),
        );
        check(
            time,
            "2026-13-02T03:04:05Z",
            Err(r#"parsing time "2026-13-02T03:04:05Z": month out of range"#),
        );
        check(
            time,
            "2026-02-30T03:04:05Z",
            Err(r#"parsing time "2026-02-30T03:04:05Z": day out of range"#),
        );
        check(
            time,
            "2026-01-02T03:04:05Zx",
            Err(r#"parsing time "2026-01-02T03:04:05Zx": extra text: "x""#),
        );
        check(
            time,
            "日本日本日本",
            Err(
                r#"parsing time "日本日本日本" as "2006-01-02T15:04:05Z07:00": cannot parse "日本日本日本" as "2006""#,
            ),
        );
    }

    #[test]
    fn base64s() {
        check(base64, "", Ok(""));
        check(base64, "YWI=", Ok("YWI="));
        check(base64, "YW\nI=\n", Ok("YWI="));
        check(base64, "YR==", Ok("YQ=="));
        check(base64, "not base64!", Err("illegal base64 data at input byte 3"));
        check(base64, "YWI", Err("illegal base64 data at input byte 0"));
        check(base64, "=", Err("illegal base64 data at input byte 0"));
        check(base64, "YQ=x", Err("illegal base64 data at input byte 3"));
        check(base64, "YQ==YQ==", Err("illegal base64 data at input byte 4"));
    }

    #[test]
    fn quantities() {
        check(quantity, "1000m", Ok("1"));
        check(quantity, " 64Mi ", Ok("64Mi"));
        check(
            quantity,
            "1x",
            Err(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        );
        check(quantity, "1KM", Err("unable to parse quantity's suffix"));
    }
}
