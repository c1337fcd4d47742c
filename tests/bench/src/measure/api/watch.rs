//! Watch events delivered a second to a thousand watchers, and what one delivery costs the server.

use serde_json::json;

use super::Spent;
use crate::cluster::{Server, within};
use crate::row::{Row, Target};

const CONNECTIONS: usize = 20;
const WATCHERS: usize = 1000;
const EVENTS: usize = 200;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub async fn rows(server: &Server) -> anyhow::Result<Vec<Row>> {
    let apis = server.door.connections(CONNECTIONS).await?;
    let writer = server.door.connect().await?;
    let version =
        writer.get(&format!("{MAPS}?limit=1")).await?["metadata"]["resourceVersion"].clone();
    let path = format!(
        "{MAPS}?watch=true&resourceVersion={}&labelSelector=watched",
        version.as_str().unwrap_or("0")
    );
    let mut watches = Vec::new();
    for number in 0..WATCHERS {
        watches.push(apis[number % CONNECTIONS].watch(&path).await?);
    }
    let spent = Spent::begin(server)?;
    let readers: Vec<_> = watches
        .into_iter()
        .map(|mut watch| {
            tokio::spawn(async move {
                let mut events = 0;
                while events < EVENTS {
                    events += watch.chunk().await?.iter().filter(|byte| **byte == b'\n').count();
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for number in 0..EVENTS {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": format!("watched-{number}"), "labels": { "watched": "yes" } },
            "data": { "text": "x".repeat(500) },
        });
        writer.create(MAPS, map.to_string().into()).await?;
    }
    let all = async {
        for reader in readers {
            reader.await??;
        }
        anyhow::Ok(())
    };
    within("every watcher sees every event", all, || server.process.log()).await?;
    let spent = spent.end(WATCHERS * EVENTS)?;
    let how = format!(
        "{EVENTS} creates one after another, seen by {WATCHERS} watchers on {CONNECTIONS} connections"
    );
    let rate = Row::new("API watch deliveries", spent.rate(), "/s", Target::None, spent.how(&how));
    Ok(vec![rate, spent.server_row("delivery")])
}
