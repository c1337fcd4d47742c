//! Thresholds as the kubelet's options write them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rimward_api::quantity::Quantity;

use super::{Observed, Signal};

/// Below which room pods are evicted at once: `--eviction-hard`
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#hard-eviction-thresholds>).
///
/// By default 100 MiB of memory, and 5 % of the disk's bytes and inodes: Kubernetes' own 10 % is a lot of room
/// on a large disk. Of process ids nothing, as in Kubernetes: pods have limits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionHard {
    memory: Threshold,
    pids: Threshold,
    disk: Threshold,
    inodes: Threshold,
}

/// Below which room pods are evicted when it lasts: `--eviction-soft` and `--eviction-soft-grace-period`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvictionSoft(BTreeMap<Signal, (Threshold, Duration)>);

/// Why a text is no threshold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    #[error("{0:?} is not SIGNAL<VALUE, as in nodefs.available<5%")]
    Form(String),
    #[error(
        "signal {0:?} is not one that this node watches; there are memory.available, pid.available, nodefs.available and nodefs.inodesFree"
    )]
    Signal(String),
    #[error("{signal}: {value:?} is neither a share from 0% to 100% nor a quantity such as 500Mi")]
    Value { signal: String, value: String },
    #[error("{0:?} is not SIGNAL=DURATION, as in memory.available=1m30s")]
    Grace(String),
    #[error("the soft threshold of {0} has no grace period")]
    NoGrace(&'static str),
    #[error("{0} has a grace period, and no soft threshold")]
    NoThreshold(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threshold {
    /// Thousandths of the whole.
    Permille(u64),
    /// Bytes, or inodes.
    Absolute(u64),
}

impl Default for EvictionHard {
    fn default() -> Self {
        Self {
            memory: Threshold::Absolute(100 << 20),
            pids: Threshold::NONE,
            disk: Threshold::Permille(50),
            inodes: Threshold::Permille(50),
        }
    }
}

impl EvictionHard {
    pub(super) fn of(&self, signal: Signal) -> Threshold {
        match signal {
            Signal::Memory => self.memory,
            Signal::Pids => self.pids,
            Signal::Disk => self.disk,
            Signal::Inodes => self.inodes,
        }
    }
}

impl EvictionSoft {
    /// # Errors
    /// Says what of the two texts does not fit.
    pub fn parse(thresholds: &str, graces: &str) -> Result<Self, ThresholdError> {
        let mut all = BTreeMap::new();
        for (signal, threshold) in parts(thresholds)? {
            all.insert(signal, (threshold, None));
        }
        for part in graces.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let form = || ThresholdError::Grace(part.to_owned());
            let (signal, grace) = part.split_once('=').ok_or_else(form)?;
            let signal = signal_of(signal)?;
            let grace = go_duration(grace).ok_or_else(form)?;
            let found = all.get_mut(&signal).ok_or(ThresholdError::NoThreshold(signal.name()))?;
            found.1 = Some(grace);
        }
        let whole = all.into_iter().map(|(signal, (threshold, grace))| {
            let grace = grace.ok_or(ThresholdError::NoGrace(signal.name()))?;
            Ok((signal, (threshold, grace)))
        });
        Ok(Self(whole.collect::<Result<_, _>>()?))
    }

    pub(super) fn of(&self, signal: Signal) -> Option<(Threshold, Duration)> {
        self.0.get(&signal).copied()
    }
}

fn signal_of(name: &str) -> Result<Signal, ThresholdError> {
    // Images lie on the node's disk.
    let name = match name {
        "imagefs.available" => Signal::Disk.name(),
        "imagefs.inodesFree" => Signal::Inodes.name(),
        name => name,
    };
    let found = Signal::ALL.into_iter().find(|signal| signal.name() == name);
    found.ok_or_else(|| ThresholdError::Signal(name.to_owned()))
}

fn parts(text: &str) -> Result<Vec<(Signal, Threshold)>, ThresholdError> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let part = |part: &str| {
        let form = || ThresholdError::Form(part.to_owned());
        let (name, value) = part.split_once('<').ok_or_else(form)?;
        let signal = signal_of(name)?;
        let wrong = |()| ThresholdError::Value { signal: name.to_owned(), value: value.to_owned() };
        Ok((signal, value.parse().map_err(wrong)?))
    };
    parts.map(part).collect()
}

