//! What this node and its pods use, as the kubelet's own API tells it: `/stats/summary`, `/metrics`,
//! `/metrics/resource` and `/metrics/cadvisor`, and what the control plane makes `metrics.k8s.io` of.
//! <https://kubernetes.io/docs/reference/instrumentation/node-metrics/>
//!
//! Nothing is measured while nobody asks. A rate needs two samples: the earlier one is that of a request
//! before, if that was not long ago; else one is taken, and after [`FIRST_WINDOW`] another.

mod machine;
mod prometheus;
mod summary;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rimward_api::usage::{self, Amount, NodeUsage};
use rimward_node_pod::outside::Traffic;
use rimward_node_pod::runtime::{RunId, Usage};
use rimward_node_pod::{ContainerUsage, PodDisk, PodUsage};

use crate::{Core, Parts, PodHandler};
use machine::MachineSample;
pub(crate) use machine::{Memory, processes};
pub(crate) use prometheus::{container_metrics, resource_metrics, volume_metrics};
pub(crate) use summary::summary;

/// A sample as young as this answers all who ask.
const FRESH: Duration = Duration::from_secs(5);
/// A rate is made of the youngest samples at least this far apart, if there are such.
const WINDOW: Duration = Duration::from_secs(10);
/// Below this a rate says nothing: the kernel counts the machine's CPU time in hundredths of a second.
const WINDOW_MIN: Duration = Duration::from_millis(900);
/// What was before is no base of a rate any more.
const STALE: Duration = Duration::from_secs(90);
/// The window of the first who asks.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// Directories are walked this often at most.
const DISK_FRESH: Duration = Duration::from_secs(60);

/// What was measured lately.
#[derive(Default)]
pub(crate) struct Stats {
    /// The oldest first.
    samples: tokio::sync::Mutex<VecDeque<Arc<Sample>>>,
    disk: tokio::sync::Mutex<Option<(Instant, Arc<Vec<PodDisk>>)>>,
}

/// One look at everything.
pub(crate) struct Sample {
    taken: Instant,
    pub time: Timestamp,
    pub machine: MachineSample,
    pub pods: Vec<PodUsage>,
    /// All pods, what runs them, and this agent: by the names that the kubelet's Summary has.
    pub whole: Vec<(&'static str, Usage)>,
    /// The machine's network devices.
    pub devices: Vec<(String, Traffic)>,
}

/// A look, and what CPU was used since another.
pub(crate) struct Measured {
    pub sample: Arc<Sample>,
    base: Arc<Sample>,
    base_runs: HashMap<RunId, u64>,
}

impl Stats {
    /// A sample that is not older than [`FRESH`].
    pub async fn latest(&self, pods: &dyn PodHandler) -> Arc<Sample> {
        let mut samples = self.samples.lock().await;
        latest(&mut samples, pods).await
    }

    pub async fn measured(&self, pods: &dyn PodHandler) -> Measured {
        let mut samples = self.samples.lock().await;
        let mut sample = latest(&mut samples, pods).await;
        let base = match base(&samples, sample.taken) {
            Some(base) => base,
            None => {
                tokio::time::sleep(FIRST_WINDOW).await;
                let before = std::mem::replace(&mut sample, take(pods).await);
                samples.push_back(sample.clone());
                before
            }
        };
        Measured::of(base, sample)
    }

    pub async fn disk(&self, pods: &dyn PodHandler) -> Arc<Vec<PodDisk>> {
        let mut kept = self.disk.lock().await;
        if let Some((at, disk)) = &*kept
            && at.elapsed() < DISK_FRESH
        {
            return disk.clone();
        }
        let disk = Arc::new(pods.disk(None).await);
        *kept = Some((Instant::now(), disk.clone()));
        disk
    }
}

async fn latest(samples: &mut VecDeque<Arc<Sample>>, pods: &dyn PodHandler) -> Arc<Sample> {
    samples.retain(|sample| sample.taken.elapsed() < STALE);
    if let Some(sample) = samples.back()
        && sample.taken.elapsed() < FRESH
    {
        return sample.clone();
    }
    let sample = take(pods).await;
    samples.push_back(sample.clone());
    sample
}

async fn take(pods: &dyn PodHandler) -> Arc<Sample> {
    let machine = MachineSample::take();
    let (taken, time) = (Instant::now(), Timestamp::now());
    let mut whole = pods.usage_of_all();
    whole.push(("kubelet", machine::own()));
    let devices = machine::devices();
    Arc::new(Sample { taken, time, machine, pods: pods.usage().await, whole, devices })
}

/// The sample that rates until `end` begin at.
fn base(samples: &VecDeque<Arc<Sample>>, end: Instant) -> Option<Arc<Sample>> {
    let before = |least: Duration| {
        let apart = move |s: &&Arc<Sample>| end.saturating_duration_since(s.taken) >= least;
        samples.iter().rev().filter(apart)
    };
    before(WINDOW).next().or_else(|| before(WINDOW_MIN).next_back()).cloned()
}

impl Measured {
    fn of(base: Arc<Sample>, sample: Arc<Sample>) -> Self {
        let runs = base.pods.iter().flat_map(|pod| &pod.containers);
        let base_runs = runs.map(|c| (c.id.clone(), c.usage.cpu_nanos)).collect();
        Self { sample, base, base_runs }
    }

