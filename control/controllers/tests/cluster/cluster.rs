//! A cluster for one test.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Node;
use rimward_api::{ObjectKey, UserInfo};
use rimward_client::{Cache, Client, DeleteOptions, Informers, Object, Patch, Queue, Resource};
use rimward_control_apiserver::{ApiServer, Config as ApiConfig};
use rimward_control_controllers::{Config, Handle};
use rimward_control_lean::Pod;
use rimward_control_scheduler::Scheduler;
use rimward_control_store::MemoryStore;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Pods with this image run but never become ready.
pub const NEVER_READY: &str = "never-ready";
/// How long a condition may take to come about on a machine that builds meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub struct Cluster {
    pub admin: Client,
    pub informers: Informers,
    pub server: ApiServer,
    shutdown: CancellationToken,
    controllers: Option<Handle>,
    scheduler: Option<Scheduler>,
}

impl Cluster {
    /// Nodes that are played are not heard of: they stay Ready for longer than any test takes.
    pub async fn start() -> Self {
        let node_monitor_grace = Duration::from_secs(3600);
        Self::start_with(Config { node_monitor_grace, ..Config::default() }).await
    }

    pub async fn start_with(config: Config) -> Self {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let api = ApiConfig::new(
            MemoryStore::new(),
            key,
            "a CA".into(),
            "10.9.8.7:6443".parse().unwrap(),
        );
        let server = ApiServer::start(api).await.unwrap();
        let transport = |user| server.client(user, "test");
        let shutdown = CancellationToken::new();
        let reader = transport(UserInfo::authenticated("system:kube-controller-manager", &[]));
        let informers = Informers::new(Client::new(reader), shutdown.clone());
        let admin = Client::new(transport(UserInfo::authenticated(
            "kubernetes-admin",
            &["system:masters"],
        )));
        let config = Config { root_ca_pem: "a CA".into(), ..config };
        let clients = |name: &str| transport(UserInfo::service_account("kube-system", name));
        let controllers = rimward_control_controllers::start(
            clients,
            informers.clone(),
            config,
            shutdown.clone(),
        );
        let identity = transport(UserInfo::authenticated("system:kube-scheduler", &[]));
        let scheduler =
            Scheduler::start(identity, &informers, Default::default(), shutdown.clone());
        let cluster = Self {
            admin,
            informers,
            server,
            shutdown,
            controllers: Some(controllers),
            scheduler: Some(scheduler),
        };
        cluster.play_nodes();
        cluster
    }

