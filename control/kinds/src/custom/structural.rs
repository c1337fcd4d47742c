//! Structural schemas: every value has a place in the structure, and value validations only restrict
//! what is there.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>

use rimward_api::FieldError;

use super::schema::{Additional, Schema};
use crate::path::{Errors, Path};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being structural, sorted by text as Kubernetes does.
pub fn validate(schema: &Schema, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Errors::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    let mut errors = errors.into_vec();
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn invariants(s: &Schema, level: Level, path: &Path<'_>, e: &mut Errors) {
    match &s.items {
        None if &*s.kind == "array" => e.required(&path.field("items"), "must be specified"),
        None => {}
        Some(items) => invariants(items, Level::Item, &path.field("items"), e),
    }
    let properties = path.field("properties");
    for (name, property) in &s.properties {
        invariants(property, Level::Field, &properties.key(name), e);
    }
    if let Some(additional) = &s.additional {
        let at = path.field("additionalProperties");
        if level == Level::Root {
            e.forbidden(&at, "must not be used at the root");
        }
        if let Additional::Of(schema) = additional {
            invariants(schema, Level::Field, &at, e);
        }
    }
    extensions(s, path, e);
    let first = s.all_of.first();
    let skip = Skip {
        any_of: is_int_or_string(&s.any_of),
        any_of_in_first: first.is_some_and(|f| is_int_or_string(&f.any_of)),
    };
    validations(s, skip, path, e);
    typed(s, level, path, e);
    metadata(s, level, path, e);
}

fn extensions(s: &Schema, path: &Path<'_>, e: &mut Errors) {
    if s.int_or_string {
        let must = "must be false if x-kubernetes-int-or-string is true";
        if s.preserve {
            e.invalid(&path.field("x-kubernetes-preserve-unknown-fields"), true, must);
        }
        if s.embedded {
            e.invalid(&path.field("x-kubernetes-embedded-resource"), true, must);
        }
    }
}

fn typed(s: &Schema, level: Level, path: &Path<'_>, e: &mut Errors) {
    let at = path.field("type");
    if s.embedded && &*s.kind != "object" {
        let must = "must be object if x-kubernetes-embedded-resource is true";
        match &*s.kind {
            "" => e.required(&at, must),
            kind => e.invalid(&at, kind, must),
        }
    } else if s.kind.is_empty() && !s.int_or_string && !s.preserve {
        let must = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        e.required(&at, must);
    }
    if s.embedded && s.additional.is_some() {
        let must = "must not be used if x-kubernetes-embedded-resource is set";
        e.forbidden(&path.field("additionalProperties"), must);
    }
    if level == Level::Root && !matches!(&*s.kind, "" | "object") {
        e.invalid(&at, &*s.kind, "must be object at the root");
    }
}

fn metadata(s: &Schema, level: Level, path: &Path<'_>, e: &mut Errors) {
    let resource = level == Level::Root || s.embedded;
    let properties = path.field("properties");
    for name in ["kind", "apiVersion"] {
        if let Some(property) = s.properties.get(name).filter(|p| resource && &*p.kind != "string")
        {
            e.invalid(&properties.key(name).field("type"), &*property.kind, "must be string");
        }
    }
    if let Some(metadata) = s.properties.get("metadata") {
        let at = properties.key("metadata");
        if resource && &*metadata.kind != "object" {
            e.invalid(&at.field("type"), &*metadata.kind, "must be object");
        }
        if level == Level::Root && !restricts_names_only(metadata) {
            let must = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            e.forbidden(&at, must);
        }
    }
    if s.embedded && !s.preserve && s.properties.is_empty() {
        let must = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        e.required(&properties, must);
    }
}

/// Whether a schema of metadata says nothing but what a name must be.
fn restricts_names_only(s: &Schema) -> bool {
    let names = s.properties.keys().all(|k| matches!(&**k, "name" | "generateName"));
    let limits = &s.limits;
    let unlimited = limits.properties_max.is_none()
        && limits.properties_min.is_none()
        && limits.values.is_none()
        && s.required.is_empty()
        && s.junctors().next().is_none();
    names
        && unlimited
        && s.items.is_none()
        && s.additional.is_none()
        && !s.nullable
        && !s.preserve
        && !s.embedded
        && !s.int_or_string
        && s.map_type.is_none()
        && s.validations.is_empty()
}

/// The one pattern of types under a junctor that is allowed.
fn is_int_or_string(any_of: &[Schema]) -> bool {
    let bare = |s: &Schema, kind: &str| {
        &*s.kind == kind
            && s.junctors().next().is_none()
            && s.properties.is_empty()
            && s.items.is_none()
    };
    matches!(any_of, [a, b] if bare(a, "integer") && bare(b, "string"))
}

#[derive(Clone, Copy, Default)]
struct Skip {
    any_of: bool,
    any_of_in_first: bool,
}

fn validations(s: &Schema, skip: Skip, path: &Path<'_>, e: &mut Errors) {
    let lists = [("anyOf", &s.any_of), ("allOf", &s.all_of), ("oneOf", &s.one_of)];
    for (name, list) in lists {
        if name == "anyOf" && skip.any_of {
            continue;
        }
        let at = path.field(name);
        for (i, one) in list.iter().enumerate() {
            let any_of = name == "allOf" && i == 0 && skip.any_of_in_first;
            nested(one, Skip { any_of, any_of_in_first: false }, &at.index(i), e);
        }
    }
    if let Some(not) = &s.not {
        nested(not, Skip::default(), &path.field("not"), e);
    }
    if let Some(pattern) = &s.limits.pattern
        && let Err(why) = &pattern.compiled
    {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        e.invalid(&path.field("pattern"), &*pattern.text, &why);
    }
}

/// What must not stand under a junctor.
fn nested(s: &Schema, skip: Skip, path: &Path<'_>, e: &mut Errors) {
    validations(s, skip, path, e);
    if let Some(items) = &s.items {
        nested(items, Skip::default(), &path.field("items"), e);
    }
    let properties = path.field("properties");
    for (name, property) in &s.properties {
        nested(property, Skip::default(), &properties.key(name), e);
    }
    let mut forbid = |field: &str, present: bool, must: &str| {
        if present {
            e.forbidden(&path.field(field), must);
        }
    };
    let additional = !matches!(s.additional, None | Some(Additional::Any(false)));
    let (empty, undefined, not) = (
        "must be empty to be structural",
        "must be undefined to be structural",
        "must be false to be structural",
    );
    forbid("type", !s.kind.is_empty(), empty);
    forbid("additionalProperties", additional, undefined);
    forbid("default", s.default.is_some(), undefined);
    forbid("nullable", s.nullable, not);
    forbid("x-kubernetes-preserve-unknown-fields", s.preserve, not);
    forbid("x-kubernetes-embedded-resource", s.embedded, not);
    forbid("x-kubernetes-int-or-string", s.int_or_string, not);
    forbid("x-kubernetes-list-map-keys", !s.list_keys.is_empty(), empty);
    forbid("x-kubernetes-list-type", s.list_type.is_some(), undefined);
    forbid("x-kubernetes-map-type", s.map_type.is_some(), undefined);
    forbid("x-kubernetes-validations", !s.validations.is_empty(), empty);
    if s.properties.contains_key("metadata") {
        e.forbidden(&properties.key("metadata"), "must not be specified in a nested context");
    }
}

/// Whether all that `v` validates has its place in the structure `s`.
fn complete(v: &Schema, s: Option<&Schema>, at: &Path<'_>, from: &Path<'_>, e: &mut Errors) {
    if let Some(not) = &v.not {
        nested_complete(not, s, at, &from.field("not"), e);
    }
    for (name, list) in [("allOf", &v.all_of), ("anyOf", &v.any_of), ("oneOf", &v.one_of)] {
        let from = from.field(name);
        for (i, one) in list.iter().enumerate() {
            nested_complete(one, s, at, &from.index(i), e);
        }
    }
}

fn nested_complete(v: &Schema, s: Option<&Schema>, at: &Path<'_>, from: &Path<'_>, e: &mut Errors) {
    let Some(s) = s else {
        return e.required(at, &format!("because it is defined in {from}"));
    };
    complete(v, Some(s), at, from, e);
    if let Some(items) = &v.items {
        let (at, from) = (at.field("items"), from.field("items"));
        nested_complete(items, s.items.as_deref(), &at, &from, e);
    }
    let (properties, defined) = (at.field("properties"), from.field("properties"));
    for (name, property) in &v.properties {
        nested_complete(
            property,
            s.properties.get(name),
            &properties.key(name),
            &defined.key(name),
            e,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_is_structural() {
        #[track_caller]
        fn check(schema: Value, expected: &[&str]) {
            let errors = validate(&Schema::read(&schema), &Path::Root.field("s"));
            let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(shown, expected);
        }
        check(json!({ "type": "object" }), &[]);
        check(json!({}), &["s.type: Required value: must not be empty at the root"]);
        check(
            json!({ "type": "string" }),
            &["s.type: Invalid value: \"string\": must be object at the root"],
        );
        check(
            json!({ "type": "object", "properties": { "a": { "type": "array" }, "b": {} } }),
            &[
                "s.properties[a].items: Required value: must be specified",
                "s.properties[b].type: Required value: must not be empty for specified object fields",
            ],
        );
        check(
            json!({ "type": "object", "properties": { "a": { "x-kubernetes-int-or-string": true, "anyOf": [{ "type": "integer" }, { "type": "string" }] } } }),
            &[],
        );
        check(
            json!({ "type": "object", "anyOf": [{ "properties": { "a": { "type": "string", "nullable": true } } }] }),
            &[
                "s.anyOf[0].properties[a].nullable: Forbidden: must be false to be structural",
                "s.anyOf[0].properties[a].type: Forbidden: must be empty to be structural",
                "s.properties[a]: Required value: because it is defined in s.anyOf[0].properties[a]",
            ],
        );
        check(
            json!({ "type": "object", "properties": { "metadata": { "type": "object", "properties": { "name": { "type": "string" } } } } }),
            &[],
        );
        check(
            json!({ "type": "object", "properties": { "metadata": { "type": "object", "properties": { "labels": { "type": "object" } } } } }),
            &[
                "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ],
        );
        check(
            json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "[" } } }),
            &[
                "s.properties[a].pattern: Invalid value: \"[\": must be a valid regular expression, but isn't: error parsing regexp: unclosed character class: `[`",
            ],
        );
    }
}
