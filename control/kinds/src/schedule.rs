//! When a CronJob runs: five fields of cron, or a descriptor.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax>

use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan as _};

/// A schedule that was understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// In equal steps, at least a second each.
    Every(SignedDuration),
    Fields(Fields),
}

/// Values are bits. Hours that a clock skips have none, those that it repeats have two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both days and weekdays restrict: either will do.
    either_day: bool,
}

/// No schedule skips more: the 29th of February may be eight years away.
const DAYS_SEARCHED: usize = 9 * 366;

impl Schedule {
    /// None where it is no schedule.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(name) = text.strip_prefix('@') else { return fields(text).map(Self::Fields) };
        let equal = match name {
            "yearly" | "annually" => "0 0 1 1 *",
            "monthly" => "0 0 1 * *",
            "weekly" => "0 0 * * 0",
            "daily" | "midnight" => "0 0 * * *",
            "hourly" => "0 * * * *",
            _ => {
                let seconds = duration_seconds(name.strip_prefix("every ")?)?;
                return Some(Self::Every(SignedDuration::from_secs(seconds.max(1))));
            }
        };
        fields(equal).map(Self::Fields)
    }

    /// The first time after `after`; None where there is none, as on the 31st of February.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(step) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*step).ok()
            }
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..DAYS_SEARCHED {
            if self.has_day(date) {
                let times = self.times(date, zone).filter(|at| *at > after);
                if let Some(first) = times.min() {
                    return Some(first);
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn has_day(&self, date: jiff::civil::Date) -> bool {
        let has = |bits: u64, value: i8| bits >> value & 1 == 1;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && if self.either_day { day || weekday } else { day && weekday }
    }

    fn times(&self, date: jiff::civil::Date, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
        let set = |bits: u64, end: i8| (0..end).filter(move |i| bits >> i & 1 == 1);
        let minutes = self.minutes;
        let clock = set(self.hours, 24).flat_map(move |h| set(minutes, 60).map(move |m| (h, m)));
        clock.flat_map(move |(hour, minute)| {
            let at = date.at(hour, minute, 0, 0);
            let offsets = match zone.to_ambiguous_timestamp(at).offset() {
                AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
                AmbiguousOffset::Gap { .. } => [None, None],
                AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
            };
            offsets.into_iter().flatten().filter_map(move |offset| offset.to_timestamp(at).ok())
        })
    }
}

fn fields(text: &str) -> Option<Fields> {
    const MONTHS: &str = "jan feb mar apr may jun jul aug sep oct nov dec";
    const DAYS: &str = "sun mon tue wed thu fri sat";
    let words: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = words[..] else { return None };
    let (days, any_day) = field(days, 1, 31, "")?;
    let (weekdays, any_weekday) = field(weekdays, 0, 6, DAYS)?;
    Some(Fields {
        minutes: field(minutes, 0, 59, "")?.0,
        hours: field(hours, 0, 23, "")?.0,
        months: field(months, 1, 12, MONTHS)?.0,
        days,
        weekdays,
        either_day: !any_day && !any_weekday,
    })
}

/// A comma list of `*`, numbers, names, ranges and steps: its bits, and whether it leaves all open.
fn field(text: &str, low: u32, high: u32, names: &str) -> Option<(u64, bool)> {
    let value = |t: &str| {
        let named = names.split(' ').position(|n| n.eq_ignore_ascii_case(t) && !n.is_empty());
        let number = named.map(|i| i as u32 + low).or_else(|| t.parse().ok())?;
        (low..=high).contains(&number).then_some(number)
    };
    let (mut bits, mut open) = (0, false);
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
        let count: u32 = step.map_or(Some(1), |s| s.parse().ok().filter(|n| *n > 0))?;
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => {
                open |= count == 1;
                (low, high)
            }
            Some((from, to)) => (value(from)?, value(to)?),
            // With a step, one number is where it begins.
            None => (value(range)?, if step.is_some() { high } else { value(range)? }),
        };
        if first > last {
            return None;
        }
        (first..=last).step_by(count as usize).for_each(|i| bits |= 1 << i);
    }
    Some((bits, open))
}

/// As Go writes durations: `1h30m`, `90s`. Whole seconds.
fn duration_seconds(text: &str) -> Option<i64> {
    let (mut rest, mut total) = (text.trim(), 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_one() {
        for good in ["*/5 * * * *", "0 0 1 jan mon-fri", "1,2-4 * ? * 0", "@daily", "@every 1h"] {
            assert!(Schedule::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@often",
            "a * * * *",
            "@every",
            "@every soon",
            "* * 0 * *",
            "* * * * 7",
        ] {
            assert!(Schedule::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn when_it_is_next() {
        #[track_caller]
        fn check(schedule: &str, zone: &str, after: &str, expected: &[&str]) {
            let schedule = Schedule::parse(schedule).expect("a schedule");
            let zone = TimeZone::get(zone).expect("a zone");
            let mut at: Timestamp = after.parse().expect("a time");
            for next in expected {
                at = schedule.next(at, &zone).expect("a next time");
                assert_eq!(at.to_string(), *next);
            }
        }
        let noon = "2026-01-31T12:00:30Z";
        check("* * * * *", "UTC", noon, &["2026-01-31T12:01:00Z", "2026-01-31T12:02:00Z"]);
        check(
            "*/20 13 * * *",
            "UTC",
            noon,
            &[
                "2026-01-31T13:00:00Z",
                "2026-01-31T13:20:00Z",
                "2026-01-31T13:40:00Z",
                "2026-02-01T13:00:00Z",
            ],
        );
        check("50/5 * * * *", "UTC", noon, &["2026-01-31T12:50:00Z", "2026-01-31T12:55:00Z"]);
        check("@monthly", "UTC", noon, &["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]);
        check("@every 90s", "UTC", noon, &["2026-01-31T12:02:00Z"]);
        check("@every 1ns", "UTC", noon, &["2026-01-31T12:00:31Z"]);
        // The 2nd is a Monday: both must hold, unless both are said.
        check("0 0 * * mon", "UTC", noon, &["2026-02-02T00:00:00Z"]);
        check("0 0 1 * *", "UTC", noon, &["2026-02-01T00:00:00Z"]);
        check("0 0 3 * 1", "UTC", noon, &["2026-02-02T00:00:00Z", "2026-02-03T00:00:00Z"]);
        check("0 0 29 2 *", "UTC", noon, &["2028-02-29T00:00:00Z"]);
        check("0 9 * * *", "Asia/Tokyo", noon, &["2026-02-01T00:00:00Z"]);
        // In Berlin 02:30 is skipped on 29 March, and comes twice on 25 October.
        check("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]);
        check(
            "0,30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &[
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
            ],
        );
        let never = Schedule::parse("0 0 31 2 *").expect("a schedule");
        assert_eq!(
            never.next("2026-01-01T00:00:00Z".parse().expect("a time"), &TimeZone::UTC),
            None
        );
    }
}
