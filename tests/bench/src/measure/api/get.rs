//! Gets a second of single pods, and what one costs the server.

use std::time::{Duration, Instant};

use super::PODS;
use crate::Setup;
use crate::cluster::Server;
use crate::process::cpu_seconds;
use crate::row::{Row, Target};

const CLIENTS: usize = 32;

pub async fn rows(setup: &Setup, server: &Server) -> anyhow::Result<Vec<Row>> {
    let apis = server.door.connections(CLIENTS).await?;
    let objects = setup.objects;
    let (cpu, begun) = (cpu_seconds(server.pid())?, Instant::now());
    let until = begun + Duration::from_secs(setup.seconds);
    let tasks = apis.into_iter().enumerate().map(|(client, api)| {
        tokio::spawn(async move {
            let mut done = 0_usize;
            while Instant::now() < until {
                // A stride that shares no factor with round numbers visits all of them.
                let number = (client * 331 + done * 7919) % objects;
                api.read(&format!("{PODS}/stored-{number}"), &[]).await?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for task in tasks.collect::<Vec<_>>() {
        done += task.await??;
    }
    let rate = done as f64 / begun.elapsed().as_secs_f64();
    let cpu = (cpu_seconds(server.pid())? - cpu) / done as f64 * 1e6;
    let how = "32 connections, the client on the same cores";
    Ok(vec![
        Row::new("API gets, 32 clients", rate, "/s", Target::LaterAtLeast(8.0 * 4718.0), how),
        Row::new(
            "… server CPU per get",
            cpu,
            "µs",
            Target::None,
            "user and system time of the process",
        ),
    ])
}
