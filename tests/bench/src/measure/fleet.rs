//! Pods to Running on a hundred nodes: real agents over real tunnels, whose runtime only says that
//! containers run. They live in this process; their directories lie in memory, since the disks of a
//! hundred machines are not one.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use futures::future::{try_join, try_join_all};
use rimward_node_agent::{Agent, Config};
use rimward_node_pod::fake::{FakeImages, FakeNetwork, FakeRuntime};
use rimward_node_pod::{Allocatable, Clock, Pods};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Setup;
use crate::api::{Api, condition};
use crate::cluster::{Server, default_account, within};
use crate::measure::api::Spent;
use crate::measure::schedule::create;
use crate::row::{Row, Target};

const NODES: usize = 100;
const PODS: usize = 5000;
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
/// The peer's 31 a second, twenty times.
const WANTED: f64 = 620.0;

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let server = Server::control(setup).await?;
    let api = server.door.connect().await?;
    default_account(&api).await?;
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
    let shutdown = CancellationToken::new();
    let end = shutdown.clone().drop_guard();
    let (token, tunnel) = (server.token()?, server.tunnel()?);
    let joins = (0..NODES).map(|n| join(n, dir.path(), &token, &tunnel, &shutdown));
    let nodes = try_join_all(joins).await.context("the agents")?;
    within("every node Ready", ready(&api), || server.process.log()).await?;

    let spent = Spent::begin(&server)?;
    let all = try_join(running(&api), create(&server, PODS_PATH, PODS, pod));
    within("every pod Running", all, || server.process.log()).await?;
    let spent = spent.end(PODS)?;
    let how = spent.how(&format!(
        "{PODS} pods, from the first create to the last Running; the client is the agents too"
    ));
    let what = format!("pods to Running on {NODES} nodes, fake runtime");
    let rate = Row::new(what, spent.rate(), "pods/s", Target::AtLeast(WANTED), how);
    drop((end, nodes));
    Ok(vec![rate, spent.server_row("pod created, bound, told and Running")])
}

/// An agent that has joined, and its pods.
async fn join(
    number: usize,
    dir: &Path,
    token: &str,
    tunnel: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Agent, Pods)> {
    let name = format!("node-{number}");
    let config = Config {
        data_dir: dir.join(&name),
        name: name.clone(),
        server: tunnel.to_owned(),
        token: Some(token.parse().map_err(|e| anyhow::anyhow!("the token: {e}"))?),
        labels: Default::default(),
        node_ip: None,
        pods_max: 110,
        handlers: Vec::new(),
        eviction_soft: Default::default(),
        eviction_max_pod_grace_seconds: 0,
        static_pods: None,
        eviction_hard: "nodefs.available<0%,nodefs.inodesFree<0%".parse()?,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let agent = Agent::start(config, shutdown.clone())?;
    let welcome = agent.welcome().await.context("an agent ended")?;
    let network = Arc::<FakeNetwork>::default();
    let pods = rimward_node_pod::Config {
        data_dir: dir.join(&name),
        runtimes: vec![Arc::new(FakeRuntime::new(Clock::system()))],
        images: Arc::<FakeImages>::default(),
        network: network.clone(),
        objects: agent.objects(),
        reports: agent.reports(),
        this_node: agent.this_node(),
        node_name: name,
        cluster_domain: welcome.cluster_domain,
        allocatable: Allocatable {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            ephemeral_storage_bytes: 8 << 30,
            pods: 110,
        },
        memory_dir: None,
        clock: Clock::system(),
    };
    let pods = Pods::start(pods, shutdown.clone()).await?;
    agent.attach(Arc::new(pods.clone()), network);
    Ok((agent, pods))
}

async fn ready(api: &Api) -> anyhow::Result<()> {
    let mut watch = api.watch("/api/v1/nodes?watch=true").await?;
    let mut ready = std::collections::HashSet::new();
    while ready.len() < NODES {
        let event = watch.event().await?;
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        if condition(&event["object"], "Ready") {
            ready.insert(name.to_owned());
        }
    }
    Ok(())
}

/// Waits for all pods. One that gets into the phase enters the selection.
async fn running(api: &Api) -> anyhow::Result<()> {
    let path = format!("{PODS_PATH}?watch=true&fieldSelector=status.phase%3DRunning");
    let mut watch = api.watch(&path).await?;
    let mut entered = 0;
    while entered < PODS {
        let event = watch.line().await?;
        entered += usize::from(event.starts_with(br#"{"type":"ADDED""#));
        let left = event.starts_with(br#"{"type":"DELETED""#);
        anyhow::ensure!(!left, "a pod stopped: {}", String::from_utf8_lossy(&event));
    }
    Ok(())
}

fn pod(number: usize) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "labels": { "app": "fleet" } },
        "spec": { "containers": [{ "name": "guest", "image": "guest:v1",
            "resources": { "requests": { "cpu": "1m", "memory": "1Mi" } } }] },
    })
}
