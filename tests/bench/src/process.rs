//! Memory and CPU of processes, as the kernel counts them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Resident memory (VmRSS) of the processes together, in MiB. Pages that they share count for each.
pub fn resident_mib(pids: &[i32]) -> anyhow::Result<f64> {
    let mut kib = 0.0;
    for pid in pids {
        let path = format!("/proc/{pid}/status");
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("{path}: did it end?"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let value = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
        kib += value.with_context(|| format!("{path} names no VmRSS"))?;
    }
    Ok(kib / 1024.0)
}

/// What a start needed is let go of some seconds after it.
const SETTLING: Duration = Duration::from_secs(10);

/// Resident memory once it has stopped moving (by 1 % within five seconds), for a minute at most.
pub async fn settled_mib(pids: &[i32]) -> anyhow::Result<f64> {
    let start = Instant::now();
    tokio::time::sleep(SETTLING).await;
    let mut before = resident_mib(pids)?;
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = resident_mib(pids)?;
        if (now - before).abs() <= before * 0.01 || start.elapsed() > Duration::from_secs(60) {
            return Ok(now);
        }
        before = now;
    }
}

/// CPU time that a process has used, all its threads, in seconds.
pub fn cpu_seconds(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("{path}: did it end?"))?;
    // The name is in brackets and may hold anything; utime and stime are fields 14 and 15.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    let per_second =
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("clock ticks")?;
    Ok(ticks / per_second as f64)
}

/// The `wasm-host` processes that belong to a node's data directory: they outlive their agent.
pub fn hosts_of(data_dir: &Path) -> Vec<i32> {
    processes_of("wasm-host", data_dir)
}

/// The parents of a node's running containers.
pub fn shims_of(data_dir: &Path) -> Vec<i32> {
    processes_of("oci-shim\0create", data_dir)
}

/// Processes of this binary at that work, with the directory among their arguments.
fn processes_of(work: &str, data_dir: &Path) -> Vec<i32> {
    let (work, needle) = (format!("\0{work}\0"), data_dir.display().to_string());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains(&work) && line.contains(&needle)
    });
    ours.collect()
}

/// Memory that a process has for itself (Private_* of its smaps_rollup), in MiB.
pub fn private_mib(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path}: did it end?"))?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.sum::<f64>() / 1024.0)
}
