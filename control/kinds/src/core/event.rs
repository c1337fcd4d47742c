//! Event: stored as core/v1, served as events.k8s.io/v1 too.

use rimward_api::names;
use serde_json::{Map, Value};

use crate::check;
use crate::kind::Conversion;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, same};
use crate::rules::{Field, Rules};

const REPORTER_MAX_BYTES: usize = 128;
const NOTE_MAX_BYTES: usize = 1024;

pub const EVENT: Rules = Rules {
    create: |object, e| event(object, "reportingComponent", e),
    update: |new, _, e| event(new, "reportingComponent", e),
    // An event's name may be anything that fits into a path.
    name: crate::check::text::path_segment,
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
    update: update_new_event,
    name: names::dns1123_subdomain,
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

/// What is asked of every event (`legacyValidateEvent`). What an event is about must be in the event's
/// own namespace; without one, in `default`. One that has a time of its own says who saw it.
fn event(object: &Value, reporter: &str, e: &mut Errors) {
    let (namespace, about) =
        (object.at("metadata").text("namespace"), object.at("involvedObject").text("namespace"));
    let timed = object.has("eventTime");
    let fits = match about {
        "" if timed => matches!(namespace, "default" | "kube-system"),
        "" => matches!(namespace, "" | "default"),
        _ => timed || namespace == about,
    };
    if !fits {
        let path = Path::Root.field("involvedObject");
        e.invalid(&path.field("namespace"), about, "does not match event.namespace");
    }
    if timed {
        reported(object, reporter, e);
    }
    if !namespace.is_empty() {
        e.invalid_each(
            &Path::Root.field("namespace"),
            namespace,
            names::dns1123_subdomain(namespace),
        );
    }
}

fn reported(object: &Value, reporter: &str, e: &mut Errors) {
    let (controller, at) = (object.text("reportingComponent"), Path::Root.field(reporter));
    if controller.is_empty() {
        e.required(&at, "");
    }
    e.invalid_each(&at, controller, names::qualified_name(controller));
    let mut at_most = |field: &str, max: usize| {
        if object.text(field).len() > max {
            let why = format!("can have at most {max} characters");
            e.invalid(&Path::Root.field(field), "", &why);
        } else if object.text(field).is_empty() && field != "message" {
            e.required(&Path::Root.field(field), "");
        }
    };
    for field in ["reportingInstance", "action", "reason"] {
        at_most(field, REPORTER_MAX_BYTES);
    }
    at_most("message", NOTE_MAX_BYTES);
}

/// events.k8s.io asks for more than the old group.
fn new_event(object: &Value, e: &mut Errors) {
    event(object, "reportingController", e);
    series(object, e);
    if !object.has("eventTime") {
        e.required(&Path::Root.field("eventTime"), "");
    }
    let kind = object.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        e.invalid(&Path::Root.field("type"), "", &format!("has invalid value: {kind}"));
    }
    let source = ["component", "host"].map(|f| !object.at("source").text(f).is_empty());
    for (field, given) in [
        ("firstTimestamp", object.has("firstTimestamp")),
        ("lastTimestamp", object.has("lastTimestamp")),
        ("count", object.int("count").unwrap_or_default() != 0),
        ("source", source.contains(&true)),
    ] {
        if given {
            e.invalid(&Path::Root.field(field), "", "needs to be unset");
        }
    }
}

fn series(object: &Value, e: &mut Errors) {
    let series = object.at("series");
    if !series.is_object() {
        return;
    }
    if series.int("count").unwrap_or_default() < 2 {
        e.invalid(&Path::Root.field("series.count"), "", "should be at least 2");
    }
    if !series.has("lastObservedTime") {
        e.required(&Path::Root.field("series.lastObservedTime"), "");
    }
}

/// Of what happened, only how often may change.
fn update_new_event(new: &Value, old: &Value, e: &mut Errors) {
    event(new, "reportingController", e);
    if new.at("series") != old.at("series") {
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
            let at = Path::Root.field(shown);
            e.invalid(&at, new.at(field).clone(), check::IMMUTABLE);
        }
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
    }
}
