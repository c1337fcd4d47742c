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

use crate::config::Build;
use crate::paths;
use crate::request::{Attributes, Call};
use crate::rest::{components, usage};
use crate::server::Inner;

pub mod admission;
mod process;
mod slis;
mod storage;
mod text;

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
struct Run {
    #[prometheus(flatten)]
    asked: Asked,
    /// `All`, or nothing.
    dry_run: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    #[prometheus(flatten)]
    run: Run,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Terminated {
    #[prometheus(flatten)]
    asked: Asked,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Deprecated {
    group: String,
    version: String,
    resource: String,
    subresource: String,
    removed_release: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    request_kind: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter<u64, AtomicU64>>,
    seconds: Histograms<Run>,
    /// The same, as objectives are measured by.
    objectives: Histograms<Asked>,
    sizes: Histograms<Asked>,
    terminated: Family<Terminated, Counter<u64, AtomicU64>>,
    deprecated: Family<Deprecated, Gauge<i64, AtomicI64>>,
    pub admission: admission::Meter,
    pub storage: storage::Meter,
    /// Of what was asked before: to find these costs less than to write out their labels.
    series: RwLock<HashMap<SeriesKey, Arc<Series>>>,
    reads: Gauge<i64, AtomicI64>,
    writes: Gauge<i64, AtomicI64>,
    long: Family<Asked, Gauge<i64, AtomicI64>>,
    slis: slis::Slis,
    others: RwLock<Vec<Source>>,
}

/// Adds what another part of the process tells.
type Source = Box<dyn Fn(&mut String) + Send + Sync>;

/// What distinguishes the labels of two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    /// [`Served::index`]
    served: Option<u32>,
    /// Place among the kind's.
    subresource: Option<usize>,
    /// Of those paths that are told apart.
    path: &'static str,
    verb: &'static str,
    dry_run: bool,
    scope: &'static str,
    code: u16,
}

struct Series {
    requests: Counter<u64, AtomicU64>,
    /// None of requests that last.
    seconds: Option<[Histogram; 2]>,
    /// Of reads.
    sizes: Option<Histogram>,
    /// Of requests that were turned away or took too long.
    terminated: Option<Counter<u64, AtomicU64>>,
}

fn buckets() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0,
        5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
    ])
}

