//! What this machine is, as its Node object says it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ContainerImage, Node, NodeAddress, NodeCondition, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use rimward_api::local_volumes;
use rimward_node_pod::runtime::Handler;

use crate::Config;
use crate::pressure::{Kind, Pressure};

/// What pods may not have: room for the node itself, as the kubelet's eviction thresholds leave it.
const MEMORY_RESERVED_BYTES: u64 = 100 << 20;

/// What a pod may use, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
    /// Of the memory, what is set aside as huge pages.
    pub huge_bytes: u64,
}

impl Capacity {
    /// What the node has, after the limits of the cgroup that it runs in.
    pub fn of(data_dir: &Path) -> Self {
        // Counts the CPUs that this process may use: affinity and cgroup quota included.
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let total = read("/proc/meminfo").and_then(|text| meminfo_total(&text)).unwrap_or(0);
        let memory_bytes = memory_cgroup().map_or(total, |(_, limit)| limit.min(total));
        let storage_bytes = rustix::fs::statvfs(data_dir).map_or(0, |s| s.f_frsize * s.f_blocks);
        let huge_bytes = huge_pages(Path::new(HUGE_PAGES)).iter().map(|(size, n)| size * n).sum();
        Self { cpu_millis: cpus * 1000, memory_bytes, storage_bytes, huge_bytes }
    }

    /// What of it pods may have.
    pub fn allocatable(self) -> Self {
        Self {
            cpu_millis: self.cpu_millis,
            memory_bytes: self
                .memory_bytes
                .saturating_sub(MEMORY_RESERVED_BYTES)
                .saturating_sub(self.huge_bytes),
            storage_bytes: self.storage_bytes / 10 * 9,
            huge_bytes: self.huge_bytes,
        }
    }

    fn quantities(self, pods: u32) -> BTreeMap<String, Quantity> {
        let cpu = match self.cpu_millis % 1000 {
            0 => (self.cpu_millis / 1000).to_string(),
            _ => format!("{}m", self.cpu_millis),
        };
        let huge = huge_pages(Path::new(HUGE_PAGES)).into_iter().map(|(size, number)| {
            (format!("hugepages-{}", binary(size)), Quantity(binary(size * number)))
        });
        let others = [
            ("cpu".into(), Quantity(cpu)),
            ("memory".into(), Quantity(format!("{}Ki", self.memory_bytes / 1024))),
            ("ephemeral-storage".into(), Quantity(format!("{}Ki", self.storage_bytes / 1024))),
            ("pods".into(), Quantity(pods.to_string())),
        ];
        others.into_iter().chain(huge).collect()
    }
}

/// Where the kernel tells of them.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Page sizes of the machine in bytes, with the number of pages that are set aside.
/// <https://docs.kernel.org/admin-guide/mm/hugetlbpage.html>
fn huge_pages(dir: &Path) -> Vec<(u64, u64)> {
    let one = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let number = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        Some((kib << 10, number.trim().parse().ok()?))
    };
    std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(one).collect()
}

/// In the largest binary unit that leaves no rest, as Kubernetes names page sizes: `2Mi`.
fn binary(bytes: u64) -> String {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let fits = units.iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    fits.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// `MemTotal:  16384 kB`, in bytes.
fn meminfo_total(text: &str) -> Option<u64> {
    meminfo(text, "MemTotal:")
}

/// A row of /proc/meminfo, in bytes.
pub fn meminfo(text: &str, row: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(row))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The cgroup of this process, or above it, that has the least memory, and how much: v2's and v1's files.
pub fn memory_cgroup() -> Option<(PathBuf, u64)> {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let dir = Path::new(root).join(ancestor);
            let text = dir.join(file).to_str().and_then(read);
            // `max` is no limit, and is no number either.
            limits.extend(text.and_then(|text| text.parse().ok()).map(|limit: u64| (dir, limit)));
        }
    }
    limits.into_iter().min_by_key(|(_, limit)| *limit)
}

