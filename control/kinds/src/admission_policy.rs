//! Admission policies and their bindings as they are written. Expressions are the API server's to look
//! at (`control/cel`): here is what needs no compiler.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::Value;

use crate::check;
use crate::path::{Errors, Path};
use crate::read::Read;

const CONDITIONS_MAX: usize = 64;
const ANNOTATIONS_MAX: usize = 20;
const EXPRESSION_MISSING: &str = "expression is not specified";

/// What both kinds of policy have.
pub fn common(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    param_kind(spec.at("paramKind"), &path.field("paramKind"), e);
    conditions(spec.list("matchConditions"), &path.field("matchConditions"), e);
    let list = path.field("variables");
    for (i, variable) in spec.list("variables").iter().enumerate() {
        let (at, name) = (list.index(i), variable.text("name"));
        if name.trim().is_empty() {
            e.required(&at.field("name"), "name is not specified");
        } else if !is_identifier(name) {
            e.invalid(&at.field("name"), name, "name is not a valid CEL identifier");
        }
        if variable.text("expression").trim().is_empty() {
            e.required(&at.field("expression"), EXPRESSION_MISSING);
        }
    }
}

/// Of a policy or a webhook.
pub fn conditions(conditions: &[Value], path: &Path<'_>, e: &mut Errors) {
    if conditions.len() > CONDITIONS_MAX {
        e.too_many(path, conditions.len(), CONDITIONS_MAX);
    }
    let mut seen = HashSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let (at, name) = (path.index(i), condition.text("name"));
        if condition.text("expression").trim().is_empty() {
            e.required(&at.field("expression"), "");
        }
        match name {
            "" => e.required(&at.field("name"), ""),
            name => e.invalid_each(&at.field("name"), name, names::qualified_name(name)),
        }
        if !name.is_empty() && !seen.insert(name) {
            e.duplicate(&at.field("name"), name);
        }
    }
}

fn param_kind(kind: &Value, path: &Path<'_>, e: &mut Errors) {
    if !kind.is_object() {
        return;
    }
    let version = path.field("apiVersion");
    match kind.text("apiVersion") {
        "" => e.required(&version, ""),
        text if text.matches('/').count() > 1 => {
            e.invalid(&version, text, &format!("unexpected GroupVersion string: {text}"));
        }
        text => {
            let (group, version_text) = text.split_once('/').unwrap_or(("", text));
            if !group.is_empty() {
                e.invalid_each(&version, group, names::dns1123_subdomain(group));
            }
            e.invalid_each(&version, version_text, names::dns1035_label(version_text));
        }
    }
    match kind.text("kind") {
        "" => e.required(&path.field("kind"), ""),
        text => {
            let wrong = names::dns1035_label(&text.to_lowercase());
            let wrong = wrong
                .iter()
                .map(|w| format!("may have mixed case, but should otherwise match: {w}"))
                .collect();
            e.invalid_each(&path.field("kind"), text, wrong);
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Of a ValidatingAdmissionPolicy; that there are any is checked elsewhere.
pub fn validations(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let list = path.field("validations");
    for (i, validation) in spec.list("validations").iter().enumerate() {
        let at = list.index(i);
        let (message, given) = (validation.text("message").trim(), validation.has("message"));
        if given && message.is_empty() {
            let why = "message must be non-empty if specified";
            e.invalid(&at.field("message"), validation.text("message"), why);
        } else if message.contains('\n') {
            let why = "message must not contain line breaks";
            e.invalid(&at.field("message"), validation.text("message"), why);
        } else if message.is_empty() && validation.text("expression").trim().contains('\n') {
            let why = "message must be specified if expression contains line breaks";
            e.required(&at.field("message"), why);
        }
        check::one_of(
            validation.at("reason"),
            &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"],
            &at.field("reason"),
            e,
        );
    }
    let (annotations, list) = (spec.list("auditAnnotations"), path.field("auditAnnotations"));
    if annotations.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        e.invalid(&list, Value::Array(annotations.to_vec()), &why);
    }
    let mut seen = HashSet::new();
    for (i, annotation) in annotations.iter().enumerate() {
        let (at, key) = (list.index(i), annotation.text("key"));
        match key {
            "" => e.required(&at.field("key"), ""),
            key => e.invalid_each(&at.field("key"), key, names::qualified_name(key)),
        }
        if annotation.text("valueExpression").trim().is_empty() {
            e.required(&at.field("valueExpression"), "valueExpression is not specified");
        }
        if !seen.insert(key) {
            e.duplicate(&at.field("key"), key);
        }
    }
}

/// Of a MutatingAdmissionPolicy.
pub fn mutations(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    check::required_one_of(
        spec.at("reinvocationPolicy"),
        &["IfNeeded", "Never"],
        &path.field("reinvocationPolicy"),
        e,
    );
    let list = path.field("mutations");
    if spec.list("mutations").is_empty() {
        e.required(&list, "mutations must contain at least one item");
    }
    for (i, mutation) in spec.list("mutations").iter().enumerate() {
        let at = list.index(i);
        let (wanted, other) = match mutation.text("patchType") {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            _ => {
                check::required_one_of(
                    mutation.at("patchType"),
                    &["ApplyConfiguration", "JSONPatch"],
                    &at.field("patchType"),
                    e,
                );
                continue;
            }
        };
        if !mutation.at(wanted).is_object() {
            let why = format!("must be specified when patchType is {}", mutation.text("patchType"));
            e.required(&at.field(wanted), &why);
        } else if mutation.at(wanted).text("expression").trim().is_empty() {
            e.required(&at.field(wanted).field("expression"), EXPRESSION_MISSING);
        }
        if mutation.at(other).is_object() {
            let why = format!("may not be set when patchType is {}", mutation.text("patchType"));
            e.forbidden(&at.field(other), &why);
        }
    }
}

/// Of a binding of either kind.
pub fn binding(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    match spec.text("policyName") {
        "" => e.required(&path.field("policyName"), ""),
        name => e.invalid_each(&path.field("policyName"), name, names::dns1123_subdomain(name)),
    }
    let (reference, at) = (spec.at("paramRef"), path.field("paramRef"));
    if !reference.is_object() {
        return;
    }
    let (name, selects) = (reference.text("name"), reference.at("selector").is_object());
    const BOTH: &str = "name and selector are mutually exclusive";
    if !name.is_empty() {
        e.invalid_each(&at.field("name"), name, check::text::path_segment(name));
        if selects {
            e.forbidden(&at.field("name"), BOTH);
        }
    }
    if selects {
        check::selector::label_selector(reference.at("selector"), &at.field("selector"), e);
        if !name.is_empty() {
            e.forbidden(&at.field("selector"), BOTH);
        }
    } else if name.is_empty() {
        e.required(&at, "one of name or selector must be specified");
    }
    check::required_one_of(
        reference.at("parameterNotFoundAction"),
        &["Deny", "Allow"],
        &at.field("parameterNotFoundAction"),
        e,
    );
}

/// `validationActions` of a ValidatingAdmissionPolicyBinding.
pub fn actions(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let (actions, at) = (spec.list("validationActions"), path.field("validationActions"));
    let mut seen = HashSet::new();
    for (i, action) in actions.iter().enumerate() {
        check::one_of(action, &["Audit", "Deny", "Warn"], &at.index(i), e);
        if !seen.insert(action.as_str().unwrap_or_default()) {
            e.duplicate(&at.index(i), action.clone());
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        e.invalid(&at, Value::Array(actions.to_vec()), why);
    }
    if actions.is_empty() {
        e.required(&at, "at least one validation action is required");
    }
}
