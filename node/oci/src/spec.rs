//! A container's spec as the OCI runtime specification says it: decided here, without touching anything.
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>
//!
//! Capabilities and system calls are in it for runc alone ([`Rights`]): with libcontainer the shim sees to both,
//! see `shim::program`.

pub(crate) mod devices;
pub(crate) mod files;
pub(crate) mod mounts;
pub(crate) mod rights;
pub(crate) mod user;

use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::{ContainerSpec, ExecRequest, Propagation, QosClass};
use serde_json::{Value, json};

use crate::layout::RunDir;
use devices::Device;
use rights::Rights;
use user::Resolved;

/// What is known once the container's surroundings were made.
pub(crate) struct Given<'a> {
    pub dir: &'a RunDir,
    pub user: &'a Resolved,
    pub cgroup: &'a Path,
    pub ipc: Option<&'a Path>,
    pub uts: Option<&'a Path>,
    /// The namespace of the pod's own users, if it has such, and the network namespace that belongs to them.
    pub users: Option<&'a Path>,
    pub net: Option<&'a Path>,
    /// The processes that the pod's containers share, or of the one container that this one looks into; None is
    /// a namespace of the container's own.
    pub pid: Option<&'a Path>,
    /// Directories of cgroups v1 to be bound below /sys/fs/cgroup, by name: libcontainer, mounting them itself,
    /// takes a process's number for the machine's and looks up another process, or none, where processes
    /// are shared.
    pub cgroup_dirs: Vec<(PathBuf, String)>,
    /// Which of `nosuid`, `nodev` and `noexec` holds where a path lies. What is bound read-only is mounted anew, and
    /// would lose them; in a pod with users of its own, it could not be mounted then.
    pub flags_at: &'a dyn Fn(&Path) -> Vec<&'static str>,
    pub shm: &'a Path,
    /// How swap is counted, and how much of it the container may have.
    pub swap: SwapLimit,
    /// Cgroup v2 is what limits.
    pub unified: bool,
    /// Sizes of huge pages that the kernel limits, as it names them.
    pub page_sizes: Vec<String>,
    /// The machine's, for a privileged container.
    pub devices: Vec<Device>,
    /// For what sees to them itself.
    pub rights: Option<Rights>,
    /// What the container was given by itself.
    pub disks: Vec<Device>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwapLimit {
    /// The kernel counts none.
    Uncounted,
    /// In cgroup v1, together with memory: where there is a limit of that, it is that of both.
    WithMemory,
    /// In cgroup v2: so many bytes.
    Bytes(u64),
}

/// What of the machine's swap a container may have, where a node lets it have any.
/// <https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/#how-is-the-swap-limit-being-determined-with-limitedswap>
pub(crate) fn limited_swap(spec: &ContainerSpec, memory_bytes: u64, swap_bytes: u64) -> u64 {
    if !spec.linux.may_swap {
        return 0;
    }
    let share = u128::from(spec.linux.memory_request_bytes) * u128::from(swap_bytes)
        / u128::from(memory_bytes.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What tells of the machine or changes it.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// # Errors
/// Names a mount that cannot be: the message of CreateContainerConfigError.
pub(crate) fn build(spec: &ContainerSpec, given: &Given<'_>) -> Result<Value, String> {
    let linux = &spec.linux;
    let open = linux.privileged || linux.proc_unmasked;
    let paths = |paths: &[&str]| if open { json!([]) } else { json!(paths) };
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": given.dir.rootfs(), "readonly": linux.read_only_root},
        "process": process(spec, given.user),
        "mounts": mounts::of(spec, given)?,
        "linux": {
            "namespaces": namespaces(spec, given),
            "cgroupsPath": Path::new("/").join(given.cgroup),
            "resources": resources(spec, given),
            "maskedPaths": paths(&MASKED),
            "readonlyPaths": paths(&READ_ONLY),
            "rootfsPropagation": root_propagation(spec),
        },
    });
    // They are the pod's, and set by each of its containers alike.
    if !linux.sysctls.is_empty() && !linux.host_network {
        config["linux"]["sysctl"] =
            linux.sysctls.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    }
    let devices: Vec<Value> =
        given.devices.iter().chain(&given.disks).map(Device::to_json).collect();
    if !devices.is_empty() {
        config["linux"]["devices"] = Value::Array(devices);
    }
    if let Some(rights) = &given.rights {
        rights.add_to(&mut config);
    }
    Ok(config)
}

