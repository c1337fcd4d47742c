//! Tells the user what happened to an object: core/v1 Events.
//!
//! It never blocks and never grows: what does not fit into its queues is dropped and counted. The
//! same news again raises the count of the Event that told it; many different messages of one reason
//! about one object become one combined Event; beyond a burst an object must wait.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::options::Patch;
use crate::resource::{Object, Resource};

/// Objects are spread over this many tasks, so that one slow write does not hold up all.
const LANES: usize = 4;
/// Occurrences that may wait in a lane.
const LANE_MAX: usize = 1024;
/// Objects and messages remembered per lane.
const MEMORY_MAX: usize = 1024;
/// Different messages of one reason about one object within the window, before they are combined.
const SIMILAR_MAX: u32 = 10;
const SIMILAR_WINDOW: SignedDuration = SignedDuration::from_secs(600);
/// Writes that an object may cause at once, and how often it earns another.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// Records Events as one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    lanes: Arc<[mpsc::Sender<Occurrence>]>,
    dropped: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
struct Occurrence {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
    /// Where the component is that says it, where there are many.
    host: String,
}

impl Recorder {
    /// Must be called within a tokio runtime; writes until `shutdown`.
    pub fn new(client: Client, component: &str, shutdown: CancellationToken) -> Self {
        let lanes = (0..LANES).map(|_| {
            let (sender, receiver) = mpsc::channel(LANE_MAX);
            let writer = Writer { client: client.clone(), memory: Memory::new(component) };
            let shutdown = shutdown.clone();
            tokio::spawn(async move { shutdown.run_until_cancelled(writer.run(receiver)).await });
            sender
        });
        Self { lanes: lanes.collect(), dropped: Arc::default() }
    }

    /// Something happened to an object.
    pub fn event<K: Object>(
        &self,
        about: &K,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event_about(reference(about), kind, reason, message);
    }

    /// The same, about what a reference names.
    pub fn event_about(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event_from("", about, kind, reason, message);
    }

