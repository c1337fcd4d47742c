//! An evictor among pods that a test plays.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use rimward_node_pod::outside::Attachment;
use rimward_node_pod::runtime::{RunId, Usage};
use rimward_node_pod::{
    ContainerUsage, DiskUsage, LogError, LogRequest, NoSession, PodUsage, RunningContainer,
};
use serde_json::json;

use super::*;
use crate::ledger::Ledger;
use crate::pressure::EvictionSoft;
use crate::pressure::tests::Told;

/// Pods of one container `c`; by UID the memory that each uses and what it has written, in MiB.
#[derive(Default)]
struct Played {
    pods: Mutex<Vec<(Arc<Pod>, u64, u64)>>,
    evicted: Mutex<Vec<(String, String, bool, i64)>>,
}

impl Played {
    fn add(&self, uid: &str, spec: serde_json::Value, memory: u64, written: u64) {
        let mut pod =
            json!({ "metadata": { "name": uid, "namespace": "n", "uid": uid }, "spec": spec });
        if pod["spec"]["containers"].is_null() {
            pod["spec"]["containers"] = json!([{ "name": "c" }]);
        }
        let pod = Arc::new(serde_json::from_value(pod).unwrap());
        self.pods.lock().push((pod, memory, written));
    }

    fn uid(pod: &Pod) -> String {
        pod.metadata.uid.clone().unwrap()
    }
}

#[async_trait]
impl PodHandler for Played {
    fn set(&self, _pod: Arc<Pod>) {}
    fn remove(&self, uid: &str) {
        self.pods.lock().retain(|(pod, ..)| Self::uid(pod) != uid);
    }
    fn synced(&self) {}

    async fn logs(
        &self,
        _namespace: &str,
        _name: &str,
        _uid: &str,
        _request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
        Err(LogError::NotFound("no logs here".into()))
    }

    fn running(&self, _: &str, _: &str, _: &str, _: &str) -> Result<RunningContainer, NoSession> {
        Err(NoSession::NoPod)
    }

    fn attachment(&self, _: &str, _: &str, _: &str) -> Result<Attachment, NoSession> {
        Err(NoSession::NoPod)
    }

    async fn usage(&self) -> Vec<PodUsage> {
        let usage = |(pod, memory, _): &(Arc<Pod>, u64, u64)| PodUsage {
            namespace: "n".into(),
            name: Self::uid(pod),
            uid: Self::uid(pod),
            traffic: None,
            containers: vec![ContainerUsage {
                id: RunId { pod_uid: Self::uid(pod), container: "c".into(), attempt: 0 },
                started_at: Timestamp::UNIX_EPOCH,
                usage: Usage { memory_bytes: memory << 20, ..Usage::default() },
            }],
            pressure: None,
        };
        self.pods.lock().iter().map(usage).collect()
    }

    async fn disk(&self, only: Option<HashSet<String>>) -> Vec<PodDisk> {
        let pods = self.pods.lock();
        let asked = pods
            .iter()
            .filter(|(pod, ..)| only.as_ref().is_none_or(|o| o.contains(&Self::uid(pod))));
        let disk = |(pod, _, written): &(Arc<Pod>, u64, u64)| PodDisk {
            uid: Self::uid(pod),
            rootfs: BTreeMap::from([(
                "c".to_owned(),
                DiskUsage { bytes: written << 20, inodes: *written },
            )]),
            ..PodDisk::default()
        };
        asked.map(disk).collect()
    }

    fn active(&self) -> Vec<String> {
        let evicted = self.evicted.lock();
        let pods = self.pods.lock();
        let all = pods.iter().map(|(pod, ..)| Self::uid(pod));
        all.filter(|uid| !evicted.iter().any(|(e, ..)| e == uid)).collect()
    }

    fn object(&self, uid: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.lock();
        pods.iter().find(|(pod, ..)| Self::uid(pod) == uid).map(|(pod, ..)| pod.clone())
    }

    fn evict(&self, uid: &str, message: String, disrupted: bool, grace: i64) -> bool {
        self.evicted.lock().push((uid.to_owned(), message, disrupted, grace));
        true
    }
}

