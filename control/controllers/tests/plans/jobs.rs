//! What a Job does next, and how it counts, for what is there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::jiff::Timestamp;
use rimward_control_controllers::job::failure::{Streak, Verdict, verdict};
use rimward_control_controllers::job::new_pod;
use rimward_control_controllers::job::plan::{FINALIZER, NewPod, Plan, World, plan};
use rimward_control_controllers::job::tracking::track;
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-02-01T00:00:00Z".parse().expect("a time")
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("such an object")
}

/// "name[@index] state[ seconds ago[ failures before]]"; states: ready, pending, done, failed, leaving,
/// counted (failed, and without the finalizer).
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (name, index) = words[0].split_once('@').unwrap_or((words[0], ""));
    let seconds: u64 = words.get(2).map_or(3600, |s| s.parse().expect("seconds"));
    let at = (now() - Duration::from_secs(seconds)).to_string();
    let phase = match words[1] {
        "pending" => "Pending",
        "done" => "Succeeded",
        "failed" | "counted" => "Failed",
        _ => "Running",
    };
    let ready = if words[1] == "ready" { "True" } else { "False" };
    let state = match phase {
        "Failed" => json!({ "terminated": { "exitCode": 3, "finishedAt": at } }),
        "Succeeded" => json!({ "terminated": { "exitCode": 0, "finishedAt": at } }),
        _ => json!({ "running": {} }),
    };
    let mut object = json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": { "app": "a" }, "finalizers": [FINALIZER] },
        "spec": { "containers": [], "nodeName": "n" },
        "status": { "phase": phase,
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": at }],
            "containerStatuses": [{ "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 2, "state": state }] },
    });
    if !index.is_empty() {
        object["metadata"]["annotations"] = json!({
            "batch.kubernetes.io/job-completion-index": index,
            "batch.kubernetes.io/job-index-failure-count": words.get(3).unwrap_or(&"0"),
        });
    }
    if words[1] == "counted" {
        object["metadata"]["finalizers"] = json!([]);
    }
    if words[1] == "leaving" {
        object["metadata"]["deletionTimestamp"] = json!(at);
    }
    Arc::new(from(object))
}

fn job(spec: Value, status: Value) -> Job {
    let mut object = json!({
        "metadata": { "name": "j", "namespace": "ns", "uid": "job" },
        "spec": { "parallelism": 2, "completions": 3, "backoffLimit": 6, "template": { "metadata": { "labels": { "app": "a" } },
            "spec": { "restartPolicy": "Never", "containers": [{ "name": "c" }] } } },
        "status": status,
    });
    for (key, value) in spec.as_object().expect("members") {
        object["spec"][key] = value.clone();
    }
    from(object)
}

/// Plan, the status before finalizers go, uids of the pods whose finalizer goes, and the status after.
fn decided(job: &Job, pods: &[&str], unseen: &[&str]) -> (Plan, JobStatus, Vec<String>, JobStatus) {
    let pods: Vec<_> = pods.iter().map(|p| pod(p)).collect();
    let unseen: HashSet<String> = unseen.iter().map(|u| (*u).to_owned()).collect();
    let world = World {
        job,
        pods: &pods,
        created_unseen: false,
        deleted_unseen: &unseen,
        streak: Streak::default(),
        now: now(),
    };
    let plan = plan(&world);
    let tracked = track(&world, &plan, true);
    let released: Vec<String> =
        tracked.release.iter().map(|p| p.metadata.uid.clone().expect("a uid")).collect();
    let spec = job.spec.clone().expect("a spec");
    let (after, _) = tracked.close(&spec, &released.iter().cloned().collect(), now());
    (plan, tracked.status, released, after)
}

