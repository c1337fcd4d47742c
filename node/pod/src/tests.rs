//! Whole lives of pods on a fake node, in virtual time.

mod adoption;
mod ends;
mod failures;
mod probes;
mod resizes;
mod starts;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::fake::{Script, World};
use crate::pods::Pods;
use crate::runtime::RunId;

/// A node with one agent.
struct Bench {
    world: World,
    pods: Pods,
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Bench {
    async fn new() -> Self {
        let world = World::new(Timestamp::from_second(1_800_000_000).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let pods = Pods::start(world.config(dir.path()), shutdown.clone()).await.unwrap();
        Self { world, pods, dir, shutdown }
    }

    /// The agent dies and another one comes.
    async fn restart_agent(self) -> Self {
        self.shutdown.cancel();
        let shutdown = CancellationToken::new();
        let pods = Pods::start(self.world.config(self.dir.path()), shutdown.clone()).await.unwrap();
        Self { pods, shutdown, ..self }
    }

    fn set(&self, pod: &Value) {
        self.pods.set(Arc::new(serde_json::from_value(pod.clone()).unwrap()));
    }

    /// Waits until the newest reported status of `u` is as the test wants.
    #[track_caller]
    fn until(&self, test: impl Fn(&PodStatus) -> bool) -> impl Future<Output = PodStatus> {
        let place = std::panic::Location::caller();
        async move {
            let wait = self.world.reports.wait(|r| r.status("u").is_some_and(|s| test(&s)));
            if tokio::time::timeout(Duration::from_secs(24 * 3600), wait).await.is_err() {
                let status = self.world.reports.status("u");
                panic!("{place}: still {status:#?}, events {:#?}", self.events());
            }
            self.world.reports.status("u").unwrap()
        }
    }

    async fn until_phase(&self, phase: &str) -> PodStatus {
        self.until(|s| s.phase.as_deref() == Some(phase)).await
    }

    async fn until_ready(&self) -> PodStatus {
        self.until(|s| is_true(s, "Ready")).await
    }

    async fn until_waiting(&self, reason: &str) -> PodStatus {
        self.until(|s| waiting(s).0 == reason).await
    }

    async fn until_event(&self, reason: &str) {
        let wait = self.world.reports.wait(|r| r.events().iter().any(|e| e.reason == reason));
        tokio::time::timeout(Duration::from_secs(24 * 3600), wait).await.expect(reason);
    }

    async fn until_terminated(&self) {
        let wait = self.world.reports.wait(|r| r.is_terminated("u"));
        tokio::time::timeout(Duration::from_secs(24 * 3600), wait).await.expect("terminates");
    }

    /// `Reason` or, for warnings, `!Reason`.
    fn events(&self) -> Vec<String> {
        let events = self.world.reports.events();
        events.iter().map(|e| format!("{}{}", if e.warning { "!" } else { "" }, e.reason)).collect()
    }

    fn message(&self, reason: &str) -> String {
        let events = self.world.reports.events();
        let event = events.iter().find(|e| e.reason == reason);
        event.map(|e| e.message.clone()).unwrap_or_else(|| panic!("no {reason} in {events:?}"))
    }

    fn seconds(&self) -> i64 {
        self.world.clock.now().as_second() - 1_800_000_000
    }

    fn pod_dir(&self) -> PathBuf {
        self.dir.path().join("pods/u")
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.pod_dir().join(path)).ok()
    }

    /// Lets everything that is due be done; waits for conditions that no report tells of.
    async fn until_true(&self, what: &str, test: impl Fn() -> bool) {
        for _ in 0..3000 {
            if test() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}");
    }
}

/// A pod `p` with UID `u` and one container `c`, changed by `spec`.
fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "hello:v1"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn deleted(mut pod: Value, grace: i64) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:30Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    pod
}

fn is_true(status: &PodStatus, condition: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == condition && c.status == "True")
}

fn container<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    let init = status.init_container_statuses.iter().flatten();
    let all = status.container_statuses.iter().flatten().chain(init);
    all.into_iter().find(|c| c.name == name).unwrap()
}

/// Reason and message of the container that waits, if any.
fn waiting(status: &PodStatus) -> (&str, &str) {
    let all = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    let waiting = all.into_iter().filter_map(|c| c.state.as_ref()?.waiting.as_ref()).next();
    waiting.map_or(("", ""), |w| {
        (w.reason.as_deref().unwrap_or(""), w.message.as_deref().unwrap_or(""))
    })
}

fn run(container: &str, attempt: u32) -> RunId {
    RunId { pod_uid: "u".into(), container: container.into(), attempt }
}

fn exits(code: i32, seconds: u64) -> Script {
    Script::exits(code, Duration::from_secs(seconds))
}

fn read_pod(value: &Value) -> Pod {
    serde_json::from_value(value.clone()).unwrap()
}
