//! What a PodDisruptionBudget says of a pod that shall go.
//! <https://kubernetes.io/docs/tasks/run-application/configure-pdb/>
//!
//! How many may go is the disruption controller's to say, in the status. An eviction takes one of them in
//! the same write in which it notes the pod, so that two never take the same.

use jiff::Timestamp;
use rimward_api::{Cause, CauseReason, GroupResource, ObjectKey, Reason, Status};
use rimward_control_kinds::check::selector;
use rimward_control_kinds::read::{Read, member};
use rimward_control_store::ListRequest;
use serde_json::{Value, json};

use super::own_write;
use crate::error;
use crate::meta;
use crate::server::Inner;
use crate::views::Stored;

/// Pods that may be on their way at a time, as one budget notes them.
const NOTED_MAX: usize = 2000;
const REFUSAL: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Whether a pod may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Leave {
    /// No budget counts it.
    Free,
    /// It serves nobody as it is, so that its going takes nothing away.
    AsSeen,
    /// This one decides.
    Ask(ObjectKey),
}

/// Finds the pod's budget.
pub async fn of(server: &Inner, pod: &Value) -> Result<Leave, Status> {
    let namespace = pod.at("metadata").text("namespace");
    let served = server.registry().resource("policy", "poddisruptionbudgets");
    let served = served.expect("a built-in kind");
    let request = ListRequest { prefix: served.prefix(namespace), ..ListRequest::default() };
    let page = server.store.list(request).await.map_err(error::store)?;
    let mut budgets = Vec::new();
    for entry in &page.entries {
        budgets.push(Stored::open(entry)?.stored_value(&served)?);
    }
    budgets.retain(|budget| selects(budget, pod));
    match budgets.as_slice() {
        [] => Ok(Leave::Free),
        [budget] => Ok(leave(budget, pod)),
        _ => Err(Status::new(
            500,
            Reason::InternalError,
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )),
    }
}

fn selects(budget: &Value, pod: &Value) -> bool {
    // A budget without a selector counts nothing; an empty one counts everything.
    let selector = budget.at("spec").at("selector");
    selector.is_object() && selector::matches(selector, pod.at("metadata").at("labels"))
}

/// Decides, from the budget that counts the pod.
fn leave(budget: &Value, pod: &Value) -> Leave {
    let ready = pod.at("status").list("conditions").iter();
    let ready = ready.filter(|c| c.text("type") == "Ready").any(|c| c.text("status") == "True");
    let status = budget.at("status");
    let (healthy, wanted) = (
        status.int("currentHealthy").unwrap_or_default(),
        status.int("desiredHealthy").unwrap_or_default(),
    );
    let always = budget.at("spec").text("unhealthyPodEvictionPolicy") == "AlwaysAllow";
    match !ready && (always || (healthy >= wanted && wanted > 0)) {
        true => Leave::AsSeen,
        false => Leave::Ask(ObjectKey::of(budget)),
    }
}

/// Takes one of the disruptions that the budget allows, for that pod.
pub async fn take(
    server: &Inner,
    budget: &ObjectKey,
    pod: &str,
    dry_run: bool,
) -> Result<(), Status> {
    let served = server.registry().resource("policy", "poddisruptionbudgets");
    let served = served.expect("a built-in kind");
    let now = Timestamp::now();
    let rewrite = |budget: Value| taken(budget, pod, now);
    own_write(server, &served, budget, &rewrite, dry_run).await.map(|_| ())
}