fn shown(plan: &Plan) -> String {
    let mut words: Vec<String> = plan
        .create
        .iter()
        .map(|new| match new {
            NewPod { index: None, .. } => "+".to_owned(),
            NewPod { index: Some(i), failures: None } => format!("+{i}"),
            NewPod { index: Some(i), failures: Some((n, m)) } => format!("+{i}/{n}/{m}"),
        })
        .collect();
    words.extend(
        plan.delete.iter().map(|p| format!("-{}", p.metadata.name.as_deref().expect("a name"))),
    );
    if let Some(verdict) = &plan.verdict {
        words.push(format!("{} {}", verdict.type_, verdict.reason.as_deref().unwrap_or_default()));
    }
    if let Some(wake) = plan.wake {
        words.push(format!("in {}s", wake.as_secs()));
    }
    words.join(" ")
}

#[track_caller]
fn check(spec: Value, status: Value, pods: &[&str], expected: &str) {
    let (plan, ..) = decided(&job(spec, status), pods, &[]);
    assert_eq!(shown(&plan), expected);
}

#[test]
fn as_many_as_are_wanted() {
    let plain =
        |status: Value, pods: &[&str], expected: &str| check(json!({}), status, pods, expected);
    plain(json!({}), &[], "+ +");
    plain(json!({}), &["a ready"], "+");
    plain(json!({}), &["a ready", "b pending"], "");
    plain(json!({}), &["a ready", "b ready", "c pending"], "-c");
    plain(json!({}), &["a done", "b ready"], "+");
    plain(json!({ "succeeded": 2 }), &["b ready"], "");
    plain(json!({ "succeeded": 2 }), &["b ready", "c pending"], "-c");
    plain(json!({ "succeeded": 2 }), &["a done"], "SuccessCriteriaMet CompletionsReached");
    plain(json!({ "succeeded": 3 }), &["b ready"], "-b SuccessCriteriaMet CompletionsReached");
    plain(
        json!({ "succeeded": 1, "uncountedTerminatedPods": { "succeeded": ["a"] } }),
        &["a done", "b ready"],
        "",
    );
    // The last failures make the next pod wait.
    plain(json!({}), &["a failed 4"], "in 6s");
    plain(json!({}), &["a failed 9", "b failed 4"], "in 16s");
    plain(json!({}), &["a failed 10"], "+ +");
    plain(json!({}), &["a failed 9", "b done 3"], "+ +");
    // A work queue: each pod knows when all is done.
    let queue = |pods: &[&str], expected: &str| {
        check(json!({ "completions": null }), json!({}), pods, expected);
    };
    queue(&[], "+ +");
    queue(&["a done", "b ready"], "");
    queue(&["a done"], "SuccessCriteriaMet CompletionsReached");
    let suspended = |pods: &[&str], expected: &str| {
        check(json!({ "suspend": true }), json!({}), pods, expected)
    };
    suspended(&[], "");
    suspended(&["a ready", "b pending"], "-b -a");
    // One that goes is replaced at once, or only when it is gone.
    plain(json!({}), &["a leaving 20", "b ready"], "+");
    check(json!({ "podReplacementPolicy": "Failed" }), json!({}), &["a leaving", "b ready"], "");
}

#[test]
fn when_it_is_over() {
    let limit = |n: i32, pods: &[&str], expected: &str| {
        check(json!({ "backoffLimit": n }), json!({ "failed": 1 }), pods, expected)
    };
    limit(1, &["a failed", "b ready"], "-b FailureTarget BackoffLimitExceeded");
    limit(2, &["a failed", "b ready"], "+");
    limit(1, &["a counted", "b ready"], "+");
    let mut restarting = json!({ "backoffLimit": 4, "template": { "spec": { "restartPolicy": "OnFailure", "containers": [] } } });
    check(
        restarting.clone(),
        json!({}),
        &["a ready", "b ready"],
        "-a -b FailureTarget BackoffLimitExceeded",
    );
    restarting["backoffLimit"] = json!(5);
    check(restarting, json!({}), &["a ready", "b ready"], "");
    let deadline = |started: u64, expected: &str| {
        let at = (now() - Duration::from_secs(started)).to_string();
        check(
            json!({ "activeDeadlineSeconds": 60 }),
            json!({ "startTime": at }),
            &["a ready", "b ready"],
            expected,
        );
    };
    deadline(59, "in 1s");
    deadline(60, "-a -b FailureTarget DeadlineExceeded");
    let said =
        |kind: &str| json!({ "conditions": [{ "type": kind, "status": "True", "reason": "Why" }] });
    check(json!({}), said("FailureTarget"), &["a ready"], "-a Failed Why");
    check(json!({}), said("SuccessCriteriaMet"), &["a ready"], "-a SuccessCriteriaMet Why");
    // What was deleted is not deleted again, nor is it over before that shows.
    let (plan, before, _, after) =
        decided(&job(json!({}), said("FailureTarget")), &["a ready", "b ready"], &["a"]);
    assert_eq!(shown(&plan), "-b Failed Why");
    assert_eq!((before.terminating, after.conditions.expect("said before").len()), (Some(2), 1));
}

