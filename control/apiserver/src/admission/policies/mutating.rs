//! MutatingAdmissionPolicy: expressions that say what an object is to become.

use std::collections::HashSet;

use rimward_api::{Reason, Status};
use rimward_control_cel::authorizer::Authorizer;
use rimward_control_cel::limits::{PER_MATCH_CONDITIONS, PER_REQUEST};
use rimward_control_cel::{Budget, Environment, Program, Type};
use serde_json::Value;

use super::bound::{Invocation, of_policy};
use super::policy::{Body, Policy};
use super::subject::{Asking, Subject};
use super::{exempt, patch, reckon};
use crate::admission::{Review, form};
use crate::served::Served;
use crate::server::Inner;

/// What a policy of this kind does.
#[derive(Debug)]
pub struct Mutation {
    steps: Vec<Step>,
    /// `reinvocationPolicy: IfNeeded`
    reinvoked: bool,
}

#[derive(Debug)]
pub struct Step {
    pub form: Form,
    pub expression: String,
    program: Result<Program, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    ApplyConfiguration,
    JsonPatch,
}

impl Form {
    /// Of a mutation: the form and the expression.
    pub fn read(mutation: &Value) -> Option<(Self, &str)> {
        let expression = |field: &str| mutation.get(field)?.get("expression")?.as_str();
        match mutation.get("patchType")?.as_str()? {
            "ApplyConfiguration" => {
                Some((Self::ApplyConfiguration, expression("applyConfiguration")?))
            }
            "JSONPatch" => Some((Self::JsonPatch, expression("jsonPatch")?)),
            _ => None,
        }
    }

    pub fn compile(self, environment: &Environment, expression: &str) -> Result<Program, String> {
        let wanted = match self {
            Self::ApplyConfiguration => Type::Message("Object".into()),
            Self::JsonPatch => Type::list(Type::Message("JSONPatch".into())),
        };
        let program = environment.compile(expression).map_err(|e| e.to_string())?;
        // A literal without elements is a list of anything.
        let empty = Type::list(Type::Dyn);
        let fits = program.output().same(&wanted)
            || (self == Self::JsonPatch && program.output().same(&empty));
        match fits {
            true => Ok(program),
            false => Err(format!("must evaluate to {wanted} but got {}", program.output())),
        }
    }
}

impl Body for Mutation {
    const PATCHES: bool = true;

    fn compile(spec: &Value, environment: &Environment) -> Self {
        let mutations = spec.get("mutations").and_then(Value::as_array).into_iter().flatten();
        let steps = mutations.filter_map(Form::read).map(|(form, expression)| Step {
            form,
            expression: expression.to_owned(),
            program: form.compile(environment, expression),
        });
        let policy = spec.get("reinvocationPolicy").and_then(Value::as_str);
        Self { steps: steps.collect(), reinvoked: policy == Some("IfNeeded") }
    }
}

/// Which policies were applied so far, and which are to be applied again.
#[derive(Default)]
pub struct Round {
    again: bool,
    /// Applied before, and to be applied again after later changes: policy, binding, parameter.
    reinvocable: Vec<Key>,
    reinvoke: HashSet<Key>,
    /// What the last policy left, to see whether anybody changed it since.
    last: Option<Value>,
}

type Key = (String, String, usize);

impl Round {
    fn changed(&mut self) {
        self.reinvoke.extend(self.reinvocable.drain(..));
    }

    /// The second round, once plugins and webhooks have had their say.
    pub fn second(&mut self, object: &Value) {
        self.again = true;
        if self.last.as_ref().is_some_and(|last| last != object) {
            self.changed();
        }
    }
}

/// What stands between a policy and what it wants.
struct Trouble {
    message: String,
    reason: Reason,
}

