//! Images, addresses, objects and reports in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret, Service,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::FakeRuntime;
use crate::clock::Clock;
use crate::outside::{
    Attachment, HostPort, Image, ImageError, ImageForm, Images, Network, ObjectError, Objects,
    PullPolicy, RegistryAuth, Reports, ThisNode, Token,
};
use crate::pods::{Allocatable, Config};

/// Events kept for looking at.
const EVENTS_KEPT: usize = 10_000;

/// All of it together.
pub struct World {
    pub clock: Clock,
    pub runtime: Arc<FakeRuntime>,
    pub images: Arc<FakeImages>,
    pub network: Arc<FakeNetwork>,
    pub objects: Arc<FakeObjects>,
    pub reports: Arc<FakeReports>,
    pub this_node: Arc<FakeNode>,
}

impl World {
    /// A world whose clock goes as tokio's does, from `start` on.
    pub fn new(start: jiff::Timestamp) -> Self {
        let clock = Clock::virtual_from(start);
        Self {
            clock,
            runtime: FakeRuntime::new(clock),
            images: Arc::default(),
            network: Arc::default(),
            objects: Arc::new(FakeObjects::new(clock)),
            reports: Arc::default(),
            this_node: Arc::default(),
        }
    }

    /// A configuration for [`crate::Pods::start`] with everything of this world.
    pub fn config(&self, data_dir: &Path) -> Config {
        Config {
            data_dir: data_dir.to_owned(),
            runtimes: vec![Arc::new(self.runtime.clone())],
            images: self.images.clone(),
            network: self.network.clone(),
            objects: self.objects.clone(),
            reports: self.reports.clone(),
            this_node: self.this_node.clone(),
            node_name: "node-1".into(),
            cluster_domain: "cluster.local".into(),
            allocatable: Allocatable {
                cpu_millis: 4000,
                memory_bytes: 8 << 30,
                ephemeral_storage_bytes: 32 << 30,
                pods: 110,
            },
            memory_dir: None,
            clock: self.clock,
        }
    }
}

/// Images: all are there, but those that are scripted.
#[derive(Default)]
pub struct FakeImages {
    scripts: Mutex<HashMap<String, VecDeque<Result<Duration, ImageError>>>>,
    pulls: Mutex<u64>,
}

impl FakeImages {
    /// The reference is not on the node; its pulls end like this, in turn. After the last it is there.
    pub fn script(&self, reference: &str, pulls: Vec<Result<Duration, ImageError>>) {
        self.scripts.lock().insert(reference.into(), pulls.into());
    }

    pub fn pulls(&self) -> u64 {
        *self.pulls.lock()
    }
}

fn image(reference: &str) -> Image {
    let hex: String =
        Sha256::digest(reference.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let digest = format!("sha256:{hex}");
    let name = reference.split('@').next().unwrap_or(reference);
    Image {
        reference: reference.into(),
        id: format!("{name}@{digest}"),
        form: ImageForm::Wasm {
            file: "/nonexistent/fake.wasm".into(),
            digest: digest.clone(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            working_dir: String::new(),
        },
        digest,
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn present(&self, reference: &str) -> Option<Image> {
        let missing = self.scripts.lock().get(reference).is_some_and(|pulls| !pulls.is_empty());
        (!missing).then(|| image(reference))
    }

    async fn ensure(
        &self,
        reference: &str,
        _: PullPolicy,
        _: &[RegistryAuth],
    ) -> Result<Image, ImageError> {
        *self.pulls.lock() += 1;
        let next = self.scripts.lock().get_mut(reference).and_then(VecDeque::pop_front);
        match next {
            None => Ok(image(reference)),
            Some(Err(error)) => Err(error),
            Some(Ok(took)) => {
                tokio::time::sleep(took).await;
                Ok(image(reference))
            }
        }
    }
}

/// Addresses of 10.42.0.0/16, one a pod, kept until it is detached.
#[derive(Default)]
pub struct FakeNetwork {
    addresses: Mutex<Addresses>,
    failures: Mutex<VecDeque<String>>,
    /// Where probes go: something that listens on loopback.
    pub reach: Mutex<Option<SocketAddr>>,
}

#[derive(Default)]
struct Addresses {
    attached: HashMap<String, u16>,
    used: u16,
    free: Vec<u16>,
}

impl Addresses {
    fn of(&mut self, pod_uid: &str) -> Option<u16> {
        if let Some(number) = self.attached.get(pod_uid) {
            return Some(*number);
        }
        let number = self.free.pop().or_else(|| {
            self.used = self.used.checked_add(1)?;
            self.used.checked_add(1)
        })?;
        self.attached.insert(pod_uid.into(), number);
        Some(number)
    }
}

impl FakeNetwork {
    /// The next attachments fail like this.
    pub fn fail(&self, why: &[&str]) {
        self.failures.lock().extend(why.iter().map(|w| (*w).to_owned()));
    }

    /// Pods that have an address.
    pub fn attached(&self) -> usize {
        self.addresses.lock().attached.len()
    }
}

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[async_trait]
impl Network for FakeNetwork {
    async fn attach(&self, pod_uid: &str, host_network: bool) -> Result<Attachment, String> {
        if let Some(why) = self.failures.lock().pop_front() {
            return Err(why);
        }
        if host_network {
            return Ok(Attachment { pod_ips: vec![HOST], bind_ip: HOST, netns: None });
        }
        let number = self.addresses.lock().of(pod_uid).ok_or("no address is left")?;
        let [high, low] = number.to_be_bytes();
        let pod_ip = IpAddr::V4(Ipv4Addr::new(10, 42, high, low));
        Ok(Attachment {
            pod_ips: vec![pod_ip],
            bind_ip: IpAddr::V4(Ipv4Addr::new(127, 42, high, low)),
            netns: None,
        })
    }

    async fn publish(&self, _pod_uid: &str, _ports: &[HostPort]) -> Result<(), String> {
        Ok(())
    }

    async fn detach(&self, pod_uid: &str) {
        let mut addresses = self.addresses.lock();
        if let Some(number) = addresses.attached.remove(pod_uid) {
            addresses.free.push(number);
        }
    }

    fn reach(&self, pod_ip: IpAddr) -> IpAddr {
        self.reach.lock().map_or(pod_ip, |address| address.ip())
    }

    fn reach_port(&self, pod_ip: IpAddr, port: u16) -> SocketAddr {
        self.reach.lock().unwrap_or(SocketAddr::new(pod_ip, port))
    }

    fn dns_server(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 43, 0, 10), 53))
    }

    fn host_ip(&self) -> IpAddr {
        HOST
    }
}

