//! What the machine uses as a whole, read from /proc; its memory from the cgroup that bounds this node, if
//! there is one.

use rimward_node_network::root::DEVICE_PREFIX;
use rimward_node_pod::outside::Traffic;
use rimward_node_pod::runtime::{Pressure, Stalls, SwapUsage, Usage};

use crate::machine::{meminfo, memory_cgroup};

/// The kernel tells user space of ticks of a hundredth of a second, whatever its own are.
const TICK_NANOS: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MachineSample {
    /// Of all CPUs together, since the machine started.
    pub cpu_nanos: u64,
    pub memory: Memory,
    pub swap_total_bytes: u64,
    pub swap_free_bytes: u64,
    /// Where the kernel tells.
    pub pressure: Option<Pressure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub capacity_bytes: u64,
    /// With the page cache.
    pub usage_bytes: u64,
    /// Without what could be dropped at once.
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
}

impl Memory {
    /// As the kubelet's signal `memory.available` counts it.
    pub fn available_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.working_set_bytes)
    }

    /// What is used now.
    pub fn now() -> Self {
        Self::of(&read("/proc/meminfo"))
    }

    fn of(info: &str) -> Self {
        let machine = Self::of_machine(info);
        let bounded = memory_cgroup().filter(|(_, limit)| *limit < machine.capacity_bytes);
        let Some((dir, limit)) = bounded else { return machine };
        let file = |name: &str| read(&dir.join(name).display().to_string());
        let number = |name: &str| file(name).trim().parse::<u64>().ok();
        let Some(used) = number("memory.current").or_else(|| number("memory.usage_in_bytes"))
        else {
            return machine;
        };
        Self::of_cgroup(limit, used, &file("memory.stat"))
    }

    /// As cAdvisor counts a machine: what is not free, without inactive files.
    fn of_machine(info: &str) -> Self {
        let row = |row: &str| meminfo(info, row).unwrap_or(0);
        let usage_bytes = row("MemTotal:").saturating_sub(row("MemFree:"));
        Self {
            capacity_bytes: row("MemTotal:"),
            usage_bytes,
            working_set_bytes: usage_bytes.saturating_sub(row("Inactive(file):")),
            rss_bytes: row("AnonPages:"),
        }
    }

    fn of_cgroup(limit: u64, used: u64, stat: &str) -> Self {
        let row = |v1: &str, v2: &str| {
            let value = |name: &str| {
                let found = stat.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
                found.and_then(|text| text.trim().parse::<u64>().ok())
            };
            value(v1).or_else(|| value(v2)).unwrap_or(0)
        };
        Self {
            capacity_bytes: limit,
            usage_bytes: used,
            working_set_bytes: used.saturating_sub(row("total_inactive_file", "inactive_file")),
            rss_bytes: row("total_rss", "anon"),
        }
    }
}

impl MachineSample {
    pub fn take() -> Self {
        let info = read("/proc/meminfo");
        let swap = |row: &str| meminfo(&info, row).unwrap_or(0);
        Self {
            cpu_nanos: busy_nanos(&read("/proc/stat")),
            memory: Memory::of(&info),
            swap_total_bytes: swap("SwapTotal:"),
            swap_free_bytes: swap("SwapFree:"),
            pressure: pressure(),
        }
    }
}

