use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Endpoints, PersistentVolumeClaim, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use rimward_client::DeleteOptions;
use rimward_control_lean::Pod;
use serde_json::json;

use crate::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_in_use_stays() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let claim = |name: &str| json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.apply::<PersistentVolumeClaim>(claim("used")).await;
    cluster.apply::<PersistentVolumeClaim>(claim("unused")).await;
    let pod = json!({
        "metadata": {"name": "user", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]},
    });
    cluster.apply::<Pod>(pod).await;
    cluster.until::<Pod>("the pod is seen", |pods| pods.len() == 1).await;
    for name in ["used", "unused"] {
        cluster.delete::<PersistentVolumeClaim>(name, DeleteOptions::default()).await;
    }
    cluster
        .until::<PersistentVolumeClaim>("the unused goes", |all| {
            all.get("default", "unused").is_none()
        })
        .await;
    let used = cluster.informers.of::<PersistentVolumeClaim>().get("default", "used").unwrap();
    assert!(used.metadata.deletion_timestamp.is_some());
    cluster.delete::<Pod>("user", DeleteOptions::default().grace(0)).await;
    cluster.until::<PersistentVolumeClaim>("the used goes too", |all| all.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_addresses_in_use_stays() {
    let cluster = Cluster::start().await;
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.44.0.0/24"]}});
    cluster.apply::<ServiceCIDR>(range).await;
    let ready = |status: &'static str| {
        move |all: &rimward_client::Cache<ServiceCIDR>| {
            let range = all.get("", "more");
            let conditions = range.as_ref().and_then(|r| r.status.clone()?.conditions);
            range.is_some_and(|r| r.metadata.finalizers.is_some())
                && conditions
                    .into_iter()
                    .flatten()
                    .any(|c| c.type_ == "Ready" && c.status == status)
        }
    };
    cluster.until::<ServiceCIDR>("it is ready", ready("True")).await;
    let service = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {"clusterIP": "10.44.0.9", "ports": [{"port": 80}]}});
    cluster.apply::<Service>(service).await;
    cluster
        .until::<k8s_openapi::api::networking::v1::IPAddress>("its address is seen", |all| {
            all.get("", "10.44.0.9").is_some()
        })
        .await;
    cluster.admin.delete::<ServiceCIDR>("", "more", &DeleteOptions::default()).await.unwrap();
    cluster.until::<ServiceCIDR>("it waits", ready("False")).await;
    cluster.delete::<Service>("s", DeleteOptions::default()).await;
    cluster.until::<ServiceCIDR>("it goes", |all| all.get("", "more").is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_a_users_own_are_mirrored() {
    let cluster = Cluster::start().await;
    let service = json!({"metadata": {"name": "db", "namespace": "default"}, "spec": {"ports": [{"port": 5432}]}});
    cluster.apply::<Service>(service).await;
    let endpoints = |ips: &[&str]| {
        let addresses: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"metadata": {"name": "db", "namespace": "default", "labels": {"a": "b"}}, "subsets": [{"addresses": addresses, "ports": [{"port": 5432}]}]})
    };
    cluster.apply::<Endpoints>(endpoints(&["192.0.2.1", "2001:db8::1"])).await;
    let shown = |slices: &rimward_client::Cache<EndpointSlice>| -> BTreeMap<String, Vec<String>> {
        let ours = |s: &EndpointSlice| {
            s.metadata.labels.as_ref().is_some_and(|l| {
                l.get("endpointslice.kubernetes.io/managed-by")
                    .is_some_and(|m| m == "endpointslicemirroring-controller.k8s.io")
                    && l["kubernetes.io/service-name"] == "db"
                    && l["a"] == "b"
            })
        };
        let all = slices.list();
        let all = all.iter().filter(|(_, s)| ours(s));
        all.map(|(_, s)| {
            let ips = s.endpoints.iter().flatten().flat_map(|e| e.addresses.clone());
            (s.address_type.clone(), ips.collect())
        })
        .collect()
    };
    let wanted = |rows: &[(&str, &str)]| -> BTreeMap<String, Vec<String>> {
        rows.iter().map(|(family, ip)| ((*family).to_owned(), vec![(*ip).to_owned()])).collect()
    };
    let both = wanted(&[("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")]);
    cluster.until::<EndpointSlice>("one per family", |slices| shown(slices) == both).await;
    let moved: Endpoints = serde_json::from_value(endpoints(&["192.0.2.9"])).unwrap();
    cluster.admin.update(&moved).await.unwrap();
    let one = wanted(&[("IPv4", "192.0.2.9")]);
    cluster.until::<EndpointSlice>("it follows", |slices| shown(slices) == one).await;
    cluster.delete::<Endpoints>("db", DeleteOptions::default()).await;
    cluster.until::<EndpointSlice>("it goes", |slices| shown(slices).is_empty()).await;
    cluster.stop().await;
}
