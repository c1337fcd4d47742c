//! What goes up: the newest status of each pod until the control plane has it, and Events.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use rimward_node_pod::outside::Reports;
use rimward_tunnel::wire::PodReport;
use rimward_tunnel::wire::codec::{RawFrame, encode};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError};

/// So long the status of a pod that is Pending waits for a better one. Most pods are Running sooner, and
/// all that is done for a status, here and in the control plane, is done once and not twice.
const SETTLE: Duration = Duration::from_millis(50);
/// Events that wait for a connection; the oldest give way.
const EVENTS_MAX: usize = 1024;

/// The way up for pods. Bounded by the pods of the node: one status each.
pub(crate) struct Outgoing {
    node: String,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
    more: Notify,
}

#[derive(Default)]
struct State {
    next_seq: u64,
    /// By pod UID: not yet acknowledged.
    statuses: HashMap<String, PodReport>,
    /// UIDs whose newest status was not sent on this connection.
    unsent: BTreeSet<String>,
    /// Those that are not to be sent before.
    settling: HashMap<String, Instant>,
    /// UIDs whose row in the ledger is not what `statuses` says. Rows of what was acknowledged go with
    /// the next write: if one is left over, the status is sent again, which changes nothing.
    unwritten: BTreeSet<String>,
    events: VecDeque<Vec<u8>>,
}

/// What to send now.
pub(crate) struct Taken {
    pub statuses: Vec<PodReport>,
    pub events: Vec<Vec<u8>>,
}

impl Outgoing {
    /// With what an earlier agent could not report.
    pub fn load(ledger: Arc<Ledger>, node: &str) -> Result<Self, LedgerError> {
        let mut state = State { next_seq: 1, ..State::default() };
        for (uid, bytes) in ledger.statuses()? {
            let report = RawFrame::parse(&bytes).ok().flatten();
            if let Some(report) =
                report.and_then(|frame| frame.decode::<PodReport>().ok().flatten())
            {
                state.next_seq = state.next_seq.max(report.seq + 1);
                state.unsent.insert(uid.clone());
                state.statuses.insert(uid, report);
            }
        }
        Ok(Self { node: node.to_owned(), ledger, state: Mutex::new(state), more: Notify::new() })
    }

    /// A new connection: what was sent on the one before may be lost.
    pub fn resend(&self) {
        let mut state = self.state.lock();
        state.unsent = state.statuses.keys().cloned().collect();
        state.settling.clear();
        drop(state);
        self.more.notify_one();
    }

    /// Waits until there is something to send. Cancel-safe.
    pub async fn ready(&self) {
        loop {
            let due = self.state.lock().due(Instant::now());
            match due {
                Due::Now => return,
                Due::Later(at) => {
                    let _settled_or_more = tokio::time::timeout_at(at, self.more.notified()).await;
                }
                Due::Never => self.more.notified().await,
            }
        }
    }

    /// Takes what is to be sent, after it is in the ledger. If the caller's connection breaks
    /// meanwhile, the next one sends it again.
    pub async fn take(&self) -> Taken {
        let (taken, rows) = {
            let mut state = self.state.lock();
            let unsent = state.take_due(Instant::now());
            let statuses =
                unsent.iter().filter_map(|uid| state.statuses.get(uid).cloned()).collect();
            let State { unwritten, settling, .. } = &mut *state;
            let unwritten: Vec<String> =
                unwritten.extract_if(.., |uid| !settling.contains_key(uid)).collect();
            let row = |uid: String| {
                let bytes = state.statuses.get(&uid).map(|report| {
                    let mut bytes = Vec::new();
                    encode(report, &mut bytes);
                    bytes
                });
                (uid, bytes)
            };
            let rows: Vec<_> = unwritten.into_iter().map(row).collect();
            let events = std::mem::take(&mut state.events).into();
            (Taken { statuses, events }, rows)
        };
        if !rows.is_empty() {
            let ledger = self.ledger.clone();
            match tokio::task::spawn_blocking(move || ledger.set_statuses(&rows)).await {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => {
                    tracing::error!(%cause, "a pod's status cannot be written into the ledger")
                }
                Err(cause) => tracing::error!(%cause, "the ledger's task failed"),
            }
        }
        taken
    }

    /// The API has these.
    pub fn acknowledged(&self, seqs: &[u64]) {
        let seqs: BTreeSet<u64> = seqs.iter().copied().collect();
        let mut state = self.state.lock();
        let State { statuses, unwritten, .. } = &mut *state;
        statuses.retain(|uid, report| {
            let done = seqs.contains(&report.seq);
            if done {
                unwritten.insert(uid.clone());
            }
            !done
        });
    }

    fn report(&self, pod: &Pod, status: &PodStatus, terminated: bool) {
        let settles = !terminated && status.phase.as_deref() == Some("Pending");
        let status = serde_json::to_vec(status).expect("a PodStatus has only string keys");
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut state = self.state.lock();
        let seq = state.next_seq;
        state.next_seq += 1;
        let report = PodReport {
            seq,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.clone(),
            // What has ended does not come back to life under the same UID.
            terminated: terminated || state.statuses.get(&uid).is_some_and(|r| r.terminated),
            status,
        };
        state.statuses.insert(uid.clone(), report);
        match settles {
            // From the first on: one that changes all the time is told all the same.
            true => drop(state.settling.entry(uid.clone()).or_insert(Instant::now() + SETTLE)),
            false => drop(state.settling.remove(&uid)),
        }
        state.unsent.insert(uid.clone());
        state.unwritten.insert(uid);
        drop(state);
        self.more.notify_one();
    }
}

