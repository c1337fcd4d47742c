//! Pods that find their node, five thousand nodes to choose from: from the first create to the last
//! binding that is on disk.

use serde_json::json;

use crate::Setup;
use crate::api::Api;
use crate::cluster::{Server, default_account, within};
use crate::measure::api::Spent;
use crate::row::{Row, Target};

const NODES: usize = 5000;
const PODS: usize = 10_000;
const CLIENTS: usize = 32;
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let server = Server::control(setup).await?;
    let api = server.door.connect().await?;
    default_account(&api).await?;
    // They have no agents: all of this is over before anybody misses their heartbeats.
    create(&server, "/api/v1/nodes", NODES, node).await?;
    let spent = Spent::begin(&server)?;
    let bound = bound(&api, PODS);
    let all = futures::future::try_join(bound, create(&server, PODS_PATH, PODS, pod));
    within("every pod bound", all, || server.process.log()).await?;
    let spent = spent.end(PODS)?;
    let how = format!("{PODS} pods by {CLIENTS} clients; first create to last binding");
    let what = format!("scheduling at {NODES} nodes");
    Ok(vec![
        Row::new(what, spent.rate(), "pods/s", Target::AtLeast(2000.0), spent.how(&how)),
        spent.server_row("pod created and bound"),
    ])
}

pub async fn create(
    server: &Server,
    path: &'static str,
    count: usize,
    object: fn(usize) -> serde_json::Value,
) -> anyhow::Result<()> {
    let wires = server.door.wires(CLIENTS).await?;
    let tasks = wires.into_iter().enumerate().map(|(client, mut wire)| {
        tokio::spawn(async move {
            for number in (client..count).step_by(CLIENTS) {
                wire.create(path, object(number).to_string().as_bytes()).await?;
            }
            anyhow::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(())
}

/// Waits until so many pods have a node. One that gets it enters the selection, which is one event.
async fn bound(api: &Api, count: usize) -> anyhow::Result<()> {
    let path = format!("{PODS_PATH}?watch=true&fieldSelector=spec.nodeName%21%3D");
    let mut watch = api.watch(&path).await?;
    for _ in 0..count {
        let event = watch.line().await?;
        anyhow::ensure!(
            event.starts_with(br#"{"type":"ADDED""#),
            "not a pod that was bound: {}",
            String::from_utf8_lossy(&event)
        );
    }
    Ok(())
}

fn node(number: usize) -> serde_json::Value {
    let resources = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node-{number}"), "labels": {
            "kubernetes.io/hostname": format!("node-{number}"), "topology.kubernetes.io/zone": format!("zone-{}", number % 3) } },
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Bench",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
        },
    })
}

fn pod(number: usize) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "labels": { "app": "scheduled" } },
        "spec": { "containers": [{
            "name": "guest", "image": "guest:v1",
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        }] },
    })
}
