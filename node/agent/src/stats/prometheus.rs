//! `/metrics`, `/metrics/resource` and `/metrics/cadvisor`, in Prometheus' text format: counters and gauges of
//! one sample. Whoever scrapes them makes the rates.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rimward_node_pod::runtime::{Pressure, Stall, Stalls, SwapUsage};
use rimward_node_pod::{ClaimUsage, ContainerUsage, PodUsage};

use super::Sample;
use crate::{Core, Parts};

/// Names, texts and stability as the kubelet has them.
pub(crate) async fn resource_metrics(core: &Core, parts: &Parts) -> String {
    resource(&*core.stats.latest(&*parts.pods).await)
}

fn resource(sample: &Sample) -> String {
    let mut out = Text { out: String::new(), stamp: Some(sample.time.as_millisecond()) };
    let containers = || {
        let pods = sample.pods.iter();
        pods.flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)))
    };
    let of_containers = |out: &mut Text, name: &str, value: &dyn Fn(&ContainerUsage) -> f64| {
        for (pod, c) in containers() {
            let labels = [
                ("container", c.id.container.as_str()),
                ("namespace", &pod.namespace),
                ("pod", &pod.name),
            ];
            out.row(name, &labels, value(c));
        }
    };
    let of_pods = |out: &mut Text, name: &str, value: &dyn Fn(&ContainerUsage) -> f64| {
        for pod in &sample.pods {
            let labels = [("namespace", pod.namespace.as_str()), ("pod", &pod.name)];
            out.row(name, &labels, pod.containers.iter().map(value).sum());
        }
    };
    let cpu = |c: &ContainerUsage| core_seconds(c.usage.cpu_nanos);
    let memory = |c: &ContainerUsage| c.usage.memory_bytes as f64;

    let name = "container_cpu_usage_seconds_total";
    out.head(
        name,
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    );
    of_containers(&mut out, name, &cpu);
    let name = "container_memory_working_set_bytes";
    out.head(name, "gauge", "[STABLE] Current working set of the container in bytes");
    of_containers(&mut out, name, &memory);
    let name = "container_start_time_seconds";
    out.head(name, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
    out.stamp = None;
    of_containers(&mut out, name, &|c| c.started_at.as_millisecond() as f64 / 1000.0);
    out.stamp = Some(sample.time.as_millisecond());
    let swap = |out: &mut Text, name: &str, value: &dyn Fn(SwapUsage) -> Option<u64>| {
        for (pod, c) in containers() {
            let labels = [
                ("container", c.id.container.as_str()),
                ("namespace", &pod.namespace),
                ("pod", &pod.name),
            ];
            if let Some(value) = c.usage.swap.and_then(value) {
                out.row(name, &labels, value as f64);
            }
        }
    };
    let name = "container_swap_limit_bytes";
    let text = "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems";
    out.head(name, "gauge", text);
    swap(&mut out, name, &|swap| swap.limit_bytes);
    let name = "container_swap_usage_bytes";
    let text = "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems";
    out.head(name, "gauge", text);
    swap(&mut out, name, &|swap| Some(swap.used_bytes));
    let name = "node_cpu_usage_seconds_total";
    out.head(name, "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds");
    out.row(name, &[], core_seconds(sample.machine.cpu_nanos));
    let name = "node_memory_working_set_bytes";
    out.head(name, "gauge", "[STABLE] Current working set of the node in bytes");
    out.row(name, &[], sample.machine.memory.working_set_bytes as f64);
    let name = "node_swap_usage_bytes";
    let text =
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems";
    out.head(name, "gauge", text);
    let machine = &sample.machine;
    out.row(name, &[], machine.swap_total_bytes.saturating_sub(machine.swap_free_bytes) as f64);
    let name = "pod_cpu_usage_seconds_total";
    out.head(name, "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds");
    of_pods(&mut out, name, &cpu);
    let name = "pod_memory_working_set_bytes";
    out.head(name, "gauge", "[STABLE] Current working set of the pod in bytes");
    of_pods(&mut out, name, &memory);
    let name = "pod_swap_usage_bytes";
    let text = "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
    out.head(name, "gauge", text);
    for pod in &sample.pods {
        let used = pod.containers.iter().filter_map(|c| c.usage.swap).map(|swap| swap.used_bytes);
        let labels = [("namespace", pod.namespace.as_str()), ("pod", &pod.name)];
        out.row(name, &labels, used.sum::<u64>() as f64);
    }
    let name = "resource_scrape_error";
    let text = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    out.head(name, "gauge", text);
    out.stamp = None;
    out.row(name, &[], 0.0);
    out.out
}

/// What dashboards read most of cAdvisor's metrics, under its names and labels.
pub(crate) async fn container_metrics(core: &Core, parts: &Parts) -> String {
    cadvisor(&*core.stats.latest(&*parts.pods).await)
}