fn size_buckets() -> Histogram {
    Histogram::new([1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9])
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let by_time = buckets as fn() -> Histogram;
        let (requests, seconds) = (Family::default(), Family::new_with_constructor(by_time));
        let objectives = Family::new_with_constructor(by_time);
        let sizes = Family::new_with_constructor(size_buckets as fn() -> Histogram);
        let (terminated, deprecated) = (Family::default(), Family::default());
        let admission = admission::Meter::new(&mut registry);
        let storage = storage::Meter::new(&mut registry);
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
            "apiserver_request_sli_duration_seconds",
            "Time to an answer's first byte, of requests that end",
            objectives.clone(),
        );
        registry.register(
            "apiserver_response_sizes",
            "Bytes of answers to reads, where they are known before they are sent",
            sizes.clone(),
        );
        registry.register(
            "apiserver_request_terminations",
            "Requests that were turned away or took too long",
            terminated.clone(),
        );
        registry.register(
            "apiserver_requested_deprecated_apis",
            "Deprecated resources that were asked for",
            deprecated.clone(),
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
        Self {
            registry,
            requests,
            seconds,
            objectives,
            sizes,
            terminated,
            deprecated,
            admission,
            storage,
            series: RwLock::default(),
            reads,
            writes,
            long,
            slis: slis::Slis::default(),
            others: RwLock::default(),
        }
    }

    /// Counts a request as running until dropped.
    pub fn running(&self, asked: &Attributes) -> Running {
        let gauge = if asked.is_read() { &self.reads } else { &self.writes }.clone();
        gauge.inc();
        Running(gauge)
    }

    /// Counts a request that lasts until dropped.
    pub fn lasting(&self, call: &Call) -> Running {
        let gauge = self.long.get_or_create(&labels(call, true, 200)).clone();
        gauge.inc();
        Running(gauge)
    }

    /// Only served resources become labels, so that made-up paths cannot fill memory. `bytes` is how long
    /// the answer is, if that is known.
    pub fn answered(&self, call: &Call, code: u16, took: Duration, bytes: Option<u64>) {
        let (asked, served) = (&call.attributes, call.served.as_deref());
        let resource = asked.resource.as_ref().filter(|_| served.is_some());
        let sub = resource.map(|r| r.subresource.as_str()).filter(|s| !s.is_empty() && code < 400);
        let place = |sub: &str| served?.kind.subresources.iter().position(|s| s.name == sub);
        let key = SeriesKey {
            served: served.map(|s| s.index),
            subresource: sub.map(|sub| place(sub).unwrap_or(usize::MAX)),
            path: probe(asked),
            verb: verb(call),
            dry_run: is_dry(call),
            scope: scope(asked, resource),
            code,
        };
        let found = self.series.read().get(&key).cloned();
        let series = found.unwrap_or_else(|| {
            let series = Arc::new(self.begin(call, code));
            self.series.write().insert(key, series.clone());
            series
        });
        series.requests.inc();
        for seconds in series.seconds.iter().flatten() {
            seconds.observe(took.as_secs_f64());
        }
        if let (Some(sizes), Some(bytes)) = (&series.sizes, bytes) {
            sizes.observe(bytes as f64);
        }
        if let Some(terminated) = &series.terminated {
            terminated.inc();
        }
    }

    fn begin(&self, call: &Call, code: u16) -> Series {
        let asked = labels(call, call.served.is_some(), code);
        let run = Run { asked: asked.clone(), dry_run: if is_dry(call) { "All" } else { "" } };
        let seconds = (!call.attributes.is_long()).then(|| {
            [
                self.seconds.get_or_create(&run).clone(),
                self.objectives.get_or_create(&asked).clone(),
            ]
        });
        let is_read = matches!(asked.verb, "GET" | "LIST") && seconds.is_some();
        let sizes = is_read.then(|| self.sizes.get_or_create(&asked).clone());
        let terminated = matches!(code, 429 | 504).then(|| {
            self.terminated.get_or_create(&Terminated { asked: asked.clone(), code }).clone()
        });
        if call.served.as_ref().is_some_and(|s| s.custom.is_none() && s.deprecation().is_some()) {
            let Asked { group, version, resource, subresource, .. } = asked;
            let label = Deprecated { group, version, resource, subresource, removed_release: "" };
            self.deprecated.get_or_create(&label).set(1);
        }
        let requests = self.requests.get_or_create(&Answered { run, code }).clone();
        Series { requests, seconds, sizes, terminated }
    }

    /// From now on this is shown too.
    pub fn add(&self, source: Source) {
        self.others.write().push(source);
    }

    /// How the checks of an endpoint of health stand.
    pub fn looked(&self, endpoint: &'static str, checks: &[crate::health::Check]) {
        self.slis.looked(endpoint, checks);
    }

    fn encode(&self) -> String {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)
            .expect("writing to a String cannot fail");
        text::classic(&out)
    }
}

fn labels(call: &Call, known: bool, code: u16) -> Asked {
    let asked = &call.attributes;
    let resource = asked.resource.as_ref().filter(|_| known);
    let of = |get: fn(&crate::request::Resource) -> &String| {
        resource.map_or(String::new(), |r| get(r).clone())
    };
    Asked {
        verb: verb(call),
        group: of(|r| &r.group),
        version: of(|r| &r.version),
        resource: of(|r| &r.resource),
        // Any word may stand there; of those that fail only the code is of interest.
        subresource: match probe(asked) {
            "" if code < 400 => of(|r| &r.subresource),
            path => path.to_owned(),
        },
        scope: scope(asked, resource),
        component: "apiserver",
    }
}

/// The path of a probe, which is told as a subresource.
fn probe(asked: &Attributes) -> &'static str {
    let paths = ["/healthz", "/livez", "/readyz"];
    paths.into_iter().find(|p| asked.resource.is_none() && asked.path == *p).unwrap_or_default()
}

