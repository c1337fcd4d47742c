//! What an idle control plane and an idle node hold in memory.

use crate::Setup;
use crate::cluster::{Node, Server};
use crate::process::settled_mib;
use crate::row::{Row, Target};

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let server = Server::control(setup).await?;
    let control = settled_mib(&[server.pid()]).await?;
    let binary = setup.node.as_ref().unwrap_or(&setup.rimward);
    let node = Node::join(binary, &server, &[]).await?;
    let idle = settled_mib(&node.pids()).await?;
    let which =
        if setup.node.is_some() { "slim build" } else { "FULL build: no slim one was given" };
    Ok(vec![
        Row::new(
            "control idle, resident",
            control,
            "MiB",
            Target::AtMost(50.0),
            "VmRSS, settled, no node",
        ),
        Row::new(
            "node idle, resident",
            idle,
            "MiB",
            Target::AtMost(20.0),
            format!("VmRSS, settled, {which}"),
        ),
    ])
}