fn cadvisor(sample: &Sample) -> String {
    type Value<'a> = &'a dyn Fn(&ContainerUsage) -> f64;
    let mut out = Text { out: String::new(), stamp: Some(sample.time.as_millisecond()) };
    let machine = &sample.machine;
    let families: [(&str, &str, &str, Value<'_>, f64); 4] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed in seconds.",
            &|c| core_seconds(c.usage.cpu_nanos),
            core_seconds(machine.cpu_nanos),
        ),
        (
            "container_memory_rss",
            "gauge",
            "Size of RSS in bytes.",
            &|c| c.usage.memory_rss_bytes as f64,
            machine.memory.rss_bytes as f64,
        ),
        (
            "container_memory_usage_bytes",
            "gauge",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            &|c| c.usage.memory_usage_bytes as f64,
            machine.memory.usage_bytes as f64,
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set in bytes.",
            &|c| c.usage.memory_bytes as f64,
            machine.memory.working_set_bytes as f64,
        ),
    ];
    for (name, kind, text, value, whole) in families {
        out.head(name, kind, text);
        out.row(name, &labels("", "/", "", ""), whole);
        for pod in &sample.pods {
            for c in &pod.containers {
                let id = id_of(pod, c);
                out.row(name, &labels(&c.id.container, &id, &pod.namespace, &pod.name), value(c));
            }
        }
    }
    pressures(&mut out, sample);
    out.out
}

fn id_of(pod: &PodUsage, container: &ContainerUsage) -> String {
    format!("/kubepods/pod{}/{}", pod.uid, container.id.container)
}

/// Pressure stall information of the machine, pods and containers, where the kernel tells (KEP-4205).
fn pressures(out: &mut Text, sample: &Sample) {
    type Of = fn(&Pressure) -> Stalls;
    let resources: [(&str, &str, Of); 3] =
        [("cpu", "CPU", |p| p.cpu), ("memory", "memory", |p| p.memory), ("io", "IO", |p| p.io)];
    type Kind = (&'static str, &'static str, fn(Stalls) -> Stall);
    let kinds: [Kind; 2] = [
        ("stalled", "no tasks in the container could make progress", |s| s.full),
        ("waiting", "tasks in the container have waited", |s| s.some),
    ];
    for (resource, shown, of) in resources {
        for (kind, what, stall) in kinds {
            let name = format!("container_pressure_{resource}_{kind}_seconds_total");
            let text = format!("Total time duration {what} due to {shown} congestion.");
            out.head(&name, "counter", &text);
            let mut row = |labels: [(&str, &str); 6], pressure: Option<&Pressure>| {
                if let Some(pressure) = pressure {
                    out.row(&name, &labels, stall(of(pressure)).total_us as f64 / 1e6);
                }
            };
            row(labels("", "/", "", ""), sample.machine.pressure.as_ref());
            for pod in &sample.pods {
                let id = format!("/kubepods/pod{}", pod.uid);
                row(labels("", &id, &pod.namespace, &pod.name), pod.pressure.as_ref());
                for c in &pod.containers {
                    let id = id_of(pod, c);
                    let labels = labels(&c.id.container, &id, &pod.namespace, &pod.name);
                    row(labels, c.usage.pressure.as_ref());
                }
            }
        }
    }
}

fn labels<'a>(
    container: &'a str,
    id: &'a str,
    namespace: &'a str,
    pod: &'a str,
) -> [(&'static str, &'a str); 6] {
    [
        ("container", container),
        ("id", id),
        ("image", ""),
        ("name", ""),
        ("namespace", namespace),
        ("pod", pod),
    ]
}

/// `/metrics`: the volumes of claims, under the kubelet's names.
pub(crate) async fn volume_metrics(parts: &Parts) -> String {
    volumes(&parts.pods.claims().await)
}

fn volumes(claims: &[ClaimUsage]) -> String {
    type Value<'a> = &'a dyn Fn(&ClaimUsage) -> Option<u64>;
    let mut out = Text { out: String::new(), stamp: None };
    // A claim that several pods have is one volume.
    let claims: BTreeMap<_, _> =
        claims.iter().map(|claim| ((&claim.namespace, &claim.claim), claim)).collect();
    let families: [(&str, &str, Value<'_>); 6] = [
        ("available_bytes", "Number of available bytes in the volume", &|c| {
            c.files.map(|files| files.available_bytes)
        }),
        ("capacity_bytes", "Capacity in bytes of the volume", &|c| Some(c.capacity_bytes)),
        ("inodes", "Maximum number of inodes in the volume", &|c| c.files.map(|f| f.inodes)),
        ("inodes_free", "Number of free inodes in the volume", &|c| {
            c.files.map(|files| files.inodes_free)
        }),
        ("inodes_used", "Number of used inodes in the volume", &|c| {
            c.files.map(|files| files.inodes.saturating_sub(files.inodes_free))
        }),
        ("used_bytes", "Number of used bytes in the volume", &|c| {
            c.files.map(|files| files.used_bytes)
        }),
    ];
    for (name, text, value) in families {
        let name = format!("kubelet_volume_stats_{name}");
        out.head(&name, "gauge", &format!("[ALPHA] {text}"));
        for ((namespace, claim), usage) in &claims {
            if let Some(value) = value(usage) {
                let labels =
                    [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim.as_str())];
                out.row(&name, &labels, value as f64);
            }
        }
    }
    out.out
}

