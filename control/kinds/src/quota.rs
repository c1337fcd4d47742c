//! What objects count against a ResourceQuota, and whether a quota still has room.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>
//!
//! Pure, and about one object at a time: the API server charges each write with it, the quota
//! controller sums up with it what is stored. Both must agree, so both use this.

mod scope;
mod usage;

use std::collections::{BTreeMap, BTreeSet};

use rimward_api::Quantity;
use serde_json::{Map, Value};

use crate::check::resources::quantity;
use crate::read::{Read, members};

pub use scope::matches;
pub use usage::{counted_by, usage};

/// Amounts by the name that a quota has for them.
pub type Amounts = BTreeMap<String, Quantity>;

/// The group and plural name of a resource.
pub type Resource<'a> = (&'a str, &'a str);

/// One object's write: what it was and what it becomes; None for not there.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    pub resource: Resource<'a>,
    pub old: Option<&'a Value>,
    pub new: Option<&'a Value>,
    /// Whether the quota may refuse it. What is not refused (a delete, a report of status) is
    /// counted all the same.
    pub enforced: bool,
}

/// Resources that no quota counts: they come and go by themselves.
pub fn is_counted((group, resource): Resource<'_>) -> bool {
    !(resource == "events" && matches!(group, "" | "events.k8s.io"))
}

impl Change<'_> {
    /// Whether no quota whatsoever can be affected. Cheaper than asking each.
    pub fn counts_nothing(&self) -> bool {
        let (Some(old), Some(new)) = (self.old, self.new) else {
            return !is_counted(self.resource);
        };
        !is_counted(self.resource)
            || (scope::same(self.resource, old, new)
                && usage(self.resource, old) == usage(self.resource, new))
    }
}

/// `status.used` of a quota once `change` is made, None when it stays; or why it must not be made.
pub fn charge(quota: &Value, change: &Change<'_>) -> Result<Option<Value>, String> {
    let hard: Amounts = amounts(quota.deep(&["status", "hard"]))
        .into_iter()
        .filter(|(name, _)| counted_by(name) == Some(owned(change.resource)))
        .collect();
    if hard.is_empty() {
        return Ok(None);
    }
    let used = amounts(quota.deep(&["status", "used"]));
    let count = |object: Option<&Value>| match object {
        Some(object) if matches(quota.at("spec"), change.resource, object) => {
            Some(usage(change.resource, object))
        }
        _ => None,
    };
    let (before, after) = (count(change.old), count(change.new));
    let name = quota.at("metadata").text("name");
    if change.enforced
        && after.is_some()
        && let Some(new) = change.new
    {
        must_specify(change.resource, new, &hard)
            .map_err(|why| format!("failed quota: {name}: {why}"))?;
        if hard.keys().any(|h| !used.contains_key(h)) {
            let names = hard.keys().map(String::as_str).collect::<Vec<_>>().join(",");
            return Err(format!("status unknown for quota: {name}, resources: {names}"));
        }
        not_negative(after.as_ref())?;
    }
    let delta = deltas(&hard, before.unwrap_or_default(), after.unwrap_or_default());
    if delta.is_empty() {
        return Ok(None);
    }
    let mut new = used.clone();
    let (mut requested, mut was, mut limited) = (Vec::new(), Vec::new(), Vec::new());
    for (resource, more) in &delta {
        let Some(now) = used.get(resource) else { continue };
        let sum = *now + *more;
        if change.enforced && !more.is_negative() && sum > hard[resource] {
            requested.push(format!("{resource}={more}"));
            was.push(format!("{resource}={now}"));
            limited.push(format!("{resource}={}", hard[resource]));
        }
        let sum = if sum.is_negative() { Quantity::ZERO } else { sum };
        new.insert(resource.clone(), sum);
    }
    if !requested.is_empty() {
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            requested.join(","),
            was.join(","),
            limited.join(",")
        ));
    }
    Ok(Some(to_value(&new)))
}

fn owned((group, resource): Resource<'_>) -> (String, String) {
    (group.to_owned(), resource.to_owned())
}

/// What changes, without what stays.
fn deltas(hard: &Amounts, before: Amounts, after: Amounts) -> Amounts {
    let amount = |of: &Amounts, name: &str| of.get(name).copied().unwrap_or(Quantity::ZERO);
    let each = hard.keys().map(|name| (name.clone(), amount(&after, name) - amount(&before, name)));
    each.filter(|(_, delta)| !delta.is_zero()).collect()
}

fn not_negative(usage: Option<&Amounts>) -> Result<(), String> {
    let negative = usage.into_iter().flatten().filter(|(_, q)| q.is_negative());
    let names = negative.map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    match names.is_empty() {
        true => Ok(()),
        false => Err(format!("quota usage is negative for resource(s): {}", names.join(","))),
    }
}

/// A quota on CPU or memory demands that each container says how much of it it wants.
fn must_specify(resource: Resource<'_>, object: &Value, hard: &Amounts) -> Result<(), String> {
    const DEMANDED: [&str; 6] =
        ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    if resource != ("", "pods") {
        return Ok(());
    }
    let spec = object.at("spec");
    let has = |holder: &Value, name: &str| {
        let (field, resource) = match name.split_once('.') {
            Some(("limits", resource)) => ("limits", resource),
            Some((_, resource)) => ("requests", resource),
            None => ("requests", name),
        };
        holder.deep(&["resources", field]).has(resource)
    };
    let mut missing = Vec::new();
    for name in DEMANDED.into_iter().filter(|name| hard.contains_key(*name)) {
        let containers = spec.list("containers").iter().chain(spec.list("initContainers"));
        let lacking: BTreeSet<&str> =
            containers.filter(|c| !has(c, name)).map(|c| c.text("name")).collect();
        if !lacking.is_empty() && !has(spec, name) {
            let names = lacking.into_iter().collect::<Vec<_>>().join(",");
            missing.push(format!("{name} for: {names}"));
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!("must specify {}", missing.join("; "))),
    }
}

/// Reads a `ResourceList`.
pub fn amounts(list: &Value) -> Amounts {
    members(list).filter_map(|(name, value)| Some((name.clone(), quantity(value)?))).collect()
}

/// Writes a `ResourceList`.
pub fn to_value(amounts: &Amounts) -> Value {
    let each = amounts.iter().map(|(name, q)| (name.clone(), Value::from(q.to_string())));
    Value::Object(each.collect::<Map<_, _>>())
}

/// Adds up; what only `more` has is added too.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, value) in more {
        sum.entry(name.clone()).and_modify(|s| *s = *s + *value).or_insert(*value);
    }
}

#[cfg(test)]
mod tests;
