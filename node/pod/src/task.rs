//! The task of one pod: plan, write down, act, report, wait.

mod admit;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use rimward_api::ObjectKey;
use tokio::sync::Notify;

use crate::act;
use crate::allocation::Amounts;
use crate::image_volumes::ImageVolumes;
use crate::pods::Node;
use crate::record::{self, Record};
use crate::sources::{Name, Sources};
use crate::state::{ContainerState, Durability, KnownRun, Phase, PodState, Resize, Setup};
use crate::status;
use crate::steps::{self, Plan};
use crate::volumes::Places;

/// How long a status is held back while more is about to change.
const SETTLE: SignedDuration = SignedDuration::from_millis(100);

/// How long the API's view may lag behind what was sent.
const LAG: SignedDuration = SignedDuration::from_secs(3);

/// How long a pod must have had nothing to do before its object is packed: starts and restarts come in bursts.
const PACK_AFTER: Duration = Duration::from_secs(2);
/// What is due sooner than this finds the object as it is: probes are not to pay for unpacking.
const PACKED_MIN: Duration = Duration::from_secs(60);

/// A pod's state and the bell of its task.
pub(crate) struct Handle {
    pub uid: Arc<str>,
    pub key: ObjectKey,
    pub node: Arc<Node>,
    /// Those that are images.
    pub image_volumes: ImageVolumes,
    state: Mutex<Kept>,
    wake: Notify,
}

/// The state, whose object is packed while the pod has nothing to do: as JSON it takes a quarter of the memory.
/// A node may have ten thousand pods, of which at any time few do anything.
struct Kept {
    state: PodState,
    packed: Option<Box<[u8]>>,
}

impl Kept {
    fn unpack(&mut self) {
        if let Some(json) = self.packed.take() {
            self.state.pod = decoded(&json);
        }
    }

    fn pack(&mut self) {
        if self.packed.is_none() {
            let json = serde_json::to_vec(&*self.state.pod).expect("a Pod has only string keys");
            self.packed = Some(json.into_boxed_slice());
            self.state.pod = nothing();
        }
    }
}

fn decoded(json: &[u8]) -> Arc<Pod> {
    Arc::new(serde_json::from_slice(json).expect("it was encoded here"))
}

/// Stands in the place of an object that is packed.
fn nothing() -> Arc<Pod> {
    static NOTHING: LazyLock<Arc<Pod>> = LazyLock::new(Arc::default);
    NOTHING.clone()
}

/// A turn of the task, decided under the lock.
struct Turn {
    plan: Plan,
    save: Option<(Vec<u8>, Durability)>,
    report: Option<Report>,
}

struct Report {
    pod: Arc<Pod>,
    status: PodStatus,
    terminated: bool,
}

impl Handle {
    pub fn new(node: Arc<Node>, state: PodState) -> Self {
        let (uid, key) = (state.uid.clone(), ObjectKey::of_meta(&state.pod.metadata));
        let state = Mutex::new(Kept { state, packed: None });
        Self { uid, key, node, image_volumes: ImageVolumes::default(), state, wake: Notify::new() }
    }