    pub async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, async {
            self.controllers.take().unwrap().join().await;
            self.scheduler.take().unwrap().join().await;
        })
        .await
        .expect("everything ends when told to");
        self.server.stop();
    }

    pub async fn add_node(&self, name: &str, cpu: &str) {
        let node: Node =
            from(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}));
        let mut node = self.admin.create(&node).await.unwrap();
        let amounts = json!({"cpu": cpu, "memory": "64Gi", "pods": "5000"});
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
        node.status =
            from(json!({"capacity": amounts, "allocatable": amounts, "conditions": [ready]}));
        self.admin.update_status(&node).await.unwrap();
    }

    pub async fn apply<K: Object>(&self, mut object: Value) -> K {
        object["kind"] = K::KIND.into();
        object["apiVersion"] = K::API_VERSION.into();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let path = Resource::of::<K>().path(namespace, "", "");
        self.admin.call(http::Method::POST, &path, Some(&object)).await.unwrap()
    }

    pub async fn delete<K: Object>(&self, name: &str, options: DeleteOptions) {
        self.admin.delete::<K>("default", name, &options).await.unwrap();
    }

    pub async fn patch<K: Object>(&self, name: &str, patch: Value) -> K {
        let written: K =
            self.admin.patch("default", name, "", &Patch::strategic(patch)).await.unwrap();
        // What is waited for next must not be what was before.
        let revision =
            |o: &K| o.metadata().resource_version.as_ref().unwrap().parse::<u64>().unwrap();
        self.until::<K>("the patch shows", |cache| cache.revision() >= revision(&written)).await;
        written
    }

    /// What a kubelet does, without anything running.
    fn play_nodes(&self) {
        let pods = self.informers.of::<Pod>();
        let queue: Arc<Queue<ObjectKey>> = Arc::default();
        let keys = queue.clone();
        pods.on_change(move |change| keys.add(change.key.clone()));
        for _ in 0..16 {
            let (queue, pods, client) = (queue.clone(), pods.clone(), self.admin.clone());
            let shutdown = self.shutdown.clone();
            tokio::spawn(shutdown.run_until_cancelled_owned(async move {
                while let Some(key) = queue.get().await {
                    if let Some(pod) = pods.get_key(&key) {
                        play_pod(&client, &pod, &key).await;
                    }
                    queue.done(&key);
                }
            }));
        }
    }

    /// Waits until what a cache holds is as wanted.
    pub async fn until<K: Object>(&self, what: &str, is: impl Fn(&Cache<K>) -> bool) {
        let cache = self.informers.of::<K>();
        let mut changes = cache.subscribe();
        let wait = async {
            cache.synced().await;
            while !is(&cache) {
                changes.next().await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let state: Vec<Value> = cache.list().iter().map(|(_, o)| shown(&**o)).collect();
            panic!("it did not come to be: {what}; there is {}", Value::from(state));
        }
    }

    /// Waits until one object of the default namespace is as wanted.
    pub async fn until_one<K: Object>(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&K) -> bool,
    ) -> Arc<K> {
        let namespace = if std::any::type_name::<K>().ends_with("::Node") { "" } else { "default" };
        self.until::<K>(what, |cache| cache.get(namespace, name).is_some_and(|o| is(&o))).await;
        self.informers.of::<K>().get(namespace, name).unwrap()
    }

    /// Waits until a Deployment is rolled out as `kubectl rollout status` sees it.
    pub async fn rolled_out(&self, name: &str) -> Arc<Deployment> {
        self.until_one::<Deployment>(name, "rolled out", |d| {
            let (Some(spec), Some(status)) = (&d.spec, &d.status) else { return false };
            let (wanted, n) = (spec.replicas.unwrap(), |x: Option<i32>| x.unwrap_or(0));
            status.observed_generation >= d.metadata.generation
                && n(status.updated_replicas) == wanted
                && n(status.replicas) == wanted
                && n(status.available_replicas) == wanted
        })
        .await
    }

    /// (revision, replicas, image) of a Deployment's ReplicaSets, by revision.
    pub fn history(&self, name: &str) -> Vec<(String, i32, String)> {
        let sets = self.informers.of::<ReplicaSet>().list_in("default");
        let of = |set: &ReplicaSet| {
            let owner = set.metadata.owner_references.as_ref()?.first()?;
            let revision = set
                .metadata
                .annotations
                .as_ref()?
                .get("deployment.kubernetes.io/revision")?
                .clone();
            let spec = set.spec.as_ref()?;
            let image = spec.template.as_ref()?.spec.as_ref()?.containers[0].image.clone()?;
            (owner.name == name).then(|| (revision, spec.replicas.unwrap_or(0), image))
        };
        let mut history: Vec<_> = sets.iter().filter_map(|(_, set)| of(set)).collect();
        history.sort();
        history
    }

    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.informers.of::<Pod>().list_in("default").into_iter().map(|(_, p)| p).collect()
    }
}

/// A pod of the caches is not to be written, not even here.
fn shown<K: Object>(object: &K) -> Value {
    if let Some(pod) = (object as &dyn std::any::Any).downcast_ref::<Pod>() {
        return json!({ "metadata": pod.metadata, "status": pod.status });
    }
    serde_json::to_value(object).unwrap()
}

async fn play_pod(client: &Client, pod: &Pod, key: &ObjectKey) {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.node_name.is_some()) else { return };
    if pod.metadata.annotations.iter().flatten().any(|(k, _)| k == "node-is-lost") {
        return;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        let _gone_is_fine = client
            .delete::<Pod>(&key.namespace, &key.name, &DeleteOptions::default().grace(0))
            .await;
        return;
    }
    if pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).is_some() {
        return;
    }
    let ready = spec.containers[0].image.as_deref() != Some(NEVER_READY);
    let number: u32 = pod.metadata.resource_version.as_ref().unwrap().parse().unwrap();
    let ip = format!("10.42.{}.{}", (number >> 8) & 255, number & 255);
    let now =
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now});
    let status =
        json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]});
    let _gone_is_fine = client
        .patch::<Pod>(
            &key.namespace,
            &key.name,
            "status",
            &Patch::strategic(json!({"status": status})),
        )
        .await;
}

pub fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, image)},
    })
}

pub fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

pub fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
}
