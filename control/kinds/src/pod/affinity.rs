//! Where a pod may run: affinity, tolerations, spreading.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use crate::check::{self, meta, selector};
use crate::path::{Errors, Path};
use crate::read::{Read, members};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(affinity: &Value, path: &Path<'_>, e: &mut Errors) {
    let node = affinity.at("nodeAffinity");
    let at = path.field("nodeAffinity");
    if node.has(REQUIRED) {
        selector::node_selector(node.at(REQUIRED), &at.field(REQUIRED), e);
    }
    let list = at.field(PREFERRED);
    for (i, term) in node.list(PREFERRED).iter().enumerate() {
        let here = list.index(i);
        weight(term, &here, e);
        selector::node_selector_term(term.at("preference"), &here.field("preference"), e);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let at = path.field(kind);
        let list = at.field(REQUIRED);
        for (i, term) in affinity.at(kind).list(REQUIRED).iter().enumerate() {
            pod_term(term, &list.index(i), e);
        }
        let list = at.field(PREFERRED);
        for (i, term) in affinity.at(kind).list(PREFERRED).iter().enumerate() {
            let here = list.index(i);
            weight(term, &here, e);
            pod_term(term.at("podAffinityTerm"), &here.field("podAffinityTerm"), e);
        }
    }
}

fn weight(term: &Value, path: &Path<'_>, e: &mut Errors) {
    let weight = term.int("weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        e.invalid(&path.field("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_term(term: &Value, path: &Path<'_>, e: &mut Errors) {
    selector::label_selector(term.at("labelSelector"), &path.field("labelSelector"), e);
    selector::label_selector(term.at("namespaceSelector"), &path.field("namespaceSelector"), e);
    for name in term.list("namespaces").iter().filter_map(Value::as_str) {
        e.invalid_each(&path.field("namespace"), name, names::dns1123_label(name));
    }
    label_keys(term, path, e);
    let (key, at) = (term.text("topologyKey"), path.field("topologyKey"));
    if key.is_empty() {
        e.required(&at, "can not be empty");
    }
    e.invalid_each(&at, key, names::qualified_name(key));
}

/// `matchLabelKeys` and `mismatchLabelKeys` of a term.
fn label_keys(term: &Value, path: &Path<'_>, e: &mut Errors) {
    let chosen = term.at("labelSelector");
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let (keys, list) = (term.list(field), path.field(field));
        if !keys.is_empty() && chosen.is_null() {
            e.forbidden(&list, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            e.invalid_each(&list.index(i), key, names::qualified_name(key));
        }
    }
    // The server adds an expression for each of `matchLabelKeys`: a second one is the client's.
    let keys = term.list("matchLabelKeys");
    let mut seen: HashSet<&str> =
        members(chosen.at("matchLabels")).map(|(key, _)| key.as_str()).collect();
    for key in chosen.list("matchExpressions").iter().map(|x| x.text("key")) {
        let place = keys.iter().rposition(|k| k == key);
        if let Some(i) = place.filter(|_| seen.contains(key)) {
            e.invalid(&path.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.insert(key);
    }
    let list = path.field("matchLabelKeys");
    for (i, key) in keys.iter().enumerate() {
        if term.list("mismatchLabelKeys").contains(key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            e.invalid(&list.index(i), key.clone(), why);
        }
    }
}

pub fn tolerations(tolerations: &[Value], path: &Path<'_>, e: &mut Errors) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, operator, value) =
            (toleration.text("key"), toleration.text("operator"), toleration.text("value"));
        let effect = toleration.text("effect");
        if !key.is_empty() {
            e.invalid_each(&at.field("key"), key, names::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            e.invalid(&at.field("operator"), operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            e.invalid(
                &at.field("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "Equal" | "" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    e.invalid(&at.field("operator"), value, &wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                e.invalid(
                    &at.field("operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            other => e.not_supported(&at.field("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            check::one_of(
                &effect.into(),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                &at.field("effect"),
                e,
            );
        }
    }
}

pub fn spread(constraints: &[Value], path: &Path<'_>, e: &mut Errors) {
    alike(constraints, path, e);
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        let skew = constraint.int("maxSkew").unwrap_or_default();
        if skew <= 0 {
            e.invalid(&at.field("maxSkew"), skew, check::POSITIVE);
        }
        let (key, action) = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        if key.is_empty() {
            e.required(&at.field("topologyKey"), "can not be empty");
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        check::one_of(&action.into(), &actions, &at.field("whenUnsatisfiable"), e);
        if let Some(domains) = constraint.int("minDomains") {
            if domains <= 0 {
                e.invalid(&at.field("minDomains"), domains, check::POSITIVE);
            }
            if action != "DoNotSchedule" {
                let why = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                e.invalid(&at.field("minDomains"), domains, &why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            check::one_of(constraint.at(policy), &["Honor", "Ignore"], &at.field(policy), e);
        }
        match_label_keys(constraint, &at, e);
        selector::label_selector(constraint.at("labelSelector"), &at.field("labelSelector"), e);
    }
}

/// Of constraints alike, all but the last are named.
fn alike(constraints: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut seen = check::Seen::default();
    for (i, constraint) in constraints.iter().enumerate().rev() {
        let (key, action) = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        if seen.again((key, action)) {
            let at = path.index(i);
            e.duplicate(
                &at.field("{topologyKey, whenUnsatisfiable}"),
                format!("{{{key}, {action}}}"),
            );
        }
    }
}

fn match_label_keys(constraint: &Value, path: &Path<'_>, e: &mut Errors) {
    let keys = constraint.list("matchLabelKeys");
    let list = path.field("matchLabelKeys");
    if !keys.is_empty() && !constraint.has("labelSelector") {
        e.forbidden(&list, "must not be specified when labelSelector is not set");
    }
    for (i, key) in keys.iter().filter_map(Value::as_str).enumerate() {
        e.invalid_each(&list.index(i), key, names::qualified_name(key));
        let chosen = constraint.at("labelSelector");
        if chosen.at("matchLabels").get(key).is_some()
            || chosen.list("matchExpressions").iter().any(|x| x.text("key") == key)
        {
            e.invalid(&list.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

pub fn node_selector(selector: &Value, path: &Path<'_>, e: &mut Errors) {
    meta::labels(selector, path, e);
}
