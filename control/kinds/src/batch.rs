//! Job and CronJob.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, selector};
use crate::path::{Errors, Path};
use crate::pod::spec;
use crate::print;
use crate::read::{Read, fill, fill_text, is_empty, items_mut, member};
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
    if spec.text("completionMode") == "Indexed" {
        indexed(spec, path, e);
    }
    failure_policy(spec, &path.field("podFailurePolicy"), e);
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

fn failure_policy(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let rules = spec.at("podFailurePolicy").list("rules");
    let list = path.field("rules");
    if rules.len() > 20 {
        e.too_many(&list, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = list.index(i);
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        check::required_one_of(rule.at("action"), &actions, &at.field("action"), e);
        if rule.text("action") == "FailIndex" && !spec.has("backoffLimitPerIndex") {
            e.invalid(
                &at.field("action"),
                "FailIndex",
                "requires the backoffLimitPerIndex to be set",
            );
        }
        exit_codes(rule.at("onExitCodes"), spec, &at.field("onExitCodes"), e);
        let conditions = rule.list("onPodConditions");
        let here = at.field("onPodConditions");
        if conditions.len() > 20 {
            e.too_many(&here, conditions.len(), 20);
        }
        for (j, condition) in conditions.iter().enumerate() {
            let kind = condition.text("type");
            e.invalid_each(&here.index(j).field("type"), kind, names::qualified_name(kind));
            check::required_one_of(
                condition.at("status"),
                &["False", "True", "Unknown"],
                &here.index(j).field("status"),
                e,
            );
        }
        match (rule.at("onExitCodes").is_object(), !conditions.is_empty()) {
            (true, true) => e.invalid(
                &at,
                Value::Null,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (false, false) => e.invalid(
                &at,
                Value::Null,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
    }
}

fn exit_codes(codes: &Value, spec: &Value, path: &Path<'_>, e: &mut Errors) {
    if !codes.is_object() {
        return;
    }
    check::required_one_of(codes.at("operator"), &["In", "NotIn"], &path.field("operator"), e);
    if let Some(name) = codes.at("containerName").as_str() {
        let pod = spec.deep(&["template", "spec"]);
        let known = ["containers", "initContainers"]
            .iter()
            .any(|l| pod.list(l).iter().any(|c| c.text("name") == name));
        if !known {
            e.invalid(
                &path.field("containerName"),
                name,
                "must be one of the container or initContainer names in the pod template",
            );
        }
    }
    let (values, list) = (codes.list("values"), path.field("values"));
    if values.is_empty() {
        e.invalid(&list, Value::Array(Vec::new()), "at least one value is required");
    } else if values.len() > 255 {
        e.too_many(&list, values.len(), 255);
    }
    let mut seen = check::Seen::default();
    for (i, value) in values.iter().enumerate() {
        if seen.again(value.as_i64()) {
            e.duplicate(&list.index(i), value.clone());
        }
        if codes.text("operator") == "In" && value == 0 {
            e.invalid(&list.index(i), 0, "must not be 0 for the In operator");
        }
    }
    let number = |v: &Value| v.as_i64().unwrap_or_default();
    if !values.is_sorted_by(|a, b| number(a) <= number(b)) {
        e.invalid(&list, Value::Array(values.to_vec()), "must be ordered");
    }
}

fn update(new: &Value, old: &Value, e: &mut Errors) {
    let (spec, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
    job(new, e);
    for field in [
        "selector",
        "template",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        // A suspended job that never ran may still move to other nodes.
        if field == "template" && before.flag("suspend") && !old.at("status").has("startTime") {
            continue;
        }
        if !crate::read::same(spec.at(field), before.at(field)) {
            e.invalid(&path.field(field), spec.at(field).clone(), check::IMMUTABLE);
        }
    }
    let indexed = before.text("completionMode") == "Indexed";
    let completions = |s: &Value| s.at("completions").clone();
    if completions(spec) != completions(before)
        && !(indexed && spec.at("completions") == spec.at("parallelism") && spec.has("completions"))
    {
        e.invalid(&path.field("completions"), completions(spec), check::IMMUTABLE);
    }
}

pub const CRON_JOB: Rules = Rules {
    default: |object| {
        let Some(spec) = member(object, "spec") else { return };
        fill_text(spec, "concurrencyPolicy", "Allow");
        fill(spec, "suspend", false);
        fill(spec, "successfulJobsHistoryLimit", 3);
        fill(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = member(spec, "jobTemplate").and_then(|t| member(t, "spec")) {
            crate::pod::defaults::template(job);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    warnings: crate::warnings::cron_job,
    warns_of_updates: Updates::OfSpec,
    create: |object, e| cron_job(object, e),
    update: |new, _, e| cron_job(new, e),
    status: true,
    generation: true,
    cells: print::workload::cronjob,
    ..Rules::PLAIN
};

fn cron_job(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let schedule = spec.text("schedule");
    if schedule.is_empty() {
        e.required(&path.field("schedule"), "");
    } else if !is_schedule(schedule) {
        let fields: Vec<&str> = schedule.split_whitespace().collect();
        let why = match fields.len() {
            5 => "each field must be a comma list of '*', numbers, names, ranges and steps"
                .to_owned(),
            n => format!("expected exactly 5 fields, found {n}: [{}]", fields.join(" ")),
        };
        e.invalid(&path.field("schedule"), schedule, &why);
    }
    if let Some(zone) = spec.at("timeZone").as_str() {
        let at = path.field("timeZone");
        if zone.is_empty() {
            e.invalid(&at, zone, "timeZone must be nil or non-empty string");
        } else if zone.eq_ignore_ascii_case("local") {
            e.invalid(&at, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
        } else if jiff::tz::TimeZone::get(zone).is_err() {
            e.invalid(&at, zone, &format!("unknown time zone {zone}"));
        }
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]
    {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    let policies = ["Allow", "Forbid", "Replace"];
    check::required_one_of(
        spec.at("concurrencyPolicy"),
        &policies,
        &path.field("concurrencyPolicy"),
        e,
    );
    let (template, at) = (spec.at("jobTemplate"), path.field("jobTemplate"));
    let meta = at.field("metadata");
    check::meta::labels(template.deep(&["metadata", "labels"]), &meta.field("labels"), e);
    check::meta::annotations(
        template.deep(&["metadata", "annotations"]),
        &meta.field("annotations"),
        e,
    );
    let job = at.field("spec");
    job_spec(template.at("spec"), &job, e);
    if template.at("spec").flag("manualSelector") {
        e.not_supported(&job.field("manualSelector"), "true", &["nil", "false"]);
    }
    // The controller appends eleven characters to make the names of jobs.
    if object.at("metadata").text("name").len() > 52 {
        let name = object.at("metadata").text("name");
        e.invalid(
            &Path::Root.field("metadata").field("name"),
            name,
            "must be no more than 52 characters",
        );
    }
}

/// Five fields, each a comma list of `*`, numbers, names, ranges and steps; or a descriptor.
fn is_schedule(text: &str) -> bool {
    if let Some(name) = text.strip_prefix('@') {
        return matches!(
            name,
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly"
        ) || name.strip_prefix("every ").is_some_and(|d| !d.trim().is_empty());
    }
    const MONTHS: &str = "jan feb mar apr may jun jul aug sep oct nov dec";
    const DAYS: &str = "sun mon tue wed thu fri sat";
    let bounds = [(0, 59, ""), (0, 23, ""), (1, 31, ""), (1, 12, MONTHS), (0, 6, DAYS)];
    let fields: Vec<&str> = text.split_whitespace().collect();
    fields.len() == 5
        && fields.iter().zip(bounds).all(|(field, (low, high, names))| {
            let value = |t: &str| {
                let named =
                    names.split(' ').position(|n| n.eq_ignore_ascii_case(t) && !n.is_empty());
                let number = named.map(|i| i as u32 + low).or_else(|| t.parse().ok())?;
                (low..=high).contains(&number).then_some(number)
            };
            field.split(',').all(|part| {
                let (range, step) =
                    part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
                let step_good = step.is_none_or(|s| s.parse::<u32>().is_ok_and(|n| n > 0));
                let range_good = match range.split_once('-') {
                    _ if range == "*" || range == "?" => true,
                    Some((from, to)) => {
                        matches!((value(from), value(to)), (Some(a), Some(b)) if a <= b)
                    }
                    None => value(range).is_some(),
                };
                step_good && range_good
            })
        })
}

#[cfg(test)]
mod tests {
    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1 jan mon-fri", "1,2-4 * ? * 0", "@daily", "@every 1h"] {
            assert!(super::is_schedule(good), "{good}");
        }
        for bad in
            ["", "* * * *", "60 * * * *", "5-1 * * * *", "*/0 * * * *", "@often", "a * * * *"]
        {
            assert!(!super::is_schedule(bad), "{bad}");
        }
    }
}
