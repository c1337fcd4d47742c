//! What needs nodes: logs, and Leases that show when a node was last heard of.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use rimward_control_apiserver::nodes::{Duplex, LogOptions, NodeError, Nodes};
use serde_json::json;

use crate::cluster::{Cluster, PODS, pod};

#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<(String, LogOptions)>>,
}

#[async_trait]
impl Nodes for Fake {
    async fn logs(
        &self,
        node: &str,
        _namespace: &str,
        _name: &str,
        _uid: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, NodeError>>, NodeError> {
        if node != "n1" {
            return Err(NodeError::NotConnected(node.to_owned()));
        }
        self.asked.lock().unwrap().push((node.to_owned(), options));
        let lines = [Ok(Bytes::from("one\n")), Ok(Bytes::from("two\n"))];
        Ok(futures::stream::iter(lines).boxed())
    }

    fn last_heard(&self, node: &str) -> Option<jiff::Timestamp> {
        (node == "n1").then(|| "2030-01-01T00:00:00Z".parse().unwrap())
    }

    async fn dial(
        &self,
        node: &str,
        _ip: IpAddr,
        _port: u16,
    ) -> Result<Box<dyn Duplex>, NodeError> {
        Err(NodeError::NotConnected(node.to_owned()))
    }
}

/// Nodes through which every address is the same server of the test.
pub struct Dials {
    pub to: std::net::SocketAddr,
}

#[async_trait]
impl Nodes for Dials {
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

    async fn dial(
        &self,
        _node: &str,
        _ip: IpAddr,
        _port: u16,
    ) -> Result<Box<dyn Duplex>, NodeError> {
        let stream = tokio::net::TcpStream::connect(self.to).await;
        Ok(Box::new(stream.map_err(|e| NodeError::Refused(502, e.to_string()))?))
    }
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut two = pod("two");
    two["spec"]["containers"] =
        json!([{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }]);
    for (mut p, node) in [(pod("p"), "n1"), (pod("far"), "n2"), (pod("new"), ""), (two, "n1")] {
        p["spec"]["nodeName"] = node.into();
        c.post(PODS, &p).await.expect(201);
    }
    c.get(&format!("{PODS}/p/log")).await.expect(503);
    let fake = Arc::new(Fake::default());
    cluster.server.set_nodes(fake.clone());
    let log = c.get(&format!("{PODS}/p/log?tailLines=5&timestamps=true&follow=false")).await;
    assert_eq!((log.code, log.text().as_str()), (200, "one\ntwo\n"));
    let (_, options) = fake.asked.lock().unwrap().pop().unwrap();
    let expected = LogOptions {
        container: "c".into(),
        timestamps: true,
        tail_lines: Some(5),
        ..LogOptions::default()
    };
    assert_eq!(options, expected);
    c.get(&format!("{PODS}/far/log")).await.expect(503);
    let check = async |path: &str, code: u16, text: &str| {
        let status = c.get(&format!("{PODS}/{path}")).await.expect(code);
        assert!(status["message"].as_str().unwrap().contains(text), "{status}");
    };
    check("new/log", 400, "pod new does not have a host assigned").await;
    check("two/log", 400, "a container name must be specified for pod two, choose one of: [a b]")
        .await;
    check("two/log?container=x", 400, "container x is not valid for pod two").await;
    check("p/log?tailLines=-1", 422, "tailLines: Invalid value: -1").await;
    check("none/log", 404, "pods \"none\" not found").await;
}

#[tokio::test]
async fn a_lease_shows_when_its_node_was_heard() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    cluster.server.set_nodes(Arc::new(Fake::default()));
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = |name: &str| json!({ "metadata": { "name": name }, "spec": { "holderIdentity": name, "renewTime": "2026-01-01T00:00:00.000000Z" } });
    c.post(leases, &lease("n1")).await.expect(201);
    c.post(leases, &lease("n2")).await.expect(201);
    let list = c.get(leases).await.expect(200);
    let times: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["spec"]["renewTime"].as_str().unwrap())
        .collect();
    assert_eq!(times, ["2030-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z"]);
    assert_eq!(c.get(&format!("{leases}/n1")).await.expect(200)["spec"]["renewTime"], times[0]);
}
