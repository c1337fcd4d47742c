//! Creates a second, by one client and by 32; they fill the store for the rows that follow.

use super::{PODS, unscheduled};
use crate::Setup;
use crate::cluster::Server;
use crate::measure::api::Spent;
use crate::row::{Row, Target};

const CLIENTS: usize = 32;

pub async fn rows(setup: &Setup, server: &Server) -> anyhow::Result<Vec<Row>> {
    let alone = setup.objects / 10;
    let one = creates(server, 1, 0..alone).await?;
    let many = creates(server, CLIENTS, alone..setup.objects).await?;
    let how = "pods over HTTP/1.1, a connection a client, each durable before its answer";
    Ok(vec![
        Row::new(
            "API creates, 1 client",
            one.rate(),
            "/s",
            Target::AtLeast(3.0 * 714.0),
            one.how("every create waits for a sync of its own"),
        ),
        Row::new(
            "API creates, 32 clients",
            many.rate(),
            "/s",
            Target::AtLeast(5.0 * 1729.0),
            many.how(how),
        ),
        many.server_row("create"),
    ])
}

/// Creates pods; what they took.
pub async fn creates(
    server: &Server,
    clients: usize,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<Spent> {
    let wires = server.door.wires(clients).await?;
    let (start, count) = (numbers.start, numbers.len());
    let spent = Spent::begin(server)?;
    let tasks = wires.into_iter().enumerate().map(|(client, mut wire)| {
        let numbers = numbers.clone();
        tokio::spawn(async move {
            for number in (start + client..numbers.end).step_by(clients) {
                wire.create(PODS, &unscheduled(&format!("stored-{number}"))).await?;
            }
            anyhow::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    spent.end(count)
}
