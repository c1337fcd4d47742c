//! Strategic merge patch: merging by the merge keys of the Go types, with directives.
//! <https://github.com/kubernetes/community/blob/main/contributors/devel/sig-api-machinery/strategic-merge-patch.md>

use rimward_api::Status;
use serde_json::{Map, Value};

use super::{does_not_apply, parse};
use crate::decode::type_name;
use crate::model::{DefId, Field, Model, PatchStrategy, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// A strategic merge patch, driven by the merge keys of the model.
pub fn strategic_merge_patch(
    model: &Model,
    definition: DefId,
    object: &Value,
    patch: &[u8],
) -> Result<Value, Status> {
    let Value::Object(patch) = parse(patch)? else {
        return Err(Status::bad_request("invalid JSON document"));
    };
    let object = object.as_object().cloned().unwrap_or_default();
    merge_map(Place { model, ty: &Type::Object(definition) }, object, patch).map(Value::Object)
}

/// Where the merge is in the schema.
#[derive(Clone, Copy)]
struct Place<'m> {
    model: &'m Model,
    ty: &'m Type,
}

/// What the schema says about a key.
#[derive(Clone, Copy)]
struct Below<'m> {
    /// The type of the value; of an item for a list.
    place: Place<'m>,
    strategy: PatchStrategy,
    merge_key: Option<&'m str>,
}

impl<'m> Place<'m> {
    fn key(self, key: &str) -> Below<'m> {
        let field: Option<&Field> = match self.ty {
            Type::Object(id) => self.model.get(*id).field(key),
            _ => None,
        };
        let ty = match (field, self.ty) {
            (Some(field), _) => &field.ty,
            (None, Type::Map(map)) => &map.value,
            _ => &Type::Any,
        };
        let ty = if let Type::List(list) = ty { &list.item } else { ty };
        Below {
            place: Self { ty, ..self },
            strategy: field.map(|f| f.patch).unwrap_or_default(),
            merge_key: field.and_then(|f| f.merge_key.as_deref()),
        }
    }
}

fn merge_map(place: Place<'_>, mut original: Object, mut patch: Object) -> Result<Object, Status> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(Status::bad_request(format!(
                "unknown patch type [{}] in map",
                shown(&directive)
            ))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(place, &mut original, &mut patch)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_FROM) {
            Some(key) => (key.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let below = place.key(&key);
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if !deletes => {
                if below.strategy.replace {
                    Value::Object(new)
                } else {
                    Value::Object(merge_map(below.place, old, new)?)
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                if deletes {
                    Value::Array(old.into_iter().filter(|item| !new.contains(item)).collect())
                } else if below.strategy.merge {
                    Value::Array(merge_list(below, old, new)?)
                } else {
                    Value::Array(new)
                }
            }
            // Nothing to delete from, or not a list.
            (Some(old), _) if deletes => old,
            (None, _) if deletes => continue,
            (_, new) => match plain(new) {
                Some(new) => new,
                None => continue,
            },
        };
        original.insert(key, merged);
    }
    Ok(original)
}

/// A value that is new to the object: without directives and without nulls.
fn plain(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut map) => {
            if map.remove(PATCH).as_ref().and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let plain_map = map.into_iter().filter(|(key, value)| {
                !value.is_null()
                    && key != RETAIN_KEYS
                    && !key.starts_with(SET_ORDER)
                    && !key.starts_with(DELETE_FROM)
            });
            Some(Value::Object(
                plain_map.filter_map(|(key, value)| Some((key, plain(value)?))).collect(),
            ))
        }
        Value::Array(list) => {
            let only_directive =
                |v: &Value| v.as_object().is_some_and(|m| m.len() == 1 && m.contains_key(PATCH));
            Some(Value::Array(
                list.into_iter().filter(|v| !only_directive(v)).filter_map(plain).collect(),
            ))
        }
        scalar => Some(scalar),
    }
}

/// `$retainKeys`: only these keys stay of the original; what the patch sets must be among them.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let wrong = || Status::bad_request("invalid patch format of retainKeys");
    let keys: Vec<&str> =
        directive.as_array().ok_or_else(wrong)?.iter().filter_map(Value::as_str).collect();
    let is_set = |(key, value): &(&String, &Value)| {
        !value.is_null() && !key.starts_with(SET_ORDER) && !key.starts_with(DELETE_FROM)
    };
    if patch.iter().filter(is_set).any(|(key, _)| !keys.contains(&key.as_str())) {
        return Err(wrong());
    }
    original.retain(|key, _| keys.contains(&key.as_str()));
    Ok(())
}

