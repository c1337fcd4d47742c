//! Priority and fairness: which requests run now, which wait, which are turned away.
//!
//! The stored FlowSchemas say, in the order of their precedence, to which priority level a request
//! belongs and which flow it is part of; the stored PriorityLevelConfigurations say how many requests
//! of each level run at once and how the others queue. Changes of both hold for the next request.
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>
//!
//! In reading order: [`schema`] matches, [`level`] seats, [`queues`] is whose turn it is, [`shares`]
//! divides the seats among levels, [`watchers`] says what a write costs beyond its answer, [`config`] follows
//! the stored objects and tells which are dangling.

mod config;
mod level;
mod queues;
mod schema;
mod shares;
mod watchers;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use parking_lot::{Mutex, RwLock};
use rimward_api::{Reason, Status, UserInfo};
use tokio::sync::Notify;

use crate::body::Response;
use crate::request::{Attributes, Query};

pub use config::{Part, keep_statuses};
use level::Level;
pub use level::Seat;
pub use watchers::Watching;

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// How often seats are divided anew while somebody asks for more than is his.
const BALANCE_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a list that one seat stands for.
const SEAT_BYTES: usize = 100_000;

pub struct Flow {
    /// Seats of the whole server.
    total: usize,
    objects: Mutex<config::Objects>,
    rules: RwLock<Arc<Rules>>,
    /// Bytes of the last whole list of a resource, by which the next one is charged.
    lists: RwLock<HashMap<(String, String), usize>>,
    watchers: watchers::Watchers,
    pressed: Notify,
    changed: Notify,
}

/// What is in force: made anew when an object changes.
#[derive(Default)]
struct Rules {
    /// By precedence. The last one takes whatever the others do not.
    schemas: Vec<Schema>,
    levels: Vec<Arc<Level>>,
}

struct Schema {
    name: String,
    spec: schema::Spec,
    level: Arc<Level>,
    ids: Ids,
}

/// The uids of the schema and the level that a request belongs to, as headers tell them.
#[derive(Clone)]
pub struct Ids([HeaderValue; 2]);

impl Ids {
    pub fn tell(self, response: &mut Response) {
        let [schema, level] = self.0;
        response.headers_mut().insert(SCHEMA_UID, schema);
        response.headers_mut().insert(LEVEL_UID, level);
    }
}

impl Flow {
    /// `total`: how many requests run at once, over all levels.
    pub fn new(total: usize) -> Arc<Self> {
        let flow = Self {
            total: total.max(1),
            objects: Mutex::default(),
            rules: RwLock::default(),
            lists: RwLock::default(),
            watchers: watchers::Watchers::default(),
            pressed: Notify::new(),
            changed: Notify::new(),
        };
        flow.apply(&mut flow.objects.lock());
        Arc::new(flow)
    }

    /// A seat for a request, given back when dropped, and the headers that tell by which rules.
    /// Requests that last (logs, exec) take none; a watch has one until it has begun.
    pub async fn enter(
        &self,
        user: &UserInfo,
        asked: &Attributes,
        query: &Query,
    ) -> (Option<Ids>, Result<Option<Seat>, Status>) {
        if asked.is_long() && asked.verb != "watch" {
            return (None, Ok(None));
        }
        let rules = self.rules.read().clone();
        let found = rules.schemas.iter().find(|s| s.spec.matches(user, asked));
        let schema = found.or(rules.schemas.last()).expect("there is always a last schema");
        let (mut flow, mut seats, mut after) = (0, 1, Duration::ZERO);
        if !schema.level.is_exempt() {
            let mut hasher = DefaultHasher::new();
            (&schema.name, schema.spec.distinguisher(user, asked)).hash(&mut hasher);
            flow = hasher.finish();
            if asked.verb == "list" {
                seats = self.width(asked, query).min(schema.level.seats_max());
            } else if let Some(target) = asked.resource.as_ref().filter(|_| asked.is_write())
                && let Some(told) = self.watchers.fan_out(target, schema.level.seats_max())
            {
                (seats, after) = (told.seats, told.lasts);
            }
        }
        let seat = schema.level.enter(flow, seats, &self.pressed).await;
        let seat = seat.map(|seat| Some(seat.lasting(after)));
        (Some(schema.ids.clone()), seat.map_err(|_| too_many()))
    }

    /// Counts a watch for as long as it lasts.
    pub fn watching(&self, asked: &Attributes) -> Option<Watching> {
        asked.resource.as_ref().map(|target| self.watchers.add(target))
    }