/// The address from which this machine reaches `towards`, else any other than loopback. Sends nothing.
pub fn node_ip(towards: &str) -> IpAddr {
    let from = |target: &str| -> Option<IpAddr> {
        let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    // 192.0.2.1 is reserved for documentation (RFC 5737): nobody is there, only the route counts.
    let found = [towards, "192.0.2.1:9"].into_iter().find_map(|target| from(target).filter(usable));
    found.or_else(interface_address).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// An address of a network that this machine is on: one that has no default route has no other way to know
/// its own.
fn interface_address() -> Option<IpAddr> {
    let usable = |ip: &Ipv4Addr| !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified();
    let of = |interface: nix::ifaddrs::InterfaceAddress| {
        // The pod network's own devices are not what others know this machine by.
        let ours = interface.interface_name.starts_with(rimward_node_network::root::DEVICE_PREFIX);
        let address = interface.address?.as_sockaddr_in()?.ip();
        (!ours && usable(&address)).then_some(IpAddr::V4(address))
    };
    nix::ifaddrs::getifaddrs().ok()?.find_map(of)
}

/// The architecture in Go's words, as labels have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_image() -> String {
    let release = read("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned())
}

/// The Node as this machine sees itself.
pub fn describe(
    config: &Config,
    server: &str,
    ready: bool,
    pressure: &Pressure,
    images: Vec<ContainerImage>,
) -> Node {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    let ip = config.node_ip.unwrap_or_else(|| node_ip(server));
    let capacity = Capacity::of(&config.data_dir);
    Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(labels(config)),
            annotations: Some(BTreeMap::from([(
                local_volumes::DIRECTORY.to_owned(),
                crate::volumes::directory(&config.data_dir).display().to_string(),
            )])),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            capacity: Some(capacity.quantities(config.pods_max)),
            allocatable: Some(capacity.allocatable().quantities(config.pods_max)),
            addresses: Some(vec![
                address("InternalIP", ip.to_string()),
                address("Hostname", config.name.clone()),
            ]),
            conditions: Some(conditions(ready, pressure)),
            images: (!images.is_empty()).then_some(images),
            runtime_handlers: Some(runtime_handlers(&config.handlers)),
            features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
            node_info: Some(NodeSystemInfo {
                architecture: architecture().into(),
                boot_id: read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
                container_runtime_version: format!("rimward-wasm://{}", config.version),
                kernel_version: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
                kubelet_version: format!("v1.36.2+rimward{}", config.version),
                machine_id: read("/etc/machine-id").unwrap_or_default(),
                operating_system: "linux".into(),
                os_image: os_image(),
                system_uuid: read("/sys/class/dmi/id/product_uuid").unwrap_or_default(),
                swap: swap(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = config.labels.clone();
    labels.extend([
        ("kubernetes.io/hostname".into(), config.name.clone()),
        ("kubernetes.io/os".into(), "linux".into()),
        ("kubernetes.io/arch".into(), architecture().into()),
        // Kubelets still say both.
        ("beta.kubernetes.io/os".into(), "linux".into()),
        ("beta.kubernetes.io/arch".into(), architecture().into()),
    ]);
    // What the built-in RuntimeClasses select nodes by: WebAssembly runs on any architecture.
    for name in ["wasm", "oci", "runc"] {
        let has = config.handlers.iter().any(|handler| handler.name == name);
        labels.insert(format!("rimward.dev/{name}"), has.to_string());
    }
    labels
}

/// What this machine knows of its Node that no control plane has told it of yet.
pub fn unregistered(config: &Config) -> Node {
    let (name, labels) = (Some(config.name.clone()), Some(labels(config)));
    Node { metadata: ObjectMeta { name, labels, ..ObjectMeta::default() }, ..Node::default() }
}

/// The machine's swap in bytes, whether or not pods may have of it; None without.
fn swap() -> Option<NodeSwapStatus> {
    let total = meminfo(&read("/proc/meminfo")?, "SwapTotal:").filter(|bytes| *bytes > 0)?;
    Some(NodeSwapStatus { capacity: i64::try_from(total).ok() })
}

/// Each by its name, and the default one by none: it does what the last named one does, which is the one
/// for Linux images where there is one.
fn runtime_handlers(handlers: &[Handler]) -> Vec<NodeRuntimeHandler> {
    let default = handlers.last().map(|handler| Handler { name: "", ..handler.clone() });
    let told = default.iter().chain(handlers);
    told.map(|handler| NodeRuntimeHandler {
        name: Some(handler.name.to_owned()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(handler.recursive_read_only),
            user_namespaces: Some(handler.user_namespaces),
        }),
    })
    .collect()
}

/// The conditions of <https://kubernetes.io/docs/reference/node/node-status/#condition>.
fn conditions(ready: bool, pressure: &Pressure) -> Vec<NodeCondition> {
    let condition = |type_: &str, status: &str, reason: &str, message: &str| NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        ..NodeCondition::default()
    };
    let ready = if ready {
        condition("Ready", "True", "KubeletReady", "the agent is connected and runs pods")
    } else {
        condition("Ready", "False", "KubeletNotReady", "the agent is starting")
    };
    let under = |kind: Kind| {
        let (status, reason, message) = pressure.condition(kind);
        condition(kind.condition(), status, reason, &message)
    };
    vec![under(Kind::Memory), under(Kind::Disk), under(Kind::Pids), ready]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_meminfo() {
        assert_eq!(meminfo_total("MemTotal:       1024 kB\nMemFree: 5 kB\n"), Some(1 << 20));
        assert_eq!(meminfo_total("nonsense"), None);
    }

    #[test]
    fn this_machine_has_something() {
        let capacity = Capacity::of(Path::new("/"));
        assert!(
            capacity.cpu_millis >= 1000 && capacity.memory_bytes > 0 && capacity.storage_bytes > 0
        );
        assert!(capacity.allocatable().memory_bytes < capacity.memory_bytes);
    }

    #[test]
    fn huge_pages_are_no_memory_for_others() {
        let dir = tempfile::tempdir().unwrap();
        for (name, number) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n")] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("nr_hugepages"), number).unwrap();
        }
        let mut pages = huge_pages(dir.path());
        pages.sort_unstable();
        assert_eq!(pages, [(2 << 20, 3), (1 << 30, 0)]);
        let shown = pages.iter().map(|(size, n)| (binary(*size), binary(size * n)));
        let shown: Vec<_> = shown.collect();
        assert_eq!(shown, [("2Mi".into(), "6Mi".to_owned()), ("1Gi".into(), "0".into())]);
        let whole = Capacity {
            cpu_millis: 1,
            memory_bytes: 1 << 30,
            storage_bytes: 1,
            huge_bytes: 6 << 20,
        };
        assert_eq!(whole.allocatable().memory_bytes, (1 << 30) - MEMORY_RESERVED_BYTES - (6 << 20));
    }

    #[test]
    fn quantities_read_well() {
        let capacity = Capacity {
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            storage_bytes: 1 << 30,
            huge_bytes: 0,
        };
        let quantities = capacity.quantities(250);
        assert_eq!(quantities["cpu"], Quantity("2".into()));
        assert_eq!(quantities["memory"], Quantity("1048576Ki".into()));
        assert_eq!(quantities["pods"], Quantity("250".into()));
    }
}
