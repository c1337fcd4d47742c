//! Whether this node runs short of memory, process ids or disk: the kubelet's eviction signals and thresholds.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#eviction-signals-and-thresholds>

mod threshold;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::stats::{Memory, processes};
use threshold::Threshold;
pub use threshold::{EvictionHard, EvictionSoft, ThresholdError};

/// What is watched. In the order in which it is answered: memory runs out fastest, and nothing starts without a
/// process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Pids,
    Disk,
    Inodes,
}

impl Signal {
    pub const ALL: [Self; 4] = [Self::Memory, Self::Pids, Self::Disk, Self::Inodes];

    /// As options name it. The node's disk holds images too: imagefs is nodefs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Pids => "pid.available",
            Self::Disk => "nodefs.available",
            Self::Inodes => "nodefs.inodesFree",
        }
    }

    /// The resource that messages tell of.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
        }
    }

    /// The condition that tells of it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Memory => Kind::Memory,
            Self::Pids => Kind::Pids,
            Self::Disk | Self::Inodes => Kind::Disk,
        }
    }

    /// Whether it is counted in bytes.
    pub fn is_bytes(self) -> bool {
        matches!(self, Self::Memory | Self::Disk)
    }
}

/// How much there is of what is watched, in bytes, process ids or inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    pub available: u64,
    pub capacity: u64,
}

/// Where observations come from: the machine, or a test.
pub trait Sensor: Send + Sync + 'static {
    /// None: not known, which is no pressure.
    fn observe(&self, signal: Signal) -> Option<Observed>;
}

/// The machine, and the file system of the node's data.
pub struct Machine {
    pub data_dir: PathBuf,
}

impl Sensor for Machine {
    fn observe(&self, signal: Signal) -> Option<Observed> {
        if signal == Signal::Memory {
            let memory = Memory::now();
            let (available, capacity) = (memory.available_bytes(), memory.capacity_bytes);
            return Some(Observed { available, capacity }).filter(|o| o.capacity > 0);
        }
        if signal == Signal::Pids {
            let (capacity, used) = processes();
            let available = capacity.saturating_sub(used);
            return Some(Observed { available, capacity }).filter(|o| o.capacity > 0);
        }
        let fs = rustix::fs::statvfs(&self.data_dir).ok()?;
        let observed = match signal {
            Signal::Inodes => Observed { available: fs.f_favail, capacity: fs.f_files },
            _ => Observed {
                available: fs.f_bavail * fs.f_frsize,
                capacity: fs.f_blocks * fs.f_frsize,
            },
        };
        // File systems without a fixed number of inodes say that they have none.
        Some(observed).filter(|o| o.capacity > 0)
    }
}

/// A threshold that is crossed, and has been for its grace period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Met {
    pub signal: Signal,
    pub observed: Observed,
    /// What should be available.
    pub wanted: u64,
    /// Without a grace period for pods.
    pub hard: bool,
}

/// What one look found.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// To be acted upon, the most urgent first.
    pub met: Vec<Met>,
    /// Memory may soon be short: it goes fast.
    pub near: bool,
    /// Conditions that changed: (whether it is true now, an Event's reason, its message).
    pub changed: Vec<(bool, &'static str, String)>,
}

/// A condition of the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Disk,
    Pids,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pids];

    /// As the Node has it.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pids => "PIDPressure",
        }
    }
}

/// A condition ends so long after its threshold was last crossed, if it did not end before.
const TRANSITION: Duration = Duration::from_secs(300);

/// The node's thresholds, and which are crossed.
pub struct Pressure {
    sensor: Box<dyn Sensor>,
    hard: EvictionHard,
    soft: EvictionSoft,
    /// Since when soft thresholds are crossed.
    since: Mutex<HashMap<Signal, Instant>>,
    /// When a threshold of each of [`Kind::ALL`] was last seen to be crossed.
    crossed: Mutex<[Option<Instant>; 3]>,
    /// Whether each of [`Kind::ALL`] holds.
    under: [AtomicBool; 3],
    changes: watch::Sender<()>,
}

impl fmt::Debug for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pressure").field("under", &self.under).finish_non_exhaustive()
    }
}