/// `1m30s`, as Go reads it: hours, minutes and seconds.
fn go_duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..end].parse().ok()?;
        let unit = match rest.as_bytes()[end] {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[end + 1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

impl FromStr for EvictionHard {
    type Err = ThresholdError;

    /// A signal that is not named keeps its default.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut all = Self::default();
        for (signal, threshold) in parts(text)? {
            match signal {
                Signal::Memory => all.memory = threshold,
                Signal::Pids => all.pids = threshold,
                Signal::Disk => all.disk = threshold,
                Signal::Inodes => all.inodes = threshold,
            }
        }
        Ok(all)
    }
}

impl fmt::Display for EvictionHard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = Signal::ALL.into_iter().filter(|signal| self.of(*signal) != Threshold::NONE);
        let one = |signal: Signal| format!("{}<{}", signal.name(), self.of(signal));
        write!(f, "{}", set.map(one).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Threshold {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // A share's thousandths are the thousandths of its number divided by 100.
        let (number, share) = match text.strip_suffix('%') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let quantity = Quantity::parse(number).map_err(|_| ())?;
        match share {
            true => {
                let permille = u64::try_from(quantity.millis() / 100).map_err(|_| ())?;
                (permille <= 1000).then_some(Self::Permille(permille)).ok_or(())
            }
            false => u64::try_from(quantity.value()).map(Self::Absolute).map_err(|_| ()),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permille(n) if n % 10 == 0 => write!(f, "{}%", n / 10),
            Self::Permille(n) => write!(f, "{}.{}%", n / 10, n % 10),
            Self::Absolute(n) => {
                write!(f, "{}", Quantity::from_bytes(i64::try_from(*n).unwrap_or(i64::MAX)))
            }
        }
    }
}

impl Threshold {
    /// Nothing is too little.
    pub const NONE: Self = Self::Absolute(0);

    /// What should be available, of so much.
    pub fn amount(self, capacity: u64) -> u64 {
        match self {
            Self::Permille(n) => (u128::from(capacity) * u128::from(n) / 1000) as u64,
            Self::Absolute(n) => n,
        }
    }

    /// Whether so little is available. Pressure ends two fifths above where it began: a node must not flap.
    pub fn crossed(self, before: bool, observed: Observed) -> bool {
        let (least, free) = match self {
            Self::Permille(n) => {
                let free = u128::from(observed.available) * 1000;
                (u128::from(n) * u128::from(observed.capacity), free)
            }
            Self::Absolute(n) => (u128::from(n), u128::from(observed.available)),
        };
        let (more, parts) = if before { (7, 5) } else { (1, 1) };
        free * parts < least * more
    }

    /// Whether twice as much would be too little.
    pub fn is_near(self, observed: Observed) -> bool {
        u128::from(observed.available) < 2 * u128::from(self.amount(observed.capacity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_room_again() {
        #[track_caller]
        fn check(threshold: Threshold, before: bool, available: u64, expected: bool) {
            let observed = Observed { available, capacity: 1000 };
            assert_eq!(threshold.crossed(before, observed), expected, "{before} {available}");
        }
        let share = Threshold::Permille(50);
        check(share, false, 50, false);
        check(share, false, 49, true);
        check(share, true, 60, true);
        check(share, true, 70, false);
        let bytes = Threshold::Absolute(400);
        check(bytes, false, 400, false);
        check(bytes, false, 399, true);
        check(bytes, true, 559, true);
        check(bytes, true, 560, false);
        let nothing = Observed { available: 0, capacity: 0 };
        assert!(!share.crossed(false, nothing), "a file system of no size is not full");
    }

    #[test]
    fn thresholds_as_the_kubelet_writes_them() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let got = match text.parse::<EvictionHard>() {
                Ok(all) => all.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expected, "{text}");
        }
        check("", "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%");
        check(
            "nodefs.available<2.5%",
            "memory.available<100Mi,nodefs.available<2.5%,nodefs.inodesFree<5%",
        );
        check(
            "memory.available<500Mi,imagefs.available<1Gi, nodefs.inodesFree<1k",
            "memory.available<500Mi,nodefs.available<1Gi,nodefs.inodesFree<1k",
        );
        check(
            "nodefs.available",
            "\"nodefs.available\" is not SIGNAL<VALUE, as in nodefs.available<5%",
        );
        check(
            "nodefs.available<-1",
            "nodefs.available: \"-1\" is neither a share from 0% to 100% nor a quantity such as 500Mi",
        );
        check(
            "nodefs.available<101%",
            "nodefs.available: \"101%\" is neither a share from 0% to 100% nor a quantity such as 500Mi",
        );
        check(
            "pid.available<10",
            "memory.available<100Mi,pid.available<10,nodefs.available<5%,nodefs.inodesFree<5%",
        );
        check("memory.available<0", "nodefs.available<5%,nodefs.inodesFree<5%");
        check(
            "allocatableMemory.available<10",
            "signal \"allocatableMemory.available\" is not one that this node watches; there are memory.available, pid.available, nodefs.available and nodefs.inodesFree",
        );
    }

    #[test]
    fn soft_ones_have_a_grace_period() {
        #[track_caller]
        fn check(thresholds: &str, graces: &str, expected: &str) {
            let got = match EvictionSoft::parse(thresholds, graces) {
                Ok(soft) => format!("{:?}", soft.of(Signal::Memory).map(|(_, grace)| grace)),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expected);
        }
        check("memory.available<1Gi", "memory.available=1m30s", "Some(90s)");
        check("", "", "None");
        let text = "the soft threshold of memory.available has no grace period";
        check("memory.available<1Gi", "", text);
        let text = "memory.available has a grace period, and no soft threshold";
        check("", "memory.available=1h", text);
        let text = "\"memory.available=x\" is not SIGNAL=DURATION, as in memory.available=1m30s";
        check("memory.available<1Gi", "memory.available=x", text);
    }
}