fn pressure() -> Option<Pressure> {
    let of = |name: &str| Stalls::parse(&read(&format!("/proc/pressure/{name}")));
    Some(Pressure { cpu: of("cpu")?, memory: of("memory")?, io: of("io")? })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Of `cpu  user nice system idle iowait irq softirq steal …`: what is neither idle nor stolen. Time of guests
/// is in the user's already.
fn busy_nanos(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum::<u64>();
    busy.saturating_mul(TICK_NANOS)
}

/// Process ids that there can be, and those that there are: processes and threads.
/// <https://kubernetes.io/docs/concepts/policy/pid-limiting/>
pub(crate) fn processes() -> (u64, u64) {
    let limit = |name: &str| read(&format!("/proc/sys/kernel/{name}")).trim().parse().ok();
    let limits = [limit("pid_max"), limit("threads-max")];
    let max = limits.into_iter().flatten().min().unwrap_or(0);
    let load = read("/proc/loadavg");
    let running = load.split_whitespace().nth(3).and_then(|n| n.split_once('/'));
    (max, running.and_then(|(_, all)| all.parse().ok()).unwrap_or(0))
}

/// This process, which is the node's agent.
pub(super) fn own() -> Usage {
    own_of(&read("/proc/self/stat"), &read("/proc/self/status"))
}

/// <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>
fn own_of(stat: &str, status: &str) -> Usage {
    // The name in front may contain anything, but the last `)` is behind it.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    // Numbered from 3 on, as the page numbers them.
    let field = |n: usize| fields.get(n - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let row = |row: &str| meminfo(status, row).unwrap_or(0);
    Usage {
        cpu_nanos: (field(14) + field(15)).saturating_mul(TICK_NANOS),
        memory_bytes: row("VmRSS:"),
        memory_usage_bytes: row("VmRSS:"),
        memory_rss_bytes: row("RssAnon:"),
        memory_limit_bytes: None,
        swap: Some(SwapUsage { used_bytes: row("VmSwap:"), limit_bytes: None }),
        page_faults: field(10),
        major_page_faults: field(12),
        processes: field(20),
        pressure: None,
    }
}

/// The machine's network devices, without those that lead to pods and to itself.
pub(super) fn devices() -> Vec<(String, Traffic)> {
    let ours = |name: &str| name == "lo" || name.starts_with(DEVICE_PREFIX);
    let mut devices = rimward_node_network::devices::devices();
    devices.retain(|(name, _)| !ours(name));
    devices
}

/// Page faults of the whole machine, and those of them that had to wait for a disk.
pub(super) fn page_faults() -> (u64, u64) {
    let stat = read("/proc/vmstat");
    let row = |name: &str| {
        let found = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    (row("pgfault"), row("pgmajfault"))
}

/// When the machine started.
pub(super) fn boot_time() -> Option<jiff::Timestamp> {
    let stat = read("/proc/stat");
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    jiff::Timestamp::from_second(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_of_proc() {
        let stat = "cpu  100 20 30 4000 50 6 7 80 9 0\ncpu0 1 2 3 4\n";
        assert_eq!(busy_nanos(stat), 163 * TICK_NANOS);
        assert_eq!(busy_nanos(""), 0);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 3 0 150 50 0 0 20 0 9 0 5 6 7";
        let own = own_of(stat, "Name:\ta\nVmRSS:\t  20 kB\nRssAnon:\t  8 kB\n");
        assert_eq!((own.cpu_nanos, own.processes), (200 * TICK_NANOS, 9));
        assert_eq!((own.page_faults, own.major_page_faults), (100, 3));
        assert_eq!((own.memory_bytes, own.memory_rss_bytes), (20 << 10, 8 << 10));
        let info = "MemTotal: 1000 kB\nMemFree: 200 kB\nInactive(file): 300 kB\nAnonPages: 50 kB\n";
        let memory = Memory::of_machine(info);
        assert_eq!(memory.usage_bytes, 800 << 10);
        assert_eq!(memory.working_set_bytes, 500 << 10);
        assert_eq!(memory.available_bytes(), 500 << 10);
        let v1 = "inactive_file 1\ntotal_inactive_file 10\ntotal_rss 20\n";
        let memory = Memory::of_cgroup(1000, 110, v1);
        assert_eq!((memory.working_set_bytes, memory.rss_bytes), (100, 20));
        let memory = Memory::of_cgroup(1000, 110, "anon 30\ninactive_file 5\n");
        assert_eq!((memory.working_set_bytes, memory.rss_bytes), (105, 30));
        assert_eq!(memory.available_bytes(), 895);
    }

    #[test]
    fn this_machine_uses_something() {
        let sample = MachineSample::take();
        assert!(sample.cpu_nanos > 0 && sample.memory.working_set_bytes > 0, "{sample:?}");
        assert!(sample.memory.working_set_bytes <= sample.memory.capacity_bytes, "{sample:?}");
    }
}
