//! `rimward control`

use std::net::SocketAddr;
use std::time::Duration;

use rimward_control_plane::{Config, Plane};

use crate::cli::{Control, ControlPorts};
use crate::shutdown;

pub fn config(data_dir: std::path::PathBuf, ports: &ControlPorts) -> Config {
    Config {
        data_dir,
        api: SocketAddr::new(ports.listen, ports.api_port),
        tunnel: SocketAddr::new(ports.listen, ports.tunnel_port),
        advertise: ports.advertise_address,
        node_grace: Duration::from_secs(ports.node_grace_seconds),
    }
}

pub async fn run(args: Control) -> anyhow::Result<()> {
    let shutdown = shutdown::on_signals()?;
    let plane = Plane::start(config(args.data_dir.path()?, &args.ports), shutdown.clone()).await?;
    shutdown.cancelled().await;
    plane.stopped().await;
    Ok(())
}
