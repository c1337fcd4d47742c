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

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::netlink::{self, Refused, Request, Route, Socket};
use super::{Config, HOST_END, Names};
use crate::addresses::Addresses;

/// A pod's namespace and the host's end of its veth. Both are told by the address, which only one pod has
/// at a time.
struct PodNames {
    namespace: PathBuf,
    veth: String,
}

/// Makes and removes them, by two conversations with the kernel that stay open: one about the host's network,
/// one about the namespace that all Wasm pods share.
#[derive(Clone)]
pub(super) struct Pods(Arc<Inner>);

struct Inner {
    names: Names,
    pod_block: rimward_api::Block,
    host: Mutex<Socket>,
    shared: Mutex<Socket>,
}

impl Pods {
    /// Once the shared namespace is there.
    pub fn open(names: &Names, config: &Config) -> io::Result<Self> {
        let shared = netlink::within(&netns(&names.namespace), Socket::open)?;
        Ok(Self(Arc::new(Inner {
            names: names.clone(),
            pod_block: config.pod_block,
            host: Mutex::new(Socket::open()?),
            shared: Mutex::new(shared),
        })))
    }

    /// The host's end of a pod's veth.
    pub fn veth(&self, address: Ipv4Addr) -> String {
        self.0.names(address).veth
    }

    /// The namespace of a pod, if it has one of its own.
    pub fn existing(&self, address: Ipv4Addr) -> Option<PathBuf> {
        Some(self.0.names(address).namespace).filter(|path| path.exists())
    }

    /// Makes what is missing and leaves what is there; answers the namespace's file. A namespace that was `made`
    /// gets its name.
    pub async fn ensure(&self, address: Ipv4Addr, made: Option<&Path>) -> Result<PathBuf, String> {
        let made = made.map(Path::to_owned);
        let work = move |this: &Inner| this.ensure(address, made.as_deref());
        self.blocking(work).await?.map_err(|e| e.to_string())
    }

    /// Safe without.
    pub async fn remove(&self, address: Ipv4Addr) {
        if let Err(error) = self.blocking(move |this| this.remove(address)).await {
            tracing::warn!(error, "cannot remove a pod's network namespace");
        }
    }

    /// Removes the namespaces of pods that have no address any more; of all, if `addresses` is None.
    pub async fn sweep(&self, addresses: Option<&Addresses>) {
        let prefix = format!("{}-", self.0.names.namespace);
        for entry in std::fs::read_dir(netns("")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let hex = name.strip_prefix(&prefix).and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let Some(address) = hex.map(Ipv4Addr::from) else { continue };
            if addresses.is_some_and(|addresses| addresses.holds(address)) {
                continue;
            }
            tracing::info!(%address, "removing the network namespace of a pod that is gone");
            if self.0.pod_block.contains(address) {
                self.remove(address).await;
            } else if let Err(error) = netlink::forget(&entry.path()) {
                tracing::warn!(%error, "cannot remove a pod's network namespace");
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Result<T, String> {
        let this = self.0.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(|panic| panic.to_string())
    }
}

fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// One that belongs to the namespace's thread.
fn other(refused: Refused) -> io::Error {
    io::Error::new(refused.source.kind(), refused.to_string())
}

impl Inner {
    fn names(&self, address: Ipv4Addr) -> PodNames {
        let number = u32::from(address).wrapping_sub(self.pod_block.gateway().into());
        let name = format!("{}-{:08x}", self.names.namespace, u32::from(address));
        PodNames { namespace: netns(&name), veth: format!("{}{number:x}", self.names.devices) }
    }

    fn ensure(&self, address: Ipv4Addr, made: Option<&Path>) -> io::Result<PathBuf> {
        let PodNames { namespace, veth } = self.names(address);
        let host = std::fs::File::open("/proc/thread-self/ns/net")?;
        let inside = || self.ensure_inside(address, &veth, &host);
        match (namespace.exists(), made) {
            (true, _) => netlink::within(&namespace, inside)?,
            (false, None) => netlink::within_new(&namespace, inside)?,
            (false, Some(made)) => {
                netlink::name(made, &namespace)?;
                netlink::within(&namespace, inside)?;
            }
        }
        super::namespace::forward(&veth).map_err(|e| io::Error::other(e.to_string()))?;
        let host = self.host.lock();
        let device = host.index(&veth).map_err(other)?;
        let (to, table) = (address, libc::RT_TABLE_MAIN);
        let here = Route { to, device, via: None, source: Some(HOST_END), table };
        let requests = [Request::link_up(&veth), Request::replace_route(&here)];
        host.ask(&requests).map_err(other)?;
        drop(host);
        let shared = self.shared.lock();
        let elsewhere = elsewhere(&shared, address).map_err(other)?;
        shared.ask(&[Request::replace_route(&elsewhere)]).map_err(other)?;
        Ok(namespace)
    }

    /// In the pod's namespace.
    fn ensure_inside(&self, address: Ipv4Addr, veth: &str, host: &std::fs::File) -> io::Result<()> {
        let socket = Socket::open()?;
        let pair = || Request::add_veth("eth0", veth, host);
        match socket.ask(&[Request::link_up("lo"), pair()]) {
            Err(error) if error.is(libc::EEXIST) => {}
            other_outcome => other_outcome.map_err(other)?,
        }
        let device = match socket.index("eth0") {
            Err(error) if error.is(libc::ENODEV) => {
                // The host's end is an earlier namespace's, which something still holds.
                self.host.lock().ask(&[Request::delete_link(veth)]).map_err(other)?;
                socket.ask(&[pair()]).map_err(other)?;
                socket.index("eth0")
            }
            found => found,
        }
        .map_err(other)?;
        let table = libc::RT_TABLE_MAIN;
        let gateway = Route { to: HOST_END, device, via: None, source: None, table };
        let all = Route { to: Ipv4Addr::UNSPECIFIED, via: Some(HOST_END), ..gateway };
        let requests = [
            Request::replace_address(device, address),
            Request::link_up("eth0"),
            Request::replace_route(&gateway),
            Request::replace_route(&all),
        ];
        socket.ask(&requests).map_err(other)
    }

    fn remove(&self, address: Ipv4Addr) {
        let PodNames { namespace, veth } = self.names(address);
        if !namespace.exists() {
            return;
        }
        let shared = self.shared.lock();
        let back = elsewhere(&shared, address)
            .and_then(|route| shared.ask(&[Request::delete_route(&route)]));
        drop(shared);
        if let Err(error) = back {
            tracing::debug!(%error, "the address was the shared namespace's own already");
        }
        // A namespace that a process still holds would keep its veth.
        if let Err(error) = self.host.lock().ask(&[Request::delete_link(&veth)]) {
            tracing::debug!(%error, "a pod's veth was gone already");
        }
        if let Err(error) = netlink::forget(&namespace) {
            tracing::warn!(%error, "cannot remove a pod's network namespace");
        }
    }
}

/// The address as a stranger's, in the namespace to which the whole block is local.
fn elsewhere(shared: &Socket, address: Ipv4Addr) -> Result<Route, Refused> {
    let device = shared.index("eth0")?;
    let table = libc::RT_TABLE_LOCAL;
    Ok(Route { to: address, device, via: Some(HOST_END), source: None, table })
}
