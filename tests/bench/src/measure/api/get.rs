//! Gets a second by 32 clients, and what one costs the server.

use std::time::{Duration, Instant};

use super::{PODS, Spent};
use crate::Setup;
use crate::cluster::Server;
use crate::row::{Row, Target};

const CLIENTS: usize = 32;

pub async fn rows(setup: &Setup, server: &Server) -> anyhow::Result<Vec<Row>> {
    let wires = server.door.wires(CLIENTS).await?;
    let objects = setup.objects;
    let spent = Spent::begin(server)?;
    let until = Instant::now() + Duration::from_secs(setup.seconds);
    let tasks = wires.into_iter().enumerate().map(|(client, mut wire)| {
        tokio::spawn(async move {
            let mut done = 0_usize;
            while Instant::now() < until {
                wire.get(&format!("{PODS}/stored-{}", number(client, done, objects))).await?;
                done += 1;
            }
            anyhow::Ok(done)
        })
    });
    let mut done = 0;
    for task in tasks.collect::<Vec<_>>() {
        done += task.await??;
    }
    let one = spent.end(done)?;
    let how = one.how("32 HTTP/1.1 connections");
    Ok(vec![
        Row::new("API gets, 32 clients", one.rate(), "/s", Target::AtLeast(8.0 * 4718.0), how),
        one.server_row("get"),
        multiplexed(setup, server).await?,
    ])
}

/// A stride that shares no factor with round numbers visits all objects.
fn number(client: usize, done: usize, objects: usize) -> usize {
    (client * 331 + done * 7919) % objects
}

/// As client-go asks: every request a stream of one connection.
async fn multiplexed(setup: &Setup, server: &Server) -> anyhow::Result<Row> {
    let api = server.door.connect().await?;
    let objects = setup.objects;
    let spent = Spent::begin(server)?;
    let until = Instant::now() + Duration::from_secs(setup.seconds);
    let tasks = (0..CLIENTS).map(|client| {
        let api = api.clone();
        tokio::spawn(async move {
            let mut done = 0_usize;
            while Instant::now() < until {
                let number = number(client, done, objects);
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
    let spent = spent.end(done)?;
    let how = spent.how("32 streams of one HTTP/2 connection; hyper's client costs as much");
    Ok(Row::new("… over HTTP/2", spent.rate(), "/s", Target::None, how))
}
