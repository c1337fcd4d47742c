//! A Wasm pod from its create request to Ready, as a client that watches sees it; image cached.

use std::time::Instant;

use anyhow::Context;
use serde_json::Value;

use crate::Setup;
use crate::api::{Api, condition};
use crate::cluster::{Server, pod, within};
use crate::row::{Row, Target, percentile};

const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let max = (setup.pods + 10).to_string();
    let server = Server::up(setup, &["--max-pods", &max]).await?;
    let api = server.door.connect().await?;
    server.prepare_guest(setup, &api).await?;
    let starts = one_after_another(&api, setup.pods);
    let mut starts = within("pods one after another", starts, || server.process.log()).await?;

    let how = format!(
        "{} pods one after another; POST to the watch's Ready event, one HTTP/2 connection",
        setup.pods
    );
    let phase = |starts: &mut Vec<Start>, of: fn(&Start) -> f64, share: f64| {
        percentile(&mut starts.iter().map(of).collect::<Vec<_>>(), share)
    };
    Ok(vec![
        Row::new(
            "Wasm pod create to Ready, p50",
            phase(&mut starts, |s| s.ready, 0.5),
            "ms",
            Target::AtMost(20.0),
            &how,
        ),
        Row::new(
            "Wasm pod create to Ready, p99",
            phase(&mut starts, |s| s.ready, 0.99),
            "ms",
            Target::AtMost(50.0),
            &how,
        ),
        Row::new(
            "… of which create answered, p50",
            phase(&mut starts, |s| s.created, 0.5),
            "ms",
            Target::None,
            "",
        ),
        Row::new(
            "… until bound to the node, p50",
            phase(&mut starts, |s| s.bound, 0.5),
            "ms",
            Target::None,
            "",
        ),
    ])
}

/// Milliseconds since the request was sent.
struct Start {
    created: f64,
    bound: f64,
    ready: f64,
}

async fn one_after_another(api: &Api, count: usize) -> anyhow::Result<Vec<Start>> {
    let mut watch = api.watch(&format!("{PODS}?watch=true&labelSelector=app%3Dtimed")).await?;
    let mut starts = Vec::new();
    for number in 0..count {
        let name = format!("timed-{number}");
        let begun = Instant::now();
        let passed = move || begun.elapsed().as_secs_f64() * 1e3;
        let created = async {
            api.create(PODS, pod(&name, "timed")).await?;
            anyhow::Ok(passed())
        };
        let ready = async {
            let mut bound = None;
            loop {
                let object = next_of(&mut watch, &name).await?;
                if bound.is_none() && object["spec"]["nodeName"].is_string() {
                    bound = Some(passed());
                }
                if condition(&object, "Ready") {
                    return anyhow::Ok((bound.context("Ready without a node")?, passed()));
                }
            }
        };
        let (created, (bound, ready)) = futures::future::try_join(created, ready).await?;
        starts.push(Start { created, bound, ready });
    }
    Ok(starts)
}

async fn next_of(watch: &mut crate::api::Watch, name: &str) -> anyhow::Result<Value> {
    loop {
        let mut event = watch.event().await?;
        anyhow::ensure!(event["type"] != "ERROR", "the watch ended: {event}");
        if event["object"]["metadata"]["name"] == name {
            return Ok(event["object"].take());
        }
    }
}
