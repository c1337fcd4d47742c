//! Where a pod may run: affinity, tolerations, spreading.

use rimward_api::names;
use serde_json::Value;

use crate::check::{self, meta, selector};
use crate::path::{Errors, Path};
use crate::read::Read;

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
    let list = path.field("namespaces");
    for name in term.list("namespaces").iter().filter_map(Value::as_str) {
        e.invalid_each(&list, name, names::dns1123_label(name));
    }
    match term.text("topologyKey") {
        "" => e.required(&path.field("topologyKey"), "can not be empty"),
        key => e.invalid_each(&path.field("topologyKey"), key, names::qualified_name(key)),
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
            "Equal" | "" => e.invalid_each(&at.field("operator"), value, names::label_value(value)),
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
            if action == "ScheduleAnyway" {
                e.invalid(&at.field("minDomains"), domains, "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway");
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
        if constraint.deep(&["labelSelector", "matchLabels", key]).is_string() {
            e.invalid(&list.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

pub fn node_selector(selector: &Value, path: &Path<'_>, e: &mut Errors) {
    meta::labels(selector, path, e);
}
