//! `/stats/summary`: the kubelet's Summary (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`).

use std::collections::HashMap;
use std::path::Path;

use rimward_node_pod::outside::Traffic;
use rimward_node_pod::runtime::{Pressure, Stall, Stalls, SwapUsage, Usage};
use rimward_node_pod::{ClaimUsage, ContainerUsage, DiskUsage, PodDisk, PodUsage};
use serde_json::{Value, json};

use super::{Measured, machine, seconds};
use crate::{Core, Parts};

/// `brief` is `only_cpu_and_memory=true`: no directory is walked for it.
pub(crate) async fn summary(core: &Core, parts: &Parts, brief: bool) -> Value {
    let measured = core.stats.measured(&*parts.pods).await;
    let pods = measured.sample.pods.iter().map(|pod| pod_stats(&measured, pod));
    let mut summary = json!({
        "node": node_stats(&measured, &core.config.name),
        "pods": pods.collect::<Vec<Value>>(),
    });
    if brief {
        return summary;
    }
    let fs = FileSystem::of(&core.config.data_dir);
    let time = seconds(measured.sample.time);
    let images: i64 = core.images.borrow().iter().filter_map(|i| i.size_bytes).sum();
    let node = &mut summary["node"];
    node["fs"] = fs.stats(&time, fs.used());
    let of_images = DiskUsage { bytes: images.try_into().unwrap_or(0), inodes: 0 };
    node["runtime"] = json!({
        "imageFs": fs.stats(&time, of_images), "containerFs": fs.stats(&time, fs.used()),
    });
    let (max, running) = machine::processes();
    node["rlimit"] = json!({ "time": time, "maxpid": max, "curproc": running });
    let disk = core.stats.disk(&*parts.pods).await;
    let disk: HashMap<&str, &PodDisk> = disk.iter().map(|pod| (pod.uid.as_str(), pod)).collect();
    let claims = parts.pods.claims().await;
    for pod in summary["pods"].as_array_mut().into_iter().flatten() {
        let uid = pod["podRef"]["uid"].as_str().unwrap_or_default().to_owned();
        if let Some(disk) = disk.get(uid.as_str()) {
            add_disk(pod, disk, &fs, &time);
        }
        let of_pod = claims.iter().filter(|claim| claim.pod_uid == uid);
        let of_claims: Vec<Value> = of_pod.map(|claim| claim_stats(claim, &time)).collect();
        if !of_claims.is_empty() && !pod["volume"].is_array() {
            pod["volume"] = json!([]);
        }
        pod["volume"].as_array_mut().into_iter().for_each(|all| all.extend(of_claims.clone()));
    }
    summary
}

fn node_stats(measured: &Measured, name: &str) -> Value {
    let (sample, time) = (&measured.sample, seconds(measured.sample.time));
    let memory = &sample.machine.memory;
    let (page_faults, major_page_faults) = machine::page_faults();
    let devices = sample.devices.iter();
    let devices: Vec<Value> =
        devices.map(|(name, traffic)| interface(Some(name), *traffic)).collect();
    let mut node = json!({
        "nodeName": name,
        "systemContainers": whole(measured),
        "cpu": {
            "time": time, "usageNanoCores": measured.machine_rate(),
            "usageCoreNanoSeconds": sample.machine.cpu_nanos,
        },
        "memory": {
            "time": time, "availableBytes": memory.available_bytes(), "usageBytes": memory.usage_bytes,
            "workingSetBytes": memory.working_set_bytes, "rssBytes": memory.rss_bytes,
            "pageFaults": page_faults, "majorPageFaults": major_page_faults,
        },
        "swap": {
            "time": time, "swapAvailableBytes": sample.machine.swap_free_bytes,
            "swapUsageBytes": sample.machine.swap_total_bytes.saturating_sub(sample.machine.swap_free_bytes),
        },
        "network": { "time": time, "interfaces": devices },
    });
    // The one that leads out comes first, where it has its usual name.
    if let Some((name, traffic)) = sample.devices.iter().find(|(name, _)| name == "eth0") {
        extend(&mut node["network"], interface(Some(name), *traffic));
    }
    if let Some(booted) = machine::boot_time() {
        node["startTime"] = seconds(booted).into();
    }
    add_pressure(&mut node, sample.machine.pressure, &time);
    node
}