    /// The state, with its object, until the pod has nothing to do again.
    fn state(&self) -> MappedMutexGuard<'_, PodState> {
        let mut kept = self.state.lock();
        kept.unpack();
        MutexGuard::map(kept, |kept| &mut kept.state)
    }

    /// Applies an input and wakes the task.
    pub fn apply<R>(&self, input: impl FnOnce(&mut PodState, Timestamp) -> R) -> R {
        let result = input(&mut self.state(), self.node.config.clock.now());
        self.wake.notify_one();
        result
    }

    /// Reads the state. What is packed stays so.
    pub fn look<R>(&self, look: impl FnOnce(&PodState) -> R) -> R {
        let mut kept = self.state.lock();
        let Some(json) = kept.packed.as_deref() else { return look(&kept.state) };
        kept.state.pod = decoded(json);
        let seen = look(&kept.state);
        kept.state.pod = nothing();
        seen
    }

    /// Reads of the state what is not in the object, which may be packed and is not to be looked at.
    pub fn peek<R>(&self, look: impl FnOnce(&PodState) -> R) -> R {
        look(&self.state.lock().state)
    }

    pub fn places(&self) -> Places {
        let config = &self.node.config;
        Places::new(&config.data_dir, config.memory_dir.as_deref(), &self.uid)
    }

    pub fn pod_dir(&self) -> PathBuf {
        self.places().pod_dir
    }

    pub fn status(&self) -> PodStatus {
        let now = self.node.config.clock.now();
        let host_ip = self.node.config.network.host_ip();
        self.look(|state| status::compute(&state.pod, &state.facts(host_ip, now), now))
    }

    async fn load(self: &Arc<Self>, known: Vec<KnownRun>) {
        let record = Record::read(&self.pod_dir());
        let runtimes = self.node.runtime_names();
        let was_here = record.is_some() || !known.is_empty();
        let seen = self.apply(|state, now| {
            state.load(record, known, &runtimes, now);
            let seen = match &state.volumes {
                Setup::Done(mounted) => mounted.versions.clone(),
                _ => Vec::new(),
            };
            state.watched = seen.iter().map(|(name, _)| name.clone()).collect();
            seen
        });
        self.admit(was_here).await;
        self.ask_who_runs();
        self.node.references.resume(&self.key.namespace, &self.uid, &seen);
        if !seen.is_empty() {
            let handle = self.clone();
            tokio::spawn(async move { handle.catch_up(seen).await });
        }
    }

    /// Who adopted runs are was not written down before they ended.
    fn ask_who_runs(self: &Arc<Self>) {
        let runs = self.look(|state| {
            let unknown = (0..state.containers.len()).filter(|i| {
                let c = &state.containers[*i];
                c.identity.is_none() && matches!(c.phase, Phase::Running(_))
            });
            let run = |i: usize| Some((state.run_id(i), state.containers[i].runtime?.0));
            unknown.filter_map(run).collect::<Vec<_>>()
        });
        for (id, runtime) in runs {
            let handle = self.clone();
            tokio::spawn(async move {
                if let Some(identity) = handle.node.runtime(runtime).identity(&id).await {
                    handle.apply(|state, _| state.identified(&id, identity));
                }
            });
        }
    }

    /// What the spec asks for is granted if this node has it and the runtimes can give it.
    fn resize(&self, state: &mut PodState, now: Timestamp) {
        let cannot = (0..state.containers.len()).find(|index| {
            let c = &state.containers[*index];
            let runtime = c.runtime.map(|(index, _)| self.node.runtime(index));
            c.is_alive()
                && state.granted.contains_key(&c.name)
                && runtime.is_some_and(|runtime| !runtime.resizes())
        });
        if let Some(index) = cannot {
            let c = &state.containers[index];
            let runtime = c.runtime.map_or("", |(_, name)| name);
            let why =
                format!("the {runtime} runtime cannot resize container {:?} in place", c.name);
            return state.resize_pending("Infeasible", why, now);
        }
        let swaps = (0..state.containers.len()).any(|index| {
            let runtime =
                state.containers[index].runtime.map(|(index, _)| self.node.runtime(index));
            runtime.is_some_and(|runtime| runtime.has_swap()) && state.resizes_swap(index)
        });
        if swaps {
            // The kubelet's words.
            let why = "In-place resize of containers with swap is not supported.".to_owned();
            return state.resize_pending("Infeasible", why, now);
        }
        let wanted = Amounts::of(state.spec());
        match self.node.allocations.take(&self.uid, wanted, self.node.capacity(), false) {
            Ok(()) => state.resize_granted(now),
            Err(lack) => {
                state.resize_lacks(&lack, now);
                if !lack.is_for_good() {
                    self.node.allocations.wait(&self.uid);
                }
            }
        }
    }

    /// What changed while no agent was there is looked at again. What is not to be had yet will
    /// come as a change.
    async fn catch_up(&self, seen: Vec<(Name, Option<String>)>) {
        let names = seen.iter().map(|(name, _)| name.clone()).collect();
        let objects = &*self.node.config.objects;
        let now = Sources::fetch(objects, &self.key.namespace, names).await.versions();
        let newer = |(name, version): &(Name, Option<String>)| {
            version.is_some() && seen.iter().any(|(n, v)| n == name && v != version)
        };
        if now.iter().any(newer) {
            self.apply(PodState::objects_changed);
        }
    }

    fn turn(&self, now: Timestamp) -> Turn {
        let mut state = self.state();
        if state.loaded && state.ending.is_none() && state.resize == Resize::Wanted {
            self.resize(&mut state, now);
        }
        let mut plan = steps::plan(&mut state, now);
        let save = state.unsaved.take().filter(|_| !plan.gone).map(|durability| {
            (serde_json::to_vec(&state.record()).expect("a record is plain data"), durability)
        });
        let report =
            if state.loaded && !state.removed { self.report(&mut state, &mut plan) } else { None };
        Turn { plan, save, report }
    }

    /// The status to send now, if it changed and nothing more is about to change.
    fn report(&self, state: &mut PodState, plan: &mut Plan) -> Option<Report> {
        let host_ip = self.node.config.network.host_ip();
        let status = status::compute(&state.pod, &state.facts(host_ip, plan.now), plan.now);
        state.since = status::transitions(&status);
        let digest = digest(&status);
        let alive = state.containers.iter().any(ContainerState::is_alive);
        let released = matches!(state.release, Setup::Done(()));
        let deleted = state.pod.metadata.deletion_timestamp.is_some();
        if deleted && released && !alive {
            let first = !std::mem::replace(&mut state.sent.terminated, true);
            state.sent.digest = digest;
            return first.then(|| Report { pod: state.pod.clone(), status, terminated: true });
        }
        if digest == state.sent.digest && !self.must_repeat(state, &status, plan) {
            state.sent.due = None;
            return None;
        }
        let settling = state.ending.is_none() && !state.sent.was_ready && state.is_settling();
        if settling {
            let due = *state.sent.due.get_or_insert(plan.now + SETTLE);
            if !plan.is_due(due) {
                return None;
            }
        }
        let ready = state.since.get("Ready").is_some_and(|(ready, _)| *ready);
        state.sent.digest = digest;
        state.sent.at = Some(plan.now);
        state.sent.due = None;
        state.sent.was_ready |= ready;
        Some(Report { pod: state.pod.clone(), status, terminated: false })
    }
}