/// The budget with one disruption less. Pure.
fn taken(mut budget: Value, pod: &str, now: Timestamp) -> Result<Value, Status> {
    let name = budget.at("metadata").text("name").to_owned();
    let number = |of: &Value, field: &str| of.int(field).unwrap_or_default();
    let status = budget.at("status");
    if number(status, "observedGeneration") < number(budget.at("metadata"), "generation") {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(10, why));
    }
    let forbidden = |why: &str| {
        Err(Status::forbidden(&GroupResource::new("policy", "poddisruptionbudget"), &name, why))
    };
    let allowed = number(status, "disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status.entries("disruptedPods").is_some_and(|pods| pods.len() > NOTED_MAX) {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number(status, "desiredHealthy"),
            number(status, "currentHealthy")
        );
        return Err(refused(0, why));
    }
    let generation = number(budget.at("metadata"), "generation");
    if let Some(status) = member(&mut budget, "status") {
        status["disruptionsAllowed"] = (allowed - 1).into();
        if let Some(pods) = member(status, "disruptedPods") {
            pods[pod] = meta::time(now).into();
        }
        if allowed == 1 {
            insufficient(status, generation, now);
        }
    }
    Ok(budget)
}

fn insufficient(status: &mut Value, generation: i64, now: Timestamp) {
    let condition = json!({
        "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
        "observedGeneration": generation, "lastTransitionTime": meta::time(now),
    });
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let list = status["conditions"].as_array_mut().expect("was just made one");
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(there) if there["status"] == "False" => {}
        Some(there) => *there = condition,
        None => list.push(condition),
    }
}

fn refused(retry_after_seconds: u32, why: String) -> Status {
    let cause = Cause { reason: CauseReason::DisruptionBudget, message: why, field: String::new() };
    let mut status = Status::new(429, Reason::TooManyRequests, REFUSAL).with_causes(vec![cause]);
    status.details.get_or_insert_default().retry_after_seconds = retry_after_seconds;
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64, observed: i64) -> Value {
        json!({
            "metadata": { "name": "b", "namespace": "n", "generation": 2 },
            "spec": { "selector": { "matchLabels": { "app": "web" } } },
            "status": {
                "disruptionsAllowed": allowed, "observedGeneration": observed,
                "currentHealthy": 3, "desiredHealthy": 2,
            },
        })
    }

    #[test]
    fn one_less() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let after = taken(budget(2, 2), "p", now).expect("one is left");
        assert_eq!(after["status"]["disruptionsAllowed"], 1);
        assert_eq!(after["status"]["disruptedPods"], json!({ "p": "2026-01-01T00:00:00Z" }));
        assert!(after["status"].get("conditions").is_none());
        let after = taken(after, "q", now).expect("the last");
        assert_eq!(after["status"]["conditions"][0]["reason"], "InsufficientPods");
        let check = |budget: Value, code: u16, part: &str| {
            let refused = taken(budget, "p", now).expect_err("is refused");
            let why = refused.details.as_ref().and_then(|d| d.causes.first());
            let text = why.map_or(&refused.message, |cause| &cause.message);
            assert!(refused.code == code && text.contains(part), "{refused:?}");
        };
        check(budget(0, 2), 429, "needs 2 healthy pods and has 3 currently");
        check(budget(2, 1), 429, "still being processed");
        check(budget(-1, 2), 403, "negative");
    }

    #[test]
    fn who_may_go_without_asking() {
        let pod = |ready: &str| {
            json!({
                "metadata": { "labels": { "app": "web" } },
                "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
            })
        };
        let with = |policy: &str, healthy: i64| {
            let mut budget = budget(0, 2);
            budget["spec"]["unhealthyPodEvictionPolicy"] = policy.into();
            budget["status"]["currentHealthy"] = healthy.into();
            budget
        };
        let ask = || Leave::Ask(ObjectKey::new("n", "b"));
        assert_eq!(leave(&with("", 1), &pod("True")), ask());
        assert_eq!(leave(&with("", 1), &pod("False")), ask());
        assert_eq!(leave(&with("", 2), &pod("False")), Leave::AsSeen);
        assert_eq!(leave(&with("AlwaysAllow", 1), &pod("False")), Leave::AsSeen);
        assert_eq!(leave(&with("AlwaysAllow", 1), &pod("True")), ask());
        assert!(selects(&budget(0, 2), &pod("True")));
        assert!(!selects(&json!({ "spec": {} }), &pod("True")), "no selector");
        assert!(selects(&json!({ "spec": { "selector": {} } }), &pod("True")), "an empty one");
    }
}
