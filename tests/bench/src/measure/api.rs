//! The API server by itself: creates, gets, lists and watches over its real port, with its real store and
//! every write on disk before its answer.

mod create;
mod get;
mod list;
mod memory;
mod watch;

use std::time::Instant;

use bytes::Bytes;

use crate::Setup;
use crate::cluster::{Server, default_account};
use crate::process::cpu_seconds;
use crate::row::{Row, Target};

const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let server = Server::control(setup).await?;
    default_account(&server.door.connect().await?).await?;
    let mut rows = create::rows(setup, &server).await?;
    rows.extend(get::rows(setup, &server).await?);
    rows.extend(list::rows(setup, &server).await?);
    rows.extend(watch::rows(&server).await?);
    rows.extend(memory::rows(setup, &server).await?);
    Ok(rows)
}

/// Time and CPU that something took: begun, then divided by how often it was done.
pub struct Spent {
    server: i32,
    begun: Instant,
    server_cpu: f64,
    client_cpu: f64,
    seconds: f64,
    count: f64,
}

impl Spent {
    pub fn begin(server: &Server) -> anyhow::Result<Self> {
        let pid = server.pid();
        Ok(Self {
            server: pid,
            server_cpu: cpu_seconds(pid)?,
            client_cpu: cpu_seconds(std::process::id() as i32)?,
            begun: Instant::now(),
            seconds: 0.0,
            count: 0.0,
        })
    }

    pub fn end(self, count: usize) -> anyhow::Result<Self> {
        Ok(Self {
            seconds: self.begun.elapsed().as_secs_f64(),
            server_cpu: cpu_seconds(self.server)? - self.server_cpu,
            client_cpu: cpu_seconds(std::process::id() as i32)? - self.client_cpu,
            count: count as f64,
            ..self
        })
    }

    pub fn rate(&self) -> f64 {
        self.count / self.seconds
    }

    /// Microseconds of the server's CPU each.
    fn server_each(&self) -> f64 {
        self.server_cpu / self.count * 1e6
    }

    /// The load generator runs on the same cores: its part is told.
    pub fn how(&self, how: &str) -> String {
        let (ours, theirs) = (self.server_each(), self.client_cpu / self.count * 1e6);
        format!("{how}; CPU each: server {ours:.1}, client {theirs:.1} µs")
    }

    pub fn server_row(&self, what: &str) -> Row {
        let how = "user and system time of the process, its controllers included";
        Row::new(format!("… server CPU per {what}"), self.server_each(), "µs", Target::None, how)
    }
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
