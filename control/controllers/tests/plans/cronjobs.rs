//! When a CronJob starts what, and which Jobs it lets go.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::jiff::Timestamp;
use rimward_control_controllers::cronjob::plan::{self, Plan, plan};
use serde_json::{Value, json};

const NOW: &str = "2026-02-01T12:34:56Z";

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("such an object")
}

/// Every half hour, since ten o'clock.
fn cron(spec: Value, status: Value) -> CronJob {
    let mut object = json!({
        "metadata": { "name": "c", "namespace": "ns", "uid": "cron", "creationTimestamp": "2026-02-01T10:00:00Z" },
        "spec": { "schedule": "*/30 * * * *", "successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 1,
            "jobTemplate": { "metadata": { "labels": { "l": "1" }, "annotations": { "a": "1" } }, "spec": { "template": {} } } },
        "status": status,
    });
    for (key, value) in spec.as_object().expect("members") {
        object["spec"][key] = value.clone();
    }
    from(object)
}

/// "name state started", by the hour; states: runs, complete, failed.
fn job(text: &str) -> Arc<Job> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = format!("2026-02-01T{}:00:00Z", words[2]);
    let mut status = json!({ "startTime": at });
    match words[1] {
        "complete" => {
            status["completionTime"] = json!(at);
            status["conditions"] = json!([{ "type": "Complete", "status": "True" }]);
        }
        "failed" => status["conditions"] = json!([{ "type": "Failed", "status": "True" }]),
        _ => {}
    }
    Arc::new(from(json!({ "metadata": { "name": words[0], "uid": words[0] }, "status": status })))
}

fn active(names: &[&str]) -> Value {
    json!({ "lastScheduleTime": "2026-02-01T12:30:00Z", "active": names.iter().map(|n| json!({ "name": n, "uid": n })).collect::<Vec<_>>() })
}

fn planned(spec: Value, status: Value, jobs: &[&str]) -> Plan {
    let jobs: Vec<_> = jobs.iter().map(|j| job(j)).collect();
    plan(&cron(spec, status), &jobs, NOW.parse().expect("a time"))
}

#[track_caller]
fn check(spec: Value, status: Value, jobs: &[&str], expected: &str) {
    let plan = planned(spec, status, jobs);
    let mut words: Vec<String> = plan.start.map(|at| format!("start {at}")).into_iter().collect();
    words.extend(
        plan.delete.iter().map(|j| format!("-{}", j.metadata.name.as_deref().expect("a name"))),
    );
    words.extend(plan.events.iter().map(|(_, reason, _)| (*reason).to_owned()));
    assert_eq!(words.join(" "), expected);
}

#[test]
fn the_newest_time_that_has_come() {
    let last = |at: &str| json!({ "lastScheduleTime": at });
    check(json!({}), json!({}), &[], "start 2026-02-01T12:30:00Z");
    check(json!({}), last("2026-02-01T12:00:00Z"), &[], "start 2026-02-01T12:30:00Z");
    check(json!({}), last("2026-02-01T12:30:00Z"), &[], "");
    check(json!({}), last("2026-01-31T12:30:00Z"), &[], "start 2026-02-01T12:30:00Z");
    check(
        json!({}),
        last("2021-01-31T12:30:00Z"),
        &[],
        "start 2026-02-01T12:30:00Z TooManyMissedTimes",
    );
    check(
        json!({ "schedule": "0 9 * * mon-fri" }),
        last("2026-01-05T09:00:00Z"),
        &[],
        "start 2026-01-30T09:00:00Z",
    );
    check(json!({ "schedule": "0 13 * * *" }), json!({}), &[], "");
    check(json!({ "startingDeadlineSeconds": 300 }), json!({}), &[], "start 2026-02-01T12:30:00Z");
    check(json!({ "startingDeadlineSeconds": 290 }), json!({}), &[], "");
    check(json!({ "suspend": true }), json!({}), &[], "");
    check(json!({ "schedule": "nonsense" }), json!({}), &[], "UnparseableSchedule");
    check(json!({ "timeZone": "Nowhere/Land" }), json!({}), &[], "UnknownTimeZone");
    check(
        json!({ "schedule": "0 13 * * *", "timeZone": "Europe/Berlin" }),
        json!({}),
        &[],
        "start 2026-02-01T12:00:00Z",
    );
    let wake = |schedule: &str| planned(json!({ "schedule": schedule }), json!({}), &[]).wake;
    assert_eq!(wake("*/30 * * * *"), Some(Duration::from_secs(25 * 60 + 4)));
    assert_eq!(wake("0 0 31 2 *"), None);
}

#[test]
fn what_still_runs() {
    let due = |names: &[&str]| {
        let mut status = active(names);
        status["lastScheduleTime"] = json!("2026-02-01T12:00:00Z");
        status
    };
    let policy = |name: &str| json!({ "concurrencyPolicy": name });
    check(policy("Allow"), due(&["a"]), &["a runs 12"], "start 2026-02-01T12:30:00Z");
    check(policy("Forbid"), due(&["a"]), &["a runs 12"], "JobAlreadyActive");
    check(
        policy("Forbid"),
        due(&["a"]),
        &["a complete 12"],
        "start 2026-02-01T12:30:00Z SawCompletedJob",
    );
    check(policy("Replace"), due(&["a"]), &["a runs 12"], "start 2026-02-01T12:30:00Z -a");
    check(policy("Allow"), active(&["a"]), &["a runs 12"], "");
    check(policy("Allow"), active(&["a"]), &[], "MissingJob");
    check(policy("Allow"), active(&[]), &["b runs 12"], "UnexpectedJob");
    let plan =
        planned(json!({}), active(&["a", "b"]), &["a complete 11", "b runs 12", "c complete 09"]);
    let status = serde_json::to_value(plan.status).expect("JSON");
    assert_eq!(status["active"], json!([{ "name": "b", "uid": "b" }]));
    assert_eq!(status["lastSuccessfulTime"], "2026-02-01T11:00:00Z");
}

#[test]
fn how_many_are_kept() {
    let jobs = [
        "a complete 09",
        "b failed 10",
        "c complete 08",
        "d complete 11",
        "e failed 07",
        "f runs 06",
    ];
    check(json!({}), active(&["f"]), &jobs, "-c -e");
    check(
        json!({ "successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0 }),
        active(&["f"]),
        &jobs,
        "-c -a -d -e -b",
    );
    check(
        json!({ "successfulJobsHistoryLimit": null, "failedJobsHistoryLimit": 5 }),
        active(&["f"]),
        &jobs,
        "",
    );
}

#[test]
fn what_a_job_looks_like() {
    let at: Timestamp = "2026-02-01T12:30:00Z".parse().expect("a time");
    let meta = |zone: Value| {
        let made = plan::job(&cron(json!({ "timeZone": zone }), json!({})), at);
        serde_json::to_value(made.metadata).expect("JSON")
    };
    let owner = json!([{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "cron", "controller": true, "blockOwnerDeletion": true }]);
    let annotations = json!({ "a": "1", "batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-02-01T12:30:00Z" });
    let expected = json!({ "name": "c-29499150", "namespace": "ns", "labels": { "l": "1" }, "annotations": annotations, "ownerReferences": owner });
    assert_eq!(meta(Value::Null), expected);
    let berlin = meta(json!("Europe/Berlin"));
    assert_eq!(
        berlin["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"],
        "2026-02-01T13:30:00+01:00"
    );
}
