//! The cgroups of pods: `rimward-<node>/kubepods/[burstable|besteffort/]pod<uid>/<container>.<attempt>`, in
//! every hierarchy of cgroup v1, in the one of v2; in a hybrid, v1's controllers are what counts.
//!
//! libcontainer limits a container's own (and makes it, in v1); here are those above it, and what is read or
//! removed.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/>

mod classes;
mod devices;
mod shares;
mod unified;
mod usage;

use std::io;
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::{ContainerSpec, PodLimits, QosClass, Resources, RunId};

use crate::config::PidLimits;
use crate::spec::{SwapLimit, cpu_quota, cpu_shares};
use devices::Devices;

const ROOT: &str = "/sys/fs/cgroup";

/// Where v1 limits memory and swap together.
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";

pub(super) struct Cgroups {
    /// This node's own part, relative to each hierarchy's root.
    base: PathBuf,
    kind: Kind,
    /// Hierarchies without controllers of ours, by which service managers know what belongs to a service. runc puts
    /// containers there too, libcontainer leaves them with their shims.
    services: Vec<PathBuf>,
    classes: classes::Classes,
    devices: Devices,
}

enum Kind {
    V2(PathBuf),
    V1(Vec<Hierarchy>),
}

struct Hierarchy {
    root: PathBuf,
    controllers: Vec<String>,
}

