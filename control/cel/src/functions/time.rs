//! Timestamps and durations: their texts, and what can be asked of them.
//! <https://github.com/google/cel-spec/blob/master/doc/langdef.md#abstract-types>

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::standard::text_of;
use super::{Context, Out, Row, no_overload};
use crate::error::{EvalError, other};
use crate::value::Value;

macro_rules! part {
    ($name:literal, timestamp, $get:expr) => {
        (
            $name,
            &[
                concat!("timestamp.", $name, "() -> int"),
                concat!("timestamp.", $name, "(string) -> int"),
            ],
            |_, args| part(args, $get, None),
        )
    };
    ($name:literal, both, $get:expr, $of_duration:expr) => {
        (
            $name,
            &[
                concat!("timestamp.", $name, "() -> int"),
                concat!("timestamp.", $name, "(string) -> int"),
                concat!("duration.", $name, "() -> int"),
            ],
            |_, args| part(args, $get, Some($of_duration)),
        )
    };
}

pub const ROWS: &[Row] = &[
    (
        "timestamp",
        &[
            "timestamp(string) -> timestamp",
            "timestamp(int) -> timestamp",
            "timestamp(timestamp) -> timestamp",
        ],
        to_timestamp,
    ),
    (
        "duration",
        &[
            "duration(string) -> duration",
            "duration(duration) -> duration",
            "duration(int) -> duration",
        ],
        to_duration,
    ),
    part!("getFullYear", timestamp, |t| i64::from(t.year())),
    part!("getMonth", timestamp, |t| i64::from(t.month()) - 1),
    part!("getDate", timestamp, |t| i64::from(t.day())),
    part!("getDayOfMonth", timestamp, |t| i64::from(t.day()) - 1),
    part!("getDayOfYear", timestamp, |t| i64::from(t.day_of_year()) - 1),
    part!("getDayOfWeek", timestamp, |t| i64::from(t.weekday().to_sunday_zero_offset())),
    part!("getHours", both, |t| i64::from(t.hour()), |d| d.as_hours()),
    part!("getMinutes", both, |t| i64::from(t.minute()), |d| d.as_mins()),
    part!("getSeconds", both, |t| i64::from(t.second()), |d| d.as_secs()),
    part!("getMilliseconds", both, |t| i64::from(t.millisecond()), |d| {
        i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
    }),
];

fn part<'a>(
    args: &[Value<'a>],
    of_timestamp: fn(&Zoned) -> i64,
    of_duration: Option<fn(&SignedDuration) -> i64>,
) -> Out<'a> {
    match (&args[0], of_duration) {
        (Value::Timestamp(t), _) => {
            let zone = match args.get(1) {
                Some(zone) => zone_of(text_of(zone)?)?,
                None => TimeZone::UTC,
            };
            Ok(Value::Int(of_timestamp(&t.to_zoned(zone))))
        }
        (Value::Duration(d), Some(get)) if args.len() == 1 => Ok(Value::Int(get(d))),
        _ => no_overload(),
    }
}

/// `Europe/Berlin`, `+02:00`, `-08:00`
fn zone_of(text: &str) -> Result<TimeZone, EvalError> {
    let unknown = || EvalError::Other(format!("unknown time zone {text}"));
    if text.is_empty() || text == "UTC" {
        return Ok(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = text.split_once(':') {
        let sign = if hours.starts_with('-') { -1 } else { 1 };
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().map_err(|_| unknown())?;
        let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
        let seconds = hours.checked_mul(3600).and_then(|h| h.checked_add(minutes.checked_mul(60)?));
        let offset =
            Offset::from_seconds(sign * seconds.ok_or_else(unknown)?).map_err(|_| unknown())?;
        return Ok(offset.to_time_zone());
    }
    TimeZone::get(text).map_err(|_| unknown())
}

/// Years 1 to 9999 are timestamps.
pub fn in_range<'a>(time: Option<Timestamp>) -> Out<'a> {
    let first = DateTime::constant(1, 1, 1, 0, 0, 0, 0).to_zoned(TimeZone::UTC);
    match (time, first) {
        (Some(time), Ok(first)) if time >= first.timestamp() => Ok(Value::Timestamp(time)),
        _ => other("timestamp overflow"),
    }
}

fn to_timestamp<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Timestamp(t) => Ok(Value::Timestamp(*t)),
        Value::Int(seconds) => in_range(Timestamp::from_second(*seconds).ok()),
        Value::String(text) => match parse_timestamp(text) {
            Some(time) => in_range(Some(time)),
            None => other(format!("invalid timestamp {:?}", clip(text))),
        },
        _ => no_overload(),
    }
}

fn to_duration<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    match &args[0] {
        Value::Duration(d) => Ok(Value::Duration(*d)),
        Value::Int(nanos) => Ok(Value::Duration(SignedDuration::from_nanos(*nanos))),
        Value::String(text) => match parse_duration(text) {
            Some(duration) => Ok(Value::Duration(duration)),
            None => other(format!("invalid duration {:?}", clip(text))),
        },
        _ => no_overload(),
    }
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

/// RFC 3339.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let zoned = text.ends_with(['Z', 'z']) || text.get(10..)?.contains(['+', '-']);
    let separated = text.as_bytes().get(10).is_some_and(|c| matches!(c, b'T' | b't'));
    if !zoned || !separated || text.contains('[') {
        return None;
    }
    text.parse().ok()
}

pub fn print_timestamp(time: Timestamp) -> String {
    time.to_string()
}

/// Go's: `1h30m`, `-1.5s`, `300ms`, `0`.
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() || text.len() > 64 {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(scaled(number, scale)?)?;
        rest = next;
    }
    let nanos = if negative { -nanos } else { nanos };
    i64::try_from(nanos).ok().map(SignedDuration::from_nanos)
}

/// A decimal number times a scale, without rounding on the way.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.chars() {
        place /= 10;
        total += i128::from(digit.to_digit(10)?) * place;
    }
    Some(total)
}

/// Seconds with a fraction: `5400s`, `0.3s`.
pub fn print_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, fraction) =
        (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{seconds}s"),
        fraction => {
            let digits = format!("{fraction:09}");
            format!("{sign}{seconds}.{}s", digits.trim_end_matches('0'))
        }
    }
}
