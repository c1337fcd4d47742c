//! Jobs: the conformance texts.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use rimward_client::{DeleteOptions, Patch, Propagation};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NEVER_READY};

fn job(spec: Value) -> Value {
    let mut object = json!({
        "metadata": { "name": "j", "namespace": "default" },
        "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] } } },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn is(job: &Job, kind: &str) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

fn index(pod: &Pod) -> String {
    let labels = pod.metadata.labels.as_ref();
    let index = labels.and_then(|l| l.get("batch.kubernetes.io/job-completion-index"));
    index.cloned().unwrap_or_default()
}

/// Pods that run, in the order of their indexes.
fn running(cluster: &Cluster) -> Vec<Arc<Pod>> {
    let mut pods = cluster.pods();
    pods.retain(|p| {
        let status = p.status.as_ref().unwrap();
        p.metadata.deletion_timestamp.is_none()
            && status.phase.as_deref() == Some("Running")
            && status.pod_ip.is_some()
    });
    pods.sort_by_key(|p| index(p));
    pods
}

async fn until_running(cluster: &Cluster, count: usize) -> Vec<Arc<Pod>> {
    let what = format!("{count} run");
    cluster.until::<Pod>(&what, |_| running(cluster).len() == count).await;
    running(cluster)
}

async fn end(cluster: &Cluster, pod: &Pod, exit_code: i32) {
    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let terminated = json!({ "terminated": { "exitCode": exit_code, "finishedAt": now } });
    let container = json!({ "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": terminated });
    let status = json!({ "status": { "phase": phase, "containerStatuses": [container] } });
    let name = pod.metadata.name.as_deref().unwrap();
    let patch = Patch::strategic(status);
    cluster.admin.patch::<Pod>("default", name, "status", &patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_until_enough_have_succeeded() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Job>(job(json!({ "completions": 3, "parallelism": 2 }))).await;
    for pod in until_running(&cluster, 2).await {
        assert_eq!(
            pod.metadata.finalizers.as_deref(),
            Some(&["batch.kubernetes.io/job-tracking".to_owned()][..])
        );
        end(&cluster, &pod, 0).await;
    }
    let two = |job: &Job| job.status.as_ref().is_some_and(|s| s.succeeded == Some(2));
    cluster.until_one::<Job>("j", "two are counted", two).await;
    let last = until_running(&cluster, 1).await;
    end(&cluster, &last[0], 0).await;
    let job = cluster.until_one::<Job>("j", "it is complete", |j| is(j, "Complete")).await;
    let status = job.status.clone().unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(3), None, None));
    assert!(is(&job, "SuccessCriteriaMet") && status.completion_time >= status.start_time);
    let free = |p: &Pod| p.metadata.finalizers.is_none();
    cluster
        .until::<Pod>("its pods stay, and are free", |_| cluster.pods().iter().all(|p| free(p)))
        .await;
    assert_eq!(cluster.pods().len(), 3);
    cluster.delete::<Job>("j", DeleteOptions::default().propagation(Propagation::Background)).await;
    cluster.until::<Pod>("they go with it", |pods| pods.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failures_are_the_end() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let rules = json!([{ "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } },
        { "action": "Ignore", "onExitCodes": { "operator": "In", "values": [7] } }]);
    let spec = json!({ "completions": 2, "parallelism": 2, "backoffLimit": 0, "podFailurePolicy": { "rules": rules } });
    cluster.apply::<Job>(job(spec)).await;
    let pods = until_running(&cluster, 2).await;
    // One that is ignored is replaced; it waits ten seconds for it, so no more than that it does not end.
    end(&cluster, &pods[0], 7).await;
    let uncounted = |j: &Job| {
        let status = j.status.clone().unwrap_or_default();
        status.active == Some(1) && status.failed.is_none() && !is(j, "FailureTarget")
    };
    cluster.until_one::<Job>("j", "one is ignored", uncounted).await;
    end(&cluster, &pods[1], 42).await;
    let job = cluster.until_one::<Job>("j", "it failed", |j| is(j, "Failed")).await;
    let conditions = job.status.as_ref().unwrap().conditions.clone().unwrap();
    let failed = conditions.iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("PodFailurePolicy"));
    assert!(
        failed.message.as_ref().unwrap().contains("exit code 42 matching FailJob rule at index 0")
    );
    cluster.delete::<Job>("j", DeleteOptions::default()).await;
    cluster.until::<Job>("it is gone", |all| all.is_empty()).await;
    cluster
        .until::<Pod>("its pods too, or free", |_| {
            cluster.pods().iter().all(|p| p.metadata.finalizers.is_none())
        })
        .await;
    for pod in cluster.pods() {
        cluster
            .delete::<Pod>(pod.metadata.name.as_deref().unwrap(), DeleteOptions::default())
            .await;
    }
    // Longer than it may be active: what runs is stopped.
    let never = json!({ "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": NEVER_READY }] } });
    cluster.apply::<Job>(self::job(json!({ "activeDeadlineSeconds": 2, "template": never }))).await;
    let job = cluster.until_one::<Job>("j", "its time is over", |j| is(j, "Failed")).await;
    let status = job.status.clone().unwrap();
    assert!(
        status.conditions.unwrap().iter().any(|c| c.reason.as_deref() == Some("DeadlineExceeded"))
    );
    assert_eq!((status.active, status.failed, status.terminating), (None, Some(1), Some(0)));
    cluster.until::<Pod>("none is left", |pods| pods.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_index_is_done_once() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    let rules = json!([{ "succeededIndexes": "0,2" }]);
    let spec = json!({ "completions": 4, "parallelism": 2, "completionMode": "Indexed", "successPolicy": { "rules": rules } });
    cluster.apply::<Job>(job(spec)).await;
    let pods = until_running(&cluster, 2).await;
    assert_eq!(pods.iter().map(|p| index(p)).collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(pods[0].spec.as_ref().unwrap().hostname.as_deref(), Some("j-0"));
    assert!(pods[1].metadata.name.as_ref().unwrap().starts_with("j-1-"));
    end(&cluster, &pods[0], 0).await;
    // The pod of index 1 is lost: another takes its place.
    cluster
        .delete::<Pod>(pods[1].metadata.name.as_deref().unwrap(), DeleteOptions::default())
        .await;
    let wanted = |_: &rimward_client::Cache<Pod>| {
        let indexes: Vec<String> = running(&cluster).iter().map(|p| index(p)).collect();
        indexes.contains(&"2".to_owned())
    };
    cluster.until::<Pod>("the next index", wanted).await;
    let two = running(&cluster).into_iter().find(|p| index(p) == "2").unwrap();
    end(&cluster, &two, 0).await;
    let job = cluster.until_one::<Job>("j", "it is complete", |j| is(j, "Complete")).await;
    let status = job.status.clone().unwrap();
    assert_eq!((status.completed_indexes.as_deref(), status.succeeded), (Some("0,2"), Some(2)));
    let reason =
        status.conditions.unwrap().into_iter().find(|c| c.type_ == "Complete").unwrap().reason;
    assert_eq!(reason.as_deref(), Some("SuccessPolicy"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_adopted_and_let_go() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "64").await;
    cluster.apply::<Job>(job(json!({ "parallelism": 2, "completions": 4, "suspend": true }))).await;
    cluster.until_one::<Job>("j", "it is suspended", |j| is(j, "Suspended")).await;
    assert!(cluster.pods().is_empty());
    cluster.patch::<Job>("j", json!({ "spec": { "suspend": false } })).await;
    let pods = until_running(&cluster, 2).await;
    cluster.patch::<Job>("j", json!({ "spec": { "suspend": true } })).await;
    cluster.until::<Pod>("all are stopped", |pods| pods.is_empty()).await;
    let none = |j: &Job| {
        let status = j.status.clone().unwrap();
        is(j, "Suspended") && status.active.is_none() && status.failed.is_none()
    };
    cluster.until_one::<Job>("j", "none is a failure", none).await;
    cluster.patch::<Job>("j", json!({ "spec": { "suspend": false } })).await;
    let again = until_running(&cluster, 2).await;
    assert_ne!(pods[0].metadata.uid, again[0].metadata.uid);
    // One that loses its owner is taken back; one that loses its label is let go, and counted by nobody.
    let name = again[0].metadata.name.clone().unwrap();
    cluster.patch::<Pod>(&name, json!({ "metadata": { "ownerReferences": null } })).await;
    cluster
        .until_one::<Pod>(&name, "it is taken back", |p| p.metadata.owner_references.is_some())
        .await;
    let label =
        json!({ "metadata": { "labels": { "batch.kubernetes.io/controller-uid": "other" } } });
    cluster.patch::<Pod>(&name, label).await;
    cluster
        .until_one::<Pod>(&name, "it is free", |p| {
            p.metadata.owner_references.is_none() && p.metadata.finalizers.is_none()
        })
        .await;
    until_running(&cluster, 3).await;
    let orphan = DeleteOptions::default().propagation(Propagation::Orphan);
    cluster.delete::<Job>("j", orphan).await;
    cluster.until::<Job>("it is gone", |all| all.is_empty()).await;
    cluster
        .until::<Pod>("its pods stay, and nothing holds them", |_| {
            cluster.pods().len() == 3
                && cluster.pods().iter().all(|p| p.metadata.finalizers.is_none())
        })
        .await;
    cluster.stop().await;
}

/// However slowly the caches follow, each is made, and counted, once.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_are_counted_once() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "640").await;
    cluster.apply::<Job>(job(json!({ "completions": 200, "parallelism": 50 }))).await;
    let mut ended = std::collections::HashSet::new();
    while ended.len() < 200 {
        let new = |p: &Arc<Pod>| !ended.contains(&p.metadata.uid);
        cluster.until::<Pod>("more run", |_| running(&cluster).iter().any(new)).await;
        for pod in running(&cluster) {
            if ended.insert(pod.metadata.uid.clone()) {
                end(&cluster, &pod, 0).await;
            }
        }
    }
    let job = cluster.until_one::<Job>("j", "it is complete", |j| is(j, "Complete")).await;
    assert_eq!(job.status.as_ref().unwrap().succeeded, Some(200));
    assert_eq!((cluster.pods().len(), ended.len()), (200, 200));
    cluster.stop().await;
}
