//! What clients are warned of, beyond unknown fields.

use serde_json::{Value, json};

use crate::cluster::{Cluster, PODS, pod};

#[tokio::test]
async fn writes_warn_as_kubernetes_does() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let warned = |texts: &[&str]| -> Vec<String> {
        texts.iter().map(|t| format!("299 - \"{}\"", t.replace('"', "\\\""))).collect()
    };
    // A deprecated API warns whatever is done with it.
    let endpoints = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    let listed = c.get("/api/v1/namespaces/default/endpoints").await;
    assert_eq!(listed.warnings(), warned(&[endpoints]));

    let mut named = pod("a.b");
    named["spec"]["containers"][0]["env"] =
        json!([{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }]);
    let made = c.post(PODS, &named).await;
    made.expect(201);
    assert_eq!(
        made.warnings(),
        warned(&[
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
        ])
    );
    // Controllers write pods all day: updates are silent.
    let labelled = json!({ "metadata": { "labels": { "a": "1" } } });
    let quiet: Vec<String> = Vec::new();
    assert_eq!(c.merge(&format!("{PODS}/a.b"), &labelled).await.warnings(), quiet);

    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({ "metadata": { "name": "d" }, "spec": {
        "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": {
            "nodeSelector": { "beta.kubernetes.io/os": "linux" }, "containers": [{ "name": "c", "image": "i" }] } } } });
    let old_label = warned(&[
        "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ]);
    assert_eq!(c.post(deployments, &deployment).await.warnings(), old_label);
    let path = format!("{deployments}/d");
    assert_eq!(c.merge(&path, &labelled).await.warnings(), quiet, "the specification is the same");
    let scaled = json!({ "spec": { "replicas": 2 } });
    assert_eq!(c.merge(&path, &scaled).await.warnings(), old_label);
    assert_eq!(
        c.merge(&format!("{path}/status"), &json!({ "status": { "replicas": 1 } }))
            .await
            .warnings(),
        quiet
    );
}

/// Parts of the control plane are well as long as they run.
#[tokio::test]
async fn components_have_a_status() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let (ends, ended) = tokio::sync::oneshot::channel::<()>();
    let part = tokio::spawn(async { drop(ended.await) });
    cluster.server.add_component("scheduler", part.abort_handle());
    let path = "/api/v1/componentstatuses";
    let list = c.get(path).await;
    assert_eq!(list.warnings(), ["299 - \"v1 ComponentStatus is deprecated in v1.19+\""]);
    let list = list.expect(200);
    let names: Vec<&Value> =
        list["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, ["etcd-0", "scheduler"]);
    let one = format!("{path}/scheduler");
    let ok = json!([{ "type": "Healthy", "status": "True", "message": "ok" }]);
    assert_eq!(c.get(&one).await.expect(200)["conditions"], ok);
    ends.send(()).unwrap();
    part.await.unwrap();
    assert_eq!(c.get(&one).await.expect(200)["conditions"][0]["status"], "False");
    c.get(&format!("{path}/none")).await.expect(404);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = c.send("GET", path, &table, "").await.expect(200);
    assert_eq!(table["rows"][0]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
}

#[tokio::test]
async fn addresses_of_the_machine_itself_are_no_endpoints() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for address in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0"] {
        let endpoints = json!({ "metadata": { "name": "e" }, "subsets": [{ "addresses": [{ "ip": address }], "ports": [{ "port": 443 }] }] });
        c.post("/api/v1/namespaces/default/endpoints", &endpoints).await.expect(422);
        let family = if address.contains(':') { "IPv6" } else { "IPv4" };
        let slice: Value = json!({ "metadata": { "name": "s" }, "addressType": family, "endpoints": [{ "addresses": [address] }], "ports": [{ "port": 443 }] });
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        c.post(path, &slice).await.expect(422);
    }
}
