//! What `/metrics` shows, by the names and labels that kube-apiserver has for it, in the text format
//! that every scraper reads. <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::paths::GIT_VERSION;
use crate::request::Attributes;
use crate::served::Served;
use crate::server::Inner;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    #[prometheus(flatten)]
    asked: Asked,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    request_kind: &'static str,
}

pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter<u64, AtomicU64>>,
    seconds: Family<Asked, Histogram, fn() -> Histogram>,
    /// Of what was asked before: to find these costs less than to write out their labels.
    series: RwLock<HashMap<SeriesKey, Arc<Series>>>,
    reads: Gauge<i64, AtomicI64>,
    writes: Gauge<i64, AtomicI64>,
    long: Family<Asked, Gauge<i64, AtomicI64>>,
}

/// What distinguishes the labels of two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    /// [`Served::index`]
    served: Option<u32>,
    /// Place among the kind's.
    subresource: Option<usize>,
    verb: &'static str,
    scope: &'static str,
    code: u16,
}

struct Series {
    requests: Counter<u64, AtomicU64>,
    /// None of requests that last.
    seconds: Option<Histogram>,
}

fn buckets() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0,
        5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
    ])
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        let (inflight, long) =
            (Family::<Lane, Gauge<i64, AtomicI64>>::default(), Family::default());
        let lane = |request_kind| inflight.get_or_create(&Lane { request_kind }).clone();
        let (reads, writes) = (lane("readOnly"), lane("mutating"));
        registry.register(
            "apiserver_request",
            "Requests by what they asked and how they were answered",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to an answer's first byte",
            seconds.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests that run now",
            inflight.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Watches and streams that are open now",
            long.clone(),
        );
        let series = RwLock::default();
        Self { registry, requests, seconds, series, reads, writes, long }
    }

    /// Counts a request as running until dropped.
    pub fn running(&self, asked: &Attributes) -> Running {
        let gauge = if asked.is_read() { &self.reads } else { &self.writes }.clone();
        gauge.inc();
        Running(gauge)
    }

    /// Counts a request that lasts until dropped.
    pub fn lasting(&self, asked: &Attributes) -> Running {
        let gauge = self.long.get_or_create(&labels(asked, true, 200)).clone();
        gauge.inc();
        Running(gauge)
    }

    /// Only served resources become labels, so that made-up paths cannot fill memory.
    pub fn answered(&self, asked: &Attributes, served: Option<&Served>, code: u16, took: Duration) {
        let resource = asked.resource.as_ref().filter(|_| served.is_some());
        let sub = resource.map(|r| r.subresource.as_str()).filter(|s| !s.is_empty() && code < 400);
        let place = |sub: &str| served?.kind.subresources.iter().position(|s| s.name == sub);
        let key = SeriesKey {
            served: served.map(|s| s.index),
            subresource: sub.map(|sub| place(sub).unwrap_or(usize::MAX)),
            verb: verb(&asked.verb),
            scope: scope(asked, resource),
            code,
        };
        let found = self.series.read().get(&key).cloned();
        let series = found.unwrap_or_else(|| {
            let asked_for = labels(asked, served.is_some(), code);
            let seconds =
                (!asked.is_long()).then(|| self.seconds.get_or_create(&asked_for).clone());
            let answered = Answered { asked: asked_for, code };
            let requests = self.requests.get_or_create(&answered).clone();
            let series = Arc::new(Series { requests, seconds });
            self.series.write().insert(key, series.clone());
            series
        });
        series.requests.inc();
        if let Some(seconds) = &series.seconds {
            seconds.observe(took.as_secs_f64());
        }
    }

    fn encode(&self) -> String {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)
            .expect("writing to a String cannot fail");
        classic(&out)
    }
}

fn labels(asked: &Attributes, known: bool, code: u16) -> Asked {
    let resource = asked.resource.as_ref().filter(|_| known);
    let of = |get: fn(&crate::request::Resource) -> &String| {
        resource.map_or(String::new(), |r| get(r).clone())
    };
    Asked {
        verb: verb(&asked.verb),
        group: of(|r| &r.group),
        version: of(|r| &r.version),
        resource: of(|r| &r.resource),
        // Any word may stand there; of those that fail only the code is of interest.
        subresource: if code < 400 { of(|r| &r.subresource) } else { String::new() },
        scope: scope(asked, resource),
        component: "apiserver",
    }
}

fn scope(asked: &Attributes, resource: Option<&crate::request::Resource>) -> &'static str {
    match resource {
        None => "",
        Some(r) if !r.name.is_empty() || asked.verb == "create" => "resource",
        Some(r) if !r.namespace.is_empty() => "namespace",
        Some(_) => "cluster",
    }
}

fn verb(verb: &str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

/// The older text format: counters are declared under the name of their samples, and nothing marks
/// the end.
fn classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT") {
            continue;
        }
        let declares = |line: &str, what: &str| {
            line.strip_prefix(what)
                .and_then(|l| l.split_once(' '))
                .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        };
        let next_is_counter = lines
            .peek()
            .is_some_and(|next| next.starts_with("# TYPE") && next.ends_with(" counter"));
        match (declares(line, "# HELP "), declares(line, "# TYPE ")) {
            (Some((name, help)), _) if next_is_counter => {
                writeln!(out, "# HELP {name}_total {help}")
            }
            (_, Some((name, kind))) if kind == "counter" => {
                writeln!(out, "# TYPE {name}_total counter")
            }
            _ => writeln!(out, "{line}"),
        }
        .expect("writing to a String cannot fail");
    }
    out
}

/// Everything, now.
pub async fn show(server: &Inner) -> String {
    let mut out = server.metrics.encode();
    server.flow.encode(&mut out);
    out += "# HELP apiserver_storage_objects Stored objects.\n# TYPE apiserver_storage_objects gauge\n";
    let mut told = std::collections::HashSet::new();
    for served in server.registry().all() {
        if !served.kind.verbs.iter().any(|v| v == "list") || !told.insert(&served.kind.storage) {
            continue;
        }
        let Ok(count) = server.store.count(&served.kind.storage).await else { continue };
        let resource = served.group_resource();
        writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}")
            .expect("writing to a String cannot fail");
    }
    out += &format!(
        "# HELP kubernetes_build_info The version that is served.\n# TYPE kubernetes_build_info gauge\nkubernetes_build_info{{git_version=\"{GIT_VERSION}\",major=\"1\",minor=\"36\"}} 1\n"
    );
    process(&mut out);
    out
}

/// What the kernel tells of this process; nothing where it does not.
fn process(out: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok());
    let mut gauge = |name: &str, help: &str, value: Option<u64>| {
        if let Some(value) = value {
            writeln!(out, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}")
                .expect("writing to a String cannot fail");
        }
    };
    gauge("process_resident_memory_bytes", "Resident memory", kib.map(|k| k * 1024));
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|d| d.count() as u64);
    gauge("process_open_fds", "Open file descriptors", open);
}

pub struct Running(Gauge<i64, AtomicI64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_format() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP b Now.\n# TYPE b gauge\nb 1\n# EOF\n";
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# HELP b Now.\n# TYPE b gauge\nb 1\n";
        assert_eq!(classic(open), expected);
    }
}
