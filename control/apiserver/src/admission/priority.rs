//! A pod's priority is its class's.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::Status;
use rimward_api::meta::str_at;
use serde_json::Value;

use super::Review;
use crate::mirror::Mirrored;
use crate::server::Inner;
use crate::views::Stored;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    value: i64,
    global_default: bool,
    preemption: String,
}

/// The stored PriorityClasses.
#[derive(Default)]
pub struct Classes(RwLock<HashMap<String, Arc<Class>>>);

impl Classes {
    /// The class of that name; for no name, the default one with its name.
    fn find(&self, name: &str) -> Option<(String, Arc<Class>)> {
        let classes = self.0.read();
        match name {
            // Of several defaults the lowest counts.
            "" => classes
                .iter()
                .filter(|(_, c)| c.global_default)
                .min_by_key(|(_, c)| c.value)
                .map(|(n, c)| (n.clone(), c.clone())),
            name => classes.get(name).map(|c| (name.to_owned(), c.clone())),
        }
    }
}

fn parse(stored: &Stored) -> Option<Arc<Class>> {
    let object: Value = serde_json::from_slice(stored.record.body()).ok()?;
    Some(Arc::new(Class {
        value: object.get("value").and_then(Value::as_i64).unwrap_or(0),
        global_default: object.get("globalDefault").and_then(Value::as_bool).unwrap_or(false),
        preemption: object
            .get("preemptionPolicy")
            .and_then(Value::as_str)
            .unwrap_or("PreemptLowerPriority")
            .to_owned(),
    }))
}

impl Mirrored for Classes {
    fn replace(&self, all: Vec<(String, Stored)>) {
        *self.0.write() = all.iter().filter_map(|(k, s)| Some((k.clone(), parse(s)?))).collect();
    }

    fn put(&self, key: &str, stored: &Stored) {
        if let Some(class) = parse(stored) {
            self.0.write().insert(key.to_owned(), class);
        }
    }

    fn remove(&self, key: &str) {
        self.0.write().remove(key);
    }
}

pub fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let asked =
        str_at(review.object, &["spec", "priorityClassName"]).unwrap_or_default().to_owned();
    let found = server.priorities.find(&asked);
    if found.is_none() && !asked.is_empty() {
        return Err(review.forbidden(&format!("no PriorityClass with name {asked} was found")));
    }
    let (name, value, preemption) = match found {
        Some((name, class)) => (name, class.value, class.preemption.clone()),
        None => (String::new(), 0, "PreemptLowerPriority".to_owned()),
    };
    let given = |field: &str| review.object["spec"].get(field).filter(|v| !v.is_null());
    if let Some(given) = given("priority").and_then(Value::as_i64)
        && given != value
    {
        return Err(review.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(given) = given("preemptionPolicy").and_then(Value::as_str)
        && given != preemption
    {
        return Err(review.forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {preemption} from the given PriorityClass name"
        )));
    }
    let spec = &mut review.object["spec"];
    if !name.is_empty() {
        spec["priorityClassName"] = name.into();
    }
    spec["priority"] = value.into();
    spec["preemptionPolicy"] = preemption.into();
    Ok(())
}

/// A client that replaces a pod need not repeat what its class gave it.
pub fn keep(review: &mut Review<'_>) {
    let Some(old) = review.old else { return };
    for field in ["priority", "preemptionPolicy"] {
        if review.object["spec"].get(field).is_none()
            && let Some(value) = old["spec"].get(field)
        {
            review.object["spec"][field] = value.clone();
        }
    }
}
