//! The scheduler: gives every pod that has no node one that it fits on.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/kube-scheduler/>
//!
//! It reads filter → score → bind. [`cycle`] decides for one pod on the [`snapshot`], by the rules in
//! [`filter`] and [`score`], one file each; [`queue`] says which pod is next; [`bind`] tells the API
//! server. The snapshot and the queue are changed inside the informers' calls, one change at a time,
//! so a new pod is decided on within microseconds of its watch event.
//!
//! It refuses to evict: a pod that does not fit waits, there is no preemption.

pub mod bind;
pub mod cycle;
pub mod filter;
pub mod pod;
pub mod queue;
pub mod resources;
pub mod score;
pub mod snapshot;
pub mod volumes;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use parking_lot::Mutex;
use rimward_client::{Client, Informers, Recorder, Transport};
use rimward_control_lean::Pod;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use bind::Binder;
use cycle::Decision;
use pod::Uid;
use queue::{Queue, Tried};
use snapshot::Snapshot;
use volumes::{Choice, Demands};

#[derive(Clone, Debug)]
pub struct Config {
    /// Pods whose spec.schedulerName is this are ours.
    pub name: String,
    /// Bindings and status writes that may be under way at once.
    pub writes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "default-scheduler".into(), writes_max: 128 }
    }
}

/// What the informers change and the loop decides on.
#[derive(Default)]
pub(crate) struct World {
    pub snapshot: Snapshot,
    pub queue: Queue,
    /// Pods that count on a node although the API server has not confirmed it.
    pub assumed: HashSet<Uid>,
    /// Where among the nodes the next search begins.
    start: usize,
}

pub(crate) struct Shared {
    pub world: Mutex<World>,
    pub wake: Notify,
    /// Rings for all who wait for a claim when one changes.
    pub claims: Notify,
}

/// A running scheduler.
pub struct Scheduler {
    task: JoinHandle<()>,
}

impl Scheduler {
    /// `transport` acts as `system:kube-scheduler`. Must be called within a tokio runtime.
    pub fn start(
        transport: Arc<dyn Transport>,
        informers: &Informers,
        config: Config,
        shutdown: CancellationToken,
    ) -> Self {
        let client = Client::new(transport);
        let recorder = Recorder::new(client.clone(), &config.name, shutdown.clone());
        let shared = Arc::new(Shared {
            world: Mutex::default(),
            wake: Notify::new(),
            claims: Notify::new(),
        });
        let nodes = informers.of::<Node>();
        let (pods, namespaces) = (informers.of::<Pod>(), informers.of::<Namespace>());
        let (claims, volumes, classes) = (
            informers.of::<PersistentVolumeClaim>(),
            informers.of::<PersistentVolume>(),
            informers.of::<StorageClass>(),
        );
        watch::namespaces(&namespaces, &shared);
        watch::volumes(&claims, &volumes, &classes, &shared);
        watch::nodes(&nodes, &shared);
        watch::pods(&pods, &shared, &config.name);
        let binder = Arc::new(Binder { client, recorder, shared: shared.clone() });
        let writes = Arc::new(Semaphore::new(config.writes_max));
        let run = async move {
            // Deciding on half a cluster would crowd it.
            nodes.synced().await;
            pods.synced().await;
            namespaces.synced().await;
            tokio::join!(claims.synced(), volumes.synced(), classes.synced());
            schedule(shared, binder, writes).await;
        };
        let task = tokio::spawn(async move {
            shutdown.run_until_cancelled(run).await;
        });
        Self { task }
    }

    /// Waits until it has ended, after the shutdown token was cancelled.
    pub async fn join(self) {
        let _it_was_cancelled = self.task.await;
    }
}

async fn schedule(shared: Arc<Shared>, binder: Arc<Binder>, writes: Arc<Semaphore>) {
    loop {
        // Before the decision: what is assumed but not yet written stays bounded.
        let permit = writes.clone().acquire_owned().await.expect("never closed");
        let (step, next) = {
            let mut world = shared.world.lock();
            let step = world.step(Instant::now());
            (step, world.queue.next())
        };
        match step {
            Some(Step::Bind(tried, node, choice)) => {
                let binder = binder.clone();
                tokio::spawn(async move {
                    // Volumes may take their time; that must not keep other pods from their nodes.
                    let _permit = choice.is_empty().then_some(permit);
                    binder.bind(tried, &node, choice).await;
                });
            }
            Some(Step::Explain(pod, message)) => {
                let binder = binder.clone();
                tokio::spawn(async move {
                    binder.explain(&pod, &message).await;
                    drop(permit);
                });
            }
            None => {
                drop(permit);
                match next {
                    Some(at) => {
                        let _either =
                            tokio::time::timeout_at(at.into(), shared.wake.notified()).await;
                    }
                    None => shared.wake.notified().await,
                }
                continue;
            }
        }
        tokio::task::yield_now().await;
    }
}

enum Step {
    Bind(Tried, String, Choice),
    Explain(Arc<pod::PodInfo>, String),
}

impl World {
    /// Decides for the next pod, if there is one.
    fn step(&mut self, now: Instant) -> Option<Step> {
        let tried = self.queue.pop(now)?;
        let dice = |sides: usize| rand::random_range(0..sides.max(1));
        match cycle::decide(&self.snapshot, &tried.pod, &mut self.start, dice) {
            Decision::Place(node) => {
                let choice = self.choose_volumes(&tried, &node);
                self.snapshot.volumes.assume(&choice);
                self.snapshot.place(tried.pod.clone(), &node);
                self.assumed.insert(tried.pod.uid.clone());
                Some(Step::Bind(tried, node, choice))
            }
            Decision::Unschedulable { message, healed_by } => {
                let pod = tried.pod.clone();
                self.queue.park(tried, healed_by, now);
                Some(Step::Explain(pod, message))
            }
        }
    }

    /// How a pod's claims get their volumes on the node that it was given.
    fn choose_volumes(&self, tried: &Tried, node: &str) -> Choice {
        if tried.pod.claims.is_empty() {
            return Choice::default();
        }
        let demands = Demands::new(&tried.pod, &self.snapshot);
        self.snapshot.node(node).and_then(|node| demands.choose(node)).unwrap_or_default()
    }
}
