//! What an idle pod costs the agent, and how long a start takes here: alone in its process, so that
//! nothing else is measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use rimward_node_pod::fake::World;
use rimward_node_pod::outside::{Image, Reports};
use rimward_node_pod::runtime::{
    ContainerSpec, Known, RunId, Runtime, RuntimeEvent, StartError, Usage,
};
use rimward_node_pod::{Clock, Pods};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const PODS: usize = 4000;
/// What this crate keeps of an idle pod, its object included.
const BYTES_PER_POD: usize = 8 << 10;

/// Counts what is allocated and not freed.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: the system's allocator does the work; counting it changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Runs everything and remembers nothing.
struct Nothing;

#[async_trait]
impl Runtime for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }
    fn runs(&self, _: &Image) -> bool {
        true
    }
    async fn adopt(
        &self,
        _: tokio::sync::mpsc::Sender<RuntimeEvent>,
    ) -> Result<Vec<Known>, StartError> {
        Ok(Vec::new())
    }
    async fn prepare(&self, _: &Image) -> Result<(), StartError> {
        Ok(())
    }
    async fn start(&self, _: ContainerSpec) -> Result<(), StartError> {
        Ok(())
    }
    async fn stop(&self, _: &RunId, _: Duration) {}
    async fn remove(&self, _: &RunId) {}
    async fn usage(&self, _: &RunId) -> Option<Usage> {
        None
    }
}

#[derive(Default)]
struct Count {
    ready: AtomicUsize,
    bell: tokio::sync::Notify,
}

impl Reports for Count {
    fn pod_status(&self, _: &Pod, status: PodStatus) {
        if status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True") {
            self.ready.fetch_add(1, Ordering::SeqCst);
            self.bell.notify_one();
        }
    }
    fn pod_terminated(&self, _: &Pod, _: PodStatus) {}
    fn event(&self, _: &Pod, _: &str, _: bool, _: &str, _: &str) {}
}

/// As the API server hands a Wasm pod of a Deployment to a node.
fn pod(number: usize) -> Arc<Pod> {
    let token = json!({"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}});
    let pod = json!({
        "metadata": {"name": format!("web-5d9c7b5f6c-{number:05}"), "namespace": "default", "uid": format!("00000000-0000-0000-0000-{number:012}"),
            "labels": {"app": "web", "pod-template-hash": "5d9c7b5f6c"}, "generation": 1},
        "spec": {"restartPolicy": "Always", "serviceAccountName": "default", "nodeName": "node-1",
            "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "volumes": [token],
            "containers": [{"name": "web", "image": "registry/web:v1", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "kube-api-access-abcde", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]}]},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

#[tokio::test]
async fn idle_pods_are_small_and_start_fast() {
    let world = World::new(jiff::Timestamp::now());
    world.objects.put_config_map("default", "kube-root-ca.crt", &[("ca.crt", "pem")]);
    let reports = Arc::new(Count::default());
    let memory = PathBuf::from("/dev/shm");
    let dir =
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let mut config = world.config(dir.path());
    config.runtimes = vec![Arc::new(Nothing)];
    config.reports = reports.clone();
    config.clock = Clock::system();
    // Room for what they ask for.
    config.allocatable.pods = 1 << 40;
    config.allocatable.cpu_millis = 1 << 40;
    config.allocatable.memory_bytes = 1 << 40;
    let pods = Pods::start(config, CancellationToken::new()).await.unwrap();
    let start = async |new: Vec<Arc<Pod>>| {
        let end = reports.ready.load(Ordering::SeqCst) + new.len();
        new.into_iter().for_each(|pod| pods.set(pod));
        while reports.ready.load(Ordering::SeqCst) < end {
            reports.bell.notified().await;
        }
    };
    start((0..500).map(pod).collect()).await;
    let before = live();
    let objects: Vec<Arc<Pod>> = (500..500 + PODS).map(pod).collect();
    let held: Vec<_> = objects.iter().map(Arc::downgrade).collect();
    let object = (live() - before) / PODS;
    let began = Instant::now();
    start(objects).await;
    let rate = PODS as f64 / began.elapsed().as_secs_f64();
    let busy = (live() - before) / PODS;
    // A while in which nothing happens: the objects are let go of.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    let mut looks = 0;
    while held.iter().any(|object| object.strong_count() > 0) {
        looks += 1;
        assert!(looks < 10_000, "objects of idle pods are kept");
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    drop(held);
    let each = (live() - before) / PODS;
    // And come back when they are asked for.
    let status = pods.status("00000000-0000-0000-0000-000000000501").expect("a status");
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.container_statuses.expect("containers")[0].name, "web");

    let mut single = Vec::new();
    for number in 500 + PODS..500 + PODS + 50 {
        let began = Instant::now();
        start(vec![pod(number)]).await;
        single.push(began.elapsed());
    }
    single.sort();
    println!(
        "{each} bytes an idle pod, {busy} a busy one, {object} its object; {rate:.0} pods/s, one pod in {:?} (p50), {:?} (p98)",
        single[25], single[48]
    );
    assert!(each <= BYTES_PER_POD, "{each} bytes a pod");
}