struct Bench {
    told: Told,
    pods: Played,
    stats: Stats,
    pressure: Pressure,
    reports: Outgoing,
    evictor: Evictor,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(hard: &str, soft: EvictionSoft) -> Self {
        let (told, dir) = (Told::default(), tempfile::tempdir().unwrap());
        let ledger = Arc::new(Ledger::open(dir.path()).unwrap());
        Self {
            pressure: Pressure::new(told.clone(), hard.parse().unwrap(), soft),
            told,
            pods: Played::default(),
            stats: Stats::default(),
            reports: Outgoing::load(ledger, "n1").unwrap(),
            evictor: Evictor::default(),
            _dir: dir,
        }
    }

    async fn act(&mut self) -> Vec<String> {
        let look = self.pressure.look(Instant::now());
        let around = Around {
            pods: &self.pods,
            stats: &self.stats,
            pressure: &self.pressure,
            reports: &self.reports,
            images: None,
            soft_grace_seconds: 7,
        };
        self.evictor.act(&around, look).await
    }

    /// The reasons of the Events so far.
    async fn events(&self) -> Vec<String> {
        let events = self.reports.take().await.events;
        let reason = |bytes: &Vec<u8>| {
            let event: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            event["reason"].as_str().unwrap().to_owned()
        };
        events.iter().map(reason).collect()
    }
}

#[tokio::test]
async fn a_memory_hog_goes_and_others_stay() {
    let mut b = Bench::new("memory.available<100", EvictionSoft::default());
    let asks = json!({ "containers": [{ "name": "c", "resources": { "requests": { "memory": "1Gi" } } }] });
    b.pods.add("modest", asks, 900, 0);
    b.pods.add("hog", json!({}), 500, 0);
    b.pods.add("other", json!({}), 40, 0);
    b.pods.add("critical", json!({ "priority": 2_000_001_000 }), 4000, 0);
    b.told.set(Signal::Memory, 100);
    assert!(b.act().await.is_empty() && b.events().await.is_empty());
    b.told.set(Signal::Memory, 99);
    assert_eq!(b.act().await, ["hog"]);
    assert_eq!(b.events().await, ["EvictionThresholdMet"]);
    let (_, message, disrupted, grace) = b.pods.evicted.lock()[0].clone();
    assert_eq!(
        message,
        "The node was low on resource: memory. Threshold quantity: 100, available: 99. Container c was using 500Mi, request is 0, has larger consumption of memory. "
    );
    assert_eq!((disrupted, grace), (true, 1));
    assert!(b.act().await.is_empty(), "the hog is still going");
    b.pods.remove("hog");
    b.told.set(Signal::Memory, 500);
    assert!(b.act().await.is_empty(), "there is room");
}

#[tokio::test]
async fn a_full_disk_and_soft_thresholds() {
    let soft = EvictionSoft::parse("nodefs.available<50%", "nodefs.available=0s").unwrap();
    let mut b = Bench::new("memory.available<0,nodefs.available<10%", soft);
    b.pods.add("writer", json!({}), 1, 300);
    b.pods.add("reader", json!({}), 500, 1);
    b.told.set(Signal::Disk, 499);
    assert_eq!(b.act().await, ["writer"]);
    let (_, message, _, grace) = b.pods.evicted.lock()[0].clone();
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 500, available: 499. Container c was using 300Mi"), "{message}");
    assert_eq!(grace, 7, "a soft threshold leaves time");
}

#[tokio::test]
async fn a_pod_that_writes_more_than_it_may() {
    let mut b = Bench::new("memory.available<0", EvictionSoft::default());
    let limited = json!({ "containers": [{ "name": "c", "resources": { "limits": { "ephemeral-storage": "10Mi" } } }] });
    b.pods.add("over", limited.clone(), 1, 11);
    b.pods.add("within", limited, 1, 9);
    b.pods.add("unlimited", json!({}), 1, 5000);
    assert_eq!(b.act().await, ["over"]);
    let (_, message, disrupted, _) = b.pods.evicted.lock()[0].clone();
    assert_eq!(
        message,
        "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "
    );
    assert!(!disrupted, "it is the pod's own doing");
}
