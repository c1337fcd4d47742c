//! Many containers on the machine at once: until all are Ready, and what they cost beyond themselves.

use std::collections::HashSet;
use std::time::Instant;

use super::{Bed, PODS, pod, sleeper};
use crate::api::condition;
use crate::cluster::within;
use crate::process::{private_mib, resident_mib, settled_mib, shims_of};
use crate::row::{Row, Target, percentile};

const CLIENTS: usize = 8;

pub async fn rows(bed: &Bed<'_>) -> anyhow::Result<Vec<Row>> {
    let count = bed.setup.containers;
    let before = settled_mib(&[bed.server.pid()]).await?;
    let apis = bed.server.door.connections(CLIENTS).await?;
    let mut watch = bed.api.watch(&format!("{PODS}?watch=true")).await?;
    let begun = Instant::now();
    let creates =
        futures::future::try_join_all(apis.iter().enumerate().map(|(client, api)| async move {
            for number in (client..count).step_by(CLIENTS) {
                api.create(PODS, pod(&format!("many-{number}"), sleeper())).await?;
            }
            anyhow::Ok(())
        }));
    let ready = async {
        let mut ready = HashSet::new();
        while ready.len() < count {
            let event = watch.event().await?;
            anyhow::ensure!(event["type"] != "ERROR", "the watch ended: {event}");
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
            if name.starts_with("many-") && condition(&event["object"], "Ready") {
                ready.insert(name.to_owned());
            }
        }
        Ok(())
    };
    let both = futures::future::try_join(creates, ready);
    within("all containers Ready", both, || bed.server.process.log()).await?;
    let took = begun.elapsed().as_secs_f64();

    let agent = settled_mib(&[bed.server.pid()]).await?;
    let shims = shims_of(&bed.server.dir().join("node"));
    anyhow::ensure!(shims.len() > count, "{} shims for {count} containers", shims.len());
    let mut private: Vec<f64> = Vec::new();
    for shim in &shims {
        private.push(private_mib(*shim)?);
    }
    let resident = resident_mib(&shims)?;
    let total: f64 = private.iter().sum();
    for number in 0..count {
        bed.end(&format!("many-{number}")).await?;
    }
    Ok(vec![
        Row::new(
            format!("{count} containers until all were Ready"),
            took,
            "s",
            Target::None,
            format!("{CLIENTS} clients create them; {:.0} a second", count as f64 / took),
        ),
        Row::new(
            "memory per running container beyond it, p50",
            percentile(&mut private, 0.5),
            "MiB",
            Target::AtMost(2.0),
            format!("Private_* of its shim in smaps_rollup, of {} shims", shims.len()),
        ),
        Row::new("… the largest", percentile(&mut private, 1.0), "MiB", Target::AtMost(2.0), ""),
        Row::new(
            format!("memory for {count} containers: their shims and what the agent grew by"),
            total + (agent - before).max(0.0),
            "MiB",
            Target::None,
            format!(
                "shims {total:.0} private ({resident:.0} with what they share counted for each); agent and control \
                 plane {before:.0} before, {agent:.0} then"
            ),
        ),
    ])
}
