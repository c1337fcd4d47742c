//! `metrics.k8s.io/v1beta1`: what nodes and pods use. Nothing of it is stored: a request asks the nodes
//! that it is about, through their tunnels, and their answers are kept for a moment. So a cluster in
//! which nobody asks pays nothing, where metrics-server scrapes each node every 15 seconds.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/#metrics-api>
//!
//! A node measures when it is asked; over which time is told by each object's `window`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rimward_api::usage::{Amount, NodeUsage};
use rimward_api::{ObjectKey, Quantity, Status};
use serde_json::{Value, json};

use crate::body::{self, BoxBody};
use crate::duration;
use crate::error;
use crate::options::{At, ListOptions};
use crate::record::Record;
use crate::rest::list::Reader;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// How long a node's answer is good for others who ask.
const FRESH: Duration = Duration::from_secs(5);
/// How long a node may take; one that is asked for the first time measures for a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes that are asked at once.
const NODES_AT_ONCE: usize = 64;
/// What a node may answer: ten thousand pods take two million bytes.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// How often old answers are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// A node's last answer; held while it is asked again, so that a crowd asks once.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Arc<NodeUsage>)>>>;

/// What nodes answered last.
#[derive(Default)]
pub struct Usages(Mutex<(HashMap<String, Slot>, Option<Instant>)>);

impl Usages {
    fn slot(&self, node: &str) -> Slot {
        let mut kept = self.0.lock();
        let (slots, swept) = &mut *kept;
        if swept.is_none_or(|at| at.elapsed() > SWEEP) {
            *swept = Some(Instant::now());
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(answer) => answer.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH),
                Err(_) => true,
            });
        }
        slots.entry(node.to_owned()).or_default().clone()
    }
}

/// Whether reads of a kind are answered here.
pub fn is(served: &Served) -> bool {
    served.kind.group == "metrics.k8s.io" && served.custom.is_none()
}

/// The selected ones of which something is known, in the order of their names.
pub async fn all(
    server: &Arc<Inner>,
    served: &Served,
    namespace: &str,
    mut options: ListOptions,
) -> Result<Vec<Stored>, Status> {
    // They are made for this request: there is no other revision, and no page after the first.
    (options.at, options.limit, options.after) = (At::Newest, 0, None);
    let of = subject(server, served);
    let (subjects, _) = Reader::start(server, &of, namespace, options).await?.gather().await?;
    let mut nodes: Vec<String> =
        subjects.iter().filter_map(|s| node_of(&of, s)).map(str::to_owned).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let asked = nodes.into_iter().map(|node| {
        let server = server.clone();
        async move {
            let told = usage(&server, &node).await?;
            Some((node, told))
        }
    });
    let told: HashMap<String, Arc<NodeUsage>> = futures::stream::iter(asked)
        .buffer_unordered(NODES_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let usage = |stored: &Stored| told.get(node_of(&of, stored)?).cloned();
    let objects = subjects.iter().filter_map(|stored| {
        let usage = usage(stored)?;
        object(served, stored, &usage).transpose()
    });
    objects.collect()
}

/// One node or pod; None when nothing is known of it.
///
/// # Errors
/// When there is no such node or pod, in the words of the kind that is missing.
pub async fn one(
    server: &Inner,
    served: &Served,
    key: &ObjectKey,
) -> Result<Option<Stored>, Status> {
    let of = subject(server, served);
    let missing = || Status::not_found(&of.group_resource(), &key.name);
    let entry = server.store.get(&of.key(key), None).await.map_err(error::store)?;
    let stored = Stored::open(&entry.ok_or_else(missing)?)?;
    let Some(node) = node_of(&of, &stored) else { return Ok(None) };
    match usage(server, node).await {
        Some(usage) => object(served, &stored, &usage),
        None => Ok(None),
    }
}

/// The kind whose objects are measured.
fn subject(server: &Inner, served: &Served) -> Arc<Served> {
    server.registry().resource("", &served.kind.resource).expect("nodes and pods are built in")
}

/// The node that knows: of a pod the one that it is bound to, of a node itself.
fn node_of<'s>(of: &Served, stored: &'s Stored) -> Option<&'s str> {
    match of.kind.namespaced() {
        true => stored.record.field("spec.nodeName").filter(|node| !node.is_empty()),
        false => Some(stored.name()),
    }
}

