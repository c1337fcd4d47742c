//! What Helm does when it installs, upgrades, rolls back and removes a chart, request by request: releases
//! kept in Secrets, definitions first, hooks by weight, three-way strategic patches, waits. Debian has no
//! Helm, so its part is played by [`driver`].

mod driver;
mod three_way;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use driver::{Chart, Helm};

/// A node on which every pod runs at once; pods of jobs end at once.
async fn play_node(client: &Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "labels": { "kubernetes.io/hostname": "n1" } } });
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let amounts = json!({ "cpu": "64", "memory": "64Gi", "pods": "500" });
    let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady" });
    let status =
        json!({ "status": { "capacity": amounts, "allocatable": amounts, "conditions": [ready] } });
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let pods: Api<Pod> = Api::all(client.clone());
    let client = client.clone();
    tokio::spawn(async move {
        let changes = watcher(pods, watcher::Config::default()).default_backoff().applied_objects();
        changes.for_each(|pod| play_pod(client.clone(), pod.ok())).await;
    });
}

async fn play_pod(client: Client, pod: Option<Pod>) {
    let Some(pod) = pod.filter(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some())) else {
        return;
    };
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap());
    if pod.metadata.deletion_timestamp.is_some() {
        let now = kube::api::DeleteParams::default().grace_period(0);
        let _gone_is_fine = api.delete(&pod.name_any(), &now).await;
        return;
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if phase != "Pending" {
        return;
    }
    let ends = pod.spec.as_ref().is_some_and(|s| s.restart_policy.as_deref() == Some("Never"));
    let (phase, ready) = if ends { ("Succeeded", "False") } else { ("Running", "True") };
    let condition =
        json!({ "type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let status = json!({ "status": { "phase": phase, "podIP": "10.42.0.9", "podIPs": [{ "ip": "10.42.0.9" }], "conditions": [condition] } });
    let _gone_is_fine =
        api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await;
}

fn hook(name: &str, when: &str, weight: i32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "annotations": {
            "helm.sh/hook": when, "helm.sh/hook-weight": weight.to_string(),
            "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
        } },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "job" }] },
    })
}

fn chart(version: i32) -> Chart {
    let labels =
        json!({ "app.kubernetes.io/name": "shop", "app.kubernetes.io/managed-by": "Helm" });
    let environment = match version {
        1 => json!([{ "name": "MODE", "value": "slow" }, { "name": "OLD", "value": "1" }]),
        _ => json!([{ "name": "NEW", "value": "2" }, { "name": "MODE", "value": "fast" }]),
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "shelves.shop.example.com" },
        "spec": {
            "group": "shop.example.com", "scope": "Namespaced",
            "names": { "plural": "shelves", "singular": "shelf", "kind": "Shelf" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "properties": { "spec": { "type": "object", "properties": {
                    "width": { "type": "integer" }, "items": { "type": "array", "items": { "type": "string" } },
                } } },
            } } }],
        },
    });
    let mut manifests = vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "shop", "labels": labels } }),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "shop", "labels": labels }, "data": { "version": version.to_string() } }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "shop", "labels": labels },
            "spec": { "selector": { "app": "shop" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "shop", "labels": labels },
            "spec": {
                "replicas": 2, "selector": { "matchLabels": { "app": "shop" } },
                "template": { "metadata": { "labels": { "app": "shop" } }, "spec": {
                    "serviceAccountName": "shop",
                    "containers": [{
                        "name": "shop", "image": format!("shop:{version}"), "env": environment,
                        "ports": [{ "name": "http", "containerPort": 8080 }],
                    }],
                } },
            },
        }),
        json!({ "apiVersion": "shop.example.com/v1", "kind": "Shelf", "metadata": { "name": "shop" }, "spec": { "width": version, "items": ["a", "b"] } }),
    ];
    if version == 1 {
        manifests.push(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "only-first", "labels": labels } }));
    }
    let hooks = vec![
        hook("after", "post-install,post-upgrade", 0),
        hook("second", "pre-install,pre-upgrade", 5),
        hook("first", "pre-install", -5),
    ];
    Chart { definitions: vec![definition], hooks, manifests }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_from_its_install_to_its_end() {
    let cluster = Cluster::start();
    let client = cluster.admin().await;
    play_node(&client).await;
    let mut helm = Helm::new(client.clone(), "default", "shop").await;
    helm.install(&chart(1)).await;
    assert_eq!(helm.take_log(), ["first", "second", "Deployment/shop", "after"]);
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let environment = async || -> Vec<String> {
        let deployment = deployments.get("shop").await.unwrap();
        let spec = deployment.spec.unwrap().template.spec.unwrap();
        let list = spec.containers[0].env.clone().unwrap_or_default();
        list.into_iter().map(|e| format!("{}={}", e.name, e.value.unwrap_or_default())).collect()
    };
    assert_eq!(environment().await, ["MODE=slow", "OLD=1"]);
    assert_eq!(helm.revisions().await, [(1, "deployed".to_owned())]);

    // Somebody else scales it and adds a variable: an upgrade keeps what it does not speak of.
    let meddled = json!({ "spec": { "replicas": 3, "template": { "spec": { "containers": [
        { "name": "shop", "env": [{ "name": "THEIRS", "value": "3" }] },
    ] } } } });
    let params = PatchParams::default();
    deployments.patch("shop", &params, &Patch::Strategic(meddled)).await.unwrap();
    helm.upgrade(&chart(2)).await;
    assert_eq!(helm.take_log(), ["second", "Deployment/shop", "after"]);
    let mut found = environment().await;
    found.sort();
    assert_eq!(found, ["MODE=fast", "NEW=2", "THEIRS=3"]);
    // What the chart says of a field that others changed is made so again.
    assert_eq!(deployments.get("shop").await.unwrap().spec.unwrap().replicas, Some(2));
    assert!(maps.get_opt("only-first").await.unwrap().is_none(), "what a chart dropped goes");
    assert_eq!(maps.get("shop").await.unwrap().data.unwrap()["version"], "2");
    let revisions = [(1, "superseded".to_owned()), (2, "deployed".to_owned())];
    assert_eq!(helm.revisions().await, revisions);

    // Another Helm finds the release by its labels.
    let mut other = Helm::new(client.clone(), "default", "shop").await;
    other.rollback(1).await;
    assert_eq!(maps.get("shop").await.unwrap().data.unwrap()["version"], "1");
    assert!(maps.get_opt("only-first").await.unwrap().is_some());
    assert_eq!(other.revisions().await.last().unwrap(), &(3, "deployed".to_owned()));

    other.uninstall().await;
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let releases = ListParams::default().labels("owner=helm");
    assert!(secrets.list(&releases).await.unwrap().items.is_empty());
    assert!(deployments.get_opt("shop").await.unwrap().is_none());
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 1, "the CA alone");
    drop(cluster);
}
