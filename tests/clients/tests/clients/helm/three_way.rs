//! Three-way strategic merge patches, as Helm and kubectl compute them: what the chart said before, what it
//! says now, what there is.
//! <https://helm.sh/docs/faq/changes_since_helm2/#improved-upgrade-strategy-3-way-strategic-merge-patches>

use serde_json::{Map, Value, json};

/// Lists whose items are told apart by a key, by the name of the field.
const KEYS: [(&str, &str); 4] =
    [("containers", "name"), ("env", "name"), ("ports", "containerPort"), ("volumes", "name")];

/// Lists of custom resources have no keys: `keyed` is false for them.
pub fn patch(before: &Value, now: &Value, live: &Value, keyed: bool) -> Value {
    let mut patch = Map::new();
    let (before, now, live) = (members(before), members(now), members(live));
    for (field, wanted) in &now {
        let (old, found) = (before.get(field), live.get(field).unwrap_or(&Value::Null));
        match wanted {
            Value::Object(_) if found.is_object() => {
                let inner = self::patch(old.unwrap_or(&Value::Null), wanted, found, keyed);
                if inner != json!({}) {
                    patch.insert(field.clone(), inner);
                }
            }
            Value::Array(items) => match KEYS.iter().find(|(name, _)| keyed && name == field) {
                Some((_, key)) if items.iter().all(|i| i.get(key).is_some()) => {
                    lists(&mut patch, field, key, [old.unwrap_or(&Value::Null), wanted, found]);
                }
                _ if wanted != found => _ = patch.insert(field.clone(), wanted.clone()),
                _ => {}
            },
            _ if wanted != found => _ = patch.insert(field.clone(), wanted.clone()),
            _ => {}
        }
    }
    for field in before.keys().filter(|f| !now.contains_key(*f) && live.contains_key(*f)) {
        patch.insert(field.clone(), Value::Null);
    }
    Value::Object(patch)
}

fn lists(patch: &mut Map<String, Value>, field: &str, key: &str, [before, now, live]: [&Value; 3]) {
    let find = |list: &Value, id: &Value| {
        list.as_array().into_iter().flatten().find(|i| i[key] == *id).cloned()
    };
    let (mut items, mut order) = (Vec::new(), Vec::new());
    for item in now.as_array().into_iter().flatten() {
        let id = &item[key];
        order.push(json!({ key: id }));
        match find(live, id) {
            None => items.push(item.clone()),
            Some(found) => {
                let old = find(before, id).unwrap_or_default();
                let mut inner = self::patch(&old, item, &found, true);
                if inner != json!({}) {
                    inner[key] = id.clone();
                    items.push(inner);
                }
            }
        }
    }
    for old in before.as_array().into_iter().flatten() {
        if find(now, &old[key]).is_none() && find(live, &old[key]).is_some() {
            items.push(json!({ key: old[key], "$patch": "delete" }));
        }
    }
    if !items.is_empty() {
        patch.insert(format!("$setElementOrder/{field}"), order.into());
        patch.insert(field.to_owned(), items.into());
    }
}

fn members(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