/// When there is something to send.
#[derive(Debug, PartialEq)]
enum Due {
    Now,
    Later(Instant),
    Never,
}

impl State {
    fn due(&self, now: Instant) -> Due {
        let at = |uid: &String| self.settling.get(uid).copied();
        if !self.events.is_empty() || self.unsent.iter().any(|uid| at(uid).is_none_or(|t| t <= now))
        {
            return Due::Now;
        }
        self.unsent.iter().filter_map(at).min().map_or(Due::Never, Due::Later)
    }

    fn take_due(&mut self, now: Instant) -> BTreeSet<String> {
        self.settling.retain(|_, at| *at > now);
        let settling = &self.settling;
        self.unsent.extract_if(.., |uid| !settling.contains_key(uid)).collect()
    }
}

impl Outgoing {
    /// An Event about the node, which has its name for a UID, as the kubelet's Events say it.
    pub fn node_event(&self, warning: bool, reason: &str, message: &str) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        self.say(about, warning, reason, message);
    }

    fn say(&self, about: ObjectReference, warning: bool, reason: &str, message: &str) {
        let now = Timestamp::now();
        let event = Event {
            involved_object: about,
            type_: Some(if warning { "Warning" } else { "Normal" }.into()),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            source: Some(EventSource { component: None, host: Some(self.node.clone()) }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            ..Event::default()
        };
        let event = serde_json::to_vec(&event).expect("an Event has only string keys");
        let mut state = self.state.lock();
        if state.events.len() >= EVENTS_MAX {
            state.events.pop_front();
        }
        state.events.push_back(event);
        drop(state);
        self.more.notify_one();
    }
}

impl Reports for Outgoing {
    fn pod_status(&self, pod: &Pod, status: PodStatus) {
        self.report(pod, &status, false);
    }

    fn pod_terminated(&self, pod: &Pod, status: PodStatus) {
        self.report(pod, &status, true);
    }

    fn event(&self, pod: &Pod, field_path: &str, warning: bool, reason: &str, message: &str) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            field_path: (!field_path.is_empty()).then(|| field_path.to_owned()),
            resource_version: None,
        };
        self.say(about, warning, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.name = Some(uid.into());
        pod
    }

    fn status(phase: &str) -> PodStatus {
        PodStatus { phase: Some(phase.into()), ..PodStatus::default() }
    }

    #[tokio::test]
    async fn statuses_stay_until_they_are_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(dir.path()).unwrap());
        let out = Outgoing::load(ledger.clone(), "n").unwrap();
        out.pod_status(&pod("a"), status("Pending"));
        out.pod_status(&pod("a"), status("Running"));
        out.ready().await;
        let first = out.take().await.statuses;
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].status, serde_json::to_vec(&status("Running")).unwrap());

        // A later agent finds it, and sends what is newer than it.
        let later = Outgoing::load(ledger.clone(), "n").unwrap();
        assert_eq!(later.take().await.statuses, first);
        later.pod_terminated(&pod("a"), status("Succeeded"));
        later.acknowledged(&[first[0].seq]);
        let second = later.take().await.statuses;
        assert!(second[0].terminated && second[0].seq > first[0].seq);
        // Sent again on a new connection, forgotten once acknowledged.
        later.resend();
        assert_eq!(later.take().await.statuses, second);
        later.acknowledged(&[second[0].seq]);
        assert!(later.take().await.statuses.is_empty());
        assert!(ledger.statuses().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_pending_waits_for_better() {
        let dir = tempfile::tempdir().unwrap();
        let out = Outgoing::load(Arc::new(Ledger::open(dir.path()).unwrap()), "n").unwrap();
        let phases = |taken: Taken| -> Vec<Option<String>> {
            let read =
                |r: &PodReport| serde_json::from_slice::<PodStatus>(&r.status).unwrap().phase;
            taken.statuses.iter().map(read).collect()
        };
        out.pod_status(&pod("a"), status("Pending"));
        assert!(out.take().await.statuses.is_empty());
        out.pod_status(&pod("a"), status("Running"));
        out.ready().await;
        assert_eq!(phases(out.take().await), [Some("Running".into())]);
        // One that stays as it is gets told, and one that has ended at once.
        out.pod_status(&pod("b"), status("Pending"));
        out.ready().await;
        assert_eq!(phases(out.take().await), [Some("Pending".into())]);
        out.pod_status(&pod("c"), status("Pending"));
        out.pod_terminated(&pod("c"), status("Pending"));
        assert_eq!(out.take().await.statuses.len(), 1);
    }

    #[tokio::test]
    async fn events_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let out = Outgoing::load(Arc::new(Ledger::open(dir.path()).unwrap()), "n").unwrap();
        for i in 0..EVENTS_MAX + 5 {
            out.event(&pod("a"), "", true, "Because", &i.to_string());
        }
        let events = out.take().await.events;
        assert_eq!(events.len(), EVENTS_MAX);
        let first: Event = serde_json::from_slice(&events[0]).unwrap();
        assert_eq!(
            (first.message.as_deref(), first.type_.as_deref()),
            (Some("5"), Some("Warning"))
        );
    }
}
