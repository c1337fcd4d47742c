//! Admission webhooks: mutating ones in the order of their names, then validating ones all at once.
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>
//!
//! The configurations are kept in memory, taken apart when they are written, so that a write for which
//! there is no webhook pays for one look at an empty list.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use parking_lot::RwLock;
use rimward_api::Status;
use rimward_control_schema::patch;
use serde_json::{Value, json};

use super::{Operation, Review, form};
use crate::audit;
use crate::metrics::admission::Outcome;
use crate::mirror::Mirrored;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

mod hook;
mod review;

use hook::Hook;
pub use review::unversioned as request;
use review::{Answer, Failure};

/// The webhooks of one kind of configuration.
#[derive(Default)]
pub struct Webhooks {
    by_configuration: RwLock<BTreeMap<String, Vec<Arc<Hook>>>>,
    /// All of them, in the order in which they are called.
    all: RwLock<Arc<Vec<Arc<Hook>>>>,
}

impl Webhooks {
    fn all(&self) -> Arc<Vec<Arc<Hook>>> {
        self.all.read().clone()
    }

    pub fn is_empty(&self) -> bool {
        self.all.read().is_empty()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<Arc<Hook>>>)) {
        let mut by_configuration = self.by_configuration.write();
        change(&mut by_configuration);
        *self.all.write() = Arc::new(by_configuration.values().flatten().cloned().collect());
    }
}

impl Mirrored for Webhooks {
    fn replace(&self, all: Vec<(String, Stored)>) {
        let parsed = all.iter().map(|(k, s)| (k.clone(), hook::of_configuration(k, s))).collect();
        self.change(|map| *map = parsed);
    }

    fn put(&self, key: &str, stored: &Stored) {
        let parsed = hook::of_configuration(key, stored);
        self.change(|map| {
            map.insert(key.to_owned(), parsed);
        });
    }

    fn remove(&self, key: &str) {
        self.change(|map| {
            map.remove(key);
        });
    }
}

/// What configures admission is not itself admitted by it: a broken webhook must be removable.
/// And a Binding is reviewed as what was sent, not again as the pod that it changes.
fn exempt(review: &Review<'_>) -> bool {
    review.served.kind.group == "admissionregistration.k8s.io"
        || (review.operation == Operation::Update && review.subresource == "binding")
}

/// Who was called so far, and who is to be called again.
#[derive(Default)]
pub struct Round {
    again: bool,
    /// Called before, and asked to be called again after later changes.
    reinvocable: Vec<Arc<str>>,
    reinvoke: HashSet<Arc<str>>,
}

impl Round {
    /// Whoever was called before sees the change.
    fn changed(&mut self) {
        self.reinvoke.extend(self.reinvocable.drain(..));
    }

    /// The second round; `changed` is whether plugins have changed the object since the first.
    pub fn second(&mut self, changed: bool) {
        self.again = true;
        if changed {
            self.changed();
        }
    }
}

/// Calls the mutating webhooks; whether one of them changed the object.
pub async fn mutate(
    server: &Inner,
    review: &mut Review<'_>,
    round: &mut Round,
) -> Result<bool, Status> {
    if server.mutating_webhooks.is_empty() || exempt(review) {
        return Ok(false);
    }
    let mut changed = false;
    for (i, hook) in server.mutating_webhooks.all().iter().enumerate() {
        if round.again && !round.reinvoke.contains(&hook.uid) {
            continue;
        }
        let Some(served) = hook.matched(server, review).await? else { continue };
        let place = format!("round_{}_index_{i}", u8::from(round.again));
        let mutated = mutate_by(server, review, hook, &served, &place).await?;
        audit::annotate(format!("mutation.webhook.admission.k8s.io/{place}"), || {
            let (configuration, name) = (&hook.configuration, &hook.name);
            json!({ "configuration": configuration, "webhook": name, "mutated": mutated })
                .to_string()
        });
        if mutated {
            changed = true;
            round.changed();
        }
        if hook.reinvoked {
            round.reinvocable.push(hook.uid.clone());
        }
    }
    Ok(changed)
}