/// A node without labels, taints or pressure, until a test says otherwise.
#[derive(Default)]
pub struct FakeNode {
    told: Mutex<Arc<Node>>,
    /// What the API has, where that is more than was told.
    newer: Mutex<Option<Arc<Node>>>,
    pressures: Mutex<Vec<&'static str>>,
}

impl FakeNode {
    pub fn tell(&self, node: Node) {
        *self.told.lock() = Arc::new(node);
    }

    /// The API has something else than the node was told.
    pub fn change(&self, node: Node) {
        *self.newer.lock() = Some(Arc::new(node));
    }

    pub fn press(&self, conditions: &[&'static str]) {
        *self.pressures.lock() = conditions.to_vec();
    }
}

#[async_trait]
impl ThisNode for FakeNode {
    fn node(&self) -> Arc<Node> {
        self.told.lock().clone()
    }

    async fn node_now(&self) -> Arc<Node> {
        let newer = self.newer.lock().clone();
        newer.unwrap_or_else(|| self.node())
    }

    fn pressures(&self) -> Vec<&'static str> {
        self.pressures.lock().clone()
    }
}

/// ConfigMaps, Secrets, Services and tokens.
pub struct FakeObjects {
    clock: Clock,
    config_maps: Mutex<BTreeMap<(String, String), Arc<ConfigMap>>>,
    secrets: Mutex<BTreeMap<(String, String), Arc<Secret>>>,
    claims: Mutex<BTreeMap<(String, String), Arc<PersistentVolumeClaim>>>,
    volumes: Mutex<BTreeMap<String, Arc<PersistentVolume>>>,
    services: Mutex<BTreeMap<String, Vec<Arc<Service>>>>,
    tokens: Mutex<u64>,
    version: Mutex<u64>,
    changes: watch::Sender<u64>,
}

impl FakeObjects {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
            claims: Mutex::default(),
            volumes: Mutex::default(),
            services: Mutex::default(),
            tokens: Mutex::default(),
            version: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Makes or replaces a ConfigMap.
    pub fn put_config_map(&self, namespace: &str, name: &str, data: &[(&str, &str)]) {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(self.next_version().to_string());
        map.data = Some(data.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        self.config_maps.lock().insert((namespace.into(), name.into()), Arc::new(map));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Makes or replaces a Secret.
    pub fn put_secret(&self, namespace: &str, name: &str, data: &[(&str, &str)]) {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.into());
        secret.metadata.resource_version = Some(self.next_version().to_string());
        let bytes = |v: &str| k8s_openapi::ByteString(v.as_bytes().to_vec());
        secret.data = Some(data.iter().map(|(k, v)| (k.to_string(), bytes(v))).collect());
        self.secrets.lock().insert((namespace.into(), name.into()), Arc::new(secret));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Makes or replaces a claim, bound to a volume if one is named.
    pub fn put_claim(&self, namespace: &str, name: &str, volume: Option<&str>) {
        let claim = serde_json::json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-of-{name}"),
                "resourceVersion": self.next_version().to_string()},
            "spec": {"volumeName": volume},
            "status": {"phase": if volume.is_some() { "Bound" } else { "Pending" }},
        });
        let claim = serde_json::from_value(claim).expect("it is a claim");
        self.claims.lock().insert((namespace.into(), name.into()), Arc::new(claim));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Makes or replaces a volume for a claim.
    pub fn put_volume(&self, name: &str, claim: &str, mut spec: serde_json::Value, by: &str) {
        spec["claimRef"] = serde_json::json!({"name": claim, "uid": format!("uid-of-{claim}")});
        let volume = serde_json::json!({"spec": spec, "metadata": {"name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": by}}});
        let volume = serde_json::from_value(volume).expect("it is a volume");
        self.volumes.lock().insert(name.into(), Arc::new(volume));
    }

    pub fn remove_config_map(&self, namespace: &str, name: &str) {
        self.config_maps.lock().remove(&(namespace.into(), name.into()));
        self.changes.send_modify(|n| *n += 1);
    }

    pub fn put_services(&self, namespace: &str, services: Vec<Service>) {
        self.services.lock().insert(namespace.into(), services.into_iter().map(Arc::new).collect());
    }

    /// How many tokens were issued.
    pub fn tokens(&self) -> u64 {
        *self.tokens.lock()
    }

    fn next_version(&self) -> u64 {
        let mut version = self.version.lock();
        *version += 1;
        *version
    }
}