/// What a container mounts is seen outside of it only where a volume asks for that.
fn root_propagation(spec: &ContainerSpec) -> &'static str {
    let mut flags = spec.linux.mount_flags.values();
    match flags.any(|flags| flags.propagation == Propagation::Bidirectional) {
        true => "shared",
        false => "slave",
    }
}

fn process(spec: &ContainerSpec, user: &Resolved) -> Value {
    let mut env: Vec<String> = Vec::with_capacity(spec.env.len() + 2);
    if !spec.env.iter().any(|(name, _)| name == "PATH") {
        env.push(format!("PATH={PATH}"));
    }
    if spec.tty && !spec.env.iter().any(|(name, _)| name == "TERM") {
        env.push("TERM=xterm".into());
    }
    if !spec.env.iter().any(|(name, _)| name == "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
    let cwd = if spec.working_dir.starts_with('/') { spec.working_dir.as_str() } else { "/" };
    let mut process = json!({
        "terminal": spec.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": spec.argv,
        "env": env,
        "cwd": cwd,
    });
    if spec.linux.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    process
}

/// The process of a command in a container, from that container's config.json.
pub(crate) fn exec_process(mut config: Value, request: &ExecRequest) -> Option<Value> {
    let mut process = config.get_mut("process")?.take();
    process["args"] = json!(request.argv);
    process["terminal"] = json!(request.tty);
    let env = process["env"].as_array_mut()?;
    if request.tty && !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM="))) {
        env.push(json!("TERM=xterm"));
    }
    Some(process)
}

fn namespaces(spec: &ContainerSpec, given: &Given<'_>) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    match given.pid {
        Some(path) => list.push(json!({"type": "pid", "path": path})),
        None if spec.linux.host_pid => {}
        None => list.push(json!({"type": "pid"})),
    }
    let network = spec.netns.as_deref().or(given.net);
    let shared =
        [("user", given.users), ("ipc", given.ipc), ("uts", given.uts), ("network", network)];
    for (kind, path) in shared {
        if let Some(path) = path {
            list.push(json!({"type": kind, "path": path}));
        }
    }
    Value::Array(list)
}

fn resources(spec: &ContainerSpec, given: &Given<'_>) -> Value {
    let resources = &spec.resources;
    let mut cpu = json!({"shares": cpu_shares(resources.cpu_request_millis)});
    if let Some(millis) = resources.cpu_limit_millis {
        let (quota, period) = cpu_quota(millis);
        cpu["quota"] = json!(quota);
        cpu["period"] = json!(period);
    }
    let privileged = spec.linux.privileged;
    // Devices that every container has are allowed after this, by libcontainer and by runc; in v2 by `agent::cgroup`.
    let mut devices = vec![json!({"allow": privileged, "access": "rwm"})];
    devices.extend(given.disks.iter().map(Device::rule));
    let mut result = json!({"cpu": cpu, "devices": devices});
    if let Some(bytes) = resources.memory_limit_bytes {
        result["memory"] = json!({"limit": bytes});
        if given.swap == SwapLimit::WithMemory {
            result["memory"]["swap"] = json!(bytes);
        }
    }
    if given.unified {
        // Where one process is killed for memory, so are the others: a container is well or not, never half.
        result["unified"] = json!({"memory.oom.group": "1"});
    }
    if let SwapLimit::Bytes(bytes) = given.swap {
        result["unified"]["memory.swap.max"] = json!(bytes.to_string());
    }
    let pages = huge_page_limits(&spec.linux.huge_pages, &given.page_sizes);
    if !pages.is_empty() {
        result["hugepageLimits"] = Value::Array(pages);
    }
    result
}

/// Of each size that the kernel limits: what the container asked for, else nothing.
fn huge_page_limits(wanted: &[(u64, u64)], sizes: &[String]) -> Vec<Value> {
    let limit = |name: &String| {
        let asked = wanted.iter().find(|(size, _)| page_size(*size) == *name);
        json!({"pageSize": name, "limit": asked.map_or(0, |(_, bytes)| *bytes)})
    };
    sizes.iter().map(limit).collect()
}

/// As the kernel names the files of its limits: `2MB`, `1GB`.
fn page_size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
        _ if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
        _ => format!("{}KB", bytes >> 10),
    }
}

