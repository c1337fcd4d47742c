//! Rules of `metadata` that hold for every kind, and the parts of it that the server owns.

use jiff::Timestamp;
use rimward_api::meta::str_at;
use rimward_api::{FieldError, names};
use rimward_control_kinds::Kind;
use serde_json::{Map, Value, json};

const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Letters and digits that cannot spell a word.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX_LEN: usize = 5;
const NAME_PREFIX_MAX: usize = 63 - NAME_SUFFIX_LEN;

/// A time as metadata carries it: whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name for `generateName`.
pub fn generate_name(prefix: &str) -> String {
    let mut prefix = prefix;
    if prefix.len() > NAME_PREFIX_MAX {
        let end = (0..=NAME_PREFIX_MAX).rev().find(|i| prefix.is_char_boundary(*i)).unwrap_or(0);
        prefix = &prefix[..end];
    }
    format!("{prefix}{}", random_suffix())
}

pub fn random_suffix() -> String {
    (0..NAME_SUFFIX_LEN)
        .map(|_| NAME_ALPHABET[rand::random_range(0..NAME_ALPHABET.len())] as char)
        .collect()
}

/// The metadata object, made when it is missing.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("was just made one")
}

/// Sets what the server sets at creation, and drops what a client may not.
pub fn fill_for_create(object: &mut Value, namespace: &str, generation: bool, now: Timestamp) {
    let meta = metadata(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        meta.remove(field);
    }
    if !namespace.is_empty() {
        meta.insert("namespace".into(), namespace.into());
    }
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".into(), time(now).into());
    if generation {
        meta.insert("generation".into(), 1.into());
    }
    let unnamed = meta.get("name").and_then(Value::as_str).unwrap_or_default().is_empty();
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if unnamed && !prefix.is_empty() {
        let name = generate_name(prefix);
        meta.insert("name".into(), name.into());
    }
}

/// Takes over from the stored object what an update cannot change. The uid is the client's, if it
/// sent one: it was a precondition, checked before.
pub fn carry_over(new: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let meta = metadata(new);
    for field in ["creationTimestamp", "deletionTimestamp", "generation", "uid"] {
        match old.get(field) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.remove(field),
        };
    }
    if let Some(grace) = old.get("deletionGracePeriodSeconds") {
        meta.entry("deletionGracePeriodSeconds").or_insert_with(|| grace.clone());
    } else {
        meta.remove("deletionGracePeriodSeconds");
    }
    meta.remove("selfLink");
    for field in ["name", "namespace"] {
        let unset = meta.get(field).and_then(Value::as_str).unwrap_or_default().is_empty();
        if let Some(value) = old.get(field)
            && unset
        {
            meta.insert(field.into(), value.clone());
        }
    }
}

/// What a write to `/status` leaves alone in the metadata: whose the object is.
pub fn keep_for_status(new: &mut Value, old: &Value) {
    let meta = metadata(new);
    match old["metadata"].get("ownerReferences") {
        Some(owners) => meta.insert("ownerReferences".into(), owners.clone()),
        None => meta.remove("ownerReferences"),
    };
}

pub fn validate_create(object: &Value, kind: &Kind) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let meta = &object["metadata"];
    let text = |field: &str| str_at(meta, &[field]).unwrap_or_default();
    let (name, prefix, namespace) = (text("name"), text("generateName"), text("namespace"));
    let mut names_at = |field: &str, value: &str, texts: Vec<String>| {
        let json = json!(value);
        errors.extend(
            texts.iter().map(|t| FieldError::invalid(format!("metadata.{field}"), &json, t)),
        );
    };
    if !prefix.is_empty() {
        names_at("generateName", prefix, kind.hooks.validate_name(prefix, true));
    }
    if !name.is_empty() {
        names_at("name", name, kind.hooks.validate_name(name, false));
        // Every name is a path segment, whatever else it may be.
        names_at("name", name, path_segment(name));
    } else {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    }
    match (kind.namespaced(), namespace) {
        (true, "") => errors.push(FieldError::required("metadata.namespace", "")),
        (true, ns) => {
            let json = json!(ns);
            let texts = names::dns1123_label(ns);
            errors
                .extend(texts.iter().map(|t| FieldError::invalid("metadata.namespace", &json, t)));
        }
        (false, "") => {}
        (false, _) => {
            errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"))
        }
    }
    validate_shared(meta, &mut errors);
    errors
}

fn path_segment(name: &str) -> Vec<String> {
    let mut texts = Vec::new();
    if matches!(name, "." | "..") {
        texts.push(format!("may not be '{name}'"));
    }
    for wrong in ['/', '%'] {
        if name.contains(wrong) {
            texts.push(format!("may not contain '{wrong}'"));
        }
    }
    texts
}

pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (new, old) = (&new["metadata"], &old["metadata"]);
    if old.get("deletionTimestamp").is_some() {
        let before: Vec<&Value> = list(old, "finalizers").collect();
        let added: Vec<&str> = list(new, "finalizers")
            .filter(|f| !before.contains(f))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}", quoted(&added)),
            ));
        }
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let (n, o) = (new.get(field), old.get(field));
        if n != o {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                n.unwrap_or(&Value::Null),
                "field is immutable",
            ));
        }
    }
    validate_shared(new, &mut errors);
    errors
}

fn quoted(texts: &[&str]) -> String {
    texts.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>().join(", ")
}

