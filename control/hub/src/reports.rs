//! Pod statuses on their way into the API: the newest of each pod, several pods at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::{self, PodStatus};
use parking_lot::Mutex;
use rimward_client::{DeleteOptions, Error, Resource};
use rimward_control_lean::Pod;
use rimward_tunnel::backoff;
use rimward_tunnel::wire::PodReport;
use serde::de::IgnoredAny;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::session::Session;
use crate::world::node_of;

/// Pods of one node whose statuses are written at once.
const WRITERS: usize = 8;

/// Reports that are not written yet. Bounded by the node's pods: a later one of a pod replaces the
/// earlier one.
#[derive(Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Default)]
struct State {
    latest: HashMap<String, PodReport>,
    /// UIDs with a report, each once, none that is being written.
    queue: VecDeque<String>,
    writing: HashSet<String>,
    /// Reports about pods that are gone: to be acknowledged.
    obsolete: Vec<u64>,
}

impl Reports {
    /// Takes a report of the session's node. An error is a reason to end the connection.
    pub fn take(&self, session: &Session, report: PodReport) -> Result<(), String> {
        let pod = session.inner().world.pods.get(&report.namespace, &report.name);
        let same = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(report.uid.as_str()));
        let mut state = self.state.lock();
        match same {
            Some(pod) if node_of(&pod) != Some(session.node()) => {
                let PodReport { namespace, name, .. } = report;
                return Err(format!("it reported on pod {namespace}/{name}, which is not its own"));
            }
            Some(_) => state.push(report),
            None => state.obsolete.push(report.seq),
        }
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    /// What to do next: write a report, or acknowledge those about pods that are gone. One waiter only.
    async fn next(&self) -> Result<PodReport, Vec<u64>> {
        loop {
            {
                let mut state = self.state.lock();
                if !state.obsolete.is_empty() {
                    return Err(std::mem::take(&mut state.obsolete));
                }
                if let Some(report) = state.pop() {
                    return Ok(report);
                }
            }
            self.more.notified().await;
        }
    }

    fn done(&self, uid: &str) {
        let mut state = self.state.lock();
        state.writing.remove(uid);
        if state.latest.contains_key(uid) {
            state.queue.push_back(uid.to_owned());
            drop(state);
            self.more.notify_one();
        }
    }
}

impl State {
    fn push(&mut self, report: PodReport) {
        let uid = report.uid.clone();
        let waiting = self.latest.insert(uid.clone(), report).is_some();
        if !waiting && !self.writing.contains(&uid) {
            self.queue.push_back(uid);
        }
    }

    fn pop(&mut self) -> Option<PodReport> {
        let uid = self.queue.pop_front()?;
        let report = self.latest.remove(&uid)?;
        self.writing.insert(uid);
        Some(report)
    }
}