/// Thousandths of a core as cgroup v1's shares, as the kubelet does: never nothing.
pub(crate) fn cpu_shares(millis: u64) -> u64 {
    (millis * 1024 / 1000).clamp(2, 262_144)
}

/// A limit as microseconds in a period.
pub(crate) fn cpu_quota(millis: u64) -> (u64, u64) {
    const PERIOD: u64 = 100_000;
    ((millis * PERIOD / 1000).max(1000), PERIOD)
}

/// Who goes first when the machine has no memory left.
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior>
pub(crate) fn oom_score_adj(spec: &ContainerSpec, machine_bytes: u64) -> i32 {
    match spec.linux.qos {
        _ if spec.linux.node_critical => -997,
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = 1000 * spec.linux.memory_due_bytes / machine_bytes.max(1);
            (1000 - share.min(1000) as i32).clamp(3, 999)
        }
    }
}

/// A stop signal's number: `SIGTERM`, `TERM`, `15`, `RTMIN+3`. What nobody knows is SIGTERM.
pub(crate) fn signal(name: &str) -> i32 {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = bare.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { libc::SIGTERM };
    }
    let real_time = |rest: &str| rest.strip_prefix(['+', '-'])?.parse::<i32>().ok();
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return 34 + real_time(rest).unwrap_or(0).clamp(0, 30);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return 64 - real_time(rest).unwrap_or(0).clamp(0, 30);
    }
    let known = format!("SIG{bare}").parse::<nix::sys::signal::Signal>();
    known.map_or(libc::SIGTERM, |signal| signal as i32)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rimward_node_pod::outside::{Image, ImageForm};
    use rimward_node_pod::runtime::{Dns, Linux, Resources, RunId, User};

    pub(crate) fn container() -> ContainerSpec {
        let ip = "10.42.0.5".parse().unwrap();
        ContainerSpec {
            id: RunId { pod_uid: "u".into(), container: "c".into(), attempt: 0 },
            pod_namespace: "n".into(),
            pod_name: "p".into(),
            spec_hash: String::new(),
            image: Image {
                reference: "busybox".into(),
                id: String::new(),
                digest: String::new(),
                form: ImageForm::Linux {
                    layers: Vec::new(),
                    entrypoint: Vec::new(),
                    cmd: Vec::new(),
                    env: Vec::new(),
                    working_dir: String::new(),
                    user: String::new(),
                    stop_signal: String::new(),
                },
            },
            argv: vec!["sh".into()],
            env: vec![("A".into(), "1".into())],
            working_dir: String::new(),
            mounts: Vec::new(),
            pod_ip: ip,
            bind_ip: ip,
            netns: Some("/run/netns/x".into()),
            tcp_ports: Vec::new(),
            resources: Resources::default(),
            log_path: "/log".into(),
            user: User::default(),
            dns: Dns::default(),
            hosts: Vec::new(),
            runtime_class: String::new(),
            stdin: false,
            stdin_once: false,
            tty: false,
            annotations: Default::default(),
            linux: Linux::default(),
        }
    }

    pub(crate) fn built(spec: &ContainerSpec) -> Result<Value, String> {
        built_with(spec, SwapLimit::Uncounted)
    }

    fn built_with(spec: &ContainerSpec, swap: SwapLimit) -> Result<Value, String> {
        let dir = RunDir("/run/x".into());
        let user = Resolved { uid: 5, gid: 6, groups: vec![7], home: "/h".into() };
        build(
            spec,
            &Given {
                dir: &dir,
                user: &user,
                cgroup: Path::new("rimward-1/kubepods/podu/c.0"),
                ipc: Some(Path::new("/ipc")),
                uts: Some(Path::new("/uts")),
                users: None,
                net: None,
                pid: None,
                cgroup_dirs: Vec::new(),
                flags_at: &|path| if path.starts_with("/careful") { vec!["nodev"] } else { vec![] },
                shm: Path::new("/shm"),
                swap,
                unified: swap == SwapLimit::Bytes(0),
                page_sizes: vec!["1GB".into(), "2MB".into()],
                devices: Vec::new(),
                rights: None,
                disks: Vec::new(),
            },
        )
    }

    #[test]
    fn an_ordinary_container() {
        let config = built(&container()).unwrap();
        assert_eq!(config["process"]["env"], json!([format!("PATH={PATH}"), "HOME=/h", "A=1"]));
        assert_eq!(config["process"]["cwd"], "/");
        assert_eq!(config["process"].get("noNewPrivileges"), None);
        assert_eq!(config["process"]["user"]["additionalGids"], json!([7]));
        let kinds: Vec<_> = config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ns| ns["type"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["mount", "cgroup", "pid", "ipc", "uts", "network"]);
        assert_eq!(config["linux"]["resources"]["cpu"]["shares"], 2);
        assert_eq!(config["linux"]["resources"]["devices"][0]["allow"], false);
        assert_eq!(config["linux"]["maskedPaths"].as_array().unwrap().len(), MASKED.len());
        assert_eq!(config["linux"]["cgroupsPath"], "/rimward-1/kubepods/podu/c.0");
    }

    #[test]
    fn limits_and_rights() {
        let mut spec = container();
        spec.resources = Resources {
            memory_limit_bytes: Some(1 << 20),
            cpu_limit_millis: Some(500),
            cpu_request_millis: 250,
        };
        spec.linux.no_new_privileges = true;
        spec.linux.huge_pages = vec![(2 << 20, 4 << 20)];
        spec.linux.privileged = true;
        spec.linux.host_pid = true;
        let config = built(&spec).unwrap();
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["cpu"], json!({"shares": 256, "quota": 50_000, "period": 100_000}));
        assert_eq!(resources["memory"], json!({"limit": 1 << 20}));
        let pages = json!([{"pageSize": "1GB", "limit": 0}, {"pageSize": "2MB", "limit": 4 << 20}]);
        assert_eq!(resources["hugepageLimits"], pages);
        assert_eq!(resources["devices"][0]["allow"], true);
        assert_eq!(config["process"]["noNewPrivileges"], true);
        assert_eq!(config["linux"]["maskedPaths"], json!([]));
        let request = ExecRequest { argv: vec!["ls".into()], tty: true };
        let process = exec_process(config, &request).unwrap();
        assert_eq!(process["args"], json!(["ls"]));
        assert_eq!(process["env"].as_array().unwrap().last().unwrap(), "TERM=xterm");
        assert_eq!(process["user"]["uid"], 5);
    }

    #[test]
    fn swap_goes_to_burstable_pods_by_what_they_ask_for() {
        let mut spec = container();
        let swap = |spec: &ContainerSpec| limited_swap(spec, 1000 << 20, 500 << 20);
        spec.linux.memory_request_bytes = 100 << 20;
        assert_eq!(swap(&spec), 0);
        spec.linux.may_swap = true;
        assert_eq!(swap(&spec), 50 << 20);
        spec.resources.memory_limit_bytes = Some(100 << 20);
        let of = |limit| built_with(&spec, limit).unwrap()["linux"]["resources"].take();
        let group = json!({"memory.oom.group": "1", "memory.swap.max": "0"});
        assert_eq!(of(SwapLimit::Bytes(0))["unified"], group);
        let both = json!({"limit": 100 << 20, "swap": 100 << 20});
        assert_eq!(of(SwapLimit::WithMemory)["memory"], both);
        assert_eq!(of(SwapLimit::Uncounted).get("unified"), None);
    }

    #[test]
    fn scores() {
        let mut spec = container();
        let machine = 1000 << 20;
        assert_eq!(oom_score_adj(&spec, machine), 1000);
        spec.linux.qos = QosClass::Burstable;
        assert_eq!(oom_score_adj(&spec, machine), 999);
        spec.linux.memory_due_bytes = 250 << 20;
        assert_eq!(oom_score_adj(&spec, machine), 750);
        spec.linux.memory_due_bytes = 2000 << 20;
        assert_eq!(oom_score_adj(&spec, machine), 3);
        spec.linux.node_critical = true;
        assert_eq!(oom_score_adj(&spec, machine), -997);
        spec.linux.node_critical = false;
        spec.linux.qos = QosClass::Guaranteed;
        assert_eq!(oom_score_adj(&spec, machine), -997);
    }

    #[test]
    fn signals() {
        for (name, number) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("usr1", 10),
            ("9", 9),
            ("99", 15),
            ("SIGRTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("NONSENSE", 15),
        ] {
            assert_eq!(signal(name), number, "{name}");
        }
    }
}
