//! Thousands of idle HTTP pods on one node: what the agent and its hosts hold then.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::libc;

use crate::Setup;
use crate::api::{Api, condition};
use crate::cluster::{Node, Server, default_account, pod};
use crate::process::{resident_mib, settled_mib};
use crate::row::{Row, Target};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLIENTS: usize = 8;
/// A node that has brought no further pod up for so long has stopped.
const STALLED: Duration = Duration::from_secs(60);

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let count = setup.idle_pods;
    let server = Server::control(setup).await?;
    let binary = setup.node.as_ref().unwrap_or(&setup.rimward);
    let node = Node::join(binary, &server, &["--max-pods", &(count + 100).to_string()]).await?;
    let apis = server.door.connections(CLIENTS).await?;
    default_account(&apis[0]).await?;
    server.prepare_guest(setup, &apis[0]).await?;

    let watcher = server.door.connect().await?;
    let begun = Instant::now();
    let creates =
        futures::future::try_join_all(apis.iter().enumerate().map(|(client, api)| async move {
            for number in (client..count).step_by(CLIENTS) {
                api.create(PODS, pod(&format!("idle-{number}"), "idle")).await?;
            }
            anyhow::Ok(())
        }));
    let (ready, creates) = futures::future::join(all_ready(&watcher, count), creates).await;
    creates.context("creating the pods")?;
    ready.map_err(|e| e.context(log_tail(&node)))?;
    let took = begun.elapsed().as_secs_f64();

    let all = settled_mib(&node.pids()).await?;
    let agent = resident_mib(&[node.process.pid().as_raw()])?;
    let control = resident_mib(&[server.pid()])?;
    let hosts = node.hosts();
    // 10,000 in 1 GiB; a smaller run has the share of it, beside an empty node's.
    let what = format!("{count} idle Wasm pods, agent and hosts");
    let how =
        format!("VmRSS, settled: agent {agent:.0}, {} hosts {:.0} MiB", hosts.len(), all - agent);
    Ok(vec![
        Row::new(what, all, "MiB", Target::AtMost(1024.0), how),
        Row::new(
            "… until all were Ready",
            took,
            "s",
            Target::None,
            format!("{CLIENTS} clients create them"),
        ),
        Row::new("… control plane then, resident", control, "MiB", Target::None, "VmRSS"),
        Row::new(
            "… pods a second to Ready",
            count as f64 / took,
            "/s",
            Target::None,
            "one node, real runtime",
        ),
    ])
}

async fn all_ready(api: &Api, count: usize) -> anyhow::Result<()> {
    let mut watch = api.watch(&format!("{PODS}?watch=true&labelSelector=app%3Didle")).await?;
    let mut ready = HashSet::new();
    while ready.len() < count {
        let Ok(event) = tokio::time::timeout(STALLED, watch.event()).await else {
            bail!(
                "only {} of {count} pods are Ready, and nothing has moved for {STALLED:?}",
                ready.len()
            );
        };
        let event = event?;
        anyhow::ensure!(event["type"] != "ERROR", "the watch ended: {event}");
        let object = &event["object"];
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if condition(object, "Ready") {
            ready.insert(name.to_owned());
        } else {
            ready.remove(name);
        }
    }
    Ok(())
}

/// The node's last words, and how many files it may open: that, not memory, is what ends first.
fn log_tail(node: &Node) -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is ours and large enough; the call only writes to it.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let log = node.process.log();
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    format!(
        "open files at most {}; the end of the node's log: {}",
        limit.rlim_max,
        lines.join(" | ")
    )
}
