//! Object metadata: what the engine asks of every kind, and templates of their pods.

use rimward_api::{FieldError, names};
use serde_json::Value;

use crate::kind::Kind;
use crate::path::{Errors, Path};
use crate::read::{Read, members};

const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// The metadata rules for a create. `generateName` must have become a name before.
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (meta, path) = (object.at("metadata"), Path::Root.field("metadata"));
    let name_rule = |name: &str, prefix: bool| kind.hooks.validate_name(name, prefix);
    let finalizers = Finalizers::of(kind);
    object_meta_with(meta, kind.namespaced(), &name_rule, finalizers, &path, &mut errors);
    errors.into_vec()
}

/// The metadata rules for an update.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let e = &mut errors;
    let (meta, before, path) =
        (new.at("metadata"), old.at("metadata"), Path::Root.field("metadata"));
    common(meta, Finalizers::of(kind), &path, e);
    let new_finalizers =
        meta.list("finalizers").iter().filter(|f| !before.list("finalizers").contains(f));
    if before.has("deletionTimestamp") {
        let added: Vec<&str> = new_finalizers.filter_map(Value::as_str).collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            e.forbidden(&path.field("finalizers"), &why);
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
        super::immutable(meta.at(field), before.at(field), &path.field(field), e);
    }
    errors.into_vec()
}

/// Which names of finalizers are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalizers {
    /// With a domain, or one of Kubernetes' own.
    Known,
    /// Any qualified name: custom resources.
    Any,
}

impl Finalizers {
    fn of(kind: &Kind) -> Self {
        if kind.hooks.any_finalizer() { Self::Any } else { Self::Known }
    }
}

/// `ValidateObjectMeta`: of an object, or of a template in it (which has no namespace rule).
pub fn object_meta(
    meta: &Value,
    namespaced: bool,
    name_rule: &dyn Fn(&str, bool) -> Vec<String>,
    path: &Path<'_>,
    e: &mut Errors,
) {
    object_meta_with(meta, namespaced, name_rule, Finalizers::Known, path, e);
}

/// As [`object_meta`], for kinds whose finalizers have a rule of their own.
pub fn object_meta_with(
    meta: &Value,
    namespaced: bool,
    name_rule: &dyn Fn(&str, bool) -> Vec<String>,
    finalizers: Finalizers,
    path: &Path<'_>,
    e: &mut Errors,
) {
    let (name, prefix) = (meta.text("name"), meta.text("generateName"));
    if !prefix.is_empty() {
        e.invalid_each(&path.field("generateName"), prefix, name_rule(prefix, true));
    }
    if name.is_empty() {
        e.required(&path.field("name"), "name or generateName is required");
    } else {
        e.invalid_each(&path.field("name"), name, name_rule(name, false));
    }
    let namespace = meta.text("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => e.required(&path.field("namespace"), ""),
        (true, false) => {
            e.invalid_each(&path.field("namespace"), namespace, names::dns1123_label(namespace))
        }
        (false, false) => e.forbidden(&path.field("namespace"), "not allowed on this type"),
        (false, true) => {}
    }
    super::not_negative(meta.at("generation"), &path.field("generation"), e);
    common(meta, finalizers, path, e);
}

/// `ValidateTemplateObjectMeta`: of what a claim is made after, labels and annotations alone may be said.
pub fn template(meta: &Value, path: &Path<'_>, e: &mut Errors) {
    annotations(meta.at("annotations"), &path.field("annotations"), e);
    labels(meta.at("labels"), &path.field("labels"), e);
    for (field, shown) in NOT_OF_TEMPLATES {
        if !crate::read::is_empty(meta.at(field)) {
            e.forbidden(&path.field(shown), "cannot be set");
        }
    }
}

/// The rest of the metadata, and how Kubernetes writes it here.
const NOT_OF_TEMPLATES: [(&str, &str); 12] = [
    ("name", "name"),
    ("generateName", "generateName"),
    ("namespace", "namespace"),
    ("selfLink", "selfLink"),
    ("uid", "uID"),
    ("resourceVersion", "resourceVersion"),
    ("generation", "generation"),
    ("creationTimestamp", "creationTimestamp"),
    ("deletionTimestamp", "deletionTimestamp"),
    ("deletionGracePeriodSeconds", "deletionGracePeriodSeconds"),
    ("ownerReferences", "ownerReferences"),
    ("finalizers", "finalizers"),
];

/// What a create and an update both ask.
fn common(meta: &Value, rule: Finalizers, path: &Path<'_>, e: &mut Errors) {
    labels(meta.at("labels"), &path.field("labels"), e);
    annotations(meta.at("annotations"), &path.field("annotations"), e);
    owners(meta.list("ownerReferences"), &path.field("ownerReferences"), e);
    finalizers(meta.list("finalizers"), rule, &path.field("finalizers"), e);
}