async fn mutate_by(
    server: &Inner,
    review: &mut Review<'_>,
    hook: &Hook,
    served: &Arc<Served>,
    place: &str,
) -> Result<bool, Status> {
    let before = form::shown(server, review, served, review.object).await?;
    let old = old_shown(server, review, served).await?;
    let answer = match call(server, review, hook, served, (&before, &old), true).await {
        Ok(answer) => answer,
        Err(failure) => {
            review.warnings.extend(failure.warnings());
            failed(hook, failure)?;
            failed_open("mutating", place, hook);
            return Ok(false);
        }
    };
    review.warnings.extend(answer.warnings);
    let Some(patch) = answer.patch else { return Ok(false) };
    if before.is_null() {
        return Err(Status::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    }
    let after = patch::json_patch(&before, &patch).map_err(|e| Status::internal(e.message))?;
    if after == before {
        return Ok(false);
    }
    if audit::wants_patches() {
        audit::annotate(format!("patch.webhook.admission.k8s.io/{place}"), || {
            let patch: Value = serde_json::from_slice(&patch).unwrap_or_default();
            let (configuration, name) = (&hook.configuration, &hook.name);
            json!({ "configuration": configuration, "webhook": name, "patch": patch, "patchType": "JSONPatch" })
                .to_string()
        });
    }
    let taken = form::take(server, review, served, after).await;
    taken.map_err(|e| Status::internal(e.message))?;
    Ok(form::shown(server, review, served, review.object).await? != before)
}

/// Calls a webhook; how long that took is told.
async fn call(
    server: &Inner,
    review: &Review<'_>,
    hook: &Hook,
    served: &Served,
    (object, old): (&Value, &Value),
    mutating: bool,
) -> Result<Answer, Failure> {
    let began = Instant::now();
    let answer = hook.call(server, review, served, object, old, mutating).await;
    let outcome = match &answer {
        Ok(_) => Outcome::Allowed,
        Err(Failure::Denied { status, .. }) => Outcome::Denied(status.code),
        Err(Failure::Unfit(_)) => Outcome::Unfit,
        Err(Failure::Call(_)) => Outcome::Failed { open: hook.ignored },
    };
    let kind = if mutating { "admit" } else { "validating" };
    let about = (hook.name.as_str(), review.operation.word(), kind);
    server.metrics.admission.webhook_called(about, outcome, began.elapsed());
    answer
}

async fn old_shown(server: &Inner, review: &Review<'_>, served: &Served) -> Result<Value, Status> {
    match review.old {
        Some(old) => form::shown(server, review, served, old).await,
        None => Ok(Value::Null),
    }
}

/// Calls the validating webhooks side by side. All are heard before one refuses, so that what each of
/// them records is recorded.
pub async fn validate(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    if server.validating_webhooks.is_empty() || exempt(review) {
        return Ok(());
    }
    let hooks = server.validating_webhooks.all();
    let mut matched = Vec::new();
    for hook in hooks.iter() {
        if let Some(served) = hook.matched(server, review).await? {
            matched.push((hook, served));
        }
    }
    let mut shown: Vec<(u32, Value, Value)> = Vec::new();
    for (_, served) in &matched {
        if !shown.iter().any(|(index, _, _)| *index == served.index) {
            let object = form::shown(server, review, served, review.object).await?;
            shown.push((served.index, object, old_shown(server, review, served).await?));
        }
    }
    let asked = &*review;
    let calls = matched.iter().map(|(hook, served)| {
        let (_, object, old) = shown
            .iter()
            .find(|(index, _, _)| *index == served.index)
            .expect("every version was shown");
        async move { (*hook, call(server, asked, hook, served, (object, old), false).await) }
    });
    let answers: Vec<(&Arc<Hook>, Result<Answer, Failure>)> = join_all(calls).await;
    let mut refused = None;
    for (i, (hook, answer)) in answers.into_iter().enumerate() {
        match answer {
            Ok(answer) => review.warnings.extend(answer.warnings),
            Err(failure) => {
                review.warnings.extend(failure.warnings());
                match failed(hook, failure) {
                    Ok(()) => failed_open("validating", &format!("round_0_index_{i}"), hook),
                    Err(status) => drop(refused.get_or_insert(status)),
                }
            }
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Tells the audit that a request went on without a webhook.
fn failed_open(kind: &str, place: &str, hook: &Hook) {
    audit::annotate(format!("failed-open.{kind}.webhook.admission.k8s.io/{place}"), || {
        hook.name.clone()
    });
}

/// What a webhook's failure means for the request: `failurePolicy`. A refusal is no failure.
fn failed(hook: &Hook, failure: Failure) -> Result<(), Status> {
    match failure {
        Failure::Denied { status, .. } => Err(status),
        Failure::Unfit(status) => Err(status),
        Failure::Call(why) if hook.ignored => {
            tracing::warn!(webhook = %hook.name, error = %why, "a webhook failed, the request goes on");
            Ok(())
        }
        Failure::Call(why) => {
            tracing::warn!(webhook = %hook.name, error = %why, "a webhook failed, the request is refused");
            Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name)))
        }
    }
}