impl Cgroups {
    pub fn of_machine(node_key: &str) -> io::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let (kind, services) = hierarchies(&mounts);
        let kind = kind.ok_or_else(|| {
            io::Error::other(format!(
                "no cgroups are mounted at {ROOT}: containers cannot be limited"
            ))
        })?;
        if let Kind::V2(root) = &kind {
            unified::make_room(root)?;
        }
        // FNV-1a, as the network's names: the same in every build.
        let hash = node_key
            .bytes()
            .fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let base = format!("rimward-{hash:08x}").into();
        let (classes, devices) = Default::default();
        Ok(Self { base, kind, services, classes, devices })
    }

    fn roots(&self) -> Vec<&Path> {
        match &self.kind {
            Kind::V2(root) => vec![root],
            Kind::V1(hierarchies) => hierarchies.iter().map(|h| h.root.as_path()).collect(),
        }
    }

    /// Those of services as well.
    fn all_roots(&self) -> Vec<&Path> {
        let services = self.services.iter().map(PathBuf::as_path);
        self.roots().into_iter().chain(services).collect()
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        match &self.kind {
            Kind::V2(root) => Some(root),
            Kind::V1(hierarchies) => {
                let found = hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == name));
                found.map(|h| h.root.as_path())
            }
        }
    }

    fn qos(&self, class: QosClass) -> PathBuf {
        let pods = self.base.join("kubepods");
        match class {
            QosClass::Guaranteed => pods,
            QosClass::Burstable => pods.join("burstable"),
            QosClass::BestEffort => pods.join("besteffort"),
        }
    }

    /// Where a run's cgroup is to be, relative to the root.
    pub fn of_run(&self, spec: &ContainerSpec) -> PathBuf {
        let RunId { pod_uid, container, attempt } = &spec.id;
        self.qos(spec.linux.qos)
            .join(format!("pod{pod_uid}"))
            .join(format!("{container}.{attempt}"))
    }

    /// Makes a run's directories in v1's hierarchies: with the names at which a container looks for each.
    /// None in v2.
    pub fn directories(&self, run: &Path) -> io::Result<Vec<(PathBuf, String)>> {
        let Kind::V1(hierarchies) = &self.kind else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for Hierarchy { root, controllers } in hierarchies {
            let dir = root.join(run);
            std::fs::create_dir_all(&dir)?;
            found.extend(controllers.iter().map(|name| (dir.clone(), name.clone())));
        }
        Ok(found)
    }

    /// A cgroup of the pod's that is no container's: `cgroup.procs` of each hierarchy. The pod's own was made.
    pub fn beside(&self, spec: &ContainerSpec, name: &str) -> io::Result<Vec<PathBuf>> {
        let run = self.of_run(spec);
        let place = run.parent().expect("a run's cgroup lies in its pod's").join(name);
        let one = |root: &Path| {
            let dir = root.join(&place);
            std::fs::create_dir_all(&dir)?;
            if dir.join("cpuset.cpus").exists() && matches!(self.kind, Kind::V1(_)) {
                fill_cpuset(root, &place)?;
            }
            Ok(dir.join("cgroup.procs"))
        };
        self.roots().into_iter().map(one).collect()
    }

    /// Whether the one hierarchy of v2 is what counts.
    pub fn is_unified(&self) -> bool {
        matches!(self.kind, Kind::V2(_))
    }

    /// Makes the pod's cgroup and those above it, with what the pod as a whole may take, and all pods together; in
    /// v2 the run's too, so that it is confined before anything is in it.
    pub fn ensure_pod(&self, spec: &ContainerSpec, pids: PidLimits) -> io::Result<()> {
        let run = self.of_run(spec);
        let pod = run.parent().expect("a run's cgroup lies in its pod's");
        match &self.kind {
            Kind::V1(hierarchies) => {
                for hierarchy in hierarchies {
                    let dir = hierarchy.root.join(pod);
                    std::fs::create_dir_all(&dir)?;
                    if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                        fill_cpuset(&hierarchy.root, pod)?;
                    }
                }
            }
            Kind::V2(root) => {
                unified::delegate(root, &run)?;
                if !spec.linux.privileged && devices::are_ours() {
                    let disks = spec.linux.disks.iter().map(crate::spec::devices::disk);
                    let disks: Vec<_> = disks.collect::<io::Result<_>>()?;
                    let confined = self.devices.confine(&root.join(&run), &disks);
                    confined.map_err(|e| {
                        io::Error::new(e.kind(), format!("cannot keep it from devices: {e}"))
                    })?;
                }
            }
        }
        self.enter_class(spec, pids.node)?;
        self.limit_pod(spec, pod, pids.pod)
    }

    fn limit_pod(&self, spec: &ContainerSpec, pod: &Path, pids_max: u64) -> io::Result<()> {
        let limits = &spec.linux.pod;
        self.set_shares(pod, limits.cpu_request_millis, shares::weight_of_pod)?;
        if limits.cpu_limit_millis.is_some() {
            self.set_cpu_limit(pod, limits.cpu_limit_millis)?;
        }
        if limits.memory_limit_bytes.is_some() {
            self.set_memory_limit(pod, limits.memory_limit_bytes)?;
        }
        self.set("pids", pod, "pids.max", "pids.max", pids_max.to_string())
    }

    /// Writes a file of a controller by its name in v1 or v2. A controller that is not there limits nothing.
    fn set(
        &self,
        controller: &str,
        dir: &Path,
        v1: &str,
        v2: &str,
        value: String,
    ) -> io::Result<()> {
        let Some(root) = self.controller(controller) else { return Ok(()) };
        let name = if matches!(self.kind, Kind::V2(_)) { v2 } else { v1 };
        let file = root.join(dir).join(name);
        std::fs::write(&file, value)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))
    }

    fn set_shares(
        &self,
        dir: &Path,
        request_millis: u64,
        weight: fn(u64) -> u64,
    ) -> io::Result<()> {
        let shares = cpu_shares(request_millis);
        match self.kind {
            Kind::V2(_) => self.set("cpu", dir, "", "cpu.weight", weight(shares).to_string()),
            Kind::V1(_) => self.set("cpu", dir, "cpu.shares", "", shares.to_string()),
        }
    }

    fn set_cpu_limit(&self, dir: &Path, millis: Option<u64>) -> io::Result<()> {
        let limit = millis.map(cpu_quota);
        if let Kind::V2(_) = self.kind {
            let text = limit.map_or("max".into(), |(quota, period)| format!("{quota} {period}"));
            return self.set("cpu", dir, "", "cpu.max", text);
        }
        if let Some((_, period)) = limit {
            self.set("cpu", dir, "cpu.cfs_period_us", "", period.to_string())?;
        }
        let quota = limit.map_or("-1".into(), |(quota, _)| quota.to_string());
        self.set("cpu", dir, "cpu.cfs_quota_us", "", quota)
    }

    fn set_memory_limit(&self, dir: &Path, bytes: Option<u64>) -> io::Result<()> {
        let text = |none: &str| bytes.map_or(none.to_owned(), |bytes| bytes.to_string());
        let value = text(if matches!(self.kind, Kind::V2(_)) { "max" } else { "-1" });
        self.set("memory", dir, "memory.limit_in_bytes", "memory.max", value)
    }

    /// How the kernel counts swap, and none of it for a run whose pod's cgroup was made.
    pub fn counts_swap(&self, run: &Path) -> SwapLimit {
        let pod = run.parent().expect("a run's cgroup lies in its pod's");
        let has = |file: &str| {
            self.controller("memory").is_some_and(|root| root.join(pod).join(file).exists())
        };
        match self.kind {
            Kind::V2(_) if has("memory.swap.max") => SwapLimit::Bytes(0),
            Kind::V1(_) if has(MEMORY_AND_SWAP) => SwapLimit::WithMemory,
            _ => SwapLimit::Uncounted,
        }
    }

    /// Sizes of huge pages that are limited below a run's pod, whose cgroup was made: `2MB`, `1GB`.
    pub fn page_sizes(&self, run: &Path) -> Vec<String> {
        let end = if self.is_unified() { ".max" } else { ".limit_in_bytes" };
        let pod = run.parent().expect("a run's cgroup lies in its pod's");
        let dir = self.controller("hugetlb").map(|root| std::fs::read_dir(root.join(pod)));
        let names = dir.into_iter().flatten().flatten().flatten().map(|entry| entry.file_name());
        let size = |name: std::ffi::OsString| {
            let size = name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(end)?;
            (!size.ends_with(".rsvd")).then(|| size.to_owned())
        };
        let mut sizes: Vec<String> = names.filter_map(size).collect();
        sizes.sort_unstable();
        sizes
    }

    /// A run's own limit. In v1 that of memory and swap is never below it, and the same in the end.
    fn set_limit_of_run(&self, run: &Path, bytes: Option<u64>) -> io::Result<()> {
        if self.counts_swap(run) != SwapLimit::WithMemory {
            return self.set_memory_limit(run, bytes);
        }
        let both = |value: String| self.set("memory", run, MEMORY_AND_SWAP, "", value);
        both("-1".into())?;
        let done = self.set_memory_limit(run, bytes);
        both(bytes.map_or("-1".into(), |bytes| bytes.to_string())).and(done)
    }

    /// Gives a run that goes on other limits, and its pod. What grows grows from above, what shrinks from
    /// below: a run never has more than its pod.
    ///
    /// # Errors
    /// When the run takes more memory than it would have, which the kernel would end it for.
    pub fn resize(&self, run: &Path, resources: &Resources, pod: &PodLimits) -> io::Result<()> {
        let of_pod = run.parent().expect("a run's cgroup lies in its pod's");
        if let (Some(limit), Some(usage)) = (resources.memory_limit_bytes, self.usage(run))
            && usage.memory_bytes > limit
        {
            return Err(io::Error::other(format!(
                "attempting to set memory limit ({limit}) below current usage ({})",
                usage.memory_bytes
            )));
        }
        self.set_cpu_limit(of_pod, None)?;
        self.set_memory_limit(of_pod, None)?;
        self.set_shares(of_pod, pod.cpu_request_millis, shares::weight_of_pod)?;
        self.set_shares(run, resources.cpu_request_millis, shares::weight_of_container)?;
        self.set_cpu_limit(run, resources.cpu_limit_millis)?;
        let done = self.set_limit_of_run(run, resources.memory_limit_bytes);
        self.set_cpu_limit(of_pod, pod.cpu_limit_millis)?;
        self.set_memory_limit(of_pod, pod.memory_limit_bytes)?;
        done
    }

    /// `cgroup.procs` of a place for shims, one a hierarchy that can have one. What a service manager ends
    /// with the agent's service is not in it then, containers included.
    pub fn of_shims(&self) -> Vec<PathBuf> {
        let dir = self.base.join("shims");
        let made = self.all_roots().into_iter().map(|root| root.join(&dir)).filter(|dir| {
            // A cpuset of v1 must be filled before anything can be in it; the shims' needs none.
            let made = std::fs::create_dir_all(dir).is_ok();
            made && (self.is_unified() || !dir.join("cpuset.cpus").exists())
        });
        made.map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Has a wait now that a container's start would have later: whoever moves a process between cgroups waits
    /// for every processor first (`synchronize_rcu`, eight milliseconds on two), but not if somebody did a
    /// moment ago. This moves this process to where it is. What keeps it from that costs time and no more.
    pub fn wait_ahead(&self) {
        let Ok(places) = std::fs::read_to_string("/proc/self/cgroup") else { return };
        let (root, controller) = match &self.kind {
            Kind::V2(root) => (root, ""),
            Kind::V1(hierarchies) => {
                let Some(first) = hierarchies.first() else { return };
                (&first.root, first.controllers.first().map_or("", String::as_str))
            }
        };
        let Some(place) = place_of(&places, controller) else { return };
        let procs = root.join(place.trim_start_matches('/')).join("cgroup.procs");
        let _ = std::fs::write(procs, std::process::id().to_string());
    }

    /// Processes in the shims' cgroup, where containers are not.
    pub fn shims(&self) -> Vec<i32> {
        let dirs = self.roots().into_iter().map(|root| root.join(&self.base).join("shims"));
        let mut all: Vec<i32> = dirs.flat_map(|dir| procs(&dir)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Where the kernel counts processes that it killed for memory.
    pub fn oom_file(&self, run: &Path) -> Option<PathBuf> {
        let name = match self.kind {
            Kind::V2(_) => "memory.events",
            Kind::V1(_) => "memory.oom_control",
        };
        Some(self.controller("memory")?.join(run).join(name))
    }

    /// Ends what is in a run's cgroup, children included.
    pub fn kill(&self, run: &Path) {
        for root in self.all_roots() {
            kill_tree(&root.join(run));
        }
    }

    /// Removes a run's cgroup, which nothing is in any more.
    pub fn remove(&self, run: &Path) {
        for root in self.all_roots() {
            remove_tree(&root.join(run));
        }
    }

    /// Where a pod's cgroup may be, relative to the root: its class is not known.
    fn places_of_pod(&self, uid: &str) -> [PathBuf; 3] {
        [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort]
            .map(|class| self.qos(class).join(format!("pod{uid}")))
    }

    /// Removes a pod's cgroup in whatever class it is, and what is left in it.
    pub fn remove_pod(&self, uid: &str) {
        self.leave_class(uid);
        for root in self.all_roots() {
            for place in self.places_of_pod(uid) {
                let dir = root.join(place);
                if dir.exists() {
                    kill_tree(&dir);
                    remove_tree(&dir);
                }
            }
        }
    }

    /// UIDs of pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut uids = Vec::new();
        for root in self.all_roots() {
            for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                let dirs = std::fs::read_dir(root.join(self.qos(class))).into_iter().flatten();
                let names =
                    dirs.flatten().map(|dir| dir.file_name().to_string_lossy().into_owned());
                uids.extend(names.filter_map(|name| Some(name.strip_prefix("pod")?.to_owned())));
            }
        }
        uids.sort_unstable();
        uids.dedup();
        uids
    }

    /// Everything of this node.
    pub fn remove_tree(&self) {
        for root in self.all_roots() {
            let dir = root.join(&self.base);
            kill_tree(&dir);
            remove_tree(&dir);
        }
    }
}

