//! Rows of what makes pods: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and their like.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    NONE, UNSET, age, condition, containers, deleted, human_duration, label_selector, labels, name,
    number, seconds_between, since,
};
use crate::read::Read;

pub fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let [names, images] = containers(spec.deep(&["template", "spec"]));
    vec![
        name(object),
        of(status, "readyReplicas", spec),
        number(status.at("updatedReplicas")),
        number(status.at("availableReplicas")),
        age(object, now),
        names,
        images,
        label_selector(spec.at("selector")).into(),
    ]
}

fn of(status: &Value, field: &str, spec: &Value) -> Value {
    let n = |v: &Value, f: &str| v.int(f).unwrap_or_default();
    format!("{}/{}", n(status, field), n(spec, "replicas")).into()
}

pub fn replicaset(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, label_selector(object.deep(&["spec", "selector"])))
}

pub fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, labels(object.deep(&["spec", "selector"])))
}

fn replicas(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let [names, images] = containers(spec.deep(&["template", "spec"]));
    vec![
        name(object),
        number(spec.at("replicas")),
        number(status.at("replicas")),
        number(status.at("readyReplicas")),
        age(object, now),
        names,
        images,
        selector.into(),
    ]
}

pub fn statefulset(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let [names, images] = containers(spec.deep(&["template", "spec"]));
    vec![name(object), of(status, "readyReplicas", spec), age(object, now), names, images]
}

pub fn daemonset(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let pod = spec.deep(&["template", "spec"]);
    let [names, images] = containers(pod);
    vec![
        name(object),
        number(status.at("desiredNumberScheduled")),
        number(status.at("currentNumberScheduled")),
        number(status.at("numberReady")),
        number(status.at("updatedNumberScheduled")),
        number(status.at("numberAvailable")),
        labels(pod.at("nodeSelector")).into(),
        age(object, now),
        names,
        images,
        label_selector(spec.at("selector")).into(),
    ]
}

pub fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = object.at("metadata").list("ownerReferences").iter().find(|o| o.flag("controller"));
    let controller = owner.map_or(NONE.to_owned(), |o| {
        let kind = o.text("kind").to_lowercase();
        match o.text("apiVersion").split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{}", o.text("name")),
            None => format!("{kind}/{}", o.text("name")),
        }
    });
    vec![name(object), controller.into(), number(object.at("revision")), age(object, now)]
}

pub fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let succeeded = status.int("succeeded").unwrap_or_default();
    let completions = match (spec.int("completions"), spec.int("parallelism").unwrap_or_default()) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel @ 2..) => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |field: &str| status.text(field).parse::<Timestamp>().ok();
    let duration = match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => human_duration(seconds_between(start, end.unwrap_or(now))),
    };
    let [names, images] = containers(spec.deep(&["template", "spec"]));
    vec![
        name(object),
        job_state(object).into(),
        completions.into(),
        duration.into(),
        age(object, now),
        names,
        images,
        label_selector(spec.at("selector")).into(),
    ]
}

fn job_state(job: &Value) -> &'static str {
    let is = |kind: &str| condition(job.at("status"), kind) == Some("True");
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if deleted(job) => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

pub fn cronjob(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let job = spec.deep(&["jobTemplate", "spec"]);
    let [names, images] = containers(job.deep(&["template", "spec"]));
    let last = match status.at("lastScheduleTime").as_str() {
        Some(time) => since(time, now),
        None => NONE.to_owned(),
    };
    let suspended = match spec.at("suspend").as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    vec![
        name(object),
        spec.text("schedule").into(),
        super::text_or(spec.at("timeZone"), NONE),
        suspended.into(),
        status.list("active").len().into(),
        last.into(),
        age(object, now),
        names,
        images,
        label_selector(job.at("selector")).into(),
    ]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn rows() {
        let meta = || json!({ "name": "x", "creationTimestamp": "2026-11-21T11:00:00Z" });
        let template = || {
            json!({ "spec": { "containers": [
            { "name": "a", "image": "i:1" }, { "name": "b", "image": "j" }] } })
        };
        check(
            "apps",
            "v1",
            "Deployment",
            json!({ "metadata": meta(), "spec": { "replicas": 3, "template": template(), "selector": { "matchLabels": { "a": "b" } } },
                    "status": { "readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1 } }),
            json!(["x", "1/3", 2, 1, "60m", "a,b", "i:1,j", "a=b"]),
        );
        check(
            "apps",
            "v1",
            "ReplicaSet",
            json!({ "metadata": meta(), "spec": { "replicas": 3, "template": template(), "selector": { "matchLabels": { "a": "b" } } },
                    "status": { "replicas": 2, "readyReplicas": 1 } }),
            json!(["x", 3, 2, 1, "60m", "a,b", "i:1,j", "a=b"]),
        );
        check(
            "apps",
            "v1",
            "ControllerRevision",
            json!({ "metadata": { "name": "x", "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s", "controller": true }] }, "revision": 4 }),
            json!(["x", "statefulset.apps/s", 4, "<unknown>"]),
        );
        check(
            "batch",
            "v1",
            "Job",
            json!({ "metadata": meta(), "spec": { "parallelism": 2, "template": template() },
                    "status": { "succeeded": 1, "startTime": "2026-11-21T11:00:00Z", "completionTime": "2026-11-21T11:00:30Z",
                                "conditions": [{ "type": "Complete", "status": "True" }] } }),
            json!(["x", "Complete", "1/1 of 2", "30s", "60m", "a,b", "i:1,j", "<none>"]),
        );
        check(
            "batch",
            "v1",
            "CronJob",
            json!({ "metadata": meta(), "spec": { "schedule": "* * * * *", "suspend": false, "jobTemplate": { "spec": { "template": template() } } },
                    "status": { "lastScheduleTime": "2026-11-21T11:59:00Z" } }),
            json!(["x", "* * * * *", "<none>", "False", 0, "60s", "60m", "a,b", "i:1,j", "<none>"]),
        );
    }
}
