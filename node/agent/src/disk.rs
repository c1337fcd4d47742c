//! Whether the file system of the node's data is too full to take more pods.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use rimward_api::quantity::Quantity;

/// Below which room the node says that its disk is full: what the kubelet calls `--eviction-hard`
/// (<https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#hard-eviction-thresholds>).
///
/// By default 5 % of the bytes and of the inodes: Kubernetes' own 10 % is a lot of room on a large disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionHard {
    available: Threshold,
    inodes_free: Threshold,
}

/// Why a text is no [`EvictionHard`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    #[error("{0:?} is not SIGNAL<VALUE, as in nodefs.available<5%")]
    Form(String),
    #[error(
        "signal {0:?} is not one that this node watches; there are nodefs.available and nodefs.inodesFree"
    )]
    Signal(String),
    #[error("{signal}: {value:?} is neither a share from 0% to 100% nor a quantity such as 500Mi")]
    Value { signal: String, value: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threshold {
    /// Thousandths of the whole.
    Permille(u64),
    /// Bytes, or inodes.
    Absolute(u64),
}

impl Default for EvictionHard {
    fn default() -> Self {
        Self { available: Threshold::Permille(50), inodes_free: Threshold::Permille(50) }
    }
}

impl FromStr for EvictionHard {
    type Err = ThresholdError;

    /// A signal that is not named keeps its default.
    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let mut all = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let form = || ThresholdError::Form(part.to_owned());
            let (signal, value) = part.split_once('<').ok_or_else(form)?;
            let threshold = value.parse().map_err(|()| ThresholdError::Value {
                signal: signal.to_owned(),
                value: value.to_owned(),
            })?;
            match signal {
                "nodefs.available" => all.available = threshold,
                "nodefs.inodesFree" => all.inodes_free = threshold,
                other => return Err(ThresholdError::Signal(other.to_owned())),
            }
        }
        Ok(all)
    }
}

impl fmt::Display for EvictionHard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nodefs.available<{},nodefs.inodesFree<{}", self.available, self.inodes_free)
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
            Self::Absolute(n) => write!(f, "{n}"),
        }
    }
}

impl Threshold {
    /// Whether so little is free of units of `unit` bytes (or of 1 inode). Pressure ends two fifths above where
    /// it began: a node must not flap.
    fn crossed(self, before: bool, free: u64, total: u64, unit: u64) -> bool {
        let (least, free) = match self {
            Self::Permille(n) => (u128::from(n) * u128::from(total), u128::from(free) * 1000),
            Self::Absolute(n) => (u128::from(n), u128::from(free) * u128::from(unit)),
        };
        let (more, parts) = if before { (7, 5) } else { (1, 1) };
        free * parts < least * more
    }
}

/// The file system of the node's data, judged by what is free of its bytes and inodes.
#[derive(Debug)]
pub struct Disk {
    data_dir: PathBuf,
    thresholds: EvictionHard,
    under_pressure: AtomicBool,
}

impl Disk {
    pub fn of(data_dir: &Path, thresholds: EvictionHard) -> Self {
        let under_pressure = AtomicBool::new(false);
        let disk = Self { data_dir: data_dir.to_owned(), thresholds, under_pressure };
        disk.look();
        disk
    }

    /// Looks again; answers whether anything changed, which it says in the log too.
    pub fn look(&self) -> bool {
        let Ok(now) = rustix::fs::statvfs(&self.data_dir) else { return false };
        let before = self.under_pressure();
        let bytes =
            self.thresholds.available.crossed(before, now.f_bavail, now.f_blocks, now.f_frsize);
        // File systems without a fixed number of inodes say that they have none.
        let inodes = now.f_files > 0
            && self.thresholds.inodes_free.crossed(before, now.f_favail, now.f_files, 1);
        self.under_pressure.store(bytes || inodes, Ordering::Relaxed);
        let (_, reason, message) = self.condition();
        match (before, bytes || inodes) {
            (false, true) => tracing::warn!(reason, "no more pods come to this node: {message}"),
            (true, false) => tracing::info!(reason, "pods may come again: {message}"),
            _ => {}
        }
        before != (bytes || inodes)
    }

    pub fn under_pressure(&self) -> bool {
        self.under_pressure.load(Ordering::Relaxed)
    }

    /// Status, reason and message of the node's condition DiskPressure.
    pub fn condition(&self) -> (&'static str, &'static str, String) {
        match self.under_pressure() {
            true => (
                "True",
                "KubeletHasDiskPressure",
                format!(
                    "the file system of {} is too full ({}); make room there",
                    self.data_dir.display(),
                    self.thresholds
                ),
            ),
            false => ("False", "KubeletHasNoDiskPressure", "the node has enough disk".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_room_again() {
        #[track_caller]
        fn check(threshold: Threshold, before: bool, free: u64, expected: bool) {
            assert_eq!(threshold.crossed(before, free, 1000, 4), expected, "{before} {free}");
        }
        let share = Threshold::Permille(50);
        check(share, false, 50, false);
        check(share, false, 49, true);
        check(share, true, 60, true);
        check(share, true, 70, false);
        let bytes = Threshold::Absolute(400);
        check(bytes, false, 100, false);
        check(bytes, false, 99, true);
        check(bytes, true, 139, true);
        check(bytes, true, 140, false);
        assert!(!share.crossed(false, 0, 0, 4096), "a file system of no size is not full");
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
        check("", "nodefs.available<5%,nodefs.inodesFree<5%");
        check("nodefs.available<10%", "nodefs.available<10%,nodefs.inodesFree<5%");
        check("nodefs.available<2.5%", "nodefs.available<2.5%,nodefs.inodesFree<5%");
        check(
            "nodefs.available<1Gi, nodefs.inodesFree<1k",
            "nodefs.available<1073741824,nodefs.inodesFree<1000",
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
            "memory.available<1Gi",
            "signal \"memory.available\" is not one that this node watches; there are nodefs.available and nodefs.inodesFree",
        );
    }
}
