//! What cgroups say is used in them, in v1's files and v2's.

use std::path::Path;

use rimward_node_pod::runtime::{Pressure, Stalls, SwapUsage, Usage};

use super::{Cgroups, Kind};

impl Cgroups {
    pub fn usage(&self, run: &Path) -> Option<Usage> {
        let read = |controller: &str, file: &str| {
            std::fs::read_to_string(self.controller(controller)?.join(run).join(file)).ok()
        };
        let stat = read("memory", "memory.stat")?;
        let number = |text: String| text.trim().parse::<u64>().ok();
        let (cpu_nanos, used, inactive, anonymous) = match self.kind {
            Kind::V2(_) => (
                row(&read("cpu", "cpu.stat")?, "usage_usec")? * 1000,
                number(read("memory", "memory.current")?)?,
                "inactive_file",
                "anon",
            ),
            Kind::V1(_) => (
                number(read("cpuacct", "cpuacct.usage")?)?,
                number(read("memory", "memory.usage_in_bytes")?)?,
                "total_inactive_file",
                "total_rss",
            ),
        };
        let swap = match self.kind {
            Kind::V2(_) => {
                read("memory", "memory.swap.current").and_then(number).map(|used_bytes| {
                    let limit = read("memory", "memory.swap.max").and_then(number);
                    SwapUsage { used_bytes, limit_bytes: limit }
                })
            }
            Kind::V1(_) => row(&stat, "total_swap")
                .map(|used_bytes| SwapUsage { used_bytes, limit_bytes: None }),
        };
        Some(Usage {
            cpu_nanos,
            // Without what could be dropped at once.
            memory_bytes: used.saturating_sub(row(&stat, inactive).unwrap_or(0)),
            memory_usage_bytes: used,
            memory_rss_bytes: row(&stat, anonymous).unwrap_or(0),
            swap,
            pressure: self.pressure(run),
        })
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
