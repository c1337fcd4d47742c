//! Custom resources: collected, and gone with their namespace, like any other.

use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rimward_client::{DeleteOptions, Error, Propagation, Resource};
use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A definition of a namespaced kind in these versions; the first one stores.
fn definition(plural: &str, kind: &str, versions: &[&str]) -> Value {
    let each = versions.iter().enumerate().map(|(i, name)| {
        json!({
            "name": name, "served": true, "storage": i == 0,
            "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
        })
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.example.com") },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "plural": plural, "kind": kind },
            "versions": each.collect::<Vec<_>>(),
        },
    })
}

fn resource(plural: &str, version: &str) -> Resource {
    let version =
        rimward_api::GroupVersion { group: "example.com".into(), version: version.into() };
    Resource::new(version, plural)
}

fn owner(object: &Value) -> Value {
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "blockOwnerDeletion": true, "controller": true,
    })
}

fn map(name: &str, owners: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": owners}})
}

impl Cluster {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        self.admin.call(method, path, body).await
    }

    async fn define(&self, definition: Value) {
        let made = self.call(Method::POST, CRDS, Some(&definition)).await.unwrap();
        let path = format!("{CRDS}/{}", made["metadata"]["name"].as_str().unwrap());
        self.eventually("the definition is established", async || {
            let definition = self.call(Method::GET, &path, None).await.unwrap();
            let conditions = definition["status"]["conditions"].as_array().cloned();
            let is = |c: &Value| c["type"] == "Established" && c["status"] == "True";
            conditions.into_iter().flatten().any(|c| is(&c))
        })
        .await;
    }

    async fn make(&self, plural: &str, version: &str, namespace: &str, metadata: Value) -> Value {
        let kind = if plural == "widgets" { "Widget" } else { "Gadget" };
        let object = json!({ "apiVersion": format!("example.com/{version}"), "kind": kind, "metadata": metadata });
        let path = resource(plural, version).path(namespace, "", "");
        self.call(Method::POST, &path, Some(&object)).await.unwrap()
    }

    async fn names(&self, plural: &str, version: &str, namespace: &str) -> Vec<String> {
        let path = resource(plural, version).path(namespace, "", "");
        let list = self.call(Method::GET, &path, None).await.unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until the collector has seen all ConfigMaps that there are: it takes away one that nobody
    /// owns only after those that were there before.
    async fn collector_has_looked(&self) {
        let absent = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "11111111-1111-1111-1111-111111111111" });
        let lost = map("lost", json!([absent]));
        let made = self.apply::<ConfigMap>(lost).await;
        let revision: u64 = made.metadata.resource_version.unwrap().parse().unwrap();
        self.until::<ConfigMap>("the lost one goes", |maps| {
            maps.revision() >= revision && maps.get("default", "lost").is_none()
        })
        .await;
    }

    /// Asks until it is so: there is no cache of custom kinds to wait on.
    async fn eventually(&self, what: &str, is: impl AsyncFn() -> bool) {
        let wait = async {
            while !is().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("it did not come to be: {what}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_own_and_are_owned() {
    let cluster = Cluster::start().await;
    // The collector knows only what was there when it began, and learns the rest.
    cluster.define(definition("widgets", "Widget", &["v1"])).await;

    // An owner that goes in the foreground waits for what it owns; in the background it goes first.
    for policy in [Propagation::Foreground, Propagation::Background] {
        let widget = cluster.make("widgets", "v1", "default", json!({ "name": "w" })).await;
        cluster.apply::<ConfigMap>(map("owned", json!([owner(&widget)]))).await;
        cluster.collector_has_looked().await;
        let options = DeleteOptions::default().propagation(policy);
        let widgets = resource("widgets", "v1");
        cluster.admin.delete_raw(&widgets, "default", "w", &options).await.unwrap();
        cluster
            .until::<ConfigMap>("what it owned goes", |m| m.get("default", "owned").is_none())
            .await;
        cluster
            .eventually("it goes", async || {
                cluster.names("widgets", "v1", "default").await.is_empty()
            })
            .await;
    }

    // Orphaned, what it owned stays.
    let widget = cluster.make("widgets", "v1", "default", json!({ "name": "w" })).await;
    cluster.apply::<ConfigMap>(map("free", json!([owner(&widget)]))).await;
    cluster.collector_has_looked().await;
    let options = DeleteOptions::default().propagation(Propagation::Orphan);
    let widgets = resource("widgets", "v1");
    cluster.admin.delete_raw(&widgets, "default", "w", &options).await.unwrap();
    cluster
        .until::<ConfigMap>("it is free", |maps| {
            let free = maps.get("default", "free");
            free.is_some_and(|m| m.metadata.owner_references.is_none())
        })
        .await;

    // The other way round: a built-in owner takes a custom dependent along.
    let made = cluster.apply::<ConfigMap>(map("above", json!([]))).await;
    let above = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": made.metadata });
    let owned = json!({ "name": "below", "ownerReferences": [owner(&above)] });
    cluster.make("widgets", "v1", "default", owned).await;
    cluster.delete::<ConfigMap>("above", DeleteOptions::default()).await;
    cluster
        .eventually("it goes with its owner", async || {
            cluster.names("widgets", "v1", "default").await.is_empty()
        })
        .await;
    cluster.stop().await;
}

/// A resource that is served in another version than before, or for the first time, says nothing of the
/// owners that were there.
#[tokio::test(flavor = "multi_thread")]
async fn versions_that_come_and_go_orphan_nobody() {
    let cluster = Cluster::start().await;
    cluster.define(definition("widgets", "Widget", &["v1"])).await;
    let widget = cluster.make("widgets", "v1", "default", json!({ "name": "w" })).await;
    cluster.apply::<ConfigMap>(map("owned", json!([owner(&widget)]))).await;
    // Another version, which is preferred, then the first one is served no more.
    let path = format!("{CRDS}/widgets.example.com");
    let mut current = cluster.call(Method::GET, &path, None).await.unwrap();
    current["spec"]["versions"] = definition("", "", &["v2", "v1"])["spec"]["versions"].clone();
    let mut current = cluster.call(Method::PUT, &path, Some(&current)).await.unwrap();
    cluster.make("widgets", "v2", "default", json!({ "name": "second" })).await;
    current["spec"]["versions"][1]["served"] = false.into();
    current["metadata"]["resourceVersion"] = Value::Null;
    let latest = cluster.call(Method::GET, &path, None).await.unwrap();
    current["metadata"]["resourceVersion"] = latest["metadata"]["resourceVersion"].clone();
    current["status"] = latest["status"].clone();
    cluster.call(Method::PUT, &path, Some(&current)).await.unwrap();
    // A widget that nobody owns goes once the collector watches v2.
    let never = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "11111111-1111-1111-1111-111111111111" });
    let lost = json!({ "name": "lost", "ownerReferences": [never] });
    cluster.make("widgets", "v2", "default", lost).await;
    cluster
        .eventually("the collector watches the new version", async || {
            let names = cluster.names("widgets", "v2", "default").await;
            !names.contains(&"lost".to_owned())
        })
        .await;
    cluster.collector_has_looked().await;
    let maps = cluster.informers.of::<ConfigMap>();
    assert!(maps.get("default", "owned").is_some(), "its owner is served as v2 now");
    // And it is still known whose it is.
    let (widgets, options) = (resource("widgets", "v2"), DeleteOptions::default());
    cluster.admin.delete_raw(&widgets, "default", "w", &options).await.unwrap();
    cluster.until::<ConfigMap>("it goes", |m| m.get("default", "owned").is_none()).await;

    // Of an owner whose kind is not served nobody can say that it is gone; once it is served, one can.
    let unknown = json!({ "apiVersion": "example.com/v1", "kind": "Gadget", "name": "g", "uid": "22222222-2222-2222-2222-222222222222" });
    cluster.apply::<ConfigMap>(map("waiting", json!([unknown]))).await;
    cluster.collector_has_looked().await;
    assert!(maps.get("default", "waiting").is_some());
    cluster.define(definition("gadgets", "Gadget", &["v1"])).await;
    cluster.until::<ConfigMap>("now it goes", |m| m.get("default", "waiting").is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_go_with_their_namespace() {
    let cluster = Cluster::start().await;
    cluster.define(definition("widgets", "Widget", &["v1"])).await;
    // Of the same group, but not in its preferred version.
    cluster.define(definition("gadgets", "Gadget", &["v1alpha1"])).await;
    cluster.apply::<Namespace>(json!({"metadata": {"name": "ns"}})).await;
    let held = json!({ "name": "held", "finalizers": ["example.com/hold"] });
    cluster.make("widgets", "v1", "ns", held).await;
    cluster.make("gadgets", "v1alpha1", "ns", json!({ "name": "g" })).await;
    cluster.admin.delete::<Namespace>("", "ns", &DeleteOptions::default()).await.unwrap();
    cluster
        .until::<Namespace>("it says what holds it", |all| {
            let conditions = all.get("", "ns").and_then(|n| n.status.clone()?.conditions);
            conditions.into_iter().flatten().any(|c| {
                c.type_ == "NamespaceContentRemaining"
                    && c.message
                        .is_some_and(|m| m.contains("widgets.example.com has 1 resource instances"))
            })
        })
        .await;
    cluster
        .eventually("the other one is gone", async || {
            cluster.names("gadgets", "v1alpha1", "ns").await.is_empty()
        })
        .await;
    let path = resource("widgets", "v1").path("ns", "held", "");
    let mut object = cluster.call(Method::GET, &path, None).await.unwrap();
    object["metadata"]["finalizers"] = json!([]);
    cluster.call(Method::PUT, &path, Some(&object)).await.unwrap();
    cluster.until::<Namespace>("it goes", |all| all.get("", "ns").is_none()).await;
    cluster.stop().await;
}

/// A budget in percent asks how many pods their owner shall have, also if that is of a custom kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_budget_asks_for_their_scale() {
    let cluster = Cluster::start().await;
    let mut widgets = definition("widgets", "Widget", &["v1"]);
    widgets["spec"]["versions"][0]["subresources"] = json!({ "scale": {
        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas" } });
    cluster.define(widgets).await;
    cluster.define(definition("gadgets", "Gadget", &["v1"])).await;
    let widget = cluster.make("widgets", "v1", "default", json!({ "name": "w" })).await;
    let path = resource("widgets", "v1").path("default", "w", "scale");
    let scale =
        json!({ "metadata": { "name": "w", "namespace": "default" }, "spec": { "replicas": 4 } });
    cluster.call(Method::PUT, &path, Some(&scale)).await.unwrap();
    let pod = |name: &str, owner: Value| {
        json!({ "metadata": { "name": name, "namespace": "default", "labels": { "app": "w" }, "ownerReferences": [owner] },
            "spec": { "containers": [{ "name": "c", "image": "v1" }] } })
    };
    cluster.apply::<Pod>(pod("a", owner(&widget))).await;
    let budget = json!({ "metadata": { "name": "b", "namespace": "default" }, "spec": {
        "minAvailable": "50%", "selector": { "matchLabels": { "app": "w" } } } });
    cluster.apply::<PodDisruptionBudget>(budget).await;
    let status = |b: &PodDisruptionBudget| b.status.clone().unwrap_or_default();
    cluster
        .until_one::<PodDisruptionBudget>("b", "half of four shall be healthy", |b| {
            (status(b).expected_pods, status(b).desired_healthy) == (Some(4), Some(2))
        })
        .await;
    // What has no scale is told of.
    let gadget = cluster.make("gadgets", "v1", "default", json!({ "name": "g" })).await;
    cluster.apply::<Pod>(pod("other", owner(&gadget))).await;
    cluster
        .until_one::<PodDisruptionBudget>("b", "it says why it cannot be counted", |b| {
            let why = "gadgets.example.com does not implement the scale subresource";
            status(b).conditions.iter().flatten().any(|c| c.message == why)
        })
        .await;
    cluster.stop().await;
}
