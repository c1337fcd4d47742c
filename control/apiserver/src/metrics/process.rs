//! What the kernel tells of this process, by the names that every exporter of Prometheus has for it.
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>

use std::fmt::Write as _;

/// Appends what can be read; nothing where there is no `/proc`.
pub fn show(out: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |field: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(field))?;
        line.trim().split(' ').next()?.parse::<f64>().ok()
    };
    let bytes = |field: &str| kib(field).map(|k| k * 1024.0);
    one(out, "process_resident_memory_bytes", "gauge", "Resident memory", bytes("VmRSS:"));
    one(out, "process_virtual_memory_bytes", "gauge", "Virtual memory", bytes("VmSize:"));
    let threads = kib("Threads:");
    one(out, "process_threads", "gauge", "Threads", threads);
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|d| d.count() as f64);
    one(out, "process_open_fds", "gauge", "Open file descriptors", open);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    one(out, "process_max_fds", "gauge", "File descriptors that may be open", fds_max(&limits));
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let times = times(&stat);
    one(out, "process_cpu_seconds_total", "counter", "Time on a processor", times.map(|t| t.0));
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let began = boot.zip(times).map(|(boot, (_, after))| boot + after);
    one(out, "process_start_time_seconds", "gauge", "When it began, of the Unix epoch", began);
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        writeln!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}")
            .expect("writing to a String cannot fail");
    }
}

fn fds_max(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ticks in a second, for what `/proc` shows: 100 on every Linux that this runs on.
const TICKS: f64 = 100.0;

/// Seconds on a processor, and seconds from the boot to the start, of `/proc/self/stat`.
fn times(stat: &str) -> Option<(f64, f64)> {
    // The name of the program stands in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok().map(|t| t / TICKS);
    Some((ticks(11)? + ticks(12)?, ticks(19)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 1234 0 0";
        assert_eq!(times(stat), Some((3.0, 12.34)));
        assert_eq!(
            fds_max("Max open files            1024                 4096     files\n"),
            Some(1024.0)
        );
        let mut out = String::new();
        show(&mut out);
        assert!(out.contains("\nprocess_cpu_seconds_total "), "{out}");
    }
}