fn core_seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Names of Kubernetes need no escaping.
struct Text {
    out: String,
    /// In milliseconds.
    stamp: Option<i64>,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, text: &str) {
        let _a_string_takes_every_write =
            write!(self.out, "# HELP {name} {text}\n# TYPE {name} {kind}\n");
    }

    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        if !labels.is_empty() {
            let _a_string_takes_every_write = write!(self.out, "{{{}}}", labels.join(","));
        }
        let stamp = self.stamp.map_or_else(String::new, |stamp| format!(" {stamp}"));
        let _a_string_takes_every_write = writeln!(self.out, " {value}{stamp}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rimward_node_pod::runtime::{RunId, Usage};

    use super::*;
    use crate::stats::{MachineSample, Memory};
    use rimward_node_pod::ClaimFiles;

    #[test]
    fn rows() {
        let some = Stall { shares: [0; 3], total_us: 250_000 };
        let stalls = Stalls { some, full: Stall::default() };
        let container = ContainerUsage {
            id: RunId { pod_uid: "u".into(), container: "c".into(), attempt: 0 },
            started_at: "2026-01-01T00:00:00.5Z".parse().unwrap(),
            usage: Usage {
                cpu_nanos: 1_500_000_000,
                memory_bytes: 4096,
                memory_usage_bytes: 8192,
                memory_rss_bytes: 2048,
                swap: Some(SwapUsage { used_bytes: 512, limit_bytes: Some(1024) }),
                pressure: Some(Pressure { memory: stalls, ..Pressure::default() }),
                ..Usage::default()
            },
        };
        let pod = PodUsage {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            containers: vec![container],
            traffic: None,
            pressure: None,
        };
        let memory = Memory { working_set_bytes: 10, ..Memory::default() };
        let sample = Sample {
            taken: Instant::now(),
            time: "2026-01-01T00:01:00Z".parse().unwrap(),
            machine: MachineSample { cpu_nanos: 250_000_000, memory, ..MachineSample::default() },
            pods: vec![pod],
            whole: Vec::new(),
            devices: Vec::new(),
        };
        let text = resource(&sample);
        for row in [
            "# TYPE container_cpu_usage_seconds_total counter\n",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 1767225660000\n",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1767225600.5\n",
            "node_cpu_usage_seconds_total 0.25 1767225660000\n",
            "node_memory_working_set_bytes 10 1767225660000\n",
            "container_swap_limit_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 1024 1767225660000\n",
            "pod_swap_usage_bytes{namespace=\"n\",pod=\"p\"} 512 1767225660000\n",
            "pod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 4096 1767225660000\n",
            "resource_scrape_error 0\n",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
        let text = cadvisor(&sample);
        let row = "container_memory_usage_bytes{container=\"c\",id=\"/kubepods/podu/c\",image=\"\",name=\"\",namespace=\"n\",pod=\"p\"} 8192 1767225660000\n";
        assert!(text.contains(row), "{text}");
        let row = "container_pressure_memory_waiting_seconds_total{container=\"c\",id=\"/kubepods/podu/c\",image=\"\",name=\"\",namespace=\"n\",pod=\"p\"} 0.25 1767225660000\n";
        assert!(text.contains(row), "{text}");
        assert!(!text.contains("stalled_seconds_total{container=\"\",id=\"/\""), "{text}");
    }

    #[test]
    fn claims() {
        let files = ClaimFiles { available_bytes: 3, used_bytes: 6, inodes: 7, inodes_free: 5 };
        let claim = |claim: &str, files| ClaimUsage {
            namespace: "n".into(),
            claim: claim.into(),
            capacity_bytes: 10,
            files,
            ..ClaimUsage::default()
        };
        let data = claim("data", Some(files));
        let text = volumes(&[data.clone(), claim("disk", None), data]);
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let row = |name: &str, claim: &str, value: u64| {
            format!(
                "kubelet_volume_stats_{name}{{namespace=\"n\",persistentvolumeclaim=\"{claim}\"}} {value}"
            )
        };
        assert_eq!(
            rows,
            [
                row("available_bytes", "data", 3),
                row("capacity_bytes", "data", 10),
                row("capacity_bytes", "disk", 10),
                row("inodes", "data", 7),
                row("inodes_free", "data", 5),
                row("inodes_used", "data", 2),
                row("used_bytes", "data", 6),
            ]
        );
    }
}
