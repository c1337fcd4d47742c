//! Defaults that a schema declares must be what the schema allows.

use serde_json::{Value, json};

use super::schema::Schema;
use super::{embedded, pruning, value};
use crate::path::{Errors, Path};

/// Checks every default below a whole schema.
pub fn validate(schema: &Schema, path: &Path<'_>, e: &mut Errors) {
    node(schema, true, false, path, e);
}

fn node(s: &Schema, root: bool, in_metadata: bool, path: &Path<'_>, e: &mut Errors) {
    let resource = root || s.embedded;
    let in_metadata = in_metadata && !resource;
    if let Some(default) = &s.default {
        check(default, s, in_metadata, &path.field("default"), e);
    }
    if let Some(items) = &s.items {
        node(items, false, in_metadata, &path.field("items"), e);
    }
    let properties = path.field("properties");
    for (name, property) in &s.properties {
        let meta = resource && pruning::TYPE_AND_METADATA.contains(&&**name);
        node(property, false, in_metadata || meta, &properties.key(name), e);
    }
}

fn check(default: &Value, s: &Schema, in_metadata: bool, at: &Path<'_>, e: &mut Errors) {
    if !in_metadata {
        let mut pruned = default.clone();
        pruning::prune(&mut pruned, s);
        if pruned != *default {
            e.invalid(at, default.clone(), "must not have unknown fields");
        }
        let mut coerced = default.clone();
        let wrong = embedded::Wrong::Refuse;
        if let Err((_, bad, why)) = embedded::coerce(&mut coerced, s, wrong, "", &mut None) {
            return e.invalid(at, bad, &why);
        }
        let before = e.len();
        embedded::validate(default, s, at, e);
        if e.len() > before {
            return;
        }
    } else if let Value::Object(_) = default {
        let mut metadata = default.clone();
        let wrong = embedded::Wrong::Refuse;
        if let Err(why) = embedded::coerce_metadata(&mut metadata, wrong, "", None) {
            return e.invalid(at, json!(default), &format!("must result in valid metadata: {why}"));
        }
    }
    for error in value::validate(default, None, s, &at.to_string()) {
        e.push(error);
    }
}
