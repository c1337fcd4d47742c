//! CronJobs: the conformance texts, without waiting for minutes.

use k8s_openapi::api::batch::v1::{CronJob, Job};
use rimward_client::{DeleteOptions, Patch};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NEVER_READY};

fn cron(schedule: &str, spec: Value) -> Value {
    let pod = json!({ "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": NEVER_READY }] } });
    let mut object = json!({
        "metadata": { "name": "c", "namespace": "default" },
        "spec": { "schedule": schedule, "jobTemplate": { "spec": { "template": pod } } },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn active(cron: &CronJob) -> usize {
    cron.status.as_ref().and_then(|s| s.active.as_ref()).map_or(0, Vec::len)
}

/// As if its last run had been two years ago.
async fn make_due(cluster: &Cluster) {
    let status = json!({ "status": { "lastScheduleTime": "2024-01-01T00:00:00Z" } });
    cluster.admin.patch::<CronJob>("default", "c", "status", &Patch::merge(status)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_come_with_time_and_are_noted() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<CronJob>(cron("@every 1s", json!({ "concurrencyPolicy": "Forbid" }))).await;
    let runs = cluster.until_one::<CronJob>("c", "its first Job", |c| active(c) == 1).await;
    let reference = runs.status.as_ref().unwrap().active.clone().unwrap().remove(0);
    assert_eq!(
        (reference.kind.as_deref(), reference.api_version.as_deref()),
        (Some("Job"), Some("batch/v1"))
    );
    let started = |_: &rimward_client::Cache<Pod>| {
        let pods = cluster.pods();
        pods.len() == 1 && pods[0].status.as_ref().unwrap().pod_ip.is_some()
    };
    cluster.until::<Pod>("its pod runs", started).await;
    cluster.patch::<CronJob>("c", json!({ "spec": { "suspend": true } })).await;
    assert_eq!(cluster.informers.of::<Job>().len(), 1);
    let pod = cluster.pods()[0].metadata.name.clone().unwrap();
    let done = Patch::strategic(json!({ "status": { "phase": "Succeeded" } }));
    cluster.admin.patch::<Pod>("default", &pod, "status", &done).await.unwrap();
    let noted = |c: &CronJob| {
        active(c) == 0 && c.status.as_ref().is_some_and(|s| s.last_successful_time.is_some())
    };
    cluster.until_one::<CronJob>("c", "its success is noted", noted).await;
    cluster.patch::<CronJob>("c", json!({ "spec": { "successfulJobsHistoryLimit": 0 } })).await;
    cluster.until::<Job>("what is done is cleaned away", |jobs| jobs.is_empty()).await;
    cluster.until::<Pod>("with its pods", |pods| pods.is_empty()).await;
    cluster.delete::<CronJob>("c", DeleteOptions::default()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replaces_the_other_and_they_go_with_their_owner() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<CronJob>(cron("0 0 1 1 *", json!({ "concurrencyPolicy": "Replace" }))).await;
    make_due(&cluster).await;
    let first = cluster.until_one::<CronJob>("c", "one runs", |c| active(c) == 1).await;
    let name = |c: &CronJob| c.status.as_ref().unwrap().active.clone().unwrap()[0].name.clone();
    let first = name(&first).unwrap();
    // Another schedule, another time: it has come too.
    cluster.patch::<CronJob>("c", json!({ "spec": { "schedule": "0 0 1 * *" } })).await;
    make_due(&cluster).await;
    let other = |c: &CronJob| active(c) == 1 && name(c).as_deref() != Some(first.as_str());
    cluster.until_one::<CronJob>("c", "another runs", other).await;
    cluster.until::<Job>("instead of the first", |jobs| jobs.len() == 1).await;
    cluster.delete::<CronJob>("c", DeleteOptions::default()).await;
    cluster.until::<Job>("no Job is left", |jobs| jobs.is_empty()).await;
    cluster.until::<Pod>("nor a pod", |pods| pods.is_empty()).await;
    cluster.stop().await;
}
