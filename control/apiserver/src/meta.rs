//! The parts of `metadata` that the server owns. (What a client may write into the rest,
//! `rimward_control_kinds::check::meta` says.)

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Letters and digits that cannot spell a word.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX_LEN: usize = 5;
const NAME_PREFIX_MAX: usize = 63 - NAME_SUFFIX_LEN;

/// A time as metadata carries it: whole seconds.
pub fn time(at: Timestamp) -> String {
    // Without a fraction it is printed so, and sooner than by a format that is read each time.
    Timestamp::from_second(at.as_second()).expect("it was a time before").to_string()
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
    // From the thread's generator, which asks the kernel now and then rather than each time.
    let uid = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    meta.insert("uid".into(), uid.to_string().into());
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

/// What a write to `/status` of a resource leaves alone in the metadata, as the strategies of Kubernetes'
/// registries have it.
pub fn keep_for_status((group, resource): (&str, &str), new: &mut Value, old: &Value) {
    let fields: &[&str] = match (group, resource) {
        ("", "pods") => &["ownerReferences"],
        ("apps", "deployments") => &["labels"],
        ("apiregistration.k8s.io" | "flowcontrol.apiserver.k8s.io", _)
        | ("admissionregistration.k8s.io", "validatingadmissionpolicies")
        | ("resource.k8s.io", "resourceclaims")
        | ("storage.k8s.io", "volumeattachments") => {
            &["annotations", "finalizers", "labels", "ownerReferences"]
        }
        _ => &[],
    };
    let meta = metadata(new);
    for field in fields {
        match old["metadata"].get(*field) {
            Some(value) => meta.insert((*field).into(), value.clone()),
            None => meta.remove(*field),
        };
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
    fn managed(meta: &Map<String, Value>) -> &[Value] {
        meta.get("managedFields").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
    let (nm, om) = (managed(nm), managed(om));
    nm.len() == om.len() && nm.iter().zip(om).all(|(new, old)| same_but_time(new, old))
}

/// Of two entries of managedFields.
pub fn same_but_time(new: &Value, old: &Value) -> bool {
    let (Value::Object(n), Value::Object(o)) = (new, old) else { return new == old };
    let said = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key("time"));
    said(n) == said(o) && n.iter().all(|(k, v)| k == "time" || o.get(k) == Some(v))
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
