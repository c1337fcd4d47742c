//! A command in a container that runs, as `kubectl exec` does it: a connection of its own, a WebSocket, the
//! command's end on the error channel. Beside `runc exec`, a process of its own too.

use std::process::Stdio;
use std::time::Instant;

use super::{Bed, PODS, runc};
use crate::row::{Row, Target, percentile};

pub async fn rows(bed: &Bed<'_>, peer: &runc::Peer) -> anyhow::Result<Vec<Row>> {
    let bundle = peer.bundle("commands", &["/bin/sleep", "36000"])?;
    let container = peer.run("commands", &bundle, Stdio::null())?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    let count = bed.setup.container_starts;
    for _ in 0..count {
        let path = format!("{PODS}/first/exec?command=true&stdout=true&stderr=true");
        let begun = Instant::now();
        bed.server.door.exec(&path).await?;
        ours.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        container.exec(&["true"])?;
        peers.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let rows = [(0.5, "p50"), (0.99, "p99")].map(|(share, p)| {
        let (our, peer) = (percentile(&mut ours, share), percentile(&mut peers, share));
        Row::new(
            format!("exec of `true` in a container, {p}"),
            our,
            "ms",
            Target::None,
            format!("TLS, WebSocket, exit status; runc exec {peer:.1} ms; {count} in turn"),
        )
    });
    Ok(rows.into())
}