/// From the text of mountinfo: what counts, and what is there besides.
fn hierarchies(mountinfo: &str) -> (Option<Kind>, Vec<PathBuf>) {
    let (mut v1, mut v2, mut named) = (Vec::new(), None, Vec::new());
    for line in mountinfo.lines() {
        // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS … - TYPE SOURCE SUPER-OPTIONS
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        let (kind, options) = (back.next(), back.nth(1).unwrap_or_default());
        let Some(root) = front.split(' ').nth(4).map(PathBuf::from) else { continue };
        match kind {
            Some("cgroup2") => v2 = v2.filter(|there| there == Path::new(ROOT)).or(Some(root)),
            Some("cgroup") => {
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(|o| !matches!(*o, "rw" | "ro") && !o.contains('='))
                    .map(str::to_owned)
                    .collect();
                match controllers.is_empty() {
                    true => named.push(root),
                    false => v1.push(Hierarchy { root, controllers }),
                }
            }
            _ => {}
        }
    }
    // What is mounted there is what libcontainer and everybody else goes by. A controller of v1 elsewhere (a VPN's
    // net_cls, say) is none of ours then.
    match (v2, v1.is_empty()) {
        (Some(root), _) if root == Path::new(ROOT) => (Some(Kind::V2(root)), Vec::new()),
        (_, true) => (None, named),
        (v2, false) => {
            named.extend(v2);
            (Some(Kind::V1(v1)), named)
        }
    }
}