#[test]
fn by_index() {
    let indexed = |mut spec: Value| {
        spec["completionMode"] = json!("Indexed");
        spec
    };
    let plain = |status: Value, pods: &[&str], expected: &str| {
        check(indexed(json!({})), status, pods, expected)
    };
    plain(json!({}), &[], "+0 +1");
    plain(json!({}), &["a@1 ready"], "+0");
    plain(json!({ "completedIndexes": "0" }), &["a@1 ready"], "+2");
    plain(json!({}), &["a@0 done", "b@1 done"], "+2");
    plain(json!({}), &["a@0 ready", "b@0 pending"], "-b");
    plain(json!({}), &["a@0 ready", "b ready", "c@7 ready"], "-c -b");
    plain(
        json!({ "completedIndexes": "0,1" }),
        &["c@2 done"],
        "SuccessCriteriaMet CompletionsReached",
    );
    // Each index has a limit of its own, and waits by itself.
    let limited = |more: Value| {
        let mut spec = indexed(json!({ "backoffLimitPerIndex": 1, "parallelism": 3 }));
        spec.as_object_mut().expect("members").extend(more.as_object().expect("members").clone());
        spec
    };
    check(limited(json!({})), json!({}), &["a@0 failed", "b@1 ready"], "+0/1/0 +2/0/0");
    check(limited(json!({})), json!({}), &["a@0 failed 4", "b@1 ready"], "+2/0/0 in 6s");
    check(limited(json!({})), json!({}), &["a@0 failed 60 1", "b@1 ready"], "+2/0/0");
    check(
        limited(json!({ "maxFailedIndexes": 0 })),
        json!({}),
        &["a@0 failed 60 1", "b@1 ready"],
        "-b FailureTarget MaxFailedIndexesExceeded",
    );
    check(
        limited(json!({})),
        json!({ "completedIndexes": "1,2" }),
        &["a@0 failed 60 1"],
        "FailureTarget FailedIndexes",
    );
    // One that waits for its successor is not let go, one whose successor is there is.
    let (_, _, released, _) = decided(
        &job(limited(json!({})), json!({})),
        &["a@0 failed", "b@1 failed", "c@1 ready"],
        &[],
    );
    assert_eq!(released, ["b"]);
    let (_, before, released, after) =
        decided(&job(limited(json!({})), json!({})), &["a@0 failed 60 1"], &[]);
    assert_eq!(
        (released.len(), before.failed_indexes, after.failed),
        (1, Some("0".into()), Some(1))
    );
    // Enough of them are done.
    let policy = |rule: Value| {
        indexed(json!({ "successPolicy": { "rules": [{ "succeededCount": 5 }, rule] } }))
    };
    let done = json!({ "completedIndexes": "1" });
    check(
        policy(json!({ "succeededIndexes": "1" })),
        done.clone(),
        &["a@0 ready"],
        "-a SuccessCriteriaMet SuccessPolicy",
    );
    check(
        policy(json!({ "succeededIndexes": "1,2" })),
        done.clone(),
        &["a@0 ready", "b@2 ready"],
        "",
    );
    check(
        policy(json!({ "succeededIndexes": "1,2", "succeededCount": 1 })),
        done.clone(),
        &["a@0 ready"],
        "-a SuccessCriteriaMet SuccessPolicy",
    );
    check(
        policy(json!({ "succeededCount": 1 })),
        done,
        &["a@0 ready"],
        "-a SuccessCriteriaMet SuccessPolicy",
    );
}

