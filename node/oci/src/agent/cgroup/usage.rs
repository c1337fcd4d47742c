//! What a cgroup has used, as the kernel counts it, and what its processes waited for: in v1's files and v2's.

use std::path::Path;

use rimward_node_pod::runtime::{Pressure, Stalls, SwapUsage, Usage};

use super::{Cgroups, Kind};

/// v1 writes no limit as the largest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

impl Cgroups {
    /// Of a run, which is relative to the root.
    pub fn usage(&self, run: &Path) -> Option<Usage> {
        let read = |controller: &str, file: &str| {
            std::fs::read_to_string(self.controller(controller)?.join(run).join(file)).ok()
        };
        let number = |text: String| text.trim().parse::<u64>().ok();
        let stat = read("memory", "memory.stat")?;
        let memory = |file: &str| read("memory", file).and_then(number);
        let v2 = matches!(self.kind, Kind::V2(_));
        let cpu_nanos = match v2 {
            true => row(&read("cpu", "cpu.stat")?, "usage_usec")? * 1000,
            false => number(read("cpuacct", "cpuacct.usage")?)?,
        };
        let used = memory(if v2 { "memory.current" } else { "memory.usage_in_bytes" })?;
        let limit = memory(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
        let swap = match v2 {
            true => memory("memory.swap.current")
                .map(|used_bytes| SwapUsage { used_bytes, limit_bytes: memory("memory.swap.max") }),
            false => row(&stat, "total_swap")
                .map(|used_bytes| SwapUsage { used_bytes, limit_bytes: None }),
        };
        let of = |v1: &str, v2_name: &str| row(&stat, if v2 { v2_name } else { v1 }).unwrap_or(0);
        Some(Usage {
            cpu_nanos,
            // Without what could be dropped at once.
            memory_bytes: used.saturating_sub(of("total_inactive_file", "inactive_file")),
            memory_usage_bytes: used,
            memory_rss_bytes: of("total_rss", "anon"),
            memory_limit_bytes: limit.filter(|limit| *limit < UNLIMITED),
            page_faults: of("total_pgfault", "pgfault"),
            major_page_faults: of("total_pgmajfault", "pgmajfault"),
            processes: read("pids", "pids.current").and_then(number).unwrap_or(0),
            swap,
            pressure: self.pressure(run),
        })
    }

    /// Of all pods together, and of what keeps their containers.
    pub fn usage_of_all(&self) -> [Option<Usage>; 2] {
        ["kubepods", "shims"].map(|part| self.usage(&self.base.join(part)))
    }

    /// How long processes of a cgroup waited for what they lacked. v1 does not tell.
    fn pressure(&self, cgroup: &Path) -> Option<Pressure> {
        let Kind::V2(root) = &self.kind else { return None };
        let of = |file: &str| {
            let text = std::fs::read_to_string(root.join(cgroup).join(file)).ok()?;
            Stalls::parse(&text)
        };
        Some(Pressure {
            cpu: of("cpu.pressure")?,
            memory: of("memory.pressure")?,
            io: of("io.pressure")?,
        })
    }

    /// The same for a pod as a whole, of whatever class it is.
    pub fn pressure_of_pod(&self, uid: &str) -> Option<Pressure> {
        self.places_of_pod(uid).iter().find_map(|pod| self.pressure(pod))
    }
}

/// A row of a flat keyed file: `NAME NUMBER`.
fn row(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
