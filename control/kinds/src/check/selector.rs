//! Label selectors and node selectors.

use rimward_api::names;
use serde_json::Value;

use super::meta;
use crate::path::{Errors, Path};
use crate::read::{Read, members};

/// `ValidateLabelSelector`. A selector that is not there is good.
pub fn label_selector(selector: &Value, path: &Path<'_>, e: &mut Errors) {
    meta::labels(selector.at("matchLabels"), &path.field("matchLabels"), e);
    let list = path.field("matchExpressions");
    for (i, term) in selector.list("matchExpressions").iter().enumerate() {
        expression(term, &list.index(i), e);
    }
}

/// `ValidateLabelSelectorRequirement`.
pub fn expression(term: &Value, path: &Path<'_>, e: &mut Errors) {
    operator(term, path, e);
    e.invalid_each(&path.field("key"), term.text("key"), names::qualified_name(term.text("key")));
    let list = path.field("values");
    for (i, value) in term.list("values").iter().filter_map(Value::as_str).enumerate() {
        e.invalid_each(&list.index(i), value, names::label_value(value));
    }
}

/// `ValidateFieldSelectorRequirement`: of fields, whose values may be anything.
pub fn field_expression(term: &Value, path: &Path<'_>, e: &mut Errors) {
    if term.text("key").is_empty() {
        e.required(&path.field("key"), "must be specified");
    }
    operator(term, path, e);
}

fn operator(term: &Value, path: &Path<'_>, e: &mut Errors) {
    let values = term.list("values");
    match term.text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            e.required(
                &path.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            );
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            e.forbidden(
                &path.field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => e.invalid(&path.field("operator"), other, "not a valid selector operator"),
    }
}

/// Whether a selector has no requirement; a missing one too.
pub fn is_empty(selector: &Value) -> bool {
    selector.at("matchLabels").as_object().is_none_or(|m| m.is_empty())
        && selector.list("matchExpressions").is_empty()
}

/// Whether labels satisfy a `metav1.LabelSelector`.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    members(selector.at("matchLabels")).all(|(k, v)| labels.get(k) == Some(v))
        && selector.list("matchExpressions").iter().all(|term| {
            let value = labels.get(term.text("key"));
            match term.text("operator") {
                "In" => value.is_some_and(|v| term.list("values").contains(v)),
                "NotIn" => value.is_none_or(|v| !term.list("values").contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// `ValidateNodeSelector`: terms of expressions on labels and fields.
pub fn node_selector(selector: &Value, path: &Path<'_>, e: &mut Errors) {
    let list = path.field("nodeSelectorTerms");
    let terms = selector.list("nodeSelectorTerms");
    if terms.is_empty() {
        e.required(&list, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, &list.index(i), e);
    }
}

pub fn node_selector_term(term: &Value, path: &Path<'_>, e: &mut Errors) {
    let list = path.field("matchExpressions");
    for (i, requirement) in term.list("matchExpressions").iter().enumerate() {
        node_requirement(requirement, &list.index(i), e);
    }
    let list = path.field("matchFields");
    for (i, requirement) in term.list("matchFields").iter().enumerate() {
        node_field(requirement, &list.index(i), e);
    }
}

fn node_requirement(requirement: &Value, path: &Path<'_>, e: &mut Errors) {
    let values = requirement.list("values").len();
    match requirement.text("operator") {
        "In" | "NotIn" if values == 0 => {
            e.required(
                &path.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            );
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            e.forbidden(
                &path.field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        "Gt" | "Lt" if values != 1 => {
            e.required(
                &path.field("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => e.invalid(&path.field("operator"), other, "not a valid selector operator"),
    }
    let key = requirement.text("key");
    e.invalid_each(&path.field("key"), key, names::qualified_name(key));
}

/// Only `metadata.name` can be asked for, with one name.
fn node_field(requirement: &Value, path: &Path<'_>, e: &mut Errors) {
    let values = requirement.list("values");
    match requirement.text("operator") {
        "In" | "NotIn" if values.len() != 1 => {
            e.required(
                &path.field("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
        "In" | "NotIn" => {}
        other => e.invalid(&path.field("operator"), other, "not a valid selector operator"),
    }
    if requirement.text("key") != "metadata.name" {
        e.invalid(&path.field("key"), requirement.text("key"), "not a valid field selector key");
        return;
    }
    let list = path.field("values");
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        e.invalid_each(&list.index(i), value, names::dns1123_subdomain(value));
    }
}
