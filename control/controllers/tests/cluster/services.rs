use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rimward_client::{Cache, DeleteOptions, Patch};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::cluster::{Cluster, deployment};

/// (addresses that are ready, all addresses) of the slices of a Service.
fn counts(slices: &Cache<EndpointSlice>, service: &str) -> (usize, usize) {
    let (mut ready, mut all) = (0, 0);
    for (_, slice) in slices.list_in("default") {
        let of = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if of.is_none_or(|s| s != service) {
            continue;
        }
        for endpoint in slice.endpoints.iter().flatten() {
            all += 1;
            ready += usize::from(endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true));
        }
    }
    (ready, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_pods() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let service = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]},
    });
    cluster.apply::<Service>(service).await;
    cluster
        .until::<EndpointSlice>("an empty slice", |s| {
            s.list_in("default").iter().any(|(k, _)| k.name.starts_with("web-"))
        })
        .await;
    let mut object = deployment("web", 150, "v1");
    object["spec"]["template"]["spec"]["containers"][0]["ports"] =
        json!([{"name": "web", "containerPort": 8080}]);
    cluster.apply::<Deployment>(object).await;
    cluster.rolled_out("web").await;
    cluster
        .until::<EndpointSlice>("all ready, a hundred a slice", |slices| {
            let sizes_fit = slices
                .list_in("default")
                .iter()
                .all(|(_, s)| s.endpoints.as_ref().is_none_or(|e| e.len() <= 100));
            counts(slices, "web") == (150, 150) && sizes_fit
        })
        .await;
    cluster
        .until_one::<Endpoints>("web", "the older form says the same", |e| {
            let subsets = e.subsets.clone().unwrap_or_default();
            subsets.len() == 1
                && subsets[0].addresses.as_ref().map(Vec::len) == Some(150)
                && subsets[0].ports.as_ref().unwrap()[0].port == 8080
        })
        .await;
    let name = cluster.pods()[0].metadata.name.clone().unwrap();
    let sick = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.admin.patch::<Pod>("default", &name, "status", &Patch::strategic(sick)).await.unwrap();
    cluster
        .until::<EndpointSlice>("one is not ready", |slices| counts(slices, "web") == (149, 150))
        .await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 3}})).await;
    cluster.until::<EndpointSlice>("few are left", |slices| counts(slices, "web").1 == 3).await;
    cluster.delete::<Service>("web", DeleteOptions::default()).await;
    cluster
        .until::<EndpointSlice>("slices go with their Service", |s| {
            s.list_in("default").iter().all(|(k, _)| !k.name.starts_with("web-"))
        })
        .await;
    cluster.until::<Endpoints>("so do Endpoints", |e| e.get("default", "web").is_none()).await;
    cluster.stop().await;
}
