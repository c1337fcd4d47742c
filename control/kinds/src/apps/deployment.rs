//! Deployment.

use serde_json::{Value, json};

use super::{always_restarting, selector_and_template};
use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, member};
use crate::rules::{Rules, Updates};

/// A revision to return to, of clients of the first version.
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.revision";

pub const DEPLOYMENT: Rules = Rules {
    unconvertible: |object| {
        let text = object.deep(&["metadata", "annotations", ROLLBACK_TO]).as_str()?;
        let why = super::not_a_number(object, ROLLBACK_TO).filter(|_| !text.is_empty())?;
        Some(format!("failed to parse annotation[{ROLLBACK_TO}]={text} as int64: {why}"))
    },
    default,
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| deployment(object, e),
    update,
    update_sub: |sub, new, old, e| {
        if sub == "status" {
            status(new.at("status"), old.at("status"), e);
        }
    },
    status: true,
    generation: true,
    cells: print::workload::deployment,
    warnings: crate::warnings::workload,
    warns_of_updates: Updates::OfSpec,
    ..Rules::PLAIN
};

fn default(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill(spec, "replicas", 1);
    if let Some(strategy) = member(spec, "strategy") {
        fill_text(strategy, "type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate"
            && let Some(rolling) = member(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", "25%");
            fill(rolling, "maxSurge", "25%");
        }
    }
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    crate::pod::defaults::template(spec);
}

fn deployment(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    check::not_negative(spec.at("replicas"), &path.field("replicas"), e);
    selector_and_template(spec, "deployment", &path, e);
    always_restarting(spec.at("template"), "ReplicaSet", &path.field("template"), e);
    strategy(spec.at("strategy"), &path.field("strategy"), e);
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    if let (Some(deadline), ready) =
        (spec.int("progressDeadlineSeconds"), spec.int("minReadySeconds").unwrap_or_default())
        && deadline <= ready
    {
        e.invalid(
            &path.field("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        );
    }
}

fn strategy(strategy: &Value, path: &Path<'_>, e: &mut Errors) {
    match strategy.text("type") {
        "Recreate" => {
            if strategy.has("rollingUpdate") {
                e.forbidden(
                    &path.field("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let (rolling, at) = (strategy.at("rollingUpdate"), path.field("rollingUpdate"));
            if rolling.is_null() {
                return e.required(&at, "this should be defaulted and never be nil");
            }
            let [unavailable, surge] = ["maxUnavailable", "maxSurge"].map(|f| rolling.at(f));
            check::count_or_percentage(unavailable, &at.field("maxUnavailable"), e);
            check::count_or_percentage(surge, &at.field("maxSurge"), e);
            if check::is_zero_count(unavailable) && check::is_zero_count(surge) {
                e.invalid(
                    &at.field("maxUnavailable"),
                    unavailable.clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            check::at_most_all(unavailable, &at.field("maxUnavailable"), e);
        }
        other => e.not_supported(path, other, &["Recreate", "RollingUpdate"]),
    }
}

fn update(new: &Value, old: &Value, e: &mut Errors) {
    deployment(new, e);
    let (after, before) = (new.deep(&["spec", "selector"]), old.deep(&["spec", "selector"]));
    if !crate::read::same(after, before) {
        e.invalid(&Path::Root.field("spec").field("selector"), after.clone(), check::IMMUTABLE);
    }
}

fn status(status: &Value, old: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    for field in [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ] {
        check::not_negative(status.at(field), &path.field(field), e);
    }
    let number = |field: &str| status.int(field).unwrap_or_default();
    const TOO_MANY: &str = "cannot be greater than status.replicas";
    for field in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
        if number(field) > number("replicas") {
            e.invalid(&path.field(field), number(field), TOO_MANY);
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        e.invalid(
            &path.field("availableReplicas"),
            number("availableReplicas"),
            "cannot be greater than readyReplicas",
        );
    }
    if let Some(before) = old.int("collisionCount")
        && number("collisionCount") < before
    {
        e.invalid(&path.field("collisionCount"), number("collisionCount"), "cannot be decremented");
    }
}
