//! Pruning: fields that the schema does not know are dropped.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#field-pruning>

use std::fmt::Write as _;

use serde_json::Value;

use super::schema::{Additional, Schema};

/// Members that every resource has.
pub const TYPE_AND_METADATA: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// A step into a value.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Where the pruner is, and what it dropped.
struct Pruner<'u> {
    unknown: Option<&'u mut Vec<String>>,
}

/// A place, as a chain of steps on the stack: written out only when something is dropped.
struct Place<'a> {
    above: Option<&'a Place<'a>>,
    step: Option<Step<'a>>,
}

impl Place<'_> {
    const ROOT: Place<'static> = Place { above: None, step: None };

    fn write(&self, out: &mut String) {
        if let Some(above) = self.above {
            above.write(out);
        }
        match &self.step {
            None => {}
            Some(Step::Index(i)) => write!(out, "[{i}]").expect("writing to a String cannot fail"),
            Some(Step::Key(key)) => push_key(out, key),
        }
    }

    fn is_root(&self) -> bool {
        self.step.is_none()
    }
}

fn push_key(out: &mut String, key: &str) {
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(key);
}

/// Prunes a whole resource, whose type and metadata are left alone. The dropped fields are told in
/// `unknown`: `spec.ports[0].x`.
pub fn prune_resource(object: &mut Value, schema: &Schema, unknown: Option<&mut Vec<String>>) {
    let mut pruner = Pruner { unknown };
    pruner.prune(object, Some(schema), true, &Place::ROOT);
    if let Some(unknown) = pruner.unknown {
        unknown.sort_unstable();
    }
}

/// Prunes a value within a resource: a default.
pub fn prune(value: &mut Value, schema: &Schema) {
    Pruner { unknown: None }.prune(value, Some(schema), schema.embedded, &Place::ROOT);
}

impl Pruner<'_> {
    fn prune(
        &mut self,
        value: &mut Value,
        schema: Option<&Schema>,
        resource: bool,
        at: &Place<'_>,
    ) {
        let preserve = schema.is_some_and(|s| s.preserve);
        match value {
            Value::Object(map) => {
                let mut dropped = Vec::new();
                for (key, member) in map.iter_mut() {
                    if resource && TYPE_AND_METADATA.contains(&key.as_str()) {
                        continue;
                    }
                    let below = Place { above: Some(at), step: Some(Step::Key(key)) };
                    let known = schema.map(|s| (s.properties.get(key.as_str()), &s.additional));
                    match known {
                        Some((Some(property), _)) => {
                            self.prune(member, Some(property), property.embedded, &below);
                        }
                        Some((None, Some(Additional::Of(all)))) => {
                            self.prune(member, Some(all), all.embedded, &below);
                        }
                        Some((None, Some(Additional::Any(_)))) if preserve => {}
                        Some((None, Some(Additional::Any(_)))) => {
                            self.prune(member, None, false, &below);
                        }
                        _ if preserve => {}
                        _ => dropped.push(key.clone()),
                    }
                }
                for key in dropped {
                    if !(at.is_root() && TYPE_AND_METADATA.contains(&key.as_str())) {
                        self.tell(at, &key);
                    }
                    map.remove(&key);
                }
            }
            Value::Array(items) => {
                let schema = schema.and_then(|s| s.items.as_deref());
                if preserve && schema.is_none() {
                    return;
                }
                for (i, item) in items.iter_mut().enumerate() {
                    let below = Place { above: Some(at), step: Some(Step::Index(i)) };
                    self.prune(item, schema, schema.is_some_and(|s| s.embedded), &below);
                }
            }
            _ => {}
        }
    }

    fn tell(&mut self, at: &Place<'_>, key: &str) {
        /// Kubernetes stops counting strict errors here.
        const TOLD_MAX: usize = 100;
        let Some(unknown) = self.unknown.as_mut().filter(|u| u.len() < TOLD_MAX) else { return };
        let mut path = String::new();
        at.write(&mut path);
        push_key(&mut path, key);
        unknown.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_go() {
        #[track_caller]
        fn check(schema: Value, mut object: Value, expected: Value, unknown: &[&str]) {
            let mut told = Vec::new();
            prune_resource(&mut object, &Schema::read(&schema), Some(&mut told));
            assert_eq!(object, expected);
            assert_eq!(told, unknown);
        }
        let schema = json!({ "type": "object", "properties": {
            "spec": { "type": "object", "properties": {
                "n": { "type": "integer" },
                "list": { "type": "array", "items": { "type": "object", "properties": { "a": {} } } },
                "map": { "type": "object", "additionalProperties": { "type": "object", "properties": { "a": {} } } },
                "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": { "known": { "type": "object", "properties": { "a": {} } } } },
                "pod": { "type": "object", "x-kubernetes-embedded-resource": true, "properties": { "spec": { "type": "object" } } },
            } },
        } });
        check(
            schema,
            json!({ "apiVersion": "v1", "kind": "K", "metadata": { "x": 1 }, "other": 1, "spec": {
                "n": 1, "x": 1, "list": [{ "a": 1, "b": 1 }], "map": { "k": { "a": 1, "b": 1 } },
                "free": { "x": { "y": 1 }, "known": { "a": 1, "b": 1 } },
                "pod": { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "x" }, "spec": { "y": 1 }, "z": 1 },
            } }),
            json!({ "apiVersion": "v1", "kind": "K", "metadata": { "x": 1 }, "spec": {
                "n": 1, "list": [{ "a": 1 }], "map": { "k": { "a": 1 } },
                "free": { "x": { "y": 1 }, "known": { "a": 1 } },
                "pod": { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "x" }, "spec": {} },
            } }),
            &[
                "other",
                "spec.free.known.b",
                "spec.list[0].b",
                "spec.map.k.b",
                "spec.pod.spec.y",
                "spec.pod.z",
                "spec.x",
            ],
        );
        let preserving = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        check(preserving, json!({ "a": { "b": [1] } }), json!({ "a": { "b": [1] } }), &[]);
    }
}
