//! `resource.Quantity`: fixed-point numbers with a decimal or binary suffix.
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>

use std::fmt;
use std::ops::{Add, Sub};

/// A parsed quantity: an exact number of billionths, and the form in which it is printed.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// The text that Kubernetes gives for a quantity that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct ParseError;

const NANO: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
/// Suffix and power of ten.
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// Parses a quantity. Fractions finer than a billionth are rounded up, away from zero.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let digits_end = text
            .char_indices()
            .find(|(i, c)| {
                !(c.is_ascii_digit() || *c == '.' || (*i == 0 && matches!(c, '+' | '-')))
            })
            .map_or(text.len(), |(i, _)| i);
        let (number, suffix) = text.split_at(digits_end);
        let (negative, number) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError);
        }
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        // Beyond this, the value saturates as Kubernetes caps it at 2^63 - 1.
        if digits.len() > 30 {
            return Err(ParseError);
        }
        let mantissa: i128 =
            if digits.is_empty() { 0 } else { digits.parse().map_err(|_| ParseError)? };
        let scale = -(fraction.len() as i32);
        let (nanos, format) = if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
            let scaled = mantissa.checked_mul(1i128 << bits).ok_or(ParseError)?;
            (shift_ten(scaled, scale + 9), Format::BinarySi)
        } else if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
            (shift_ten(mantissa, scale + 9 + power), Format::DecimalSi)
        } else if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
            let power: i32 = exponent.parse().map_err(|_| ParseError)?;
            (shift_ten(mantissa, (scale + 9).saturating_add(power)), Format::DecimalExponent)
        } else {
            return Err(ParseError);
        };
        let cap = i128::from(i64::MAX) * NANO;
        let nanos = nanos.min(cap);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    pub fn from_whole(n: i64) -> Self {
        Self { nanos: i128::from(n) * NANO, format: Format::DecimalSi }
    }

    pub fn from_millis(n: i64) -> Self {
        Self { nanos: i128::from(n) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Billionths, as rates of CPU are told.
    pub fn from_nanos(n: i128) -> Self {
        Self { nanos: n, format: Format::DecimalSi }
    }

    /// A number of bytes, printed with binary suffixes.
    pub fn from_bytes(n: i64) -> Self {
        Self { nanos: i128::from(n) * NANO, format: Format::BinarySi }
    }

    /// The whole number, rounded up (away from zero), as the scheduler counts memory.
    pub fn value(&self) -> i64 {
        div_up(self.nanos, NANO)
    }

    /// Thousandths, rounded up, as the scheduler counts CPU.
    pub fn millis(&self) -> i64 {
        div_up(self.nanos, NANO / 1000)
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The nearest floating-point number.
    pub fn approximate(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether the value is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }
}

fn div_up(n: i128, d: i128) -> i64 {
    let (q, r) = (n / d, n % d);
    (q + r.signum()).clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// `n × 10^power`, rounded up, saturating.
fn shift_ten(n: i128, power: i32) -> i128 {
    // Zero never overflows, and an exponent may be two thousand million.
    if n == 0 {
        return 0;
    }
    if power >= 0 {
        (0..power).try_fold(n, |n, _| n.checked_mul(10)).unwrap_or(i128::MAX)
    } else {
        let mut n = n;
        let mut lost = false;
        for _ in 0..(-power).min(64) {
            lost |= n % 10 != 0;
            n /= 10;
        }
        n + i128::from(lost)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && self.nanos % NANO == 0
            && (self.nanos / NANO).abs() >= 1024
        {
            let n = self.nanos / NANO;
            let best = BINARY.iter().rev().find(|(_, bits)| n % (1i128 << bits) == 0);
            return match best {
                Some((suffix, bits)) => write!(f, "{}{suffix}", n >> bits),
                None => write!(f, "{n}"),
            };
        }
        let mut n = self.nanos;
        let mut power = -9;
        while n % 1000 == 0 && power < 18 {
            n /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { write!(f, "{n}") } else { write!(f, "{n}e{power}") };
        }
        let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(s, _)| *s);
        write!(f, "{n}{suffix}")
    }
}

impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), format: self.format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form() {
        #[track_caller]
        fn check(text: &str, canonical: &str, millis: i64) {
            let q = Quantity::parse(text).expect("parses");
            assert_eq!((q.to_string().as_str(), q.millis()), (canonical, millis), "{text}");
        }
        check("0", "0", 0);
        check("100m", "100m", 100);
        check("0.1", "100m", 100);
        check("1000m", "1", 1000);
        check("1.5", "1500m", 1500);
        check("64Mi", "64Mi", (64i64 << 20) * 1000);
        check("1024Mi", "1Gi", (1i64 << 30) * 1000);
        check("1.5Gi", "1536Mi", 3 * (1i64 << 29) * 1000);
        check("128000", "128k", 128_000_000);
        check("1e3", "1e3", 1_000_000);
        check("-1", "-1", -1000);
        check("0.5Mi", "512Ki", (1i64 << 19) * 1000);
        check("1n", "1n", 1);
        check("0e2147483647", "0", 0);
        for wrong in ["", "x", "1x", "1.2.3", "Mi", "1 Mi", "1e", "--1"] {
            assert!(Quantity::parse(wrong).is_err(), "{wrong}");
        }
    }
}
