//! How long a request may take: `?timeout=`, up to a minute. Requests that last are not bounded.

use std::time::Duration;

use rimward_api::{Reason, Status, status::Details};
use tokio::time::Instant;

use crate::request::Query;

/// What a request may take at most, as kube-apiserver has it.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// When a request that begins now has to be answered.
pub fn of(query: &Query, now: Instant) -> Result<Instant, Status> {
    let asked = match query.get("timeout").unwrap_or_default() {
        "" => Duration::ZERO,
        text => go_duration(text).map_err(|why| {
            Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))
        })?,
    };
    let asked = Some(asked).filter(|a| !a.is_zero());
    Ok(now + asked.unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX))
}

pub fn exceeded() -> Status {
    Status {
        code: 504,
        reason: Reason::Timeout,
        message: "Timeout: request did not complete within the allotted timeout".into(),
        details: Some(Box::new(Details::default())),
    }
}

/// `1m30s`, `500ms`, `1.5h`: what Go's `time.ParseDuration` takes. Negative ones are none at all.
fn go_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => return Err(format!("time: missing unit in duration {text:?}")),
                unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = after;
    }
    if negative {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<u64, &str>) {
        let got = go_duration(text).map(|d| d.as_millis() as u64);
        assert_eq!(got, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn durations() {
        check("32s", Ok(32_000));
        check("1m30s", Ok(90_000));
        check("1.5h", Ok(5_400_000));
        check("250ms", Ok(250));
        check("0", Ok(0));
        check("-5s", Ok(0));
        check("5", Err("time: missing unit in duration \"5\""));
        check("5x", Err("time: unknown unit \"x\" in duration \"5x\""));
        check("x", Err("time: invalid duration \"x\""));
        check("", Err("time: invalid duration \"\""));
        check("1.2.3s", Err("time: invalid duration \"1.2.3s\""));
        check(
            "99999999999999999999999h",
            Err("time: invalid duration \"99999999999999999999999h\""),
        );
    }
}
