//! What a run uses, and what it waits for.

/// What a run has used of CPU since it began, and of memory now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    /// The working set: what cannot be dropped without asking.
    pub memory_bytes: u64,
    /// With the page cache.
    pub memory_usage_bytes: u64,
    /// Anonymous memory.
    pub memory_rss_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Process ids that it has: processes and threads.
    pub processes: u64,
    /// Where the kernel counts it.
    pub swap: Option<SwapUsage>,
    /// Where the kernel tells.
    pub pressure: Option<Pressure>,
}

/// Memory that is not in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapUsage {
    pub used_bytes: u64,
    /// None: no other than the machine's.
    pub limit_bytes: Option<u64>,
}

/// Pressure stall information: how long processes waited for what they lacked.
/// <https://docs.kernel.org/accounting/psi.html>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub cpu: Stalls,
    pub memory: Stalls,
    pub io: Stalls,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// At least one process waited.
    pub some: Stall,
    /// All waited that had something to do.
    pub full: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// Of the last 10, 60 and 300 seconds, in hundredths of a percent.
    pub shares: [u32; 3],
    /// In microseconds, since the cgroup was made or the machine started.
    pub total_us: u64,
}

impl Stalls {
    /// From the text of a `*.pressure` file. A machine has no `full` for CPU in older kernels.
    pub fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| {
            let found = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
            found.and_then(Stall::parse)
        };
        Some(Self { some: line("some")?, full: line("full").unwrap_or_default() })
    }
}

impl Stall {
    /// `avg10=0.12 avg60=0.00 avg300=0.00 total=345`
    fn parse(line: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut fields = line.split_whitespace();
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let share = |name: &str| {
            let (whole, hundredths) = value(name)?.split_once('.')?;
            let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, hundredths.parse().ok()?);
            whole.checked_mul(100)?.checked_add(hundredths)
        };
        let shares = [share("avg10")?, share("avg60")?, share("avg300")?];
        Some(Self { shares, total_us: value("total")?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_pressure() {
        let text = "some avg10=12.05 avg60=0.00 avg300=100.00 total=345\n\
            full avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let some = Stall { shares: [1205, 0, 10_000], total_us: 345 };
        let full = Stall { shares: [10, 0, 0], total_us: 7 };
        assert_eq!(Stalls::parse(text), Some(Stalls { some, full }));
        let old = text.lines().next().unwrap();
        assert_eq!(Stalls::parse(old), Some(Stalls { some, full: Stall::default() }));
        assert_eq!(Stalls::parse(""), None);
        assert_eq!(Stalls::parse("some avg10=x avg60=0.00 avg300=0.00 total=1\n"), None);
    }
}
