//! Network namespaces of single pods: for containers, which make their own system calls.
//!
//! ```text
//!  host namespace                                    a pod's namespace
//!   10.42.3.5/32 ──► rw…5 ═════ veth ═════ eth0 10.42.3.5/32, everything via 169.254.77.1
//! ```
//!
//! The host answers for the gateway on every veth, since it is an address of its own; no bridge, so that
//! each packet passes the host's rules: Services, policy. In the namespace that all Wasm pods share, such
//! an address is made a stranger's again.

use std::net::Ipv4Addr;
use std::path::Path;

use super::command::{CommandError, ip_batch, run};
use super::{Config, HOST_END, Names};
use crate::addresses::Addresses;

/// A pod's namespace and the host's end of its veth. Both are told by the address, which only one pod has
/// at a time.
pub(crate) struct PodNames {
    pub namespace: String,
    pub veth: String,
}

impl PodNames {
    pub fn new(names: &Names, config: &Config, address: Ipv4Addr) -> Self {
        let number = u32::from(address).wrapping_sub(config.pod_block.gateway().into());
        Self {
            namespace: format!("{}-{:08x}", names.namespace, u32::from(address)),
            veth: format!("{}{number:x}", names.devices),
        }
    }

    pub fn exists(&self) -> bool {
        Path::new("/run/netns").join(&self.namespace).exists()
    }
}

/// Makes what is missing and leaves what is there. A namespace that was `made` gets its name.
pub(crate) async fn ensure(
    names: &Names,
    config: &Config,
    address: Ipv4Addr,
    made: Option<&Path>,
) -> Result<String, CommandError> {
    let PodNames { namespace, veth } = PodNames::new(names, config, address);
    let place = Path::new("/run/netns").join(&namespace);
    match made {
        _ if place.exists() => {}
        None => drop(run(&format!("ip netns add {namespace}"), "").await?),
        Some(made) => name(made, &place).await?,
    }
    if run(&format!("ip link show dev {veth}"), "").await.is_err() {
        ip_batch(&format!("link add {veth} type veth peer name eth0 netns {namespace}\n")).await?;
    }
    let pod = format!(
        "link set lo up\naddr replace {address}/32 dev eth0\nlink set eth0 up\n\
         route replace {HOST_END} dev eth0 scope link\n\
         route replace default via {HOST_END} dev eth0\n"
    );
    run(&format!("ip -n {namespace} -batch -"), &pod).await?;
    super::namespace::forward(&veth).await?;
    ip_batch(&format!(
        "link set {veth} up\nroute replace {address}/32 dev {veth} src {HOST_END}\n"
    ))
    .await?;
    let elsewhere = format!(
        "ip -n {} route replace unicast {address}/32 via {HOST_END} dev eth0 table local",
        names.namespace
    );
    run(&elsewhere, "").await?;
    Ok(namespace)
}

/// As `ip netns add` would have it.
async fn name(made: &Path, place: &Path) -> Result<(), CommandError> {
    let command = format!("mount --bind {} {}", made.display(), place.display());
    if let Err(error) = tokio::fs::File::create(place).await {
        return Err(CommandError::Failed { command, said: error.to_string() });
    }
    let done = run(&command, "").await;
    if done.is_err() {
        // What is there counts as made.
        let _kept_by_nothing = tokio::fs::remove_file(place).await;
    }
    done.map(drop)
}

/// Safe without.
pub(crate) async fn remove(names: &Names, config: &Config, address: Ipv4Addr) {
    let pod = PodNames::new(names, config, address);
    if !pod.exists() {
        return;
    }
    let back =
        format!("ip -n {} route del unicast {address}/32 dev eth0 table local", names.namespace);
    if let Err(error) = run(&back, "").await {
        tracing::debug!(%error, "the address was the shared namespace's own already");
    }
    delete(&pod.namespace, &pod.veth).await;
}

/// A namespace that a process still holds would keep its veth.
async fn delete(namespace: &str, veth: &str) {
    if let Err(error) = run(&format!("ip link del dev {veth}"), "").await {
        tracing::debug!(%error, "a pod's veth was gone already");
    }
    if let Err(error) = run(&format!("ip netns del {namespace}"), "").await {
        tracing::warn!(%error, "cannot remove a pod's network namespace");
    }
}

/// Removes the namespaces of pods that have no address any more; of all, if `addresses` is None.
pub(crate) async fn sweep(names: &Names, config: &Config, addresses: Option<&Addresses>) {
    let prefix = format!("{}-", names.namespace);
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let hex = name.strip_prefix(&prefix).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let Some(address) = hex.map(Ipv4Addr::from) else { continue };
        if addresses.is_some_and(|addresses| addresses.holds(address)) {
            continue;
        }
        tracing::info!(%address, "removing the network namespace of a pod that is gone");
        if config.pod_block.contains(address) {
            remove(names, config, address).await;
        } else if let Err(error) = run(&format!("ip netns del {name}"), "").await {
            tracing::warn!(%error, "cannot remove a pod's network namespace");
        }
    }
}