/// A cpuset of v1 is empty when it is made, and takes no process then.
fn fill_cpuset(root: &Path, pod: &Path) -> io::Result<()> {
    let mut at = root.to_owned();
    for part in pod.components() {
        let parent = at.clone();
        at.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(at.join(file))?.trim().is_empty() {
                std::fs::write(at.join(file), std::fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Where a process is by its `/proc/PID/cgroup`, in the hierarchy of a controller; of none: in that of v2.
fn place_of<'a>(places: &'a str, controller: &str) -> Option<&'a str> {
    places.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, place) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(place)
    })
}

fn procs(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn kill_tree(dir: &Path) {
    if std::fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for child in children(dir) {
        kill_tree(&child);
    }
    // Whatever forks meanwhile is seen in the next round; a bomb is held by its limit of processes.
    for _ in 0..16 {
        let pids = procs(dir);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // SAFETY: kill has no memory effects; the kernel has just named the process in this cgroup.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// A cgroup can be removed once the last killed process is reaped, which takes its parent a moment.
fn remove_tree(dir: &Path) {
    for child in children(dir) {
        remove_tree(&child);
    }
    for attempt in 0..20u32 {
        match std::fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(1 << attempt.min(6)));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return tracing::warn!(%error, "cannot remove the cgroup {}", dir.display());
            }
            _ => return,
        }
    }
    tracing::warn!("the cgroup {} is still in use", dir.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let check = |places: &str, controller: &str, expected: Option<&str>| {
            assert_eq!(place_of(places, controller), expected, "{controller:?} in {places:?}");
        };
        let hybrid = "4:memory:/a:b\n3:cpu,cpuacct:/c\n1:name=systemd:/d\n0::/e\n";
        check(hybrid, "memory", Some("/a:b"));
        check(hybrid, "cpuacct", Some("/c"));
        check(hybrid, "", Some("/e"));
        check(hybrid, "pids", None);
        check("0::/\n", "", Some("/"));
        check("", "", None);
        check("nonsense", "cpu", None);
    }

    #[test]
    fn setups() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let (Some(Kind::V1(found)), services) = hierarchies(hybrid) else { panic!("v1 counts") };
        let others = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(services, others);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        let unified = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
        let (Some(Kind::V2(root)), _) = hierarchies(unified) else { panic!("v2") };
        assert_eq!(root, Path::new(ROOT));
        let more = format!(
            "28 24 0:24 / /run/other rw - cgroup2 cgroup rw\n{unified}\
             31 30 0:27 / /sys/fs/cgroup/net_cls rw - cgroup net_cls rw,net_cls\n"
        );
        assert!(matches!(hierarchies(&more), (Some(Kind::V2(root)), _) if root == Path::new(ROOT)));
        assert!(hierarchies("1 2 3:4 / / rw - ext4 /dev/x rw\n").0.is_none());
    }
}
