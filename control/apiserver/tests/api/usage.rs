//! `metrics.k8s.io`: nodes are asked when somebody asks.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rimward_api::UserInfo;
use rimward_api::usage::{Amount, ContainerUsage, NodeUsage, PATH, PodUsage};
use rimward_control_apiserver::nodes::{Duplex, LogOptions, NodeError, Nodes};
use serde_json::{Value, json};

use crate::cluster::{Client, Cluster, PODS, pod};

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// The node `n1`, which runs the pod of a UID, and says how often it was asked.
struct Measuring {
    uid: String,
    asked: Arc<AtomicUsize>,
}

impl Measuring {
    fn usage(&self) -> NodeUsage {
        let used = |cpu_nano_cores, memory_bytes| Amount { cpu_nano_cores, memory_bytes };
        let container = |name: &str, used| ContainerUsage { name: name.into(), used };
        NodeUsage {
            timestamp: "2026-01-01T00:00:00Z".into(),
            window_ms: 15_020,
            node: used(1_500_000_000, 1 << 30),
            pods: vec![PodUsage {
                uid: self.uid.clone(),
                containers: vec![
                    container("c", used(250_000_000, 5 << 20)),
                    container("d", used(1, 1000)),
                ],
            }],
        }
    }
}

#[async_trait]
impl Nodes for Measuring {
    async fn logs(
        &self,
        node: &str,
        _namespace: &str,
        _name: &str,
        _uid: &str,
        _options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, NodeError>>, NodeError> {
        Err(NodeError::NotConnected(node.to_owned()))
    }

    fn last_heard(&self, _node: &str) -> Option<jiff::Timestamp> {
        None
    }

    async fn dial(&self, node: &str, _: IpAddr, _: u16) -> Result<Box<dyn Duplex>, NodeError> {
        Err(NodeError::NotConnected(node.to_owned()))
    }

    async fn api(&self, node: &str) -> Result<Box<dyn Duplex>, NodeError> {
        if node != "n1" {
            return Err(NodeError::NotConnected(node.to_owned()));
        }
        let (near, far) = tokio::io::duplex(16 << 10);
        let (usage, asked) = (serde_json::to_vec(&self.usage()).unwrap(), self.asked.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                asked.fetch_add(1, Ordering::Relaxed);
                assert_eq!(request.uri().path(), PATH);
                let answer = http::Response::new(Full::new(Bytes::from(usage.clone())));
                async move { Ok::<_, Infallible>(answer) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            server.serve_connection(TokioIo::new(far), service).await
        });
        Ok(Box::new(near))
    }
}

async fn cluster() -> (Cluster, Arc<AtomicUsize>) {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut uid = String::new();
    for (name, node) in [("far", "n2"), ("web", "n1"), ("idle", "n1"), ("unbound", "")] {
        let mut p = pod(name);
        p["metadata"]["labels"] = json!({ "app": name });
        if !node.is_empty() {
            p["spec"]["nodeName"] = node.into();
        }
        let made = c.post(PODS, &p).await.expect(201);
        if name == "web" {
            uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
        }
    }
    for node in ["n1", "n2"] {
        let labels = json!({ "zone": node });
        let node = json!({ "metadata": { "name": node, "labels": labels } });
        c.post("/api/v1/nodes", &node).await.expect(201);
    }
    let asked = Arc::new(AtomicUsize::new(0));
    cluster.server.set_nodes(Arc::new(Measuring { uid, asked: asked.clone() }));
    (cluster, asked)
}

async fn names(c: &Client, path: &str) -> Vec<String> {
    let list = c.get(&format!("{METRICS}/{path}")).await.expect(200);
    let items = list["items"].as_array().unwrap();
    items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn without_time(mut object: Value) -> Value {
    object["metadata"].as_object_mut().unwrap().remove("creationTimestamp").expect("is there");
    object
}

#[tokio::test]
async fn what_nodes_and_pods_use() {
    let (cluster, asked) = cluster().await;
    let c = &cluster.admin;
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody asked");
    let node = c.get(&format!("{METRICS}/nodes/n1")).await.expect(200);
    assert_eq!(
        without_time(node),
        json!({
            "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": { "name": "n1", "labels": { "zone": "n1" } },
            "timestamp": "2026-01-01T00:00:00Z", "window": "15.02s",
            "usage": { "cpu": "1500m", "memory": "1Gi" },
        })
    );
    let pod = c.get(&format!("{METRICS}/namespaces/default/pods/web")).await.expect(200);
    assert_eq!(
        without_time(pod),
        json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": { "name": "web", "namespace": "default", "labels": { "app": "web" } },
            "timestamp": "2026-01-01T00:00:00Z", "window": "15.02s",
            "containers": [
                { "name": "c", "usage": { "cpu": "250m", "memory": "5Mi" } },
                { "name": "d", "usage": { "cpu": "1n", "memory": "1k" } },
            ],
        })
    );
    // Clients that speak protobuf get it, as of metrics-server.
    let path = format!("{METRICS}/nodes/n1");
    let accept = [("accept", "application/vnd.kubernetes.protobuf")];
    let protobuf = c.send("GET", &path, &accept, "").await;
    assert_eq!(protobuf.content_type(), "application/vnd.kubernetes.protobuf");
    // Field 3 is the window: a Duration of 15.02 s, whose field 1 are nanoseconds.
    let window = [&[0x1a, 6, 0x08][..], &[0x80, 0x86, 0x8c, 0xfa, 0x37][..]].concat();
    let holds = |what: &[u8]| protobuf.bytes.windows(what.len()).any(|w| w == what);
    assert!(holds(b"k8s\0") && holds(b"NodeMetrics") && holds(&window), "{:?}", protobuf.bytes);
    assert_eq!(names(c, "nodes").await, ["n1"], "n2 cannot be asked");
    assert_eq!(names(c, "nodes?labelSelector=zone%3Dn2").await, [""; 0]);
    for path in [
        "pods",
        "namespaces/default/pods",
        "pods?labelSelector=app%21%3Didle",
        "pods?fieldSelector=metadata.name%3Dweb",
        "pods?limit=500",
        "namespaces/default/pods?labelSelector=app%20in%20%28web%29",
    ] {
        assert_eq!(names(c, path).await, ["web"], "{path}");
    }
    assert_eq!(names(c, "pods?labelSelector=app%3Didle").await, [""; 0]);
    assert_eq!(names(c, "namespaces/kube-system/pods").await, [""; 0]);
    assert_eq!(asked.load(Ordering::Relaxed), 1, "one answer is good for a moment");
}

