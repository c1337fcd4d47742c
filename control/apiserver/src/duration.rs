//! Durations as Go prints them (`time.Duration.String`), which is how they stand in JSON.

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// `900ms`, `15.012s`, `1m0s`, `1h0m0.5s`.
pub fn print(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let all = nanos.unsigned_abs();
    let (unit, word) = match all {
        0 => return "0s".into(),
        1..MICRO => (1, "ns"),
        MICRO..MILLI => (MICRO, "µs"),
        MILLI..SECOND => (MILLI, "ms"),
        _ => (SECOND, "s"),
    };
    let (minutes, rest) =
        if unit == SECOND { (all / (60 * SECOND), all % (60 * SECOND)) } else { (0, all) };
    let mut last = format!("{}", rest / unit);
    if rest % unit > 0 {
        let digits = format!("{:0width$}", rest % unit, width = unit.ilog10() as usize);
        last = format!("{last}.{}", digits.trim_end_matches('0'));
    }
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{last}{word}"),
        (0, minutes) => format!("{sign}{minutes}m{last}{word}"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{last}{word}"),
    }
}

/// Reads what Go prints; anything else is no time at all.
pub fn nanos(text: &str) -> i64 {
    let read = rimward_control_cel::parse_duration(text);
    read.and_then(|d| i64::try_from(d.as_nanos()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_prints_them() {
        for (nanos_of, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1_100, "1.1µs"),
            (7_000_000, "7ms"),
            (1_000_000_000, "1s"),
            (1_050_000_000, "1.05s"),
            (-20_000_000_000, "-20s"),
            (60_000_000_000, "1m0s"),
            (90_001_000_000, "1m30.001s"),
            (3_600_500_000_000, "1h0m0.5s"),
        ] {
            assert_eq!(print(nanos_of), text);
            assert_eq!(nanos(text), nanos_of, "{text}");
        }
    }
}
