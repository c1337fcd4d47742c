//! Event: stored as core/v1, served as events.k8s.io/v1 too.

use rimward_api::names;
use serde_json::{Map, Value};

use crate::kind::Conversion;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::Read;
use crate::rules::{Field, Rules};

pub const EVENT: Rules = Rules {
    create: event,
    update: |new, _, e| event(new, e),
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
    update: |new, _, e| event(new, e),
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

/// What an event is about must be in the event's own namespace; without one, in `default`.
fn event(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("involvedObject");
    let (namespace, about) =
        (object.at("metadata").text("namespace"), object.at("involvedObject").text("namespace"));
    let fits = match about {
        "" => matches!(namespace, "" | "default" | "kube-system"),
        _ => namespace == about,
    };
    if !fits {
        e.invalid(&path.field("namespace"), about, "does not match event.namespace");
    }
    if !namespace.is_empty() {
        e.invalid_each(
            &Path::Root.field("namespace"),
            namespace,
            names::dns1123_subdomain(namespace),
        );
    }
}

/// events.k8s.io asks for more than the old group.
fn new_event(object: &Value, e: &mut Errors) {
    event(object, e);
    let controller = object.text("reportingComponent");
    if !object.has("eventTime") {
        e.required(&Path::Root.field("eventTime"), "");
    }
    if controller.is_empty() {
        e.required(&Path::Root.field("reportingController"), "");
    } else {
        e.invalid_each(
            &Path::Root.field("reportingController"),
            controller,
            names::qualified_name(controller),
        );
    }
    for (field, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        match object.text(field) {
            "" => e.required(&Path::Root.field(field), ""),
            text if text.len() > max => e.invalid(
                &Path::Root.field(field),
                "",
                &format!("can have at most {max} characters"),
            ),
            _ => {}
        }
    }
    if object.text("message").len() > 1024 {
        e.invalid(&Path::Root.field("message"), "", "can have at most 1024 characters");
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