    /// Remembers how large a list was.
    pub fn listed(&self, asked: &Attributes, bytes: usize) {
        let Some(resource) = &asked.resource else { return };
        // Small lists take one seat anyway, whether they are known or not.
        if bytes >= SEAT_BYTES || !self.lists.read().is_empty() {
            let key = (resource.group.clone(), resource.resource.clone());
            self.lists.write().insert(key, bytes);
        }
    }

    /// Seats that a list is worth, by the last one of the resource.
    fn width(&self, asked: &Attributes, query: &Query) -> usize {
        let Some(resource) = asked.resource.as_ref().filter(|r| r.name.is_empty()) else {
            return 1;
        };
        // A page is bounded by its client.
        if query.get("limit").is_some_and(|l| !matches!(l, "" | "0")) {
            return 1;
        }
        let lists = self.lists.read();
        if lists.is_empty() {
            return 1;
        }
        let key = (resource.group.clone(), resource.resource.clone());
        lists.get(&key).map_or(1, |bytes| bytes.div_ceil(SEAT_BYTES)).max(1)
    }

    /// Lets levels with more to do borrow seats of those with less. Sleeps while nobody waits.
    pub async fn balance(&self) {
        loop {
            self.pressed.notified().await;
            loop {
                let levels = self.rules.read().levels.clone();
                // What runs without a limit is not there for others.
                let exempt: usize =
                    levels.iter().filter(|l| l.is_exempt()).map(|l| l.exempted()).sum();
                let claims = levels.iter().filter_map(|l| Some((l, l.claim()?)));
                let (levels, claims): (Vec<_>, Vec<_>) = claims.unzip();
                if levels.iter().all(|l| l.content()) {
                    levels.iter().for_each(|l| l.lend(None));
                    break;
                }
                let seats = shares::divide(self.total.saturating_sub(exempt), &claims);
                levels.iter().zip(seats).for_each(|(level, seats)| level.lend(Some(seats)));
                tokio::time::sleep(BALANCE_EVERY).await;
            }
        }
    }

    /// What `/metrics` shows of levels.
    pub fn encode(&self, out: &mut String) {
        let levels = self.rules.read().levels.clone();
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, u64)>| {
            *out += &format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n");
            for (labels, value) in rows {
                *out += &format!("{name}{{{labels}}} {value}\n");
            }
        };
        let label = |l: &Level| format!("priority_level=\"{}\"", l.name);
        let each = |value: fn(&level::Shown) -> usize| -> Vec<(String, u64)> {
            let limited = levels.iter().filter(|l| !l.is_exempt());
            limited.map(|l| (label(l), value(&l.show()) as u64)).collect()
        };
        family(
            "apiserver_flowcontrol_current_inqueue_requests",
            "gauge",
            "Requests that wait for their turn",
            each(|s| s.waiting),
        );
        family(
            "apiserver_flowcontrol_current_executing_seats",
            "gauge",
            "Seats that are taken",
            each(|s| s.taken),
        );
        family(
            "apiserver_flowcontrol_nominal_limit_seats",
            "gauge",
            "Seats of a level by its shares",
            each(|s| s.nominal),
        );
        family(
            "apiserver_flowcontrol_current_limit_seats",
            "gauge",
            "Seats of a level with those that it borrows",
            each(|s| s.limit),
        );
        let dispatched = levels.iter().map(|l| (label(l), count(&l.counts.dispatched))).collect();
        family(
            "apiserver_flowcontrol_dispatched_requests_total",
            "counter",
            "Requests that got a seat",
            dispatched,
        );
        let reasons = |l: &Arc<Level>| {
            [
                ("queue-full", count(&l.counts.queue_full)),
                ("concurrency-limit", count(&l.counts.no_seat)),
                ("time-out", count(&l.counts.timed_out)),
            ]
            .map(|(reason, n)| (format!("{},reason=\"{reason}\"", label(l)), n))
        };
        let rejected = levels.iter().flat_map(reasons).filter(|(_, n)| *n > 0).collect();
        family(
            "apiserver_flowcontrol_rejected_requests_total",
            "counter",
            "Requests that were turned away",
            rejected,
        );
    }
}

fn too_many() -> Status {
    let mut status = Status::new(
        429,
        Reason::TooManyRequests,
        "the server has received too many requests and has asked us to try again later",
    );
    status.details.get_or_insert_default().retry_after_seconds = 1;
    status
}
