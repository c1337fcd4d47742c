//! What decides on a job before all its pods are done: the policies for failure and success.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use crate::check;
use crate::path::{Errors, Path};
use crate::read::Read;

/// `podFailurePolicy`: what the ends of pods mean for the job.
pub fn failure(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let rules = spec.at("podFailurePolicy").list("rules");
    let list = path.field("rules");
    if rules.len() > 20 {
        e.too_many(&list, rules.len(), 20);
    }
    let pod = spec.deep(&["template", "spec"]);
    let containers = ["containers", "initContainers"].map(|l| pod.list(l)).into_iter().flatten();
    let containers: HashSet<&str> = containers.map(|c| c.text("name")).collect();
    for (i, rule) in rules.iter().enumerate() {
        let at = list.index(i);
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        check::required_one_of(rule.at("action"), &actions, &at.field("action"), e);
        if rule.text("action") == "FailIndex" && !spec.has("backoffLimitPerIndex") {
            e.invalid(
                &at.field("action"),
                "FailIndex",
                "requires the backoffLimitPerIndex to be set",
            );
        }
        exit_codes(rule.at("onExitCodes"), &containers, &at.field("onExitCodes"), e);
        let conditions = rule.list("onPodConditions");
        let here = at.field("onPodConditions");
        if conditions.len() > 20 {
            e.too_many(&here, conditions.len(), 20);
        }
        for (j, condition) in conditions.iter().enumerate() {
            let kind = condition.text("type");
            e.invalid_each(&here.index(j).field("type"), kind, names::qualified_name(kind));
            check::required_one_of(
                condition.at("status"),
                &["False", "True", "Unknown"],
                &here.index(j).field("status"),
                e,
            );
        }
        match (rule.at("onExitCodes").is_object(), !conditions.is_empty()) {
            (true, true) => e.invalid(
                &at,
                Value::Null,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (false, false) => e.invalid(
                &at,
                Value::Null,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
    }
}

fn exit_codes(codes: &Value, containers: &HashSet<&str>, path: &Path<'_>, e: &mut Errors) {
    if !codes.is_object() {
        return;
    }
    check::required_one_of(codes.at("operator"), &["In", "NotIn"], &path.field("operator"), e);
    if let Some(name) = codes.at("containerName").as_str()
        && !containers.contains(name)
    {
        e.invalid(
            &path.field("containerName"),
            name,
            "must be one of the container or initContainer names in the pod template",
        );
    }
    let (values, list) = (codes.list("values"), path.field("values"));
    if values.is_empty() {
        e.invalid(&list, Value::Array(Vec::new()), "at least one value is required");
    } else if values.len() > 255 {
        e.too_many(&list, values.len(), 255);
    }
    let mut seen = check::Seen::default();
    for (i, value) in values.iter().enumerate() {
        if seen.again(value.as_i64()) {
            e.duplicate(&list.index(i), value.clone());
        }
        if codes.text("operator") == "In" && value == 0 {
            e.invalid(&list.index(i), 0, "must not be 0 for the In operator");
        }
    }
    let number = |v: &Value| v.as_i64().unwrap_or_default();
    if !values.is_sorted_by(|a, b| number(a) <= number(b)) {
        e.invalid(&list, Value::Array(values.to_vec()), "must be ordered");
    }
}

const SUCCESS_RULES_MAX: usize = 20;
const INDEXES_MAX_BYTES: usize = 64 * 1024;

/// `successPolicy` of an indexed job: which indexes are enough.
pub fn success(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let policy = spec.at("successPolicy");
    if !policy.is_object() {
        return;
    }
    let (rules, list) = (policy.list("rules"), path.field("rules"));
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        e.required(&list, why);
    }
    if rules.len() > SUCCESS_RULES_MAX {
        e.too_many(&list, rules.len(), SUCCESS_RULES_MAX);
    }
    let completions = spec.int("completions").unwrap_or_default();
    for (i, rule) in rules.iter().enumerate() {
        success_rule(rule, completions, &list.index(i), e);
    }
}

fn success_rule(rule: &Value, completions: i64, path: &Path<'_>, e: &mut Errors) {
    let (indexes, count) = (rule.at("succeededIndexes").as_str(), rule.int("succeededCount"));
    if indexes.is_none() && count.is_none() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        e.required(path, why);
    }
    let mut listed = None;
    if let Some(indexes) = indexes {
        let at = path.field("succeededIndexes");
        if indexes.len() > INDEXES_MAX_BYTES {
            e.too_long(&at, INDEXES_MAX_BYTES);
        }
        match indexes_of(indexes, completions) {
            Ok(total) => listed = Some(total),
            Err(why) => {
                e.invalid(&at, indexes, &format!("error parsing succeededIndexes: {why}"));
            }
        }
    }
    let Some(count) = count else { return };
    let at = path.field("succeededCount");
    check::not_negative(&count.into(), &at, e);
    if count > completions {
        let why = format!(
            "must be less than or equal to {completions} (the number of specified completions)"
        );
        e.invalid(&at, count, &why);
    }
    if let Some(listed) = listed.or(indexes.map(|_| 0))
        && count > listed
    {
        let why = format!(
            "must be less than or equal to {listed} (the number of indexes in the specified succeededIndexes field)"
        );
        e.invalid(&at, count, &why);
    }
}

/// How many indexes a list such as `1,3-5` names, in order and below the number of completions.
fn indexes_of(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let number = |part: &str| -> Result<i64, String> {
        let parsed: i64 = part
            .parse::<i32>()
            .map(i64::from)
            .map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if parsed >= completions {
            return Err(format!("too large index: {part:?}"));
        }
        Ok(parsed)
    };
    let (mut total, mut last) = (0, None);
    for interval in text.split(',') {
        let parts: Vec<&str> = interval.split('-').collect();
        if parts.len() > 2 {
            return Err(format!(
                "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let first = number(parts[0])?;
        if last.is_some_and(|last| first <= last) {
            return Err(format!(
                "non-increasing order, previous: {}, current: {first}",
                last.unwrap_or_default()
            ));
        }
        let end = match parts.get(1) {
            Some(part) => number(part)?,
            None => first,
        };
        if parts.len() == 2 && end <= first {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_indexes() {
        for (text, total) in [("", 0), ("0", 1), ("1,3-5", 4)] {
            assert_eq!(indexes_of(text, 10), Ok(total), "{text}");
        }
        for text in ["x", "1-2-3", "3,1", "5-3", "10", "1,"] {
            assert!(indexes_of(text, 10).is_err(), "{text}");
        }
    }
}
