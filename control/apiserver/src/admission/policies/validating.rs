//! ValidatingAdmissionPolicy: expressions that must hold.

use std::collections::BTreeMap;

use rimward_api::Status;
use rimward_control_cel::Value as Cel;
use rimward_control_cel::authorizer::Authorizer;
use rimward_control_cel::limits::{PER_MATCH_CONDITIONS, PER_REQUEST};
use rimward_control_cel::rules::usable_message;
use rimward_control_cel::{Bindings, Budget, Environment, Program, Type};
use serde_json::{Value, json};

use super::bound::{Invocation, of_policy};
use super::policy::{Action, Body, Policy};
use super::subject::{Asking, Subject};
use super::{denied, exempt, reckon};
use crate::admission::Review;
use crate::audit;
use crate::server::Inner;

/// Bytes of an audit annotation's value.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;

/// What a policy of this kind demands.
#[derive(Debug)]
pub struct Validation {
    rules: Vec<Rule>,
    annotations: Vec<Annotation>,
}

#[derive(Debug)]
struct Rule {
    expression: String,
    program: Result<Program, String>,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

#[derive(Debug)]
struct Annotation {
    key: String,
    expression: String,
    program: Result<Program, String>,
}

impl Body for Validation {
    const PATCHES: bool = false;

    fn compile(spec: &Value, environment: &Environment) -> Self {
        let list = |field: &str| spec.get(field).and_then(Value::as_array).into_iter().flatten();
        let text = |v: &Value, field: &str| {
            v.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let rules = list("validations").map(|rule| Rule {
            expression: text(rule, "expression"),
            program: environment
                .compile_to(&text(rule, "expression"), &[Type::Bool])
                .map_err(|e| e.to_string()),
            message: text(rule, "message"),
            message_program: match text(rule, "messageExpression").as_str() {
                "" => None,
                expression => environment.compile_to(expression, &[Type::String]).ok(),
            },
            reason: text(rule, "reason"),
        });
        let annotations = list("auditAnnotations").map(|annotation| Annotation {
            key: text(annotation, "key"),
            expression: text(annotation, "valueExpression"),
            program: environment
                .compile_to(&text(annotation, "valueExpression"), &[Type::String, Type::Null])
                .map_err(|e| e.to_string()),
        });
        Self { rules: rules.collect(), annotations: annotations.collect() }
    }
}

/// What a policy holds against a request.
#[derive(Debug, PartialEq)]
struct Objection {
    message: String,
    reason: String,
    /// Which expression, for the audit.
    index: usize,
    /// It denies, whatever the binding says of denying.
    always_denies: bool,
}

impl Objection {
    fn failure(message: String, index: usize) -> Self {
        Self { message, reason: String::new(), index, always_denies: false }
    }
}

/// Applies all policies. All are heard before one refuses.
pub async fn validate(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let held = &server.policies().validating;
    if held.is_empty() || exempt(review) {
        return Ok(());
    }
    let all = held.all();
    let mut refused: Option<(String, String)> = None;
    for bound in all.iter() {
        let mut said = Said::default();
        for invocation in of_policy(server, review, bound).await? {
            let subject = Subject::of(server, review, &invocation.served).await?;
            let asking = Asking { server, user: review.user };
            let objections = match &invocation.params {
                Ok(params) => {
                    reckon(|| objections(invocation.policy, params, &subject, &asking, &mut said))
                }
                Err(why) => configuration(&invocation, why).into_iter().collect(),
            };
            for objection in objections {
                if let Some(refusal) = act(review, &invocation, &objection) {
                    refused.get_or_insert((refusal, objection.reason));
                }
            }
        }
        for (key, values) in said {
            let key = format!("{}/{key}", bound.policy.name);
            audit::annotate(key, || values.join(", "));
        }
    }
    match refused {
        None => Ok(()),
        Some((message, reason)) => Err(denied(review, &message, &reason)),
    }
}

/// A policy or binding that cannot be used denies, unless failures are ignored.
fn configuration(invocation: &Invocation<'_, Validation>, why: &str) -> Option<Objection> {
    let what = if invocation.binding.is_some() { "binding" } else { "policy" };
    let objection = Objection {
        always_denies: true,
        ..Objection::failure(format!("failed to configure {what}: {why}"), 0)
    };
    (!invocation.policy.ignores_failure).then_some(objection)
}

/// Does with an objection what the binding says; the refusal, if it is one.
fn act(
    review: &mut Review<'_>,
    invocation: &Invocation<'_, Validation>,
    objection: &Objection,
) -> Option<String> {
    let (policy, message) = (&invocation.policy.name, &objection.message);
    let Some(binding) = invocation.binding else {
        return Some(format!("ValidatingAdmissionPolicy '{policy}' denied request: {message}"));
    };
    let name = &binding.name;
    if binding.actions.contains(&Action::Warn) && !objection.always_denies {
        review.warnings.push(format!(
            "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{name}': {message}"
        ));
    }
    if binding.actions.contains(&Action::Audit) && !objection.always_denies {
        audit::annotate("validation.policy.admission.k8s.io/validation_failure", || {
            let actions: Vec<&str> = binding.actions.iter().map(|a| a.word()).collect();
            json!([{
                "message": message, "policy": policy, "binding": name,
                "expressionIndex": objection.index, "validationActions": actions,
            }])
            .to_string()
        });
    }
    let denies = objection.always_denies || binding.actions.contains(&Action::Deny);
    denies.then(|| {
        format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{name}' denied request: {message}"
        )
    })
}

/// What the annotations of a policy said, by key; each value once, in the order in which they were said.
type Said = BTreeMap<String, Vec<String>>;

/// Evaluates a policy with each of its parameters.
fn objections(
    policy: &Policy<Validation>,
    params: &[Value],
    subject: &Subject,
    authorizer: &dyn Authorizer,
    said: &mut Said,
) -> Vec<Objection> {
    let each = params.iter().flat_map(|p| with_params(policy, p, subject, authorizer, said));
    each.collect()
}

fn with_params(
    policy: &Policy<Validation>,
    params: &Value,
    subject: &Subject,
    authorizer: &dyn Authorizer,
    said: &mut Said,
) -> Vec<Objection> {
    let failure = |message: String, index: usize| match policy.ignores_failure {
        true => {
            tracing::debug!(policy = %policy.name, message, "a failure of a policy is ignored");
            None
        }
        false => Some(Objection::failure(message, index)),
    };
    let conditions = subject.bindings(params, authorizer);
    match policy.conditions.matches(&conditions, &mut Budget::new(PER_MATCH_CONDITIONS)) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failure(why, 0).into_iter().collect(),
    }
    let bindings = subject.bindings_with(params, authorizer, &policy.variables);
    let mut budget = Budget::new(PER_REQUEST);
    let mut found = Vec::new();
    for (index, rule) in policy.body.rules.iter().enumerate() {
        match rule.holds(&bindings, &mut budget) {
            Ok(true) => {}
            Ok(false) => found.push(Objection {
                message: rule.message(&bindings, &mut budget),
                reason: rule.reason.clone(),
                index,
                always_denies: false,
            }),
            Err(why) => found.extend(failure(why, index)),
        }
        if budget.left() == 0 {
            break;
        }
    }
    found.extend(annotations(policy, &bindings, &mut Budget::new(PER_REQUEST), said));
    found
}