/// All pods together, what runs them, and this agent.
fn whole(measured: &Measured) -> Vec<Value> {
    let time = seconds(measured.sample.time);
    let started = machine::boot_time().map(seconds);
    let one = |(name, usage): &(&'static str, Usage)| {
        let mut stats = json!({
            "name": name, "startTime": started,
            "cpu": {
                "time": time, "usageNanoCores": measured.whole_rate(name),
                "usageCoreNanoSeconds": usage.cpu_nanos,
            },
            "memory": memory(&time, std::slice::from_ref(usage)),
        });
        if let Some(usage) = usage.swap {
            stats["swap"] = swap(&time, usage);
        }
        stats
    };
    measured.sample.whole.iter().map(one).collect()
}

/// Of one container, or of all that a pod has. What is available is known where there is a limit.
fn memory(time: &str, usages: &[Usage]) -> Value {
    let sum = |of: &dyn Fn(&Usage) -> u64| usages.iter().map(of).sum::<u64>();
    let mut stats = json!({
        "time": time, "usageBytes": sum(&|u| u.memory_usage_bytes),
        "workingSetBytes": sum(&|u| u.memory_bytes), "rssBytes": sum(&|u| u.memory_rss_bytes),
        "pageFaults": sum(&|u| u.page_faults), "majorPageFaults": sum(&|u| u.major_page_faults),
    });
    let limit: Option<u64> = usages.iter().map(|usage| usage.memory_limit_bytes).sum();
    if let Some(limit) = limit {
        stats["availableBytes"] = limit.saturating_sub(sum(&|u| u.memory_bytes)).into();
    }
    stats
}

fn swap(time: &str, usage: SwapUsage) -> Value {
    let mut stats = json!({ "time": time, "swapUsageBytes": usage.used_bytes });
    if let Some(limit) = usage.limit_bytes {
        stats["swapAvailableBytes"] = limit.saturating_sub(usage.used_bytes).into();
    }
    stats
}

fn interface(name: Option<&str>, traffic: Traffic) -> Value {
    json!({
        "name": name.unwrap_or("eth0"), "rxBytes": traffic.rx_bytes, "rxErrors": traffic.rx_errors,
        "txBytes": traffic.tx_bytes, "txErrors": traffic.tx_errors,
    })
}

fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

/// Pressure stall information stands with what was waited for (KEP-4205).
fn add_pressure(stats: &mut Value, pressure: Option<Pressure>, time: &str) {
    let Some(Pressure { cpu, memory, io }) = pressure else { return };
    stats["cpu"]["psi"] = stalls(cpu);
    stats["memory"]["psi"] = stalls(memory);
    stats["io"] = json!({ "time": time, "psi": stalls(io) });
}

fn stalls(stalls: Stalls) -> Value {
    let stall = |stall: Stall| {
        let [avg10, avg60, avg300] = stall.shares.map(|share| f64::from(share) / 100.0);
        json!({ "total": stall.total_us, "avg10": avg10, "avg60": avg60, "avg300": avg300 })
    };
    json!({ "full": stall(stalls.full), "some": stall(stalls.some) })
}