impl Handle {
    /// What was sent is sent again when the API shows something else. Its view may lag behind, so it
    /// gets a moment, and is compared once after each of its changes.
    fn must_repeat(&self, state: &mut PodState, status: &PodStatus, plan: &mut Plan) -> bool {
        let Some(at) = state.sent.at.filter(|_| state.sent.check) else { return false };
        if !status::has_drifted(&state.pod, status) {
            state.sent.check = false;
            return false;
        }
        let due = plan.is_due(at + LAG);
        state.sent.check = !due;
        due
    }
}

fn digest(status: &PodStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_vec(status).expect("a status is plain data").hash(&mut hasher);
    hasher.finish().max(1)
}

/// Runs until the pod is gone, or the agent goes: then all that runs goes on running. What it keeps
/// across its waits is what an idle pod costs, so each turn is boxed and gone before the wait.
pub(crate) async fn run(handle: Arc<Handle>, known: Vec<KnownRun>) {
    Box::pin(handle.load(known)).await;
    while let Some(pause) = Box::pin(take_turn(&handle)).await {
        let (first, rest) = match pause {
            Some(pause) if pause <= PACKED_MIN => (Some(pause), None),
            long => (Some(PACK_AFTER), Some(long.map(|pause| pause - PACK_AFTER))),
        };
        let mut woke = wait(&handle, first).await;
        if let (Woke::Time, Some(rest)) = (&woke, rest) {
            handle.state.lock().pack();
            woke = wait(&handle, rest).await;
        }
        if let Woke::Shutdown = woke {
            return;
        }
    }
    Box::pin(clean_up(&handle)).await;
}

/// Why a wait ended.
enum Woke {
    Bell,
    Time,
    Shutdown,
}

async fn wait(handle: &Handle, pause: Option<Duration>) -> Woke {
    tokio::select! {
        () = handle.wake.notified() => Woke::Bell,
        () = sleep(pause) => Woke::Time,
        () = handle.node.shutdown.cancelled() => Woke::Shutdown,
    }
}

/// Plans, writes down, acts, reports; answers how long to wait if nothing happens (for ever is the
/// inner None), or None when the pod is gone.
async fn take_turn(handle: &Arc<Handle>) -> Option<Option<Duration>> {
    let now = handle.node.config.clock.now();
    let turn = handle.turn(now);
    if let Some((bytes, durability)) = turn.save {
        save(handle, bytes, durability == Durability::Power).await;
    }
    for action in turn.plan.actions {
        act::carry_out(handle, action);
    }
    if let Some(report) = turn.report {
        let reports = &handle.node.config.reports;
        match report.terminated {
            true => reports.pod_terminated(&report.pod, report.status),
            false => reports.pod_status(&report.pod, report.status),
        }
    }
    if turn.plan.gone {
        return None;
    }
    // The pause is bounded, so that a corrected system clock is noticed.
    Some(turn.plan.wake.map(|at| {
        let pause =
            at.duration_since(now).clamp(SignedDuration::ZERO, SignedDuration::from_hours(1));
        Duration::try_from(pause).unwrap_or_default()
    }))
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        // Timers tick in milliseconds: never wake just before the time.
        Some(pause) => tokio::time::sleep(pause + Duration::from_micros(1)).await,
        None => std::future::pending().await,
    }
}

async fn save(handle: &Handle, bytes: Vec<u8>, durable: bool) {
    let dir = handle.pod_dir();
    let shown = dir.display().to_string();
    let written = tokio::task::spawn_blocking(move || record::write(&dir, &bytes, durable)).await;
    let error = match written {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    // The pod goes on: the runtimes know what runs, only counters may be lost with the agent.
    tracing::error!(
        dir = shown,
        error,
        "cannot write a pod's record: free some space or check the disk"
    );
}

async fn clean_up(handle: &Arc<Handle>) {
    let watched = handle.look(|state| state.watched.clone());
    handle.node.gives_back(&handle.uid);
    handle.node.references.forget(&handle.key.namespace, &handle.uid, watched.iter());
    let places = handle.places();
    let removed = tokio::task::spawn_blocking(move || places.remove()).await;
    if let Ok(Err(error)) = removed {
        let dir = handle.pod_dir().display().to_string();
        tracing::error!(dir, %error, "cannot remove a pod's directory: it is tried again when the agent starts");
    }
    handle.node.forget(handle);
}
