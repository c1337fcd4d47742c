//! The API server by itself: creates, gets, lists and watches over its real port, with its real store and
//! every write on disk before its answer. The rates are recorded; their targets are due later.

mod create;
mod get;
mod list;
mod watch;

use bytes::Bytes;

use crate::Setup;
use crate::cluster::{Server, default_account};
use crate::row::Row;

const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let server = Server::control(setup).await?;
    default_account(&server.door.connect().await?).await?;
    let mut rows = create::rows(setup, &server).await?;
    rows.extend(get::rows(setup, &server).await?);
    rows.extend(list::rows(setup, &server).await?);
    rows.extend(watch::rows(&server).await?);
    Ok(rows)
}

/// A pod that no scheduler looks at: the rates are the API server's own.
fn unscheduled(name: &str) -> Bytes {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "stored", "team": "edge" } },
        "spec": {
            "schedulerName": "none",
            "containers": [{
                "name": "guest", "image": "guest:v1",
                "ports": [{ "containerPort": 8080, "name": "http" }],
                "env": [{ "name": "COLOUR", "value": "blue" }],
                "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
            }],
        },
    });
    pod.to_string().into()
}
