//! ResourceQuotas, as writes meet them. (What counts them first is a controller: here the test does.)

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Client, Cluster, PODS, config_map, pod};

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Makes a quota that says of everything that none of it is used.
async fn quota(client: &Client, name: &str, hard: Value) {
    let object = json!({ "metadata": { "name": name }, "spec": { "hard": hard } });
    let mut made = client.post(QUOTAS, &object).await.expect(201);
    let used: BTreeMap<String, &str> =
        hard.as_object().unwrap().keys().map(|k| (k.clone(), "0")).collect();
    made["status"] = json!({ "hard": hard, "used": used });
    client.put(&format!("{QUOTAS}/{name}/status"), &made).await.expect(200);
}

async fn used(client: &Client, name: &str) -> Value {
    client.get(&format!("{QUOTAS}/{name}")).await.expect(200)["status"]["used"].clone()
}

fn asking(name: &str, cpu: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": cpu } });
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_last_place_is_given_once() {
    let cluster = Cluster::start().await;
    quota(&cluster.admin, "q", json!({ "pods": "50", "count/pods": "1000" })).await;
    let clients = (0..32).map(|c| {
        let client = cluster.admin.clone();
        tokio::spawn(async move {
            let mut made = Vec::new();
            for i in 0..6 {
                let name = format!("p{c}-{i}");
                let answer = client.post(PODS, &pod(&name)).await;
                match answer.code {
                    201 => made.push(name),
                    403 => {
                        assert!(answer.text().contains("exceeded quota: q"), "{}", answer.text())
                    }
                    other => panic!("{other}: {}", answer.text()),
                }
            }
            made
        })
    });
    let mut made = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        made.extend(client.await.unwrap());
    }
    assert_eq!(made.len(), 50, "of 192 creates exactly as many as the quota has room for");
    assert_eq!(used(&cluster.admin, "q").await, json!({ "pods": "50", "count/pods": "50" }));
    // 10 go and at once there is room for 10.
    let gone = made.split_off(40).into_iter().map(|name| {
        let client = cluster.admin.clone();
        tokio::spawn(async move {
            client.delete(&format!("{PODS}/{name}"), &Value::Null).await.expect(200);
        })
    });
    for delete in gone.collect::<Vec<_>>() {
        delete.await.unwrap();
    }
    assert_eq!(used(&cluster.admin, "q").await, json!({ "pods": "40", "count/pods": "40" }));
    for i in 0..10 {
        cluster.admin.post(PODS, &pod(&format!("again{i}"))).await.expect(201);
    }
    cluster.admin.post(PODS, &pod("one-more")).await.expect(403);
}

#[tokio::test]
async fn refusals_say_what_is_lacking() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    quota(c, "compute", json!({ "requests.cpu": "1", "pods": "2" })).await;
    let refused = c.post(PODS, &pod("silent")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"silent\" is forbidden: failed quota: compute: must specify requests.cpu for: c"
    );
    c.post(PODS, &asking("a", "600m")).await.expect(201);
    let refused = c.post(PODS, &asking("b", "500m")).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"b\" is forbidden: exceeded quota: compute, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    // What is only tried, and what fails, takes nothing.
    c.post(&format!("{PODS}?dryRun=All"), &asking("b", "400m")).await.expect(201);
    c.post(PODS, &asking("a", "400m")).await.expect(409);
    c.post(PODS, &asking("Bad_Name", "400m")).await.expect(422);
    assert_eq!(used(c, "compute").await, json!({ "pods": "1", "requests.cpu": "600m" }));
    // A pod that ended uses nothing.
    let ended = json!({ "status": { "phase": "Succeeded" } });
    c.merge(&format!("{PODS}/a/status"), &ended).await.expect(200);
    assert_eq!(used(c, "compute").await, json!({ "pods": "0", "requests.cpu": "0" }));
    c.delete(&format!("{PODS}/a"), &Value::Null).await.expect(200);
    assert_eq!(used(c, "compute").await, json!({ "pods": "0", "requests.cpu": "0" }));
}

#[tokio::test]
async fn growth_is_charged_and_several_quotas_count_together() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    quota(c, "ports", json!({ "services.nodeports": "2", "services": "3" })).await;
    quota(c, "objects", json!({ "count/services": "5", "configmaps": "1", "resourcequotas": "9" }))
        .await;
    let service = |name: &str, kind: &str, ports: Value| json!({ "metadata": { "name": name }, "spec": { "type": kind, "ports": ports } });
    let (one, two, three) = (
        json!([{ "port": 1, "name": "a" }]),
        json!([{ "port": 1, "name": "a" }, { "port": 2, "name": "b" }]),
        json!([{ "port": 1, "name": "a" }, { "port": 2, "name": "b" }, { "port": 3, "name": "c" }]),
    );
    c.post(SERVICES, &service("s", "NodePort", one)).await.expect(201);
    c.put(&format!("{SERVICES}/s"), &service("s", "NodePort", two)).await.expect(200);
    let refused =
        c.put(&format!("{SERVICES}/s"), &service("s", "NodePort", three)).await.expect(403);
    assert_eq!(
        refused["message"],
        "services \"s\" is forbidden: exceeded quota: ports, requested: services.nodeports=1, used: services.nodeports=2, limited: services.nodeports=2"
    );
    assert_eq!(used(c, "ports").await, json!({ "services": "1", "services.nodeports": "2" }));
    assert_eq!(used(c, "objects").await["count/services"], "1");
    let plain = json!({ "spec": { "type": "ClusterIP" } });
    c.merge(&format!("{SERVICES}/s"), &plain).await.expect(200);
    assert_eq!(used(c, "ports").await, json!({ "services": "1", "services.nodeports": "0" }));
    c.delete(&format!("{SERVICES}/s"), &Value::Null).await.expect(200);
    assert_eq!(used(c, "ports").await, json!({ "services": "0", "services.nodeports": "0" }));

    c.post(CONFIG_MAPS, &config_map("x", "1")).await.expect(201);
    c.merge(&format!("{CONFIG_MAPS}/x"), &json!({ "data": { "k": "2" } })).await.expect(200);
    c.post(CONFIG_MAPS, &config_map("y", "1")).await.expect(403);
    c.delete(CONFIG_MAPS, &Value::Null).await.expect(200);
    // kube-root-ca.crt was there before the quota: it is not counted twice, and never below zero.
    assert_eq!(used(c, "objects").await["configmaps"], "0");
    // A quota neither blocks nor counts its own end.
    c.delete(&format!("{QUOTAS}/ports"), &Value::Null).await.expect(200);
    c.delete(&format!("{QUOTAS}/objects"), &Value::Null).await.expect(200);
    c.post(CONFIG_MAPS, &config_map("y", "1")).await.expect(201);
}
