//! Node-pressure eviction: makes room by ending pods before the kernel or a full disk does it worse, and ends
//! pods that write more than they may.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>
//!
//! Every ten seconds it looks, every second while memory may soon be short. At most one pod is ended a
//! look, and the next only when that one is gone: what it leaves free must be seen first. Memory is looked at by
//! reading; a notification by the kernel, as the kubelet has it, is bound to cgroup v1's root and was left out.

mod demand;
mod rank;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rimward_node_pod::{PodDisk, PodUsage};

use crate::images::NodeImages;
use crate::pressure::{Look, Met, Pressure, Signal};
use crate::reports::Outgoing;
use crate::stats::Stats;
use crate::{Core, PodHandler};
use demand::Demand;
use rank::Subject;

const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY_NEAR: Duration = Duration::from_secs(1);
/// What writes are measured at most this often.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How long the next eviction waits for the one before.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often an Event says that something is short.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// How long what a pod had takes to come free once its containers have ended: volumes in memory, caches.
const SETTLE: Duration = Duration::from_secs(5);
/// What a pod gets of its grace period when it is urgent.
const GRACE_SECONDS: i64 = 1;

/// Runs until the node stops.
pub(crate) async fn run(core: Arc<Core>) {
    let mut evictor = Evictor::default();
    loop {
        let look = core.pressure.look(Instant::now());
        for (_, reason, _) in &look.changed {
            let message = format!("Node {} status is now: {reason}", core.config.name);
            // To the kubelet both directions are Normal.
            core.reports.node_event(false, reason, &message);
        }
        let every = if look.near { LOOK_EVERY_NEAR } else { LOOK_EVERY };
        let parts = core.parts.borrow().clone();
        if let Some(parts) = parts {
            let images = core.image_store.get().map(|images| &**images);
            let node = Around {
                pods: &*parts.pods,
                stats: &core.stats,
                pressure: &core.pressure,
                reports: &core.reports,
                images,
                soft_grace_seconds: core.config.eviction_max_pod_grace_seconds,
            };
            evictor.act(&node, look).await;
        }
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// What an evictor looks at and acts upon.
pub(crate) struct Around<'a> {
    pods: &'a dyn PodHandler,
    stats: &'a Stats,
    pressure: &'a Pressure,
    reports: &'a Outgoing,
    images: Option<&'a NodeImages>,
    soft_grace_seconds: i64,
}

/// What it remembers between looks.
#[derive(Default)]
pub(crate) struct Evictor {
    /// Of the pods that may write only so much what they are; None for others. That does not change in a
    /// pod's life.
    limited: HashMap<String, Option<Arc<Demand>>>,
    /// When what was last said to be short.
    told: HashMap<Signal, Instant>,
    /// The last pod that was ended, until it is gone, and then for a moment.
    ending: Option<Ending>,
    measured: Option<Instant>,
}

struct Ending {
    uid: String,
    since: Instant,
    gone: Option<Instant>,
}

impl Evictor {
    /// Acts upon a look, if there is something to do. Answers the pods that were ended.
    pub async fn act(&mut self, node: &Around<'_>, look: Look) -> Vec<String> {
        let active = node.pods.active();
        self.learn(node.pods, &active);
        let over = self.evict_over_limits(node).await;
        if !over.is_empty() {
            return over;
        }
        let Some(met) = look.met.first().copied() else { return Vec::new() };
        if self.is_busy(node).await {
            return Vec::new();
        }
        let resource = met.signal.resource();
        if self.told.get(&met.signal).is_none_or(|at| at.elapsed() > SAID_EVERY) {
            self.told.insert(met.signal, Instant::now());
            let message = format!("Attempting to reclaim {resource}");
            node.reports.node_event(true, "EvictionThresholdMet", &message);
        }
        if matches!(met.signal, Signal::Disk | Signal::Inodes)
            && let Some(images) = node.images
        {
            images.free(node.pods, u64::MAX).await;
            let now = node.pressure.look(Instant::now());
            if !now.met.iter().any(|m| m.signal == met.signal) {
                tracing::info!(resource, "there is room again without images that nothing uses");
                return Vec::new();
            }
        }
        self.evict_one(node, met).await.into_iter().collect()
    }

    fn learn(&mut self, pods: &dyn PodHandler, active: &[String]) {
        let there: HashSet<&String> = active.iter().collect();
        self.limited.retain(|uid, _| there.contains(uid));
        for uid in active {
            if !self.limited.contains_key(uid)
                && let Some(pod) = pods.object(uid)
            {
                let demand = Some(Demand::of(&pod)).filter(Demand::is_limited);
                self.limited.insert(uid.clone(), demand.map(Arc::new));
            }
        }
    }

    /// Whether the pod that was ended last is still about to go, or its room about to show.
    async fn is_busy(&mut self, node: &Around<'_>) -> bool {
        let Some(ending) = &mut self.ending else { return false };
        if ending.gone.is_none() {
            let runs = node.pods.usage().await.iter().any(|pod| pod.uid == ending.uid);
            ending.gone = (!runs).then(Instant::now);
        }
        let busy = match ending.gone {
            Some(gone) => gone.elapsed() < SETTLE,
            None => ending.since.elapsed() < PATIENCE,
        };
        if !busy {
            self.ending = None;
        }
        busy
    }

    /// Ends the pods that have written more than they may.
    async fn evict_over_limits(&mut self, node: &Around<'_>) -> Vec<String> {
        let limited = self.limited.iter().filter(|(_, demand)| demand.is_some());
        let limited: HashSet<String> = limited.map(|(uid, _)| uid.clone()).collect();
        if limited.is_empty() || self.measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return Vec::new();
        }
        let mut evicted = Vec::new();
        for disk in node.pods.disk(Some(limited)).await {
            let Some(Some(demand)) = self.limited.get(&disk.uid) else { continue };
            if demand.critical {
                continue;
            }
            if let Some(message) = demand.over_limit(&disk)
                && node.pods.evict(&disk.uid, message, false, GRACE_SECONDS)
            {
                evicted.push(disk.uid);
            }
        }
        self.measured = Some(Instant::now());
        evicted
    }

    async fn evict_one(&mut self, node: &Around<'_>, met: Met) -> Option<String> {
        let mut subjects = Self::subjects(node, met.signal).await;
        rank::order(&mut subjects, met.signal);
        for subject in subjects {
            let message = rank::message(&subject, &met);
            let grace = if met.hard { GRACE_SECONDS } else { node.soft_grace_seconds };
            if node.pods.evict(&subject.uid, message.clone(), true, grace) {
                tracing::warn!(pod = subject.demand.name, message, "a pod was evicted");
                self.ending =
                    Some(Ending { uid: subject.uid.clone(), since: Instant::now(), gone: None });
                return Some(subject.uid);
            }
        }
        tracing::warn!(resource = met.signal.resource(), "there is no pod to evict");
        None
    }

    /// The pods that may be ended, and what each takes of what is short.
    async fn subjects(node: &Around<'_>, signal: Signal) -> Vec<Subject> {
        let demand = |uid: &str| {
            let demand = Demand::of(&*node.pods.object(uid)?);
            (!demand.critical).then(|| Arc::new(demand))
        };
        if signal == Signal::Memory {
            let sample = node.stats.latest(node.pods).await;
            let of = |pod: &PodUsage| {
                let used: BTreeMap<String, u64> = pod
                    .containers
                    .iter()
                    .map(|c| (c.id.container.clone(), c.usage.memory_bytes))
                    .collect();
                let total = used.values().sum();
                Some(Subject { uid: pod.uid.clone(), demand: demand(&pod.uid)?, used, total })
            };
            return sample.pods.iter().filter_map(of).collect();
        }
        if signal == Signal::Pids {
            let of = |pod: &PodUsage| {
                let total = pod.containers.iter().map(|c| c.usage.processes).sum();
                let (uid, used) = (pod.uid.clone(), BTreeMap::new());
                Some(Subject { demand: demand(&uid)?, uid, used, total })
            };
            return node.stats.latest(node.pods).await.pods.iter().filter_map(of).collect();
        }
        let of = |disk: &PodDisk| {
            let demand = demand(&disk.uid)?;
            let (used, total) = match signal {
                Signal::Inodes => (BTreeMap::new(), disk.total().inodes),
                _ => (demand::written(disk), demand.ephemeral(disk)),
            };
            Some(Subject { uid: disk.uid.clone(), demand, used, total })
        };
        node.pods.disk(None).await.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests;
