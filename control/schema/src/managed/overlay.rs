//! Merging without owning: what a mutating admission policy applies to an object.
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/#patch-type-apply-configuration>

use serde_json::Value;

use super::merge::merge;
use super::shape::{Place, Shape};
use crate::model::{DefId, Model, Type};

/// The object with the patch merged in by the rules of the schema: fields one by one, lists by their
/// keys. Nobody comes to own anything by it.
///
/// # Errors
/// A field that the schema does not have, or a list, map or object that is only ever set as a whole: who
/// means to change a part of one would drop the rest.
pub fn overlay(
    model: &Model,
    definition: DefId,
    object: &Value,
    patch: &Value,
) -> Result<Value, String> {
    let ty = Type::Object(definition);
    let place = Place::new(model, &ty);
    let mut found = Found::default();
    look(place, patch, String::new(), &mut found);
    if !found.unknown.is_empty() {
        let unknown: Vec<String> =
            found.unknown.iter().map(|p| format!("{p}: field not declared in schema")).collect();
        return Err(format!(
            "failed to convert patch object to typed object: {}",
            unknown.join("; ")
        ));
    }
    if !found.atomic.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            found.atomic.join(", ")
        ));
    }
    Ok(merge(place, Some(object), Some(patch)).unwrap_or_else(|| object.clone()))
}

#[derive(Default)]
struct Found {
    atomic: Vec<String>,
    unknown: Vec<String>,
}

fn look(place: Place<'_>, value: &Value, path: String, found: &mut Found) {
    let shape = place.shape(Some(value));
    match (&shape, value) {
        (Shape::Leaf, Value::Object(_) | Value::Array(_)) => found.atomic.push(path),
        (Shape::Object(_) | Shape::Map(_), Value::Object(map)) => {
            for (key, value) in map {
                let (below, declared) = place.key(&shape, key);
                let path = format!("{path}.{key}");
                match declared || !matches!(shape, Shape::Object(_)) {
                    true => look(below, value, path, found),
                    false => found.unknown.push(path),
                }
            }
        }
        (Shape::List(item, _), Value::Array(items)) => {
            for (i, value) in items.iter().enumerate() {
                look(Place::new(place.model, item), value, format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}