impl Pressure {
    pub fn new(sensor: impl Sensor, hard: EvictionHard, soft: EvictionSoft) -> Self {
        let pressure = Self {
            sensor: Box::new(sensor),
            hard,
            soft,
            since: Mutex::default(),
            crossed: Mutex::default(),
            under: Default::default(),
            changes: watch::Sender::new(()),
        };
        pressure.look(Instant::now());
        pressure
    }

    /// Wakes when a condition changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Looks again.
    pub fn look(&self, now: Instant) -> Look {
        let mut look = Look::default();
        let mut short = [false; 3];
        for signal in Signal::ALL {
            let Some(observed) = self.sensor.observe(signal) else { continue };
            let kind = signal.kind();
            let hard = self.hard.of(signal);
            let soft = self.soft.of(signal);
            if hard.crossed(false, observed) || soft.is_some_and(|s| s.0.crossed(false, observed)) {
                self.crossed.lock()[kind as usize] = Some(now);
            }
            let crossed = self.crossed.lock()[kind as usize];
            let lately = crossed.is_some_and(|at| now.saturating_duration_since(at) < TRANSITION);
            let before = self.is_under(kind) && lately;
            let short = &mut short[kind as usize];
            *short |= hard.crossed(before, observed);
            look.near |= signal == Signal::Memory && hard.is_near(observed);
            if hard.crossed(false, observed) {
                look.met.push(met(signal, hard, observed, true));
            }
            let Some((soft, grace)) = soft else { continue };
            *short |= soft.crossed(before, observed);
            let mut since = self.since.lock();
            if !soft.crossed(false, observed) {
                since.remove(&signal);
            } else if now.saturating_duration_since(*since.entry(signal).or_insert(now)) >= grace {
                look.met.push(met(signal, soft, observed, false));
            }
        }
        look.met.sort_by_key(|met| (met.signal, !met.hard));
        for (kind, now) in Kind::ALL.into_iter().zip(short) {
            if self.under[kind as usize].swap(now, Ordering::Relaxed) == now {
                continue;
            }
            let (_, _, message) = self.condition(kind);
            match now {
                true => tracing::warn!(?kind, "this node runs short: {message}"),
                false => tracing::info!(?kind, "this node has room again: {message}"),
            }
            look.changed.push((now, event(kind, now), message));
        }
        if !look.changed.is_empty() {
            self.changes.send_replace(());
        }
        look
    }

    pub fn is_under(&self, kind: Kind) -> bool {
        self.under[kind as usize].load(Ordering::Relaxed)
    }

    /// Status, reason and message of the node's condition.
    pub fn condition(&self, kind: Kind) -> (&'static str, &'static str, String) {
        let hard = &self.hard;
        match (kind, self.is_under(kind)) {
            (Kind::Memory, true) => (
                "True",
                "KubeletHasInsufficientMemory",
                format!(
                    "the node has too little memory (memory.available<{})",
                    hard.of(Signal::Memory)
                ),
            ),
            (Kind::Memory, false) => {
                ("False", "KubeletHasSufficientMemory", "the node has enough memory".into())
            }
            (Kind::Disk, true) => (
                "True",
                "KubeletHasDiskPressure",
                format!(
                    "the file system of the node's data is too full (nodefs.available<{},nodefs.inodesFree<{}); make room there",
                    hard.of(Signal::Disk),
                    hard.of(Signal::Inodes)
                ),
            ),
            (Kind::Disk, false) => {
                ("False", "KubeletHasNoDiskPressure", "the node has enough disk".into())
            }
            (Kind::Pids, true) => (
                "True",
                "KubeletHasInsufficientPID",
                format!(
                    "the node has too few process ids left (pid.available<{})",
                    hard.of(Signal::Pids)
                ),
            ),
            (Kind::Pids, false) => {
                ("False", "KubeletHasSufficientPID", "the node has enough process ids".into())
            }
        }
    }
}

fn met(signal: Signal, threshold: Threshold, observed: Observed, hard: bool) -> Met {
    Met { signal, observed, wanted: threshold.amount(observed.capacity), hard }
}