fn list<'a>(meta: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    meta.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn entries<'a>(meta: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = meta.get(field).and_then(Value::as_object).into_iter().flatten();
    map.map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

fn validate_shared(meta: &Value, errors: &mut Vec<FieldError>) {
    if meta.get("generation").and_then(Value::as_i64).is_some_and(|g| g < 0) {
        errors.push(FieldError::invalid(
            "metadata.generation",
            &meta["generation"],
            "must be greater than or equal to 0",
        ));
    }
    let invalid = |field: &str, value: &str, texts: Vec<String>| {
        let json = json!(value);
        texts.into_iter().map(|t| FieldError::invalid(field, &json, &t)).collect::<Vec<_>>()
    };
    for (key, value) in entries(meta, "labels") {
        errors.extend(invalid("metadata.labels", key, names::qualified_name(key)));
        errors.extend(invalid("metadata.labels", value, names::label_value(value)));
    }
    let mut bytes = 0;
    for (key, value) in entries(meta, "annotations") {
        bytes += key.len() + value.len();
        let texts = names::qualified_name(&key.to_lowercase());
        errors.extend(invalid("metadata.annotations", key, texts));
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
    validate_owners(meta, errors);
    let mut orphan_and_foreground = (false, false);
    for (i, finalizer) in list(meta, "finalizers").filter_map(Value::as_str).enumerate() {
        orphan_and_foreground.0 |= finalizer == "orphan";
        orphan_and_foreground.1 |= finalizer == "foregroundDeletion";
        errors.extend(invalid("metadata.finalizers", finalizer, names::qualified_name(finalizer)));
        let standard = matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
        if !finalizer.contains('/') && !standard {
            errors.push(FieldError::invalid(
                format!("metadata.finalizers[{i}]"),
                &json!(finalizer),
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    if orphan_and_foreground == (true, true) {
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            &meta["finalizers"],
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

fn validate_owners(meta: &Value, errors: &mut Vec<FieldError>) {
    let mut controller: Option<&str> = None;
    for owner in list(meta, "ownerReferences") {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let at = |field: &str| format!("metadata.ownerReferences.{field}");
        match rimward_api::GroupVersion::parse(text("apiVersion")) {
            None => errors.push(FieldError::invalid(
                at("apiVersion"),
                &json!(text("apiVersion")),
                "version must not be empty",
            )),
            Some(gv) if gv.group.is_empty() && text("kind") == "Event" => {
                errors.push(FieldError::invalid(
                    "metadata.ownerReferences",
                    owner,
                    "/v1, Kind=Event is disallowed from being an owner",
                ))
            }
            Some(_) => {}
        }
        for (field, title) in [("kind", "kind"), ("name", "name"), ("uid", "uid")] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(
                    at(field),
                    &json!(""),
                    &format!("{title} must not be empty"),
                ));
            }
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if let Some(first) = controller {
                errors.push(FieldError::invalid(
                    "metadata.ownerReferences",
                    &meta["ownerReferences"],
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        text("name")
                    ),
                ));
            } else {
                controller = Some(text("name"));
            }
        }
    }
}

/// Whether two objects differ only in what [`rimward_control_schema::managed`] stamps with the time.
pub fn same_but_times(new: &Value, old: &Value) -> bool {
    let (Value::Object(n), Value::Object(o)) = (new, old) else { return new == old };
    let body = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key("metadata"));
    if body(n) != body(o) || n.iter().any(|(k, v)| k != "metadata" && o.get(k) != Some(v)) {
        return false;
    }
    let (Some(Value::Object(nm)), Some(Value::Object(om))) = (n.get("metadata"), o.get("metadata"))
    else {
        return n.get("metadata") == o.get("metadata");
    };
    let skip = |k: &String| k == "managedFields" || k == "resourceVersion";
    let count = |m: &Map<String, Value>| m.keys().filter(|k| !skip(k)).count();
    if count(nm) != count(om) || nm.iter().any(|(k, v)| !skip(k) && om.get(k) != Some(v)) {
        return false;
    }
    let managed = |m: &Map<String, Value>| -> Vec<Value> {
        let entries = m.get("managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
        let untimed = entries.into_iter().map(|mut e| {
            if let Some(e) = e.as_object_mut() {
                e.remove("time");
            }
            e
        });
        untimed.collect()
    };
    managed(nm) == managed(om)
}

/// Whether anything but metadata and status differs: what a new generation counts.
pub fn same_spec(new: &Value, old: &Value) -> bool {
    let outside =
        |k: &&String| !matches!(k.as_str(), "metadata" | "status" | "kind" | "apiVersion");
    let (Value::Object(n), Value::Object(o)) = (new, old) else { return new == old };
    n.keys().filter(outside).count() == o.keys().filter(outside).count()
        && n.keys().filter(outside).all(|k| n.get(k) == o.get(k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names() {
        let name = generate_name(&"é".repeat(40));
        assert!(name.len() <= 63, "{name}");
        assert_eq!(generate_name("a-").len(), 7);
    }

    #[test]
    fn no_op_writes_are_seen() {
        let old = json!({ "metadata": { "name": "x", "resourceVersion": "1", "managedFields": [{ "manager": "m", "time": "1" }] }, "spec": {} });
        let mut new = old.clone();
        new["metadata"]["managedFields"][0]["time"] = "2".into();
        new["metadata"].as_object_mut().expect("an object").remove("resourceVersion");
        assert!(same_but_times(&new, &old));
        new["spec"]["a"] = 1.into();
        assert!(!same_but_times(&new, &old));
        assert!(!same_spec(&new, &old));
    }
}
