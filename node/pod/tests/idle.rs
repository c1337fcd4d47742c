//! What an idle pod costs the agent, and how long a start takes here: alone in its process, so that
//! nothing else is measured.

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
/// What this crate keeps of an idle pod beyond the decoded object, which the agent shares with it.
const BYTES_PER_POD: usize = 8 << 10;

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

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: Option<usize> = statm.split(' ').nth(1).and_then(|n| n.parse().ok());
    pages.expect("resident pages") * rustix::param::page_size()
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
    let pods = Pods::start(config, CancellationToken::new()).await.unwrap();
    let start = async |new: &[Arc<Pod>]| {
        let end = reports.ready.load(Ordering::SeqCst) + new.len();
        new.iter().for_each(|pod| pods.set(pod.clone()));
        while reports.ready.load(Ordering::SeqCst) < end {
            reports.bell.notified().await;
        }
    };
    let empty = resident_bytes();
    let objects: Vec<Arc<Pod>> = (0..PODS + 550).map(pod).collect();
    let object = (resident_bytes() - empty) / objects.len();
    start(&objects[..500]).await;
    let before = resident_bytes();
    let began = Instant::now();
    start(&objects[500..500 + PODS]).await;
    let rate = PODS as f64 / began.elapsed().as_secs_f64();
    let each = resident_bytes().saturating_sub(before) / PODS;

    let mut single = Vec::new();
    for one in objects[500 + PODS..].chunks(1) {
        let began = Instant::now();
        start(one).await;
        single.push(began.elapsed());
    }
    single.sort();
    println!(
        "{each} bytes a pod and {object} its object, {rate:.0} pods/s, one pod in {:?} (p50), {:?} (p98)",
        single[25], single[48]
    );
    assert!(each <= BYTES_PER_POD, "{each} bytes a pod");
}