/// Applies all policies in the order of their names; whether one of them changed the object.
pub async fn mutate(
    server: &Inner,
    review: &mut Review<'_>,
    round: &mut Round,
) -> Result<bool, Status> {
    let held = &server.policies().mutating;
    if held.is_empty() || exempt(review) || review.object.is_null() {
        return Ok(false);
    }
    let all = held.all();
    let mut invocations = Vec::new();
    for bound in all.iter() {
        invocations.extend(of_policy(server, review, bound).await?);
    }
    let (mut changed, mut troubles) = (false, Vec::new());
    for invocation in &invocations {
        let params = match &invocation.params {
            Ok(params) => params,
            Err(why) => {
                let what = if invocation.binding.is_some() { "binding" } else { "policy" };
                let message = format!("failed to configure {what}: {why}");
                troubled(invocation, message, Reason::Forbidden, &mut troubles);
                continue;
            }
        };
        for (i, params) in params.iter().enumerate() {
            changed |= one(server, review, round, invocation, (i, params), &mut troubles).await?;
        }
    }
    round.last = Some(review.object.clone());
    match troubles.into_iter().next() {
        None => Ok(changed),
        Some(first) => {
            let mut status = review.forbidden("");
            (status.message, status.reason) = (first.message, first.reason);
            Err(status)
        }
    }
}

fn troubled(
    invocation: &Invocation<'_, Mutation>,
    message: String,
    reason: Reason,
    troubles: &mut Vec<Trouble>,
) {
    let policy = &invocation.policy.name;
    if invocation.policy.ignores_failure {
        tracing::debug!(policy, message, "a failure of a policy is ignored");
        return;
    }
    let message = match invocation.binding {
        Some(binding) => {
            format!("policy '{policy}' with binding '{}' denied request: {message}", binding.name)
        }
        None => format!("policy {policy:?} denied request: {message}"),
    };
    troubles.push(Trouble { message, reason });
}

/// Applies a policy with one parameter; whether the object changed.
async fn one(
    server: &Inner,
    review: &mut Review<'_>,
    round: &mut Round,
    invocation: &Invocation<'_, Mutation>,
    (i, params): (usize, &Value),
    troubles: &mut Vec<Trouble>,
) -> Result<bool, Status> {
    let (policy, served) = (invocation.policy, &*invocation.served);
    let binding = invocation.binding.map(|b| b.name.clone()).unwrap_or_default();
    let key = (policy.name.clone(), binding, i);
    if round.again && !round.reinvoke.contains(&key) {
        return Ok(false);
    }
    let mut subject = Subject::of(server, review, served).await?;
    let user = review.user;
    let matches = reckon(|| conditions(policy, params, &subject, &Asking { server, user }));
    match matches {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(why) => {
            troubled(invocation, why, Reason::Invalid, troubles);
            return Ok(false);
        }
    }
    let mut changed = false;
    for step in &policy.body.steps {
        let made = reckon(|| make(step, policy, params, &subject, &Asking { server, user }));
        let after = made.and_then(|made| patch::applied(served, step.form, &subject.object, made));
        match after {
            Ok(after) if after == subject.object => {}
            Ok(after) => {
                changed |= put(server, review, served, after, &mut subject).await?;
            }
            Err(why) => troubled(invocation, why, Reason::Invalid, troubles),
        }
    }
    if changed {
        round.changed();
    }
    if policy.body.reinvoked {
        round.reinvocable.push(key);
    }
    Ok(changed)
}

/// Makes what a step made of the object the object; whether that changed it.
async fn put(
    server: &Inner,
    review: &mut Review<'_>,
    served: &Served,
    after: Value,
    subject: &mut Subject,
) -> Result<bool, Status> {
    let taken = form::take(server, review, served, after).await;
    taken.map_err(|e| Status::internal(e.message))?;
    let now = form::shown(server, review, served, review.object).await?;
    let changed = now != subject.object;
    subject.object = now;
    Ok(changed)
}

fn conditions(
    policy: &Policy<Mutation>,
    params: &Value,
    subject: &Subject,
    authorizer: &dyn Authorizer,
) -> Result<bool, String> {
    let bindings = subject.bindings(params, authorizer);
    policy.conditions.matches(&bindings, &mut Budget::new(PER_MATCH_CONDITIONS))
}

fn make(
    step: &Step,
    policy: &Policy<Mutation>,
    params: &Value,
    subject: &Subject,
    authorizer: &dyn Authorizer,
) -> Result<Value, String> {
    let program = step.program.as_ref().map_err(Clone::clone)?;
    let bindings = subject.bindings_with(params, authorizer, &policy.variables);
    let mut budget = Budget::new(PER_REQUEST);
    let failed = |e| format!("expression '{}' resulted in error: {e}", step.expression);
    let value = program.eval(&bindings, &mut budget).map_err(failed)?;
    value.check_names().map_err(|e| format!("type mismatch: {e}"))?;
    rimward_control_cel::value::to_json(&value, &mut budget).map_err(failed)
}
