//! A policy as it is written: its expressions must compile before it is stored.
//!
//! The kinds check the rest (`rimward-control-kinds`), which knows nothing of expressions. What did not
//! change is not looked at again: an expression that was stored once stays what it is.

use rimward_api::{FieldError, Status};
use rimward_control_cel::policy::environment;
use rimward_control_cel::{Environment, Type};
use serde_json::Value;

use super::mutating::Form;
use super::policy::{declared, scope};
use crate::admission::{Operation, Review};

/// Refuses a policy whose expressions do not compile; anything else passes.
pub fn check(review: &Review<'_>) -> Result<(), Status> {
    let writes = matches!(review.operation, Operation::Create | Operation::Update)
        && review.subresource.is_empty()
        && review.served.kind.group == "admissionregistration.k8s.io";
    if !writes {
        return Ok(());
    }
    let old = review.old.and_then(|old| old.get("spec"));
    let Some(spec) = review.object.get("spec").filter(|spec| Some(*spec) != old) else {
        return webhooks(review);
    };
    let errors = match review.served.kind.resource.as_str() {
        "validatingadmissionpolicies" => of_policy(spec, false),
        "mutatingadmissionpolicies" => of_policy(spec, true),
        _ => return Ok(()),
    };
    refuse(review, errors)
}

fn refuse(review: &Review<'_>, errors: Vec<FieldError>) -> Result<(), Status> {
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(&review.served.group_kind(), &review.key.name, &errors)),
    }
}

/// The match conditions of webhooks.
fn webhooks(review: &Review<'_>) -> Result<(), Status> {
    let hooks = |object: Option<&Value>| object.and_then(|o| o.get("webhooks")).cloned();
    let new = hooks(Some(review.object));
    if new == hooks(review.old) {
        return Ok(());
    }
    let scope = rimward_control_cel::policy::Scope { authorizer: true, ..Default::default() };
    let environment = environment(scope);
    let mut errors = Vec::new();
    for (i, hook) in new.as_ref().and_then(Value::as_array).into_iter().flatten().enumerate() {
        conditions(hook, &environment, &format!("webhooks[{i}]"), &mut errors);
    }
    refuse(review, errors)
}

fn list<'v>(holder: &'v Value, field: &str) -> impl Iterator<Item = (usize, &'v Value)> {
    holder.get(field).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn text<'v>(holder: &'v Value, field: &str) -> &'v str {
    holder.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn invalid(at: String, expression: &str, why: &str) -> FieldError {
    FieldError::invalid(at, &expression.into(), why)
}

fn conditions(holder: &Value, environment: &Environment, path: &str, errors: &mut Vec<FieldError>) {
    for (i, condition) in list(holder, "matchConditions") {
        let expression = text(condition, "expression");
        if expression.trim().is_empty() {
            continue;
        }
        if let Err(e) = environment.compile_to(expression, &[Type::Bool]) {
            let at = format!("{path}.matchConditions[{i}].expression");
            errors.push(invalid(at, expression, &e.to_string()));
        }
    }
}

fn of_policy(spec: &Value, mutates: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let scope = scope(spec, mutates);
    conditions(spec, &environment(scope), "spec", &mut errors);
    let (environment, variables) = declared(spec, environment(scope));
    for ((i, variable), (_, program)) in list(spec, "variables").zip(&variables) {
        if let Err(e) = program {
            let at = format!("spec.variables[{i}].expression");
            errors.push(invalid(at, text(variable, "expression"), e));
        }
    }
    if mutates {
        mutations(spec, &environment, &mut errors);
    } else {
        validations(spec, &environment, &mut errors);
    }
    errors
}

fn validations(spec: &Value, environment: &Environment, errors: &mut Vec<FieldError>) {
    let wanted: [(&str, &str, &[Type]); 3] = [
        ("validations", "expression", &[Type::Bool]),
        ("validations", "messageExpression", &[Type::String]),
        ("auditAnnotations", "valueExpression", &[Type::String, Type::Null]),
    ];
    for (field, name, types) in wanted {
        for (i, holder) in list(spec, field) {
            let expression = text(holder, name);
            if expression.trim().is_empty() {
                continue;
            }
            if let Err(e) = environment.compile_to(expression, types) {
                errors.push(invalid(
                    format!("spec.{field}[{i}].{name}"),
                    expression,
                    &e.to_string(),
                ));
            }
        }
    }
}

fn mutations(spec: &Value, environment: &Environment, errors: &mut Vec<FieldError>) {
    for (i, mutation) in list(spec, "mutations") {
        let Some((form, expression)) = Form::read(mutation) else { continue };
        let name = match form {
            Form::ApplyConfiguration => "applyConfiguration",
            Form::JsonPatch => "jsonPatch",
        };
        if let Err(e) = form.compile(environment, expression) {
            let at = format!("spec.mutations[{i}].{name}.expression");
            errors.push(invalid(at, expression, &e));
        }
    }
}