#[tokio::test]
async fn what_is_not_known_and_what_cannot_be_asked() {
    let (cluster, _) = cluster().await;
    let c = &cluster.admin;
    for (path, message) in [
        ("namespaces/default/pods/none", "pods \"none\" not found"),
        ("namespaces/default/pods/idle", "pods.metrics.k8s.io \"idle\" not found"),
        ("namespaces/default/pods/far", "pods.metrics.k8s.io \"far\" not found"),
        ("namespaces/default/pods/unbound", "pods.metrics.k8s.io \"unbound\" not found"),
        ("nodes/none", "nodes \"none\" not found"),
        ("nodes/n2", "nodes.metrics.k8s.io \"n2\" not found"),
    ] {
        let status = c.get(&format!("{METRICS}/{path}")).await.expect(404);
        assert_eq!(status["message"], message);
    }
    c.get(&format!("{METRICS}/nodes?watch=true")).await.expect(405);
    c.post(&format!("{METRICS}/nodes"), &json!({ "metadata": { "name": "n" } })).await.expect(405);
    c.delete(&format!("{METRICS}/nodes/n1"), &Value::Null).await.expect(405);
}

#[tokio::test]
async fn tables_discovery_and_roles() {
    let (cluster, _) = cluster().await;
    let c = &cluster.admin;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = c.send("GET", &format!("{METRICS}/pods"), &accept, "").await.expect(200);
    let columns = table["columnDefinitions"].as_array().unwrap().iter();
    let columns: Vec<&str> = columns.map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "cpu", "memory", "Window"]);
    assert_eq!(table["rows"][0]["cells"], json!(["web", "250000001n", "5243880", "15.02s"]));

    let page = c.get(METRICS).await.expect(200);
    assert_eq!(
        page["resources"],
        json!([
            { "name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"] },
            { "name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"] },
        ])
    );
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    let spec = &c.get(service).await.expect(200)["spec"];
    assert_eq!((&spec["service"], &spec["groupPriorityMinimum"]), (&Value::Null, &json!(100)));

    let role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader";
    let labels = &c.get(role).await.expect(200)["metadata"]["labels"];
    for to in ["admin", "edit", "view"] {
        assert_eq!(labels[format!("rbac.authorization.k8s.io/aggregate-to-{to}")], "true");
    }
    let nobody = cluster.client(UserInfo::authenticated("nobody", &[]));
    nobody.get(&format!("{METRICS}/nodes")).await.expect(403);
}

/// Whoever installs metrics-server points the APIService at it; then it answers.
#[tokio::test]
async fn an_installed_server_takes_over() {
    let (cluster, asked) = cluster().await;
    let c = &cluster.admin;
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    let elsewhere = json!({ "spec": {
        "service": { "namespace": "kube-system", "name": "metrics-server" },
        "insecureSkipTLSVerify": true,
    } });
    c.merge(path, &elsewhere).await.expect(200);
    let answer = c.get(&format!("{METRICS}/nodes")).await;
    assert_eq!(answer.code, 503, "there is no such Service: {}", answer.text());
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    c.delete(path, &Value::Null).await.expect(200);
    assert_eq!(names(c, "nodes").await, ["n1"]);
}
