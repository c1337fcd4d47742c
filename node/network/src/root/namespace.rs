//! The pods' namespace and the veth that joins it to the host.

use std::path::Path;

use super::command::{CommandError, ip_batch, run};
use super::{Config, HOST_END, Names, POD_END};

/// Makes what is missing and leaves what is there.
pub(crate) async fn ensure(names: &Names, config: &Config) -> Result<(), CommandError> {
    let Names { namespace, veth, .. } = names;
    refuse_second_node(veth).await?;
    if !Path::new("/run/netns").join(namespace).exists() {
        run(&format!("ip netns add {namespace}"), "").await?;
    }
    // Not /sys/class/net: that shows the namespace in which /sys was mounted.
    if run(&format!("ip link show dev {veth}"), "").await.is_err() {
        let make = format!("link add {veth} type veth peer name eth0 netns {namespace}\n");
        ip_batch(&make).await?;
    }
    let block = config.pod_block;
    let host = format!(
        "addr replace {HOST_END}/30 dev {veth}\nlink set {veth} up\nroute replace {block} via {POD_END} dev {veth}\n"
    );
    ip_batch(&host).await?;
    // `local` makes every address of the block this namespace's own, without a device for it (AnyIP).
    let pods = format!(
        "link set lo up\naddr replace {POD_END}/30 dev eth0\nlink set eth0 up\n\
         route replace default via {HOST_END} dev eth0\nroute replace local {block} dev lo\n"
    );
    run(&format!("ip -n {namespace} -batch -"), &pods).await?;
    forward(veth)
}

/// Two nodes in one network namespace would answer for each other's pods.
async fn refuse_second_node(veth: &str) -> Result<(), CommandError> {
    let command = format!("ip -o -4 addr show to {HOST_END}");
    let shown = run(&command, "").await?;
    let device = shown.split_whitespace().nth(1).map(|d| d.trim_end_matches(':'));
    match device {
        Some(other) if other != veth => Err(CommandError::Failed {
            command,
            said: format!(
                "device {other} belongs to another Rimward node on this host; stop that node, or run this one with \
                 --user-mode (if that node is gone, `ip link del {other}` removes what it left)"
            ),
        }),
        _ => Ok(()),
    }
}

/// The host routes for its pods. Replies to clients on loopback come in by the veth, hence
/// route_localnet on that device alone.
pub(super) fn forward(veth: &str) -> Result<(), CommandError> {
    for (path, what) in [
        ("net/ipv4/ip_forward".to_owned(), "forwarding"),
        (format!("net/ipv4/conf/{veth}/route_localnet"), "loopback clients of NodePorts"),
    ] {
        let path = Path::new("/proc/sys").join(path);
        if let Err(source) = std::fs::write(&path, "1") {
            let command = format!("write 1 to {} ({what})", path.display());
            return Err(CommandError::Failed { command, said: source.to_string() });
        }
    }
    Ok(())
}

/// The way to Services, with the address that others know this machine by where that is one of its own. It
/// goes with the veth.
pub(crate) async fn route_services(names: &Names, config: &Config) -> Result<(), CommandError> {
    let route = format!("route replace {} dev {}", config.service_block, names.veth);
    match ip_batch(&format!("{route} src {}\n", config.host_ip)).await {
        Ok(()) => Ok(()),
        Err(_) => ip_batch(&format!("{route}\n")).await,
    }
}

pub(crate) async fn remove(names: &Names) {
    // The veth goes with its namespace.
    if let Err(error) = run(&format!("ip netns del {}", names.namespace), "").await {
        tracing::warn!(%error, "cannot remove the pods' namespace");
    }
}
