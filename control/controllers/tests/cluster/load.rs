//! Controllers when there is much to do and others write at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rimward_client::{Cache, DeleteOptions, Patch, Propagation};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, from, template};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_namespaces_go_while_others_write_into_them() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "640").await;
    let names: Vec<String> = (0..100).map(|i| format!("nslifetest-{i}")).collect();
    let admin = &cluster.admin;
    let made = names.iter().map(|name| async move {
        let namespace = from::<Namespace>(json!({ "metadata": { "name": name } }));
        admin.create(&namespace).await.unwrap();
        let pod = json!({ "metadata": { "name": "p", "namespace": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        admin.create(&from::<k8s_openapi::api::core::v1::Pod>(pod)).await.unwrap();
        let service = json!({ "metadata": { "name": "s", "namespace": name }, "spec": { "ports": [{ "port": 80 }] } });
        admin.create(&from::<Service>(service)).await.unwrap();
    });
    futures::future::join_all(made).await;
    // Writers that know nothing of it go on until they are refused for good.
    let (done, mut writers) = (Arc::new(AtomicBool::new(false)), Vec::new());
    for writer in 0..8 {
        let (client, names, done) = (cluster.admin.clone(), names.clone(), done.clone());
        writers.push(tokio::spawn(async move {
            let (mut written, mut refused) = (0, 0);
            for i in 0..5000 {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                let object = json!({ "metadata": { "name": format!("w{writer}-{i}"), "namespace": names[i % names.len()] } });
                match client.create(&from::<ConfigMap>(object)).await {
                    Ok(_) => written += 1,
                    Err(e) if e.is_namespace_terminating() || e.is_not_found() => refused += 1,
                    Err(e) => panic!("{e}"),
                }
            }
            (written, refused)
        }));
    }
    let deleted = names.iter().map(|name| async move {
        admin.delete::<Namespace>("", name, &DeleteOptions::default()).await.unwrap();
    });
    futures::future::join_all(deleted).await;
    cluster
        .until::<Namespace>("all are gone", |all| {
            all.list().iter().all(|(key, _)| !key.name.starts_with("nslifetest-"))
        })
        .await;
    done.store(true, Ordering::SeqCst);
    let mut refused = 0;
    for writer in writers {
        refused += writer.await.unwrap().1;
    }
    assert!(refused > 0, "somebody wrote while they went");
    // Nothing is left behind in any.
    let left = cluster.admin.list_all::<ConfigMap>("", &Default::default()).await.unwrap();
    let inside = |o: &ConfigMap| o.metadata.namespace.as_ref().is_some_and(|n| names.contains(n));
    assert_eq!(left.items.iter().filter(|o| inside(o)).count(), 0);
    cluster.until::<Pod>("no pod is left", |pods| pods.is_empty()).await;
    cluster
        .until::<Service>("no Service is left", |all| all.list_in("default").len() == all.len())
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_own_each_other_go() {
    let cluster = Cluster::start().await;
    let pod = |name: &str| json!({ "metadata": { "name": name, "namespace": "default" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let mut made = Vec::new();
    for name in ["pod1", "pod2", "pod3"] {
        made.push(cluster.apply::<Pod>(pod(name)).await);
    }
    for (owned, owner) in [(0, 2), (1, 0), (2, 1)] {
        let owner = &made[owner].metadata;
        let reference = json!([{ "apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid, "controller": true, "blockOwnerDeletion": true }]);
        let patch = json!({ "metadata": { "ownerReferences": reference } });
        cluster.patch::<Pod>(made[owned].metadata.name.as_deref().unwrap(), patch).await;
    }
    let foreground = DeleteOptions::default().propagation(Propagation::Foreground);
    cluster.delete::<Pod>("pod1", foreground).await;
    cluster.until::<Pod>("none is left", |pods| pods.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_orphans_stay() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "640").await;
    let rc = json!({
        "metadata": { "name": "a", "namespace": "default" },
        "spec": { "replicas": 100, "selector": { "app": "a" }, "template": template("a", "i") },
    });
    cluster.apply::<ReplicationController>(rc).await;
    let all = |rc: &ReplicationController| rc.status.as_ref().is_some_and(|s| s.replicas == 100);
    cluster.until_one::<ReplicationController>("a", "all are there", all).await;
    let before: Vec<String> = uids(&cluster);
    let orphan = DeleteOptions::default().propagation(Propagation::Orphan);
    cluster.delete::<ReplicationController>("a", orphan).await;
    cluster.until::<ReplicationController>("it is gone", |all| all.is_empty()).await;
    let free = |p: &Pod| p.metadata.owner_references.is_none();
    cluster.until::<Pod>("they are free", |pods| pods.list().iter().all(|(_, p)| free(p))).await;
    // Who would have been collected is so by the time that something later is.
    let later = cluster
        .apply::<ConfigMap>(json!({ "metadata": { "name": "later", "namespace": "default" } }))
        .await;
    let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "later", "uid": later.metadata.uid }]);
    let owned = json!({ "metadata": { "name": "owned", "namespace": "default", "ownerReferences": owner } });
    cluster.apply::<ConfigMap>(owned).await;
    cluster.delete::<ConfigMap>("later", DeleteOptions::default()).await;
    cluster.until::<ConfigMap>("the later one went", |m| m.get("default", "owned").is_none()).await;
    assert_eq!(uids(&cluster), before);
    cluster.stop().await;
}

fn uids(cluster: &Cluster) -> Vec<String> {
    let mut uids: Vec<String> =
        cluster.pods().iter().map(|p| p.metadata.uid.clone().unwrap()).collect();
    uids.sort();
    uids
}

/// Addresses and port of the slices that mirror a Service.
fn mirrored(slices: &Cache<EndpointSlice>, service: &str) -> Vec<(String, i32)> {
    let mut found = Vec::new();
    for (_, slice) in slices.list_in("default") {
        let labels = slice.metadata.labels.clone().unwrap_or_default();
        let ours = labels.get("endpointslice.kubernetes.io/managed-by").map(String::as_str)
            == Some("endpointslicemirroring-controller.k8s.io");
        if !ours || labels.get("kubernetes.io/service-name").map(String::as_str) != Some(service) {
            continue;
        }
        let port = slice.ports.as_ref().and_then(|p| p.first()?.port).unwrap_or_default();
        let endpoints = slice.endpoints.iter().flatten();
        found.extend(endpoints.flat_map(|e| &e.addresses).map(|ip| (ip.clone(), port)));
    }
    found.sort();
    found
}

fn endpoints(name: &str, subsets: Value) -> Endpoints {
    from(json!({ "metadata": { "name": name, "namespace": "default" }, "subsets": subsets }))
}

fn service(name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default" }, "spec": { "ports": [{ "name": "example", "port": 80 }] } })
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_endpoints_are_mirrored_through_their_life() {
    let cluster = Cluster::start().await;
    cluster.apply::<Service>(service("custom")).await;
    let ports = |port: i32| json!([{ "name": "example", "port": port, "protocol": "TCP" }]);
    let one = json!([{ "addresses": [{ "ip": "10.1.2.3" }], "ports": ports(80) }]);
    let made = cluster.admin.create(&endpoints("custom", one)).await.unwrap();
    let is = async |what: &str, expected: &[(&str, i32)]| {
        let expected: Vec<_> =
            expected.iter().map(|(ip, port)| ((*ip).to_owned(), *port)).collect();
        cluster.until::<EndpointSlice>(what, |s| mirrored(s, "custom") == expected).await;
    };
    is("mirrored", &[("10.1.2.3", 80)]).await;
    let mut changed = made;
    changed.subsets = from(json!([{ "addresses": [{ "ip": "10.2.3.4" }], "ports": ports(81) }]));
    cluster.admin.update(&changed).await.unwrap();
    is("followed", &[("10.2.3.4", 81)]).await;
    let two = json!([
        { "addresses": [{ "ip": "10.2.3.4" }], "ports": ports(81) },
        { "addresses": [{ "ip": "10.2.3.4" }], "ports": ports(82) },
    ]);
    let patch = Patch::merge(json!({ "subsets": two }));
    cluster.admin.patch::<Endpoints>("default", "custom", "", &patch).await.unwrap();
    is("two ports of an address", &[("10.2.3.4", 81), ("10.2.3.4", 82)]).await;
    // Somebody meddles.
    let slices = cluster.informers.of::<EndpointSlice>().list_in("default");
    let ours = slices.iter().find(|(key, _)| key.name.starts_with("custom-")).unwrap();
    let options = DeleteOptions::default();
    cluster.admin.delete::<EndpointSlice>("default", &ours.0.name, &options).await.unwrap();
    cluster
        .until::<EndpointSlice>("another stands for it", |s| {
            s.get("default", &ours.0.name).is_none() && mirrored(s, "custom").len() == 2
        })
        .await;
    cluster.delete::<Endpoints>("custom", DeleteOptions::default()).await;
    is("gone with them", &[]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_services_are_mirrored_while_they_change() {
    let cluster = Cluster::start().await;
    let names: Vec<String> = (0..200).map(|i| format!("s{i}")).collect();
    let subsets = |round: usize, i: usize| {
        let ip = format!("10.{}.{}.{}", round + 1, i / 100, i % 100 + 1);
        json!([{ "addresses": [{ "ip": ip }], "ports": [{ "port": 1000 + round }] }])
    };
    let made = names.iter().enumerate().map(|(i, name)| {
        let (cluster, subsets) = (&cluster, &subsets);
        async move {
            let first = endpoints(name, subsets(0, i));
            // Now one comes first, now the other.
            if i % 2 == 0 {
                cluster.apply::<Service>(service(name)).await;
                cluster.admin.create(&first).await.unwrap();
            } else {
                cluster.admin.create(&first).await.unwrap();
                cluster.apply::<Service>(service(name)).await;
            }
            for round in 1..=5 {
                let patch = Patch::merge(json!({ "subsets": subsets(round, i) }));
                cluster.admin.patch::<Endpoints>("default", name, "", &patch).await.unwrap();
            }
        }
    });
    futures::future::join_all(made).await;
    cluster
        .until::<EndpointSlice>("each is told as it is at last", |slices| {
            names.iter().enumerate().all(|(i, name)| {
                let ip = format!("10.6.{}.{}", i / 100, i % 100 + 1);
                mirrored(slices, name) == [(ip, 1005)]
            })
        })
        .await;
    cluster.stop().await;
}