fn pod_stats(measured: &Measured, pod: &PodUsage) -> Value {
    let time = seconds(measured.sample.time);
    let usages: Vec<Usage> = pod.containers.iter().map(|c| c.usage).collect();
    let sum = |of: &dyn Fn(&ContainerUsage) -> u64| pod.containers.iter().map(of).sum::<u64>();
    let started = pod.containers.iter().map(|c| c.started_at).min();
    let container = |c: &ContainerUsage| {
        let mut stats = json!({
            "name": c.id.container, "startTime": seconds(c.started_at),
            "cpu": {
                "time": time, "usageNanoCores": measured.container_rate(c),
                "usageCoreNanoSeconds": c.usage.cpu_nanos,
            },
            "memory": memory(&time, std::slice::from_ref(&c.usage)),
        });
        if let Some(usage) = c.usage.swap {
            stats["swap"] = swap(&time, usage);
        }
        add_pressure(&mut stats, c.usage.pressure, &time);
        stats
    };
    let mut stats = json!({
        "podRef": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
        "startTime": started.map(seconds),
        "containers": pod.containers.iter().map(container).collect::<Vec<Value>>(),
        "cpu": {
            "time": time, "usageNanoCores": sum(&|c| measured.container_rate(c)),
            "usageCoreNanoSeconds": sum(&|c| c.usage.cpu_nanos),
        },
        "memory": memory(&time, &usages),
        "process_stats": { "process_count": sum(&|c| c.usage.processes) },
    });
    if usages.iter().any(|usage| usage.swap.is_some()) {
        let used_bytes = sum(&|c| c.usage.swap.map_or(0, |swap| swap.used_bytes));
        stats["swap"] = swap(&time, SwapUsage { used_bytes, limit_bytes: None });
    }
    add_pressure(&mut stats, pod.pressure, &time);
    if let Some(traffic) = pod.traffic {
        let device = interface(None, traffic);
        stats["network"] = json!({ "time": time, "interfaces": [device.clone()] });
        extend(&mut stats["network"], device);
    }
    stats
}

fn add_disk(pod: &mut Value, disk: &PodDisk, fs: &FileSystem, time: &str) {
    for container in pod["containers"].as_array_mut().into_iter().flatten() {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        for (field, used) in [("rootfs", disk.rootfs.get(&name)), ("logs", disk.logs.get(&name))] {
            if let Some(used) = used {
                container[field] = fs.stats(time, *used);
            }
        }
    }
    let volumes = disk.volumes.iter().map(|(name, used)| {
        let mut volume = fs.stats(time, *used);
        volume["name"] = name.as_str().into();
        volume
    });
    pod["volume"] = volumes.collect();
    pod["ephemeral-storage"] = fs.stats(time, disk.total());
}

fn claim_stats(claim: &ClaimUsage, time: &str) -> Value {
    let mut volume = json!({
        "time": time, "name": claim.volume, "capacityBytes": claim.capacity_bytes,
        "pvcRef": { "name": claim.claim, "namespace": claim.namespace },
    });
    if let Some(files) = claim.files {
        volume["availableBytes"] = files.available_bytes.into();
        volume["usedBytes"] = files.used_bytes.into();
        volume["inodes"] = files.inodes.into();
        volume["inodesFree"] = files.inodes_free.into();
        volume["inodesUsed"] = files.inodes.saturating_sub(files.inodes_free).into();
    }
    volume
}

/// The file system of the node's data, in bytes and inodes.
struct FileSystem {
    bytes: [u64; 3],
    inodes: [u64; 2],
}

impl FileSystem {
    fn of(data_dir: &Path) -> Self {
        rustix::fs::statvfs(data_dir).map_or(Self { bytes: [0; 3], inodes: [0; 2] }, |fs| Self {
            bytes: [fs.f_blocks, fs.f_bfree, fs.f_bavail].map(|blocks| blocks * fs.f_frsize),
            inodes: [fs.f_files, fs.f_ffree],
        })
    }

    fn used(&self) -> DiskUsage {
        let [bytes, free, _] = self.bytes;
        let [inodes, inodes_free] = self.inodes;
        DiskUsage { bytes: bytes.saturating_sub(free), inodes: inodes.saturating_sub(inodes_free) }
    }

    fn stats(&self, time: &str, used: DiskUsage) -> Value {
        let [capacity, _, available] = self.bytes;
        let [inodes, inodes_free] = self.inodes;
        json!({
            "time": time, "availableBytes": available, "capacityBytes": capacity,
            "usedBytes": used.bytes, "inodesFree": inodes_free, "inodes": inodes,
            "inodesUsed": used.inodes,
        })
    }
}