/// The reason of the Event about the Node, as the kubelet has it.
fn event(kind: Kind, short: bool) -> &'static str {
    match (kind, short) {
        (Kind::Memory, true) => "NodeHasInsufficientMemory",
        (Kind::Memory, false) => "NodeHasSufficientMemory",
        (Kind::Disk, true) => "NodeHasDiskPressure",
        (Kind::Disk, false) => "NodeHasNoDiskPressure",
        (Kind::Pids, true) => "NodeHasInsufficientPID",
        (Kind::Pids, false) => "NodeHasSufficientPID",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// A sensor that says what a test wants.
    #[derive(Clone, Default)]
    pub(crate) struct Told(pub Arc<Mutex<HashMap<Signal, u64>>>);

    impl Told {
        /// Of a thousand.
        pub fn set(&self, signal: Signal, available: u64) {
            self.0.lock().insert(signal, available);
        }
    }

    impl Sensor for Told {
        fn observe(&self, signal: Signal) -> Option<Observed> {
            let available = self.0.lock().get(&signal).copied()?;
            Some(Observed { available, capacity: 1000 })
        }
    }

    #[test]
    fn conditions_come_and_go() {
        let told = Told::default();
        let hard = "memory.available<100,nodefs.available<5%".parse().unwrap();
        let pressure = Pressure::new(told.clone(), hard, EvictionSoft::default());
        let now = Instant::now();
        told.set(Signal::Memory, 150);
        let look = pressure.look(now);
        assert!(look.near && look.met.is_empty() && !pressure.is_under(Kind::Memory));
        told.set(Signal::Memory, 99);
        told.set(Signal::Disk, 10);
        let look = pressure.look(now);
        let met: Vec<_> = look.met.iter().map(|m| (m.signal, m.wanted, m.hard)).collect();
        assert_eq!(met, [(Signal::Memory, 100, true), (Signal::Disk, 50, true)]);
        let events: Vec<_> = look.changed.iter().map(|(now, reason, _)| (*now, *reason)).collect();
        assert_eq!(events, [(true, "NodeHasInsufficientMemory"), (true, "NodeHasDiskPressure")]);
        // It ends two fifths above where it began.
        told.set(Signal::Memory, 120);
        let met = pressure.look(now).met;
        assert!(met.iter().all(|m| m.signal == Signal::Disk) && pressure.is_under(Kind::Memory));
        told.set(Signal::Memory, 140);
        assert_eq!(pressure.look(now).changed[0].1, "NodeHasSufficientMemory");
        assert!(pressure.is_under(Kind::Disk));
    }

    #[test]
    fn process_ids_run_out() {
        let told = Told::default();
        let hard = "pid.available<10%".parse().unwrap();
        let pressure = Pressure::new(told.clone(), hard, EvictionSoft::default());
        told.set(Signal::Pids, 99);
        let look = pressure.look(Instant::now());
        assert_eq!(look.changed[0].1, "NodeHasInsufficientPID");
        assert_eq!(look.met[0].signal, Signal::Pids);
        assert_eq!(pressure.condition(Kind::Pids).1, "KubeletHasInsufficientPID");
        // Just above the threshold it holds for a while.
        told.set(Signal::Pids, 101);
        let last = Instant::now() + Duration::from_secs(299);
        assert!(pressure.look(last).changed.is_empty() && pressure.is_under(Kind::Pids));
        let look = pressure.look(last + Duration::from_secs(2));
        assert_eq!(look.changed[0].1, "NodeHasSufficientPID");
        let machine = Machine { data_dir: "/".into() };
        let seen = machine.observe(Signal::Pids).unwrap();
        assert!(0 < seen.available && seen.available < seen.capacity, "{seen:?}");
    }

    #[test]
    fn soft_thresholds_wait() {
        let told = Told::default();
        let soft = EvictionSoft::parse("memory.available<300", "memory.available=1m30s").unwrap();
        let pressure = Pressure::new(told.clone(), EvictionHard::default(), soft);
        told.set(Signal::Memory, 200);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // The hard default, 100Mi, is more than this machine has: only the soft one is looked at.
        let met = |now| pressure.look(now).met.iter().filter(|m| !m.hard).count();
        assert_eq!((met(at(0)), met(at(89)), met(at(90))), (0, 0, 1));
        told.set(Signal::Memory, 300);
        assert_eq!(met(at(91)), 0);
        told.set(Signal::Memory, 200);
        assert_eq!((met(at(92)), met(at(100))), (0, 0), "the time begins anew");
    }
}