#[test]
fn what_a_failure_means() {
    #[track_caller]
    fn judge(rule: Value, expected: Verdict) {
        let spec = job(json!({ "podFailurePolicy": { "rules": [rule] } }), json!({}))
            .spec
            .expect("a spec");
        assert_eq!(verdict(&spec, &pod("a failed")), expected);
    }
    let codes = |action: &str, operator: &str, values: Value| json!({ "action": action, "onExitCodes": { "operator": operator, "values": values } });
    judge(codes("Ignore", "In", json!([1, 3])), Verdict::Ignore);
    judge(codes("Ignore", "In", json!([1, 2])), Verdict::Count);
    judge(codes("FailIndex", "NotIn", json!([1])), Verdict::FailIndex);
    judge(codes("Count", "In", json!([3])), Verdict::Count);
    let text = "Container c for pod ns/a failed with exit code 3 matching FailJob rule at index 0";
    judge(codes("FailJob", "In", json!([3])), Verdict::FailJob(text.into()));
    let mut other = codes("Ignore", "In", json!([3]));
    other["onExitCodes"]["containerName"] = json!("d");
    judge(other, Verdict::Count);
    let condition = |status: &str| json!({ "action": "FailJob", "onPodConditions": [{ "type": "Ready", "status": status }] });
    judge(condition("True"), Verdict::Count);
    let text = "Pod ns/a has condition Ready matching FailJob rule at index 0";
    judge(condition("False"), Verdict::FailJob(text.into()));
    let policy =
        |rule: Value| json!({ "podFailurePolicy": { "rules": [rule] }, "backoffLimit": 0 });
    check(
        policy(codes("FailJob", "In", json!([3]))),
        json!({}),
        &["a failed", "b ready"],
        "-b FailureTarget PodFailurePolicy",
    );
    check(policy(codes("Ignore", "In", json!([3]))), json!({}), &["a failed", "b ready"], "+");
    let (_, _, released, after) = decided(
        &job(policy(codes("Ignore", "In", json!([3]))), json!({})),
        &["a failed", "b ready"],
        &[],
    );
    assert_eq!((released, after.failed), (vec!["a".to_owned()], None));
}

#[test]
fn each_pod_counts_once() {
    let plain = job(json!({ "parallelism": 1 }), json!({ "startTime": "2026-01-31T00:00:00Z" }));
    let (_, before, released, after) =
        decided(&plain, &["a done", "b failed", "c ready", "d counted"], &[]);
    let said = serde_json::to_value(&before).expect("JSON");
    let expected = json!({
        "startTime": "2026-01-31T00:00:00Z", "active": 1, "ready": 1, "terminating": 0,
        "uncountedTerminatedPods": { "succeeded": ["a"], "failed": ["b"] },
    });
    assert_eq!((said, released), (expected, vec!["a".to_owned(), "b".to_owned()]));
    let said = serde_json::to_value(&after).expect("JSON");
    let expected = json!({
        "startTime": "2026-01-31T00:00:00Z", "active": 1, "ready": 1, "terminating": 0,
        "succeeded": 1, "failed": 1, "uncountedTerminatedPods": {},
    });
    assert_eq!(said, expected);
    // Told that it is not yet counted, but the finalizer was taken: it is counted now, and only now.
    let half = json!({ "succeeded": 1, "uncountedTerminatedPods": { "succeeded": ["gone", "a"], "failed": ["d"] } });
    let (_, before, _, after) =
        decided(&job(json!({ "completions": 9 }), half), &["a done", "d counted"], &[]);
    assert_eq!((before.succeeded, before.failed), (Some(2), Some(1)));
    assert_eq!((after.succeeded, after.failed), (Some(3), Some(1)));
}

