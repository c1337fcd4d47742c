//! DaemonSet.

use serde_json::{Value, json};

use super::{always_restarting, lenient_selector_and_template};
use crate::check;
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, member};
use crate::rules::{Rules, Updates};

/// Counts the changes of the template; kept where clients of the first version look for it.
const GENERATION: &str = "deprecated.daemonset.template.generation";

pub const DAEMONSET: Rules = Rules {
    unconvertible: |object| super::not_a_number(object, GENERATION),
    default,
    prepare_create: |object| {
        object["status"] = json!({ "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0 });
        set_generation(object, 1);
    },
    prepare_update,
    create: |object, e| daemonset(object, e),
    update: |new, old, e| {
        daemonset(new, e);
        let (after, before) = (new.deep(&["spec", "selector"]), old.deep(&["spec", "selector"]));
        if !crate::read::same(after, before) {
            e.invalid(&Path::Root.field("spec").field("selector"), after.clone(), check::IMMUTABLE);
        }
    },
    status: true,
    generation: true,
    cells: print::workload::daemonset,
    warnings: crate::warnings::template,
    warns_of_updates: Updates::OfSpec,
    ..Rules::PLAIN
};

fn set_generation(object: &mut Value, generation: i64) {
    if let Some(annotations) = member(object, "metadata").and_then(|m| member(m, "annotations")) {
        annotations[GENERATION] = generation.to_string().into();
    }
}

fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    if write != Write::Main {
        return;
    }
    let before = old.deep(&["metadata", "annotations", GENERATION]).as_str();
    let count: i64 = before.and_then(|t| t.parse().ok()).unwrap_or(1);
    let changed = !crate::read::same(new.at("spec").at("template"), old.at("spec").at("template"));
    set_generation(new, if changed { count + 1 } else { count });
}

fn default(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    if let Some(strategy) = member(spec, "updateStrategy") {
        fill_text(strategy, "type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate"
            && let Some(rolling) = member(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", 1);
            fill(rolling, "maxSurge", 0);
        }
    }
    fill(spec, "revisionHistoryLimit", 10);
    crate::pod::defaults::template(spec);
}

fn daemonset(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    lenient_selector_and_template(spec, "daemonset", &path, e);
    always_restarting(spec.at("template"), "DaemonSet", &path.field("template"), e);
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    let (strategy, at) = (spec.at("updateStrategy"), path.field("updateStrategy"));
    match strategy.text("type") {
        "OnDelete" => {}
        "RollingUpdate" => rolling(strategy.at("rollingUpdate"), &at.field("rollingUpdate"), e),
        other => e.not_supported(&at, other, &["RollingUpdate", "OnDelete"]),
    }
}

fn rolling(rolling: &Value, path: &Path<'_>, e: &mut Errors) {
    if rolling.is_null() {
        return e.required(path, "");
    }
    let [unavailable, surge] = ["maxUnavailable", "maxSurge"].map(|f| rolling.at(f));
    for (value, field) in [(unavailable, "maxUnavailable"), (surge, "maxSurge")] {
        check::count_or_percentage(value, &path.field(field), e);
        check::at_most_all(value, &path.field(field), e);
    }
    match (check::is_zero_count(unavailable), check::is_zero_count(surge)) {
        (true, true) => e.required(&path.field("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        (false, false) => e.invalid(
            &path.field("maxSurge"),
            surge.clone(),
            "may not be set when maxUnavailable is non-zero",
        ),
        _ => {}
    }
}