    /// Billionths of a core that one of the whole's parts used.
    pub fn whole_rate(&self, name: &str) -> u64 {
        let of = |sample: &Sample| {
            let found = sample.whole.iter().find(|(other, _)| *other == name);
            found.map_or(0, |(_, usage)| usage.cpu_nanos)
        };
        self.rate(of(&self.base), of(&self.sample))
    }

    pub fn window(&self) -> Duration {
        self.sample.taken.saturating_duration_since(self.base.taken)
    }

    /// Billionths of a core. A run that began within the window had used nothing at its begin.
    pub fn container_rate(&self, container: &ContainerUsage) -> u64 {
        self.rate(
            self.base_runs.get(&container.id).copied().unwrap_or(0),
            container.usage.cpu_nanos,
        )
    }

    pub fn machine_rate(&self) -> u64 {
        self.rate(self.base.machine.cpu_nanos, self.sample.machine.cpu_nanos)
    }

    fn rate(&self, from: u64, to: u64) -> u64 {
        let spent = u128::from(to.saturating_sub(from)) * 1_000_000_000;
        u64::try_from(spent / self.window().as_nanos().max(1)).unwrap_or(u64::MAX)
    }
}

/// What the control plane asks for.
pub(crate) async fn usage(core: &Core, parts: &Parts) -> NodeUsage {
    let measured = core.stats.measured(&*parts.pods).await;
    let container = |container: &ContainerUsage| usage::ContainerUsage {
        name: container.id.container.clone(),
        used: Amount {
            cpu_nano_cores: measured.container_rate(container),
            memory_bytes: container.usage.memory_bytes,
        },
    };
    let pod = |pod: &PodUsage| usage::PodUsage {
        uid: pod.uid.clone(),
        containers: pod.containers.iter().map(container).collect(),
    };
    let sample = &measured.sample;
    NodeUsage {
        timestamp: seconds(sample.time),
        window_ms: measured.window().as_millis() as u64,
        node: Amount {
            cpu_nano_cores: measured.machine_rate(),
            memory_bytes: sample.machine.memory.working_set_bytes,
        },
        pods: sample.pods.iter().map(pod).collect(),
    }
}

/// As `metav1.Time` is written.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rimward_node_pod::runtime::Usage;

    fn sample(taken: Instant, cpu_ms: u64, runs: &[(u32, u64)]) -> Arc<Sample> {
        let run = |(attempt, ms): &(u32, u64)| ContainerUsage {
            id: RunId { pod_uid: "u".into(), container: "c".into(), attempt: *attempt },
            started_at: Timestamp::UNIX_EPOCH,
            usage: Usage { cpu_nanos: ms * 1_000_000, ..Usage::default() },
        };
        let pod = PodUsage {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            containers: runs.iter().map(run).collect(),
            traffic: None,
            pressure: None,
        };
        let machine = MachineSample { cpu_nanos: cpu_ms * 1_000_000, ..MachineSample::default() };
        Arc::new(Sample {
            taken,
            time: Timestamp::UNIX_EPOCH,
            machine,
            pods: vec![pod],
            whole: Vec::new(),
            devices: Vec::new(),
        })
    }

    #[test]
    fn rates() {
        let start = Instant::now();
        let end = sample(start + Duration::from_secs(10), 6000, &[(1, 500)]);
        let measured = Measured::of(sample(start, 1000, &[(1, 100)]), end.clone());
        assert_eq!(measured.window(), Duration::from_secs(10));
        assert_eq!(measured.machine_rate(), 500_000_000);
        assert_eq!(measured.container_rate(&end.pods[0].containers[0]), 40_000_000);
        let restarted = Measured::of(sample(start, 1000, &[(0, 9000)]), end.clone());
        assert_eq!(restarted.container_rate(&end.pods[0].containers[0]), 50_000_000);
    }

    #[test]
    fn windows_are_neither_short_nor_needlessly_long() {
        let start = Instant::now();
        let at = |seconds: &[u64]| -> VecDeque<Arc<Sample>> {
            seconds.iter().map(|s| sample(start + Duration::from_secs(*s), 0, &[])).collect()
        };
        #[track_caller]
        fn check(samples: &VecDeque<Arc<Sample>>, start: Instant, expected: Option<u64>) {
            let end = samples.back().unwrap().taken;
            let found = base(samples, end).map(|s| s.taken.duration_since(start).as_secs());
            assert_eq!(found, expected);
        }
        check(&at(&[0]), start, None);
        check(&at(&[0, 1]), start, Some(0));
        check(&at(&[0, 1, 6]), start, Some(0));
        check(&at(&[0, 1, 6, 15, 30]), start, Some(15));
        check(&at(&[0, 15, 25, 30]), start, Some(15));
    }
}