fn is_dry(call: &Call) -> bool {
    call.attributes.is_write() && call.query.all("dryRun").any(|d| d == "All")
}

fn scope(asked: &Attributes, resource: Option<&crate::request::Resource>) -> &'static str {
    match resource {
        None => "",
        Some(r) if !r.name.is_empty() || asked.verb == "create" => "resource",
        Some(r) if !r.namespace.is_empty() => "namespace",
        Some(_) => "cluster",
    }
}

fn verb(call: &Call) -> &'static str {
    let sub = call.attributes.resource.as_ref().map_or("", |r| r.subresource.as_str());
    match call.attributes.verb.as_str() {
        _ if matches!(sub, "exec" | "attach" | "portforward" | "proxy") => "CONNECT",
        "get" => "GET",
        "list" => "LIST",
        "watch" if call.query.flag("sendInitialEvents") == Some(true) => "WATCHLIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if call.header("content-type").starts_with("application/apply-patch") => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

/// Everything, now.
pub async fn show(server: &Inner) -> String {
    let mut out = server.metrics.encode();
    text::summary(admission::STEP, &mut out);
    if let Some(bytes) = server.store.size().await {
        write!(
            out,
            "# HELP apiserver_storage_size_bytes Bytes that the store takes on disk.\n# TYPE apiserver_storage_size_bytes gauge\napiserver_storage_size_bytes{{storage_cluster_id=\"etcd-0\"}} {bytes}\n"
        )
        .expect("writing to a String cannot fail");
    }
    server.flow.encode(&mut out);
    let mut counts = String::new();
    out += "# HELP apiserver_storage_objects Stored objects.\n# TYPE apiserver_storage_objects gauge\n";
    let mut told = std::collections::HashSet::new();
    for served in server.registry().all() {
        let made_when_asked = usage::is(served) || components::are(served);
        let listed = served.kind.verbs.iter().any(|v| v == "list");
        if !listed || made_when_asked || !told.insert(&served.kind.storage) {
            continue;
        }
        let Ok(count) = server.store.count(&served.kind.storage).await else { continue };
        let resource = served.group_resource();
        writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}")
            .expect("writing to a String cannot fail");
        let rimward_api::GroupResource { group, resource } = resource;
        writeln!(
            counts,
            "apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}"
        )
        .expect("writing to a String cannot fail");
    }
    out += "# HELP apiserver_resource_objects Stored objects.\n# TYPE apiserver_resource_objects gauge\n";
    out += &counts;
    out += &build_info(&server.config.build);
    process::show(&mut out);
    for other in server.metrics.others.read().iter() {
        other(&mut out);
    }
    out
}

/// What `/version` says, as labels.
fn build_info(build: &Build) -> String {
    let version = paths::version(build);
    let label = |(name, field): (&str, &str)| {
        format!("{name}=\"{}\"", version[field].as_str().unwrap_or_default())
    };
    let labels = [
        ("build_date", "buildDate"),
        ("compiler", "compiler"),
        ("git_commit", "gitCommit"),
        ("git_tree_state", "gitTreeState"),
        ("git_version", "gitVersion"),
        ("go_version", "goVersion"),
        ("major", "major"),
        ("minor", "minor"),
        ("platform", "platform"),
    ]
    .map(label)
    .join(",");
    format!(
        "# HELP kubernetes_build_info The version that is served.\n# TYPE kubernetes_build_info gauge\nkubernetes_build_info{{{labels}}} 1\n"
    )
}

/// `/metrics/slis`: how the checks of health stand, and how often they stood so when they were asked.
pub async fn slis(server: &Inner) -> String {
    let mut out = String::new();
    for endpoint in crate::health::ENDPOINTS {
        let checks = crate::health::checks(server, endpoint).await;
        server.metrics.looked(endpoint, &checks);
    }
    server.metrics.slis.encode(&mut out);
    out
}

pub struct Running(Gauge<i64, AtomicI64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}
