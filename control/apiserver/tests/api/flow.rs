//! Priority and fairness, as clients meet it.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use rimward_api::UserInfo;
use rimward_control_store::MemoryStore;
use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, config_map};

const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";

fn schema(name: &str, level: &str, precedence: i64, user: &str) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": { "name": name },
        "spec": {
            "priorityLevelConfiguration": { "name": level }, "matchingPrecedence": precedence,
            "distinguisherMethod": { "type": "ByUser" },
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": user } }],
                "resourceRules": [{
                    "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
                }],
            }],
        },
    })
}

fn level(name: &str, response: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": { "name": name },
        "spec": { "type": "Limited", "limited": {
            "nominalConcurrencyShares": 1, "borrowingLimitPercent": 0, "limitResponse": response,
        } },
    })
}

async fn dangling(cluster: &Cluster, name: &str) -> Value {
    for _ in 0..2000 {
        let schema = cluster.admin.get(&format!("{SCHEMAS}/{name}")).await.expect(200);
        let conditions = schema["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(condition) = conditions.into_iter().find(|c| c["type"] == "Dangling") {
            return condition;
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{name} has no condition");
}

#[tokio::test]
async fn headers_tell_by_which_rules() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let uid = async |path: String| c.get(&path).await.expect(200)["metadata"]["uid"].clone();
    let told = async |user: UserInfo, path: &str| {
        let answer = cluster.client(user).get(path).await;
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        (header("x-kubernetes-pf-flowschema-uid"), header("x-kubernetes-pf-prioritylevel-uid"))
    };
    let check = async |user: UserInfo, path: &str, schema: &str, level: &str| {
        let expected =
            (uid(format!("{SCHEMAS}/{schema}")).await, uid(format!("{LEVELS}/{level}")).await);
        let (schema, level) = told(user, path).await;
        assert_eq!((json!(schema), json!(level)), expected, "{path}");
    };
    let ann = || UserInfo::authenticated("ann", &[]);
    let account = UserInfo::authenticated("system:serviceaccount:a:b", &["system:serviceaccounts"]);
    let node = UserInfo::authenticated("system:node:n", &["system:nodes"]);
    check(UserInfo::authenticated("root", &["system:masters"]), "/version", "exempt", "exempt")
        .await;
    check(ann(), "/api/v1/pods", "global-default", "global-default").await;
    check(ann(), "/healthz", "probes", "exempt").await;
    check(account, "/api/v1/pods", "service-accounts", "workload-low").await;
    check(node, "/api/v1/nodes/n", "system-node-high", "node-high").await;
    // A new schema holds for the next request, also one that it refuses.
    c.post(SCHEMAS, &schema("ann", "workload-high", 5000, "ann")).await.expect(201);
    check(ann(), "/api/v1/pods", "ann", "workload-high").await;
    let condition = dangling(&cluster, "ann").await;
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Found")));
    // One whose level is missing matches nothing, and says so.
    c.post(SCHEMAS, &schema("lost", "nowhere", 4000, "ann")).await.expect(201);
    check(ann(), "/api/v1/pods", "ann", "workload-high").await;
    let condition = dangling(&cluster, "lost").await;
    assert_eq!(
        condition["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"nowhere\" but there is no such object"
    );
    c.post(LEVELS, &level("nowhere", json!({ "type": "Reject" }))).await.expect(201);
    check(ann(), "/api/v1/pods", "lost", "nowhere").await;
    c.delete(&format!("{SCHEMAS}/lost"), &Value::Null).await.expect(200);
    check(ann(), "/api/v1/pods", "ann", "workload-high").await;
}

/// The last resort can be deleted, but not for long.
#[tokio::test]
async fn mandatory_objects_come_back() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for path in [format!("{SCHEMAS}/catch-all"), format!("{LEVELS}/exempt")] {
        let before = c.get(&path).await.expect(200)["metadata"]["uid"].clone();
        c.delete(&path, &Value::Null).await.expect(200);
        loop {
            let now = c.get(&path).await;
            if now.code == 200 {
                assert_ne!(now.json()["metadata"]["uid"], before);
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A client that keeps every seat of its level busy is turned away; others are not.
#[tokio::test]
async fn a_noisy_client_hurts_only_itself() {
    let few = |config: &mut rimward_control_apiserver::Config| {
        (config.reads_max, config.writes_max) = (20, 20);
    };
    let cluster = Cluster::start_on(MemoryStore::new(), few).await;
    let c = &cluster.admin;
    c.post(LEVELS, &level("narrow", json!({ "type": "Reject" }))).await.expect(201);
    c.post(SCHEMAS, &schema("noisy", "narrow", 5000, "noisy")).await.expect(201);
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let user = |name: &str| json!({ "kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io" });
    let binding = json!({
        "metadata": { "name": "all" }, "subjects": [user("noisy"), user("quiet")],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
    });
    c.post(roles, &binding).await.expect(201);
    for i in 0..600 {
        c.post(CONFIG_MAPS, &config_map(&format!("a{i}"), &"x".repeat(100))).await.expect(201);
    }
    let noisy = cluster.client(UserInfo::authenticated("noisy", &[]));
    let quiet = cluster.client(UserInfo::authenticated("quiet", &[]));
    // A list that is not read to its end keeps its seat: the level has but one.
    let held = noisy.open("GET", CONFIG_MAPS, &[], Bytes::new()).await;
    assert_eq!(held.status(), 200);
    let away = noisy.get(CONFIG_MAPS).await;
    assert_eq!((away.code, away.headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert!(away.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    quiet.get(CONFIG_MAPS).await.expect(200);
    let mut body = held.into_body();
    while body.next().await.is_some() {}
    drop(body);
    noisy.get(CONFIG_MAPS).await.expect(200);
    // With queues it waits for its turn instead.
    let queuing = json!({ "type": "Queue", "queuing": { "queues": 4, "handSize": 2, "queueLengthLimit": 10 } });
    c.put(&format!("{LEVELS}/narrow"), &level("narrow", queuing)).await.expect(200);
    let held = noisy.open("GET", CONFIG_MAPS, &[], Bytes::new()).await;
    let waits = tokio::spawn({
        let noisy = noisy.clone();
        async move { noisy.get(CONFIG_MAPS).await.code }
    });
    let metrics = async || c.get("/metrics").await.text();
    let waiting = "apiserver_flowcontrol_current_inqueue_requests{priority_level=\"narrow\"} 1";
    while !metrics().await.contains(waiting) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(held);
    assert_eq!(waits.await.unwrap(), 200);
    assert!(metrics().await.contains("reason=\"concurrency-limit\"} 1"));
}
