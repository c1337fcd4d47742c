//! Event: stored as core/v1, served as events.k8s.io/v1 too.

use rimward_api::names;
use serde_json::{Map, Value};

use crate::check;
use crate::kind::Conversion;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, same};
use crate::rules::{Field, Rules};

pub const EVENT: Rules = Rules {
    create: |event, e| makes_sense(event, "reportingComponent", e),
    update: |new, _, e| makes_sense(new, "reportingComponent", e),
    // An event's name may be anything that fits into a path.
    name: check::text::path_segment,
    fields: &[
        ("involvedObject.kind", Field::Text(&["involvedObject", "kind"])),
        ("involvedObject.namespace", Field::Text(&["involvedObject", "namespace"])),
        ("involvedObject.name", Field::Text(&["involvedObject", "name"])),
        ("involvedObject.uid", Field::Text(&["involvedObject", "uid"])),
        ("involvedObject.apiVersion", Field::Text(&["involvedObject", "apiVersion"])),
        ("involvedObject.resourceVersion", Field::Text(&["involvedObject", "resourceVersion"])),
        ("involvedObject.fieldPath", Field::Text(&["involvedObject", "fieldPath"])),
        ("reason", Field::Text(&["reason"])),
        ("reportingComponent", Field::Text(&["reportingComponent"])),
        ("source", Field::Either(&["source", "component"], &["reportingComponent"])),
        ("type", Field::Text(&["type"])),
    ],
    cells: print::config::event,
    ..Rules::PLAIN
};

/// The same records under events.k8s.io, whose fields have other names.
pub const NEW_EVENT: Rules = Rules {
    create: new_event,
    update: only_its_series_changes,
    fields: &[
        ("regarding.kind", Field::Text(&["involvedObject", "kind"])),
        ("regarding.namespace", Field::Text(&["involvedObject", "namespace"])),
        ("regarding.name", Field::Text(&["involvedObject", "name"])),
        ("regarding.uid", Field::Text(&["involvedObject", "uid"])),
        ("regarding.apiVersion", Field::Text(&["involvedObject", "apiVersion"])),
        ("regarding.resourceVersion", Field::Text(&["involvedObject", "resourceVersion"])),
        ("regarding.fieldPath", Field::Text(&["involvedObject", "fieldPath"])),
        ("reason", Field::Text(&["reason"])),
        ("reportingController", Field::Text(&["reportingComponent"])),
        ("type", Field::Text(&["type"])),
    ],
    ..EVENT
};

const WORD_MAX_CHARS: usize = 128;
const MESSAGE_MAX_CHARS: usize = 1024;

/// What is asked of every event: what it is about is in its own namespace, and one of the newer form,
/// which has an eventTime, says who reports what. `reporter` is the reporter's field as it is served.
fn makes_sense(event: &Value, reporter: &str, e: &mut Errors) {
    let path = Path::Root.field("involvedObject");
    let (namespace, about) =
        (event.at("metadata").text("namespace"), event.at("involvedObject").text("namespace"));
    let newer = event.has("eventTime");
    // Of what has no namespace the events are in `default`; newer ones may be in `kube-system` too.
    let fits = match about {
        "" => matches!((namespace, newer), ("default", _) | ("kube-system", true) | ("", false)),
        _ => newer || namespace == about,
    };
    if !fits {
        e.invalid(&path.field("namespace"), about, "does not match event.namespace");
    }
    if newer {
        reported(event, reporter, e);
    }
    if !namespace.is_empty() {
        let wrong = names::dns1123_subdomain(namespace);
        e.invalid_each(&Path::Root.field("namespace"), namespace, wrong);
    }
}

fn reported(event: &Value, reporter: &str, e: &mut Errors) {
    let (path, who) = (Path::Root.field(reporter), event.text("reportingComponent"));
    if who.is_empty() {
        e.required(&path, "");
    }
    e.invalid_each(&path, who, names::qualified_name(who));
    for field in ["reportingInstance", "action", "reason"] {
        if event.text(field).is_empty() {
            e.required(&Path::Root.field(field), "");
        }
        at_most(event, field, WORD_MAX_CHARS, e);
    }
    at_most(event, "message", MESSAGE_MAX_CHARS, e);
}