#[async_trait]
impl Objects for FakeObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Arc<ConfigMap>, ObjectError> {
        let found = self.config_maps.lock().get(&(namespace.into(), name.into())).cloned();
        found.ok_or_else(|| ObjectError::NotFound(format!("configmap {name:?} not found")))
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Secret>, ObjectError> {
        let found = self.secrets.lock().get(&(namespace.into(), name.into())).cloned();
        found.ok_or_else(|| ObjectError::NotFound(format!("secret {name:?} not found")))
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<PersistentVolumeClaim>, ObjectError> {
        let found = self.claims.lock().get(&(namespace.into(), name.into())).cloned();
        found.ok_or_else(|| {
            ObjectError::NotFound(format!("persistentvolumeclaim {name:?} not found"))
        })
    }

    async fn volume(&self, name: &str) -> Result<Arc<PersistentVolume>, ObjectError> {
        let found = self.volumes.lock().get(name).cloned();
        found.ok_or_else(|| ObjectError::NotFound(format!("persistentvolume {name:?} not found")))
    }

    async fn token(
        &self,
        _: &Pod,
        _: &[String],
        expiration_seconds: i64,
    ) -> Result<Token, ObjectError> {
        let mut tokens = self.tokens.lock();
        *tokens += 1;
        let expires_at = self.clock.now() + SignedDuration::from_secs(expiration_seconds);
        Ok(Token { token: format!("token-{tokens}"), expires_at })
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.services.lock().get(namespace).cloned().unwrap_or_default()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// An Event as it was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEvent {
    pub pod: String,
    pub field_path: String,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// What pods reported, and a bell for whoever waits for it.
pub struct FakeReports {
    inner: Mutex<Seen>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Seen {
    statuses: HashMap<String, PodStatus>,
    terminated: BTreeSet<String>,
    events: VecDeque<SeenEvent>,
    sent: u64,
}

impl Default for FakeReports {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl FakeReports {
    /// The newest status of a pod.
    pub fn status(&self, uid: &str) -> Option<PodStatus> {
        self.inner.lock().statuses.get(uid).cloned()
    }

    pub fn is_terminated(&self, uid: &str) -> bool {
        self.inner.lock().terminated.contains(uid)
    }

    /// The newest Events, oldest first.
    pub fn events(&self) -> Vec<SeenEvent> {
        self.inner.lock().events.iter().cloned().collect()
    }

    /// How many statuses were sent.
    pub fn sent(&self) -> u64 {
        self.inner.lock().sent
    }

    /// Waits until `test` holds, looking at every report.
    pub async fn wait(&self, mut test: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !test(self) {
            changed.changed().await.expect("the sender is in self");
        }
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.inner.lock());
        self.changed.send_modify(|n| *n += 1);
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

impl Reports for FakeReports {
    fn pod_status(&self, pod: &Pod, status: PodStatus) {
        self.note(|seen| {
            seen.sent += 1;
            seen.statuses.insert(uid(pod), status);
        });
    }

    fn pod_terminated(&self, pod: &Pod, status: PodStatus) {
        self.note(|seen| {
            seen.statuses.insert(uid(pod), status);
            seen.terminated.insert(uid(pod));
        });
    }

    fn event(&self, pod: &Pod, field_path: &str, warning: bool, reason: &str, message: &str) {
        self.note(|seen| {
            if seen.events.len() == EVENTS_KEPT {
                seen.events.pop_front();
            }
            seen.events.push_back(SeenEvent {
                pod: pod.metadata.name.clone().unwrap_or_default(),
                field_path: field_path.into(),
                warning,
                reason: reason.into(),
                message: message.into(),
            });
        });
    }
}