/// Writes reports as they come, several pods at a time.
pub(crate) async fn write(session: Arc<Session>, acks: mpsc::Sender<u64>) {
    let slots = Arc::new(Semaphore::new(WRITERS));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        match session.reports.next().await {
            Ok(report) => {
                let (session, acks) = (session.clone(), acks.clone());
                tokio::spawn(async move {
                    let over = session.over.clone();
                    over.run_until_cancelled(write_and_ack(&session, &report, &acks)).await;
                    drop(slot);
                });
            }
            Err(obsolete) => {
                for seq in obsolete {
                    if acks.send(seq).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

async fn write_and_ack(session: &Session, report: &PodReport, acks: &mpsc::Sender<u64>) {
    let written = write_one(session, report).await;
    session.reports.done(&report.uid);
    match written {
        Ok(()) => drop(acks.send(report.seq).await),
        Err(cause) => session.expel(&cause),
    }
}

/// Until it is in the API, or the pod is gone from it. An error is what the node did wrong.
async fn write_one(session: &Session, report: &PodReport) -> Result<(), String> {
    let said: PodStatus = serde_json::from_slice(&report.status).map_err(|e| {
        format!("the status of pod {}/{} cannot be read: {e}", report.namespace, report.name)
    })?;
    let mut failures = 0;
    loop {
        match attempt(session, report, &said, failures > 0).await {
            Ok(()) => return Ok(()),
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) if e.is_conflict() && failures < 5 => failures += 1,
            Err(e) => {
                failures += 1;
                let permanent = e.status().is_some_and(|s| matches!(s.code, 400 | 403 | 422));
                tracing::warn!(
                    node = session.node(), pod = report.name, namespace = report.namespace, cause = %e,
                    "cannot write a pod's status"
                );
                if permanent {
                    return Ok(());
                }
                let wait = backoff::wait(failures, rand::random()).min(Duration::from_secs(10));
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// One try, on the cached pod at first (nearly always the newest), on a fresh one after a conflict.
async fn attempt(
    session: &Session,
    report: &PodReport,
    said: &PodStatus,
    fresh: bool,
) -> Result<(), Error> {
    let inner = session.inner();
    let (namespace, name) = (&report.namespace, &report.name);
    let cached = inner.world.pods.get(namespace, name).filter(|_| !fresh);
    let pod: Arc<Pod> = match cached {
        Some(pod) => pod,
        None => Arc::new(inner.client.get(namespace, name).await?),
    };
    if pod.metadata.uid.as_deref() != Some(report.uid.as_str()) {
        return Ok(());
    }
    let nothing = PodStatus::default();
    let stored = pod.status.as_ref().unwrap_or(&nothing);
    let next = merge(stored, said.clone());
    let leaving = pod.metadata.deletion_timestamp.is_some();
    if next != *stored {
        let echoes = &inner.world.echoes;
        echoes.expect(&report.uid, next.clone());
        // A write of the status changes nothing of the spec, and need not repeat it.
        let (metadata, status) = (pod.metadata.clone(), Some(next));
        let written = v1::Pod { metadata, spec: None, status };
        let path = Resource::of::<Pod>().path(namespace, name, "status");
        // The answer comes by the watch as well: it is not read twice.
        let answer = inner.client.call::<IgnoredAny>(Method::PUT, &path, Some(&written)).await;
        answer.inspect_err(|_| echoes.forget(&report.uid))?;
    }
    if report.terminated && leaving {
        let options = DeleteOptions::uid(&report.uid).grace(0);
        match inner.client.delete::<Pod>(namespace, name, &options).await {
            // Another pod has the name by now: this one is gone.
            Err(e) if e.is_conflict() => {}
            other => other?,
        }
    }
    Ok(())
}

/// Conditions that nobody but a pod's node writes: one that it no longer speaks of is over. They are the
/// kubelet's, by its list of pod conditions that are its own.
const OF_NODES: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];

/// The node's status over the stored one. What others write stays: conditions of types that the node
/// does not speak of (PodScheduled), and fields that are the API server's or the scheduler's.
fn merge(stored: &PodStatus, said: PodStatus) -> PodStatus {
    let mut next = said;
    let spoken = next.conditions.clone().unwrap_or_default();
    let others = stored.conditions.iter().flatten().filter(|c| {
        !OF_NODES.contains(&c.type_.as_str()) && !spoken.iter().any(|s| s.type_ == c.type_)
    });
    let conditions: Vec<_> = spoken.iter().chain(others).cloned().collect();
    next.conditions = (!conditions.is_empty()).then_some(conditions);
    next.qos_class = next.qos_class.or_else(|| stored.qos_class.clone());
    next.nominated_node_name =
        next.nominated_node_name.or_else(|| stored.nominated_node_name.clone());
    next.resource_claim_statuses =
        next.resource_claim_statuses.or_else(|| stored.resource_claim_statuses.clone());
    next.start_time = next.start_time.or_else(|| stored.start_time.clone());
    next
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn others_conditions_stay() {
        let stored: PodStatus = from_value(json!({
            "phase": "Pending", "qosClass": "Burstable", "message": "old",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"},
                {"type": "PodResizePending", "status": "True"}],
        })).unwrap();
        let said: PodStatus = from_value(json!({
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        }))
        .unwrap();
        let expect: PodStatus = from_value(json!({
            "phase": "Running", "qosClass": "Burstable",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        })).unwrap();
        assert_eq!(merge(&stored, said), expect);
    }

    #[test]
    fn the_newest_report_of_a_pod_wins() {
        let report = |seq, uid: &str| PodReport { seq, uid: uid.into(), ..PodReport::default() };
        let mut state = State::default();
        state.push(report(1, "a"));
        state.push(report(2, "b"));
        state.push(report(3, "a"));
        assert_eq!(state.pop().map(|r| r.seq), Some(3));
        // While `a` is written, a newer one waits.
        state.push(report(4, "a"));
        assert_eq!(state.pop().map(|r| r.seq), Some(2));
        assert_eq!(state.pop(), None);
    }
}
