//! CronJob.

use serde_json::{Value, json};

use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, member};
use crate::rules::{Rules, Updates};
use crate::schedule::Schedule;

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
    } else if schedule.contains("TZ") {
        let why = match spec.has("timeZone") {
            true => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
            false => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        };
        e.invalid(&path.field("schedule"), schedule, why);
    } else if Schedule::parse(schedule).is_none() {
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
    super::job_spec(template.at("spec"), &job, e);
    if template.at("spec").has("selector") {
        e.invalid(
            &job.field("selector"),
            template.at("spec").at("selector").clone(),
            "`selector` will be auto-generated",
        );
    }
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