impl Rule {
    fn holds<'a>(&'a self, bindings: &Bindings<'a>, budget: &mut Budget) -> Result<bool, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        match program.eval(bindings, budget) {
            Ok(value) => Ok(matches!(value, Cel::Bool(true))),
            Err(_) if budget.left() == 0 => Err(
                "validation failed due to running out of cost budget, no further validation rules will be run".into(),
            ),
            Err(e) => Err(format!("expression '{}' resulted in error: {e}", self.expression)),
        }
    }

    fn message<'a>(&'a self, bindings: &Bindings<'a>, budget: &mut Budget) -> String {
        let computed = self.message_program.as_ref().and_then(|program| {
            match program.eval(bindings, budget) {
                Ok(Cel::String(text)) => usable_message(&text),
                _ => None,
            }
        });
        computed.unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.trim()),
            message => message.to_owned(),
        })
    }
}

/// Says what the audit is to know; an annotation that cannot be evaluated denies like a failure.
fn annotations<'a>(
    policy: &'a Policy<Validation>,
    bindings: &Bindings<'a>,
    budget: &mut Budget,
    said: &mut Said,
) -> Vec<Objection> {
    let mut wrong = Vec::new();
    for annotation in &policy.body.annotations {
        let value = annotation.program.as_ref().map_err(Clone::clone).and_then(|program| {
            program.eval(bindings, budget).map_err(|e| {
                format!("expression '{}' resulted in error: {e}", annotation.expression)
            })
        });
        match value {
            Ok(Cel::Null) => {}
            Ok(Cel::String(text)) if text.trim().is_empty() => {}
            Ok(Cel::String(text)) => {
                let value: String = text.trim().chars().take(ANNOTATION_BYTES_MAX).collect();
                let values = said.entry(annotation.key.clone()).or_default();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
            Ok(other) => wrong.push(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.expression,
                other.type_name()
            )),
            Err(why) => wrong.push(why),
        }
    }
    if policy.ignores_failure {
        return Vec::new();
    }
    let denying = |message| Objection { always_denies: true, ..Objection::failure(message, 0) };
    wrong.into_iter().map(denying).collect()
}