/// `$setElementOrder/LIST`: merges the list of that name and brings it into the order given.
fn set_orders(place: Place<'_>, original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    let directives: Vec<String> =
        patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let wrong = || Status::bad_request("invalid patch format of setElementOrder list");
        let Some(Value::Array(order)) = patch.remove(&directive) else { return Err(wrong()) };
        let key = &directive[SET_ORDER.len()..];
        let below = place.key(key);
        let list = |value: Option<Value>| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(wrong()),
        };
        if patch.get(key).is_some_and(Value::is_null) {
            continue;
        }
        let patched = list(patch.remove(key))?;
        if let Some(patched) = &patched {
            check_order(below, patched, &order).ok_or_else(wrong)?;
        }
        let (before, merged) = match (list(original.remove(key))?, patched) {
            (Some(old), None) => (old.clone(), old),
            (None, Some(new)) => {
                let Some(Value::Array(new)) = plain(Value::Array(new)) else { continue };
                (Vec::new(), new)
            }
            (Some(old), Some(new)) => {
                let merged =
                    if below.strategy.merge { merge_list(below, old.clone(), new)? } else { new };
                (old, merged)
            }
            (None, None) => continue,
        };
        let merged = in_order(below.merge_key, merged, &order, &before);
        original.insert(key.to_owned(), Value::Array(merged));
    }
    Ok(())
}

/// Whether the items of a patch come in the order that the directive gives.
fn check_order(below: Below<'_>, patched: &[Value], order: &[Value]) -> Option<()> {
    let mut order = order.iter();
    for item in patched.iter().filter(|item| item.get(PATCH).is_none()) {
        order.find(|o| same_item(below.merge_key, o, item))?;
    }
    Some(())
}

fn same_item(merge_key: Option<&str>, a: &Value, b: &Value) -> bool {
    match merge_key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn merge_list(
    below: Below<'_>,
    original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let Some(first) = original.iter().chain(&patch).next() else { return Ok(original) };
    let kind = type_name(first);
    if kind == "array" {
        return Err(does_not_apply());
    }
    if let Some(other) = original.iter().chain(&patch).find(|v| type_name(v) != kind) {
        let message =
            format!("list element types are not identical: [{kind} {}]", type_name(other));
        return Err(Status::bad_request(message));
    }
    if kind != "object" {
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(in_order(None, merged, &patch, &original));
    }
    let Some(merge_key) = below.merge_key else {
        return Err(Status::bad_request("cannot merge lists without merge key"));
    };
    let (original, patch) = special_items(merge_key, original, patch)?;
    let mut merged = original.clone();
    for item in &patch {
        let Value::Object(new) = item.clone() else { continue };
        if !new.contains_key(merge_key) {
            let message = format!(
                "map: {} does not contain declared merge key: {merge_key}",
                Value::Object(new)
            );
            return Err(Status::bad_request(message));
        }
        match merged.iter_mut().find(|old| same_item(Some(merge_key), old, item)) {
            Some(old) => {
                let before = old.as_object_mut().map(std::mem::take).unwrap_or_default();
                *old = Value::Object(merge_map(below.place, before, new)?);
            }
            None => merged.extend(plain(Value::Object(new))),
        }
    }
    Ok(in_order(Some(merge_key), merged, &patch, &original))
}

/// Carries out the items that are directives: the original without what they delete (or without
/// anything), and the patch without them.
fn special_items(
    merge_key: &str,
    mut original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let mut rest = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(PATCH) {
            None => rest.push(item),
            Some(Value::String(directive)) if directive == "delete" => {
                if item.get(merge_key).is_none() {
                    let message =
                        format!("map: {item} does not contain declared merge key: {merge_key}");
                    return Err(Status::bad_request(message));
                }
                original.retain(|old| !same_item(Some(merge_key), old, &item));
            }
            Some(Value::String(directive)) if directive == "replace" => replace = true,
            Some(other) => {
                return Err(Status::bad_request(format!(
                    "unknown patch type [{}] in map",
                    shown(other)
                )));
            }
        }
    }
    // A replaced list is the patch itself: nothing is left to merge.
    Ok(if replace { (rest, Vec::new()) } else { (original, rest) })
}

/// The items that the patch names in its order, the others in theirs, woven by the order that the
/// server had.
fn in_order(
    merge_key: Option<&str>,
    merged: Vec<Value>,
    patch: &[Value],
    server: &[Value],
) -> Vec<Value> {
    let place =
        |order: &[Value], item: &Value| order.iter().position(|o| same_item(merge_key, o, item));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(patch, item).is_some());
    named.sort_by_key(|item| place(patch, item));
    others.sort_by_key(|item| place(server, item).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(named)) => match (place(server, other), place(server, named)) {
                (Some(other), Some(named)) => other < named,
                _ => false,
            },
        };
        out.extend(if other_first { others.next() } else { named.next() });
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
