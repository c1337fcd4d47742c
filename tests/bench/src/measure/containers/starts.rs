//! From a pod's create request to Ready, and `runc run` to its return: the program runs.

use std::process::Stdio;
use std::time::Instant;

use super::{Bed, PODS, pod, runc, sleeper};
use crate::api::condition;
use crate::cluster::within;
use crate::row::{Row, Target, percentile};

pub async fn rows(bed: &Bed<'_>, peer: &runc::Peer) -> anyhow::Result<Vec<Row>> {
    let (mut ours, mut bound, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    let count = bed.setup.container_starts;
    for number in 0..count {
        let name = format!("start-{number}");
        let (at_node, ready) = start(bed, &name).await?;
        bound.push(at_node);
        ours.push(ready);
        bed.end(&name).await?;
        let bundle = peer.bundle(&name, &["/bin/sleep", "36000"])?;
        let begun = Instant::now();
        let container = peer.run(&name, &bundle, Stdio::null())?;
        peers.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(container);
    }
    let mut rows = Vec::new();
    for (share, p) in [(0.5, "p50"), (0.99, "p99")] {
        let (our, peer) = (percentile(&mut ours, share), percentile(&mut peers, share));
        rows.push(Row::new(
            format!("container create to Ready, {p}, against runc run"),
            our / peer,
            "x",
            Target::AtMost(1.5),
            format!("{our:.1} ms, runc run {peer:.1} ms; {count} in turn, image cached"),
        ));
    }
    rows.push(Row::new(
        "… until bound to the node, p50",
        percentile(&mut bound, 0.5),
        "ms",
        Target::None,
        "",
    ));
    Ok(rows)
}

/// Milliseconds until it is bound, and until it is Ready.
async fn start(bed: &Bed<'_>, name: &str) -> anyhow::Result<(f64, f64)> {
    let mut watch = bed.watch(name).await?;
    let begun = Instant::now();
    let passed = move || begun.elapsed().as_secs_f64() * 1e3;
    let create = bed.api.create(PODS, pod(name, sleeper()));
    let ready = async {
        let mut bound = f64::NAN;
        loop {
            let event = watch.event().await?;
            if bound.is_nan() && event["object"]["spec"]["nodeName"].is_string() {
                bound = passed();
            }
            if condition(&event["object"], "Ready") {
                return anyhow::Ok((bound, passed()));
            }
        }
    };
    let both = futures::future::try_join(create, ready);
    let (_, times) = within("a container Ready", both, || bed.server.process.log()).await?;
    Ok(times)
}