/// Keys are qualified names, values label values.
pub fn labels(labels: &Value, path: &Path<'_>, e: &mut Errors) {
    for (key, value) in members(labels) {
        e.invalid_each(path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        e.invalid_each(path, value, names::label_value(value));
    }
}

pub fn annotations(annotations: &Value, path: &Path<'_>, e: &mut Errors) {
    let mut bytes = 0;
    for (key, value) in members(annotations) {
        // The rule is that of labels, only that keys may have capitals in their prefix too.
        e.invalid_each(path, key, names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_MAX_BYTES {
        e.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
}

fn owners(owners: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut controller: Option<String> = None;
    // Which owner it is, Kubernetes does not say.
    let at = path;
    for owner in owners {
        let version = owner.text("apiVersion");
        if version.is_empty() || rimward_api::GroupVersion::parse(version).is_none() {
            e.invalid(&at.field("apiVersion"), version, "version must not be empty");
        }
        for field in ["kind", "name", "uid"] {
            if owner.text(field).is_empty() {
                e.invalid(&at.field(field), "", "must not be empty");
            }
        }
        if version == "v1" && owner.text("kind") == "Event" {
            e.invalid(at, owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.flag("controller") {
            let this = format!("{}/{}", owner.text("kind"), owner.text("name"));
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    e.invalid(path, Value::Array(owners.to_vec()), &why);
                }
                None => controller = Some(this),
            }
        }
    }
}

pub const NOT_STANDARD: &str =
    "name is neither a standard finalizer name nor is it fully qualified";

/// Finalizers without a path that are known all the same.
pub const PLAIN_FINALIZERS: [&str; 4] =
    ["kubernetes", "orphan", "foregroundDeletion", crate::custom::definition::CLEANUP];

fn finalizers(finalizers: &[Value], rule: Finalizers, path: &Path<'_>, e: &mut Errors) {
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    for (i, finalizer) in finalizers.iter().filter_map(Value::as_str).enumerate() {
        finalizer_name(finalizer, path, e);
        // The registry's rule comes on top: a name without a domain must be one that is known.
        if rule == Finalizers::Known
            && !finalizer.contains('/')
            && !PLAIN_FINALIZERS.contains(&finalizer)
        {
            e.invalid(&path.index(i), finalizer, NOT_STANDARD);
        }
    }
    if has("orphan") && has("foregroundDeletion") {
        e.invalid(
            path,
            Value::Array(finalizers.to_vec()),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

/// The form of a finalizer's name.
pub fn finalizer_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    e.invalid_each(path, name, names::qualified_name(name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metadata() {
        let catalog = crate::Catalog::builtin();
        let pod = catalog.by_kind("", "v1", "Pod").unwrap();
        #[track_caller]
        fn check(kind: &Kind, meta: Value, fields: &[&str]) {
            let errors = validate_create(kind, &json!({ "metadata": meta }));
            let found: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
            assert_eq!(found, fields, "{errors:?}");
        }
        check(pod, json!({ "name": "a", "namespace": "b", "labels": { "x": "y" } }), &[]);
        check(pod, json!({}), &["metadata.name", "metadata.namespace"]);
        check(
            pod,
            json!({ "name": "a", "namespace": "b", "generateName": "a-", "annotations": { "x y": "" } }),
            &["metadata.annotations"],
        );
        check(
            pod,
            json!({ "name": "a", "namespace": "b", "annotations": { "x": "v".repeat(300_000) } }),
            &["metadata.annotations"],
        );
        check(
            pod,
            json!({ "name": "a", "namespace": "b", "finalizers": ["x"] }),
            &["metadata.finalizers[0]"],
        );
        check(
            pod,
            json!({ "name": "a", "namespace": "b", "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n" }] }),
            &["metadata.ownerReferences.uid"],
        );
        let node = catalog.by_kind("", "v1", "Node").unwrap();
        check(node, json!({ "name": "a", "namespace": "b" }), &["metadata.namespace"]);
    }

    #[test]
    fn what_an_update_may_not_change() {
        let old = json!({ "metadata": { "name": "a", "uid": "1" } });
        let new = json!({ "metadata": { "name": "a", "uid": "2" } });
        let catalog = crate::Catalog::builtin();
        let pod = catalog.by_kind("", "v1", "Pod").unwrap();
        let errors = validate_update(pod, &new, &old);
        assert_eq!(errors[0].to_string(), "metadata.uid: Invalid value: \"2\": field is immutable");
    }
}
