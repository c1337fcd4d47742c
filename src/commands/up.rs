//! `rimward up`: control plane and node in one process. The node dials the control plane on loopback as any
//! node does; only its token needs no hands.

use std::net::SocketAddr;
use std::sync::Arc;

use rimward_api::UserInfo;
use rimward_client::Client;
use rimward_control_plane::Plane;
use rimward_node_agent::node::Node;
use tokio_util::sync::CancellationToken;

use crate::cli::Up;
use crate::commands::{control, node};
use crate::{memory, shutdown};

pub async fn run(args: Up) -> anyhow::Result<()> {
    let shutdown = shutdown::on_signals()?;
    let dir = args.data_dir.path()?;
    // An option that cannot be ends it before anything is started.
    let mut config = node::config(&dir, &args.node, String::new())?;
    let of_plane = control::config(dir, &args.ports, &args.audit, &args.oidc)?;
    let plane = Plane::start(of_plane, shutdown.clone()).await?;
    let tunnel = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), plane.tunnel_addr.port());
    config.agent.server = tunnel.to_string();
    let api_port = plane.api_addr.port();
    config.registry_hosts =
        ["localhost", "127.0.0.1"].map(|host| format!("{host}:{api_port}")).to_vec();
    config.agent.token = Some(token(&plane).await?);
    // The node ends first: its last reports need the control plane.
    let node_shutdown = CancellationToken::new();
    let kubeconfig = plane.kubeconfig.clone();
    let node = async {
        match Node::start(config, node_shutdown.clone()).await? {
            Some(node) => {
                tracing::info!(kubeconfig = %kubeconfig.display(), "rimward is up");
                memory::release_when_settled();
                let outcome = node.ended().await;
                // A laptop or a CI job is left as it was found; after kill -9 the next start finds the pods.
                node.take_down().await;
                outcome
            }
            None => Ok(()),
        }
    };
    let stop_node = async {
        shutdown.cancelled().await;
        node_shutdown.cancel();
    };
    let outcome = {
        let mut node = std::pin::pin!(node);
        tokio::select! {
            ended = &mut node => ended,
            () = stop_node => node.await,
        }
    };
    shutdown.cancel();
    plane.stopped().await;
    outcome
}

/// A token for this process's own node, for ten minutes.
async fn token(plane: &Plane) -> anyhow::Result<rimward_tunnel::BootstrapToken> {
    let admin = UserInfo::authenticated("rimward-up", &["system:masters"]);
    let client: Client = Client::new(Arc::clone(&plane.api.client(admin, "rimward-up")));
    let lifetime = std::time::Duration::from_secs(600);
    Ok(rimward_control_hub::token::create(&client, plane.hub.ca_hash(), Some(lifetime)).await?)
}
