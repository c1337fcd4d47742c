//! What `/metrics` shows, by the names that kube-apiserver has for it.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::request::Attributes;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    request_kind: String,
}

pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter<u64, AtomicU64>>,
    seconds: Family<Verb, Histogram, fn() -> Histogram>,
    inflight: Family<Lane, Gauge<i64, AtomicI64>>,
}

fn buckets() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
    ])
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        let inflight = Family::default();
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
        Self { registry, requests, seconds, inflight }
    }

    /// Counts a request as running until dropped.
    pub fn running(&self, asked: &Attributes) -> Running {
        let kind = if asked.is_read() { "readOnly" } else { "mutating" };
        let gauge = self.inflight.get_or_create(&Lane { request_kind: kind.into() }).clone();
        gauge.inc();
        Running(gauge)
    }

    /// Only served resources become labels, so that made-up paths cannot fill memory.
    pub fn answered(&self, asked: &Attributes, known: bool, code: u16, took: Duration) {
        let resource = asked.resource.as_ref().filter(|_| known);
        let of = |get: fn(&crate::request::Resource) -> &String| {
            resource.map_or(String::new(), |r| get(r).clone())
        };
        let known_verb = matches!(
            asked.verb.as_str(),
            "get"
                | "list"
                | "watch"
                | "create"
                | "update"
                | "patch"
                | "delete"
                | "deletecollection"
                | "post"
                | "put"
        );
        let verb = if known_verb { asked.verb.to_ascii_uppercase() } else { "OTHER".into() };
        let labels = Answered {
            verb: verb.clone(),
            group: of(|r| &r.group),
            version: of(|r| &r.version),
            resource: of(|r| &r.resource),
            // Any word may stand there; of those that fail only the code is of interest.
            subresource: if code < 400 { of(|r| &r.subresource) } else { String::new() },
            code,
        };
        self.requests.get_or_create(&labels).inc();
        if asked.verb != "watch" {
            let labels = Verb { verb, resource: of(|r| &r.resource) };
            self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry)
            .expect("writing to a String cannot fail");
        out
    }
}

pub struct Running(Gauge<i64, AtomicI64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}
