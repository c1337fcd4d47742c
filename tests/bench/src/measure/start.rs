//! `rimward up` on a data directory that exists: from the start of the process to the node Ready, and to
//! the first new pod Ready.

use std::net::{TcpListener, UdpSocket};
use std::time::Instant;

use crate::Setup;
use crate::api::condition;
use crate::cluster::{Server, pod, within};
use crate::row::{Row, Target, percentile};

const STARTS: usize = 5;

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    // Nodes know the control plane by its port, so it stays the same from run to run.
    let api = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let tunnel = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let ports = ["--api-port", api.as_str(), "--tunnel-port", tunnel.as_str()];

    let first = Instant::now();
    let server = Server::start(setup, "up", dir.path(), &ports).await?;
    server.node_ready().await?;
    let first = first.elapsed().as_secs_f64();
    server.prepare_guest(setup, &server.door.connect().await?).await?;
    drop(server);

    let (mut ready, mut running) = (Vec::new(), Vec::new());
    for number in 0..STARTS {
        let start = Instant::now();
        let server = Server::start(setup, "up", dir.path(), &ports).await?;
        server.node_ready().await?;
        ready.push(start.elapsed().as_secs_f64());
        let api = server.door.connect().await?;
        let name = format!("start-{number}");
        let path = format!(
            "/api/v1/namespaces/default/pods?watch=true&fieldSelector=metadata.name={name}"
        );
        let mut watch = api.watch(&path).await?;
        api.create("/api/v1/namespaces/default/pods", pod(&name, "start")).await?;
        let pod_ready = async {
            while !condition(&watch.event().await?["object"], "Ready") {}
            anyhow::Ok(())
        };
        within("a pod Ready after a start", pod_ready, || server.process.log()).await?;
        running.push(start.elapsed().as_secs_f64());
    }
    let how = format!("median of {STARTS} starts: exec to API answering, node connected and Ready");
    Ok(vec![
        Row::new(
            "up: start to node Ready",
            percentile(&mut ready, 0.5),
            "s",
            Target::AtMost(1.0),
            how,
        ),
        Row::new(
            "up: start to a new pod Ready",
            percentile(&mut running, 0.5),
            "s",
            Target::None,
            "the same starts",
        ),
        Row::new(
            "up: first start, empty directory",
            first,
            "s",
            Target::None,
            "keys, store, bootstrap objects",
        ),
    ])
}