fn at_most(event: &Value, field: &str, max: usize, e: &mut Errors) {
    if event.text(field).len() > max {
        let why = format!("can have at most {max} characters");
        e.invalid(&Path::Root.field(field), "", &why);
    }
}

/// events.k8s.io asks for more than the old group, and refuses what it calls deprecated.
fn new_event(event: &Value, e: &mut Errors) {
    makes_sense(event, "reportingController", e);
    let name = event.at("metadata").text("name");
    let path = Path::Root.field("metadata");
    e.invalid_each(&path.field("name"), name, names::dns1123_subdomain(name));
    series(event, e);
    if !event.has("eventTime") {
        e.required(&Path::Root.field("eventTime"), "");
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        e.invalid(&Path::Root.field("type"), "", &format!("has invalid value: {kind}"));
    }
    let source = event.at("source");
    for (field, set) in [
        ("firstTimestamp", event.has("firstTimestamp")),
        ("lastTimestamp", event.has("lastTimestamp")),
        ("count", event.int("count").is_some_and(|c| c != 0)),
        ("source", !source.text("component").is_empty() || !source.text("host").is_empty()),
    ] {
        if set {
            e.invalid(&Path::Root.field(field), "", "needs to be unset");
        }
    }
}

/// An event that was told is not told otherwise: only how often it happened goes on.
fn only_its_series_changes(new: &Value, old: &Value, e: &mut Errors) {
    makes_sense(new, "reportingController", e);
    if !same(new.at("series"), old.at("series")) {
        series(new, e);
    }
    for (field, shown) in [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if !same(new.at(field), old.at(field)) {
            e.invalid(&Path::Root.field(shown), new.at(field).clone(), check::IMMUTABLE);
        }
    }
}

fn series(event: &Value, e: &mut Errors) {
    let series = event.at("series");
    if series.is_null() {
        return;
    }
    if series.int("count").unwrap_or_default() < 2 {
        e.invalid(&Path::Root.field("series.count"), "", "should be at least 2");
    }
    if !series.has("lastObservedTime") {
        e.required(&Path::Root.field("series.lastObservedTime"), "");
    }
}

/// Old and new names of the same fields.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// events.k8s.io/v1 to the stored core/v1 and back.
pub struct EventConversion;

impl Conversion for EventConversion {
    fn to_stored(&self, served: Value) -> Value {
        rename(served, |(old, new)| (*new, *old))
    }
    fn from_stored(&self, stored: Value) -> Value {
        rename(stored, |(old, new)| (*old, *new))
    }
    fn stored_field(&self, field: &str) -> String {
        let (first, rest) = field.split_once('.').map_or((field, None), |(f, r)| (f, Some(r)));
        let old = RENAMED.iter().find(|(_, new)| *new == first).map_or(first, |(old, _)| old);
        rest.map_or_else(|| old.to_owned(), |rest| format!("{old}.{rest}"))
    }
}

fn rename(
    object: Value,
    direction: fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(fields) = object else { return object };
    let mut renamed = Map::new();
    for (key, value) in fields {
        let new = RENAMED.iter().map(direction).find(|(from, _)| *from == key);
        renamed.insert(new.map_or(key, |(_, to)| to.to_owned()), value);
    }
    Value::Object(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back() {
        let served = json!({
            "metadata": { "name": "e" }, "eventTime": "2026-11-21T00:00:00.000000Z", "regarding": { "kind": "Pod" }, "note": "n",
            "reportingController": "c", "reportingInstance": "i", "deprecatedCount": 2, "reason": "R", "type": "Normal",
        });
        let stored = EventConversion.to_stored(served.clone());
        assert_eq!(stored["involvedObject"]["kind"], "Pod");
        assert_eq!((&stored["message"], &stored["count"]), (&json!("n"), &json!(2)));
        assert_eq!(EventConversion.from_stored(stored), served);
        for (field, _) in NEW_EVENT.fields {
            let stored = EventConversion.stored_field(field);
            assert!(EVENT.fields.iter().any(|(f, _)| *f == stored), "{field}: {stored}");
        }
    }
}