/// What a node says, a few seconds old at most; None when it cannot be asked.
async fn usage(server: &Inner, node: &str) -> Option<Arc<NodeUsage>> {
    let slot = server.usages.slot(node);
    let mut kept = slot.lock().await;
    if let Some((at, usage)) = &*kept
        && at.elapsed() < FRESH
    {
        return Some(usage.clone());
    }
    let asked = tokio::time::timeout(PATIENCE, ask(server, node)).await;
    match asked.unwrap_or_else(|_| Err("it does not answer".into())) {
        Ok(usage) => {
            let usage = Arc::new(usage);
            *kept = Some((Instant::now(), usage.clone()));
            Some(usage)
        }
        Err(cause) => {
            tracing::debug!(node, cause, "what a node uses is not known");
            None
        }
    }
}

async fn ask(server: &Inner, node: &str) -> Result<NodeUsage, String> {
    let nodes = server.nodes.read().clone().ok_or("nodes cannot be reached yet")?;
    let io = nodes.api(node).await.map_err(|e| e.to_string())?;
    let text = |e: hyper::Error| e.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, BoxBody>(TokioIo::new(io))
            .await
            .map_err(text)?;
    // It ends with the answer.
    tokio::spawn(connection);
    let request = http::Request::get(rimward_api::usage::PATH)
        .header(http::header::HOST, node)
        .body(body::empty())
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(text)?;
    if !response.status().is_success() {
        return Err(format!("it answers {}", response.status()));
    }
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    serde_json::from_slice(&body.map_err(|e| e.to_string())?.to_bytes()).map_err(|e| e.to_string())
}

/// The NodeMetrics or PodMetrics of a node or pod.
fn object(served: &Served, of: &Stored, usage: &NodeUsage) -> Result<Option<Stored>, Status> {
    let metadata = of.metadata_value()?;
    let amount = |used: &Amount| {
        let cpu = Quantity::from_nanos(used.cpu_nano_cores.into());
        let memory = Quantity::from_bytes(used.memory_bytes.try_into().unwrap_or(i64::MAX));
        json!({ "cpu": cpu.to_string(), "memory": memory.to_string() })
    };
    let mut object = json!({
        "metadata": { "name": metadata["name"], "creationTimestamp": now() },
        "timestamp": usage.timestamp, "window": window(usage.window_ms),
    });
    if let Some(labels) = metadata.get("labels") {
        object["metadata"]["labels"] = labels.clone();
    }
    if served.kind.namespaced() {
        let uid = of.record.uid();
        let Some(pod) = usage.pods.iter().find(|pod| pod.uid == uid) else { return Ok(None) };
        object["metadata"]["namespace"] = metadata["namespace"].clone();
        let containers = pod.containers.iter();
        object["containers"] =
            containers.map(|c| json!({ "name": c.name, "usage": amount(&c.used) })).collect();
    } else {
        object["usage"] = amount(&usage.node);
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let key = served.key(&ObjectKey::new(namespace, of.name()));
    stored(served, &key, &object).map(Some)
}

fn stored(served: &Served, key: &str, object: &Value) -> Result<Stored, Status> {
    let bytes = Record::encode(object, &served.stored)
        .map_err(|e| Status::internal(format!("{key}: {e}")))?;
    let record = Record::open(&bytes).map_err(error::damaged(key))?;
    Ok(Stored { key: key.into(), record, revision: 0, kept: false })
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn window(ms: u64) -> String {
    duration::print(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000))
}
