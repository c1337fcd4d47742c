//! Job; and CronJob, which makes them.

pub mod cronjob;
mod policies;

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, selector};
use crate::path::{Errors, Path};
use crate::pod::spec;
use crate::print;
use crate::read::{Read, fill, fill_text, is_empty, items_mut, keep, member, same};
use crate::rules::{Field, Rules, Updates};

pub const JOB: Rules = Rules {
    default,
    prepare_create,
    create: |object, e| job(object, e),
    update,
    status: true,
    generation: true,
    fields: &[("status.successful", Field::Number(&["status", "succeeded"]))],
    cells: print::workload::job,
    warnings: crate::warnings::workload,
    warns_of_updates: Updates::OfSpec,
    ..Rules::PLAIN
};

fn job(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    job_spec(spec, &path, e);
    let (chosen, at) = (spec.at("selector"), path.field("selector"));
    let labels = spec.deep(&["template", "metadata", "labels"]);
    let wrong = e.count(|e| selector::label_selector(chosen, &at, e));
    if chosen.is_null() {
        e.required(&at, "");
    } else if !spec.flag("manualSelector") {
        generated_selector(object, wrong == 0, e);
    }
    if wrong == 0 && (chosen.is_null() || !selector::matches(chosen, labels)) {
        let template = path.field("template");
        let template = template.field("metadata");
        e.invalid(
            &template.field("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    // Pods of an indexed job are named after it, with their index.
    let completions = spec.int("completions").unwrap_or_default();
    if spec.text("completionMode") == "Indexed" && completions > 0 {
        let name = object.at("metadata").text("name");
        let last = format!("{name}-{}", completions - 1);
        for why in names::dns1123_label(&last) {
            let path = Path::Root.field("metadata");
            e.invalid(
                &path.field("name"),
                name,
                &format!("will not able to create pod with invalid DNS label {last:?}: {why}"),
            );
        }
    }
}

/// Labels and selector that `prepare_create` made must still be what it made.
fn generated_selector(object: &Value, selector_good: bool, e: &mut Errors) {
    let (meta, spec) = (object.at("metadata"), object.at("spec"));
    let (uid, name) = (meta.text("uid"), meta.text("name"));
    if uid.is_empty() {
        e.required(&Path::Root.field("metadata").field("uid"), "");
    }
    let labels = spec.deep(&["template", "metadata", "labels"]);
    let path = Path::Root.field("spec");
    let path = path.field("template");
    let path = path.field("metadata");
    let path = path.field("labels");
    let mut expected = serde_json::Map::new();
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", uid),
        ("controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
        ("job-name", name),
    ] {
        expected.insert(key.to_owned(), value.into());
        match labels.get(key).and_then(Value::as_str) {
            None => e.required(&path.key(key), &format!("must be '{value}'")),
            Some(other) if other != value => {
                e.invalid(&path.key(key), other, &format!("must be '{value}'"))
            }
            Some(_) => {}
        }
    }
    if selector_good && !selector::matches(spec.at("selector"), &Value::Object(expected)) {
        e.invalid(
            &Path::Root.field("spec").field("selector"),
            spec.at("selector").clone(),
            "`selector` not auto-generated",
        );
    }
}

fn default(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    if !spec.has("completions") && !spec.has("parallelism") {
        spec["completions"] = 1.into();
    }
    fill(spec, "parallelism", 1);
    fill(
        spec,
        "backoffLimit",
        if spec.has("backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 },
    );
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let replacement = if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    fill(spec, "podReplacementPolicy", replacement);
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in items_mut(policy, "rules") {
            items_mut(rule, "onPodConditions").for_each(|c| fill_text(c, "status", "True"));
        }
    }
    crate::pod::defaults::template(spec);
    let labels = spec.deep(&["template", "metadata", "labels"]).clone();
    if !is_empty(&labels)
        && let Some(meta) = member(object, "metadata")
        && is_empty(meta.at("labels"))
    {
        meta["labels"] = labels;
    }
}

/// The pods of a job are found by its uid, unless it says how itself.
fn prepare_create(object: &mut Value) {
    object["status"] = json!({});
    let meta = object.at("metadata");
    let (uid, name) = (meta.text("uid").to_owned(), meta.text("name").to_owned());
    let manual = object.at("spec").flag("manualSelector");
    if manual || uid.is_empty() {
        return;
    }
    let Some(spec) = object.get_mut("spec") else { return };
    let labels = member(spec, "template")
        .and_then(|t| member(t, "metadata"))
        .and_then(|m| member(m, "labels"));
    if let Some(labels) = labels {
        for (key, value) in [
            ("job-name", &name),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/controller-uid", &uid),
        ] {
            labels[key] = value.as_str().into();
        }
    }
    if let Some(chosen) = member(spec, "selector").and_then(|s| member(s, "matchLabels")) {
        chosen["batch.kubernetes.io/controller-uid"] = uid.into();
    }
}

fn job_spec(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    let modes = ["Indexed", "NonIndexed"];
    check::one_of(spec.at("completionMode"), &modes, &path.field("completionMode"), e);
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        e.required(&path.field("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    managed_by(spec, &path.field("managedBy"), e);
    if spec.text("completionMode") == "Indexed" {
        indexed(spec, path, e);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            if spec.has(field) {
                e.invalid(&path.field(field), spec.at(field).clone(), NEEDS_INDEXES);
            }
        }
    }
    policies::failure(spec, &path.field("podFailurePolicy"), e);
    if spec.text("completionMode") == "Indexed" {
        policies::success(spec, &path.field("successPolicy"), e);
    }
    let replacement: &[&str] =
        if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    check::one_of(
        spec.at("podReplacementPolicy"),
        replacement,
        &path.field("podReplacementPolicy"),
        e,
    );
    let template = path.field("template");
    spec::template(spec.at("template"), &template, e);
    let policy = spec.deep(&["template", "spec", "restartPolicy"]).as_str().unwrap_or_default();
    let at = template.field("spec");
    let at = at.field("restartPolicy");
    match policy {
        "OnFailure" if spec.has("podFailurePolicy") => {
            e.invalid(&at, policy, "only \"Never\" is supported when podFailurePolicy is specified")
        }
        "OnFailure" | "Never" => {}
        "" | "Always" => e.required(&at, "valid values: \"OnFailure\", \"Never\""),
        other => e.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

const NEEDS_INDEXES: &str = "requires indexed completion mode";

/// Another controller than the cluster's own, by a domain and a path below it.
fn managed_by(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    const NAME_MAX: usize = 63;
    let Some(name) = spec.at("managedBy").as_str() else { return };
    check::text::domain_prefixed(name, path, e);
    if name.len() > NAME_MAX {
        e.too_long(path, NAME_MAX);
    }
}

/// An index is kept for every completion: there are limits to them.
fn indexed(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    const PARALLEL_MAX: i64 = 100_000;
    const FAILED_MAX: i64 = 100_000;
    const COMPLETIONS_SOFT: i64 = 100_000;
    const HIGH_MAX: i64 = 10_000;
    let int = |field: &str| spec.int(field);
    let Some(completions) = int("completions") else {
        return e.required(&path.field("completions"), "when completion mode is Indexed");
    };
    if let Some(parallel) = int("parallelism").filter(|p| *p > PARALLEL_MAX) {
        let why =
            format!("must be less than or equal to {PARALLEL_MAX} when completion mode is Indexed");
        e.invalid(&path.field("parallelism"), parallel, &why);
    }
    let failed = int("maxFailedIndexes");
    if let Some(failed) = failed.filter(|f| *f > completions) {
        e.invalid(
            &path.field("maxFailedIndexes"),
            failed,
            "must be less than or equal to completions",
        );
    }
    if let Some(failed) = failed.filter(|f| *f > FAILED_MAX) {
        let why = format!("must be less than or equal to {FAILED_MAX}");
        e.invalid(&path.field("maxFailedIndexes"), failed, &why);
    }
    if completions <= COMPLETIONS_SOFT || !spec.has("backoffLimitPerIndex") {
        return;
    }
    let condition = format!(
        "when completions are above {COMPLETIONS_SOFT} and used with backoff limit per index"
    );
    match failed {
        None => {
            let why = format!(
                "must be specified when completions is above {COMPLETIONS_SOFT} and used with backoff limit per index"
            );
            e.required(&path.field("maxFailedIndexes"), &why);
        }
        Some(failed) if failed > HIGH_MAX => {
            let why = format!("must be less than or equal to {HIGH_MAX} {condition}");
            e.invalid(&path.field("maxFailedIndexes"), failed, &why);
        }
        Some(_) => {}
    }
    if let Some(parallel) = int("parallelism").filter(|p| *p > HIGH_MAX) {
        let why = format!("must be less than or equal to {HIGH_MAX} {condition}");
        e.invalid(&path.field("parallelism"), parallel, &why);
    }
}

fn update(new: &Value, old: &Value, e: &mut Errors) {
    let (spec, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
    job(new, e);
    completions(spec, before, &path, e);
    for field in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        if !same(spec.at(field), before.at(field)) {
            e.invalid(&path.field(field), spec.at(field).clone(), check::IMMUTABLE);
        }
    }
    let mut template = spec.at("template").clone();
    // A suspended job that never ran may still move to other nodes.
    if before.flag("suspend") && !old.at("status").has("startTime") {
        moved(&mut template, before.at("template"));
    }
    if !same(&template, before.at("template")) {
        e.invalid(&path.field("template"), spec.at("template").clone(), check::IMMUTABLE);
    }
}

/// Makes alike what says where pods run.
fn moved(template: &mut Value, old: &Value) {
    if let Some(meta) = member(template, "metadata") {
        for field in ["annotations", "labels"] {
            keep(meta, old.at("metadata"), field);
        }
    }
    let Some(pod) = member(template, "spec") else { return };
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        keep(pod, old.at("spec"), field);
    }
    if let Some(affinity) = member(pod, "affinity") {
        keep(affinity, old.at("spec").at("affinity"), "nodeAffinity");
    }
    for list in ["containers", "initContainers"] {
        let were = old.at("spec").list(list);
        for (container, was) in items_mut(pod, list).zip(were) {
            keep(container, was, "resources");
        }
    }
}

/// The number of completions stays; that of an indexed job may follow its parallelism.
fn completions(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    let (now, was, at) = (new.at("completions"), old.at("completions"), path.field("completions"));
    if now == was {
        return;
    }
    if new.text("completionMode") != "Indexed" {
        e.invalid(&at, now.clone(), check::IMMUTABLE);
    } else if !now.is_null() && now != new.at("parallelism") {
        let why = format!("can only be modified in tandem with {}", path.field("parallelism"));
        e.invalid(&at, now.clone(), &why);
    }
}