#[test]
fn the_end_is_said_once_all_have_ended() {
    let kinds = |status: &JobStatus| -> Vec<String> {
        status.conditions.iter().flatten().map(|c| c.type_.clone()).collect()
    };
    let almost = job(json!({}), json!({ "succeeded": 2 }));
    let (_, before, _, after) = decided(&almost, &["a done"], &[]);
    assert_eq!(kinds(&before), ["SuccessCriteriaMet"]);
    assert_eq!(
        (kinds(&after), after.succeeded),
        (vec!["SuccessCriteriaMet".into(), "Complete".into()], Some(3))
    );
    assert_eq!(after.completion_time.expect("a time").0, now());
    let (_, before, _, after) = decided(&almost, &["a done", "b leaving"], &[]);
    assert_eq!(
        (kinds(&before), kinds(&after)),
        (vec!["SuccessCriteriaMet".into()], vec!["SuccessCriteriaMet".into()])
    );
    // A Job that fails counts what it stops.
    let failing = job(json!({ "backoffLimit": 0 }), json!({}));
    let (_, before, released, after) = decided(&failing, &["a failed", "b ready"], &[]);
    assert_eq!((kinds(&before), released.len()), (vec!["FailureTarget".into()], 2));
    assert_eq!(
        (kinds(&after), after.failed, after.terminating),
        (vec!["FailureTarget".into()], Some(2), Some(1))
    );
    let next = job(json!({ "backoffLimit": 0 }), serde_json::to_value(&after).expect("JSON"));
    let (.., after) = decided(&next, &[], &[]);
    assert_eq!(
        (kinds(&after), after.failed),
        (vec!["FailureTarget".into(), "Failed".into()], Some(2))
    );
    assert_eq!((after.active, after.completion_time), (None, None));
    // Suspended, and not.
    let (_, status, ..) = decided(&job(json!({ "suspend": true }), json!({})), &[], &[]);
    let [said] = &status.conditions.clone().expect("one")[..] else { panic!("{status:?}") };
    assert_eq!(
        (said.type_.as_str(), said.status.as_str(), status.start_time.clone()),
        ("Suspended", "True", None)
    );
    let (_, status, ..) =
        decided(&job(json!({}), serde_json::to_value(status).expect("JSON")), &[], &[]);
    let [said] = &status.conditions.expect("one")[..] else { panic!() };
    assert_eq!((said.status.as_str(), status.start_time.map(|t| t.0)), ("False", Some(now())));
}

#[test]
fn what_a_pod_looks_like() {
    let plain = new_pod(&job(json!({}), json!({})), &NewPod::default());
    assert_eq!(plain.metadata.generate_name.as_deref(), Some("j-"));
    assert_eq!(plain.metadata.finalizers, Some(vec![FINALIZER.to_owned()]));
    let new = NewPod { index: Some(7), failures: Some((2, 1)) };
    let pod = serde_json::to_value(new_pod(&job(json!({}), json!({})), &new)).expect("JSON");
    assert_eq!(
        (&pod["metadata"]["generateName"], &pod["spec"]["hostname"]),
        (&json!("j-7-"), &json!("j-7"))
    );
    let annotations = json!({
        "batch.kubernetes.io/job-completion-index": "7",
        "batch.kubernetes.io/job-index-failure-count": "2",
        "batch.kubernetes.io/job-index-ignored-failure-count": "1",
    });
    assert_eq!(pod["metadata"]["annotations"], annotations);
    assert_eq!(
        pod["metadata"]["labels"],
        json!({ "app": "a", "batch.kubernetes.io/job-completion-index": "7" })
    );
    let field = "metadata.labels['batch.kubernetes.io/job-completion-index']";
    let variable = json!([{ "name": "JOB_COMPLETION_INDEX", "valueFrom": { "fieldRef": { "fieldPath": field } } }]);
    assert_eq!(pod["spec"]["containers"][0]["env"], variable);
}
