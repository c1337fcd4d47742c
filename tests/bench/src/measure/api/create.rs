//! Creates a second, by one client and by 32; they fill the store for the rows that follow.

use std::time::Instant;

use super::{PODS, unscheduled};
use crate::Setup;
use crate::cluster::Server;
use crate::process::{cpu_seconds, resident_mib};
use crate::row::{Row, Target};

const CLIENTS: usize = 32;

pub async fn rows(setup: &Setup, server: &Server) -> anyhow::Result<Vec<Row>> {
    let alone = setup.objects / 10;
    let (one, _) = creates(server, 1, 0..alone).await?;
    let (many, cpu) = creates(server, CLIENTS, alone..setup.objects).await?;
    let stored = resident_mib(&[server.pid()])?;
    let how = "pods over HTTP/2, a connection a client, each durable before its answer";
    Ok(vec![
        Row::new("API creates, 1 client", one, "/s", Target::LaterAtLeast(3.0 * 714.0), how),
        Row::new("API creates, 32 clients", many, "/s", Target::LaterAtLeast(5.0 * 1729.0), how),
        Row::new(
            "… server CPU per create",
            cpu * 1e6,
            "µs",
            Target::None,
            "user and system time of the process",
        ),
        Row::new(
            format!("… resident with {} pods stored", setup.objects),
            stored,
            "MiB",
            Target::None,
            "VmRSS",
        ),
    ])
}

/// Creates a second, and the server's CPU seconds for each.
async fn creates(
    server: &Server,
    clients: usize,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<(f64, f64)> {
    let apis = server.door.connections(clients).await?;
    let (start, count) = (numbers.start, numbers.len() as f64);
    let (cpu, begun) = (cpu_seconds(server.pid())?, Instant::now());
    let tasks = apis.into_iter().enumerate().map(|(client, api)| {
        let numbers = numbers.clone();
        tokio::spawn(async move {
            for number in (start + client..numbers.end).step_by(clients) {
                api.create(PODS, unscheduled(&format!("stored-{number}"))).await?;
            }
            anyhow::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok((count / begun.elapsed().as_secs_f64(), (cpu_seconds(server.pid())? - cpu) / count))
}
