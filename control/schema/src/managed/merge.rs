//! Merging what is applied into what is there, and taking fields away.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, Set};
use super::shape::{Place, Shape, content, items};
use crate::model::{ListKind, Type};

/// Merges two values, the applied one winning. None when nothing is left.
pub(crate) fn merge(
    place: Place<'_>,
    live: Option<&Value>,
    applied: Option<&Value>,
) -> Option<Value> {
    let shape = place.shape(applied.or(live));
    let leaf = || applied.or(live).cloned();
    match &shape {
        Shape::Leaf => leaf(),
        Shape::Object(_) | Shape::Map(_) => match (content(live), content(applied)) {
            (None, None) => leaf(),
            (live, applied) => {
                let mut out = live.cloned().unwrap_or_default();
                for (key, value) in applied.into_iter().flatten() {
                    let (below, _) = place.key(&shape, key);
                    match merge(below, live.and_then(|map| map.get(key)), Some(value)) {
                        Some(value) => out.insert(key.clone(), value),
                        None => out.remove(key),
                    };
                }
                Some(Value::Object(out))
            }
        },
        Shape::List(item, kind) => match (items(live), items(applied)) {
            (None, None) => leaf(),
            (live, applied) => {
                let (live, applied) =
                    (live.map_or(&[][..], Vec::as_slice), applied.map_or(&[][..], Vec::as_slice));
                let out = merge_lists(place, item, kind, live, applied);
                (!out.is_empty()).then_some(Value::Array(out))
            }
        },
    }
}

/// The applied items in their order, the others kept where they stand between them.
fn merge_lists(
    place: Place<'_>,
    item: &Type,
    kind: &ListKind,
    live: &[Value],
    applied: &[Value],
) -> Vec<Value> {
    let named = |list: &[Value]| -> Vec<Option<String>> {
        list.iter().map(|v| place.item(item, kind, v).map(|e| e.to_string())).collect()
    };
    let (live_names, applied_names) = (named(live), named(applied));
    let below = Place::new(place.model, item);
    let mut in_live: BTreeMap<&str, (&Value, usize)> = BTreeMap::new();
    for (name, value) in live_names.iter().zip(live) {
        if let Some(name) = name {
            in_live.entry(name).or_insert((value, 0)).1 += 1;
        }
    }
    let in_applied: BTreeMap<&str, &Value> =
        applied_names.iter().zip(applied).filter_map(|(n, v)| Some((n.as_deref()?, v))).collect();
    let is_applied =
        |name: &Option<String>| name.as_deref().is_some_and(|n| in_applied.contains_key(n));
    let mut shared = applied_names.iter().flatten().filter(|n| in_live.contains_key(n.as_str()));
    let mut next_shared = shared.next();
    // A live item that is there several times is replaced, not merged.
    let one_live = |name: &Option<String>| {
        let found = in_live.get(name.as_deref()?)?;
        (found.1 == 1).then_some(found.0)
    };
    let mut out = Vec::with_capacity(live.len().max(applied.len()));
    let mut merged: Vec<&str> = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < applied.len() {
        if l < live.len() && r < applied.len() {
            let same = live_names[l].is_some() && live_names[l] == applied_names[r];
            if same {
                merged.extend(live_names[l].as_deref());
                out.extend(merge(below, one_live(&live_names[l]), Some(&applied[r])));
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if is_applied(&live_names[l])
                && next_shared.is_some()
                && next_shared != live_names[l].as_ref()
            {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if l < live.len() {
            if !is_applied(&live_names[l]) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if live_names[l].as_deref().is_some_and(|n| merged.contains(&n)) {
                l += 1;
            }
        }
        if r < applied.len() {
            merged.extend(applied_names[r].as_deref());
            out.extend(merge(below, one_live(&applied_names[r]), Some(&applied[r])));
            if next_shared.is_some() && next_shared == applied_names[r].as_ref() {
                next_shared = shared.next();
            }
            r += 1;
        }
    }
    out
}

/// The value without the fields of the set; null when nothing is left.
pub(crate) fn remove(place: Place<'_>, value: &Value, set: &Set<'_>) -> Value {
    let shape = place.shape(Some(value));
    match (&shape, value) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(map)) => {
            let mut out = Map::new();
            for (key, value) in map {
                let element = Element::field(key);
                if set.has(&element) {
                    continue;
                }
                let value = match set.below(&element) {
                    Some(below) => remove(place.key(&shape, key).0, value, below),
                    None => value.clone(),
                };
                out.insert(key.clone(), value);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        (Shape::List(item, kind), Value::Array(list)) => {
            let mut out = Vec::new();
            for value in list {
                let Some(element) = place.item(item, kind, value) else {
                    out.push(value.clone());
                    continue;
                };
                if set.has(&element) {
                    continue;
                }
                out.push(match set.below(&element) {
                    Some(below) => remove(Place::new(place.model, item), value, below),
                    None => value.clone(),
                });
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        _ => value.clone(),
    }
}