    /// The same, said by the component's instance on a host.
    pub fn event_from(
        &self,
        host: &str,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut hasher = DefaultHasher::new();
        about.uid.hash(&mut hasher);
        about.name.hash(&mut hasher);
        let lane = &self.lanes[hasher.finish() as usize % LANES];
        let (reason, message, host) = (reason.into(), message.into(), host.into());
        let occurrence = Occurrence { about, kind, reason, message, at: Timestamp::now(), host };
        if lane.try_send(occurrence).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many occurrences did not fit.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Names an object as Events do.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.into()),
        kind: Some(K::KIND.into()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

struct Writer {
    client: Client,
    memory: Memory,
}

impl Writer {
    async fn run(mut self, mut occurrences: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = occurrences.recv().await {
            let Some(write) = self.memory.observe(&occurrence) else { continue };
            if let Err(e) = self.write(&occurrence, write).await {
                tracing::debug!(error = %e, reason = occurrence.reason, "an Event was not written");
            }
        }
    }

    async fn write(&mut self, occurrence: &Occurrence, write: Write) -> Result<(), crate::Error> {
        let event = match write {
            Write::Create(event) => event,
            Write::Count { namespace, name, patch } => {
                match self
                    .client
                    .patch::<Event>(&namespace, &name, "", &Patch::strategic(patch))
                    .await
                {
                    // It outlived its hour: tell it anew.
                    Err(e) if e.is_not_found() => {
                        match self.memory.forget_and_observe(occurrence) {
                            Some(event) => event,
                            None => return Ok(()),
                        }
                    }
                    other => return other.map(drop),
                }
            }
        };
        // The answer tells nothing that is not known: it is not decoded into an Event.
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let path = Resource::of::<Event>().path(namespace, "", "");
        self.client.call::<IgnoredAny>(Method::POST, &path, Some(&*event)).await.map(drop)
    }
}

#[derive(Debug, PartialEq)]
enum Write {
    Create(Box<Event>),
    Count { namespace: String, name: String, patch: serde_json::Value },
}

/// What was told lately. Pure: the time comes with each occurrence.
struct Memory {
    component: String,
    told: HashMap<Told, Entry>,
    similar: HashMap<Similar, (u32, Timestamp)>,
    budgets: HashMap<String, (f64, Timestamp)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Similar {
    object: String,
    kind: EventType,
    reason: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Told {
    similar: Similar,
    /// The message and the part of the object (`spec.containers{name}`); None for the combined Event.
    exactly: Option<(String, Option<String>)>,
}

struct Entry {
    name: String,
    count: i32,
    last: Timestamp,
}

impl Memory {
    fn new(component: &str) -> Self {
        Self {
            component: component.into(),
            told: HashMap::new(),
            similar: HashMap::new(),
            budgets: HashMap::new(),
        }
    }

    fn observe(&mut self, occurrence: &Occurrence) -> Option<Write> {
        let object = object_id(&occurrence.about);
        if !self.afford(&object, occurrence.at) {
            return None;
        }
        let similar = Similar { object, kind: occurrence.kind, reason: occurrence.reason.clone() };
        let exactly = (occurrence.message.clone(), occurrence.about.field_path.clone());
        let exact = Told { similar: similar.clone(), exactly: Some(exactly) };
        let (key, message) =
            if self.told.contains_key(&exact) || !self.is_flood(&similar, occurrence.at) {
                (exact, occurrence.message.clone())
            } else {
                let combined = format!("(combined from similar events): {}", occurrence.message);
                (Told { similar, exactly: None }, combined)
            };
        Some(self.tell(key, occurrence, &message))
    }

    /// The Event that was counted up is gone.
    fn forget_and_observe(&mut self, occurrence: &Occurrence) -> Option<Box<Event>> {
        let object = object_id(&occurrence.about);
        self.told.retain(|told, _| {
            told.similar.object != object || told.similar.reason != occurrence.reason
        });
        match self.observe(occurrence)? {
            Write::Create(event) => Some(event),
            Write::Count { .. } => None,
        }
    }

    fn afford(&mut self, object: &str, now: Timestamp) -> bool {
        if self.budgets.len() >= MEMORY_MAX && !self.budgets.contains_key(object) {
            forget_older_half(&mut self.budgets, |(_, last)| *last);
        }
        let (tokens, last) = self.budgets.entry(object.to_owned()).or_insert((BURST, now));
        let earned = now.duration_since(*last).as_secs_f64().max(0.0) / REFILL_SECONDS;
        (*tokens, *last) = ((*tokens + earned).min(BURST), now);
        let affordable = *tokens >= 1.0;
        if affordable {
            *tokens -= 1.0;
        }
        affordable
    }

    /// Whether too many different messages of this reason came within the window.
    fn is_flood(&mut self, similar: &Similar, now: Timestamp) -> bool {
        if self.similar.len() >= MEMORY_MAX && !self.similar.contains_key(similar) {
            forget_older_half(&mut self.similar, |(_, since)| *since);
        }
        let (count, since) = self.similar.entry(similar.clone()).or_insert((0, now));
        if now.duration_since(*since) > SIMILAR_WINDOW {
            (*count, *since) = (0, now);
        }
        *count += 1;
        *count > SIMILAR_MAX
    }

    fn tell(&mut self, key: Told, occurrence: &Occurrence, message: &str) -> Write {
        if self.told.len() >= MEMORY_MAX && !self.told.contains_key(&key) {
            forget_older_half(&mut self.told, |entry| entry.last);
        }
        let namespace = occurrence.about.namespace.clone().filter(|n| !n.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".into());
        if let Some(entry) = self.told.get_mut(&key) {
            entry.count += 1;
            entry.last = occurrence.at;
            let patch = json!({
                "count": entry.count, "message": message, "lastTimestamp": Time(occurrence.at),
            });
            return Write::Count { namespace, name: entry.name.clone(), patch };
        }
        let object_name = occurrence.about.name.as_deref().unwrap_or_default();
        let name = format!("{object_name}.{:x}", occurrence.at.as_nanosecond());
        self.told.insert(key, Entry { name: name.clone(), count: 1, last: occurrence.at });
        Write::Create(Box::new(Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: occurrence.about.clone(),
            type_: Some(format!("{:?}", occurrence.kind)),
            reason: Some(occurrence.reason.clone()),
            message: Some(message.to_owned()),
            first_timestamp: Some(Time(occurrence.at)),
            last_timestamp: Some(Time(occurrence.at)),
            count: Some(1),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(occurrence.host.clone()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(occurrence.host.clone()),
            ..Event::default()
        }))
    }
}

fn object_id(about: &ObjectReference) -> String {
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    format!(
        "{}/{}/{}/{}",
        part(&about.kind),
        part(&about.namespace),
        part(&about.name),
        part(&about.uid)
    )
}

fn forget_older_half<Q: Clone + Eq + Hash, V>(
    map: &mut HashMap<Q, V>,
    age: impl Fn(&V) -> Timestamp,
) {
    let mut times: Vec<Timestamp> = map.values().map(&age).collect();
    let middle = times.len() / 2;
    let (_, cut, _) = times.select_nth_unstable(middle);
    let cut = *cut;
    map.retain(|_, v| age(v) > cut);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str, second: i64) -> Occurrence {
        Occurrence {
            about: ObjectReference {
                kind: Some("Pod".into()),
                name: Some("p".into()),
                ..Default::default()
            },
            kind: EventType::Normal,
            reason: "Because".into(),
            message: message.into(),
            at: Timestamp::from_second(second).expect("in range"),
            host: String::new(),
        }
    }

    #[test]
    fn the_same_news_counts_up() {
        let mut memory = Memory::new("test");
        let Some(Write::Create(event)) = memory.observe(&occurrence("m", 1)) else { panic!() };
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        let Some(Write::Count { name, patch, .. }) = memory.observe(&occurrence("m", 2)) else {
            panic!()
        };
        assert_eq!(Some(name), event.metadata.name);
        assert_eq!(patch["count"], 2);
    }

    #[test]
    fn the_same_news_of_another_container_is_other_news() {
        let mut memory = Memory::new("test");
        let of = |container: &str| {
            let mut o = occurrence("Container created", 1);
            o.about.field_path = Some(format!("spec.containers{{{container}}}"));
            o
        };
        for container in ["a", "b"] {
            let write = memory.observe(&of(container));
            let Some(Write::Create(event)) = write else { panic!("{write:?}") };
            assert_eq!(event.involved_object.field_path, of(container).about.field_path);
        }
        assert!(matches!(memory.observe(&of("a")), Some(Write::Count { .. })));
    }

    #[test]
    fn similar_news_is_combined_and_a_flood_is_cut() {
        let mut memory = Memory::new("test");
        let writes: Vec<_> =
            (0..40).map(|i| memory.observe(&occurrence(&format!("m{i}"), 1))).collect();
        let created = writes.iter().filter(|w| matches!(w, Some(Write::Create(_)))).count();
        let counted = writes.iter().filter(|w| matches!(w, Some(Write::Count { .. }))).count();
        assert_eq!((created, counted), (11, 14), "ten single ones, one combined, 25 writes in all");
        assert!(memory.observe(&occurrence("later", 700)).is_some(), "the budget refills");
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::new("test");
        for i in 0..5 * MEMORY_MAX {
            let mut o = occurrence("m", i as i64);
            o.about.name = Some(i.to_string());
            memory.observe(&o);
        }
        assert!(memory.told.len() <= MEMORY_MAX && memory.budgets.len() <= MEMORY_MAX);
    }
}
