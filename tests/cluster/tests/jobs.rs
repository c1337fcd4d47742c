//! Jobs and StatefulSets of Linux containers, in a whole cluster by kubectl. As root.

use rimward_tests_cluster::pods::{busybox_cluster as cluster, printed, until};
use rimward_tests_cluster::{Cluster, condition, eventually, skip_without_root};
use serde_json::{Value, json};

fn job(name: &str, image: &str, script: &str, more: Value) -> Value {
    let mut spec = json!({"template": {"spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": image, "args": [script]}]}}});
    for (key, value) in more.as_object().expect("fields") {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

/// Waits until the job is over; answers its status and the reason of the condition that says so.
#[track_caller]
fn over(cluster: &Cluster, name: &str, how: &str) -> (Value, String) {
    let job = eventually(&format!("{name} {how}"), || {
        let job = cluster.get(&["job", name]);
        (condition(&job, how) == "True").then_some(job)
    });
    let conditions = job["status"]["conditions"].as_array().expect("conditions");
    let said = conditions.iter().find(|c| c["type"] == how).expect("it is there");
    (job["status"].clone(), said["reason"].as_str().unwrap_or_default().to_owned())
}

fn pods_of(cluster: &Cluster, job: &str) -> Vec<Value> {
    let pods = cluster.get(&["pods", "-l", &format!("job-name={job}")]);
    pods["items"].as_array().cloned().unwrap_or_default()
}

#[test]
fn jobs_of_containers() {
    if skip_without_root("jobs_of_containers") {
        return;
    }
    let (cluster, image) = cluster();
    let by_code = json!({"podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}}]}});
    let undisturbed = json!({"backoffLimit": 0, "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}});
    let per_index = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "backoffLimitPerIndex": 0, "maxFailedIndexes": 2});
    let mut again =
        job("again", &image, "test -e /kept/ran && exit; touch /kept/ran; exit 1", json!({}));
    let spec = &mut again["spec"]["template"]["spec"];
    spec["restartPolicy"] = json!("OnFailure");
    spec["volumes"] = json!([{"name": "kept", "emptyDir": {}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "kept", "mountPath": "/kept"}]);
    let jobs = [
        job("many", &image, "exit 0", json!({"completions": 4, "parallelism": 2})),
        job("failing", &image, "exit 1", json!({"backoffLimit": 1})),
        job("code", &image, "exit 42", by_code),
        job("evicted", &image, "exec sleep 3600", undisturbed),
        job("late", &image, "exec sleep 3600", json!({"activeDeadlineSeconds": 2})),
        job("indexed", &image, "hostname; test $JOB_COMPLETION_INDEX != 1", per_index),
        again,
    ];
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": jobs}).to_string());

    let evicted = eventually("the pod to be evicted runs", || {
        let pod = pods_of(&cluster, "evicted").into_iter().next()?;
        (pod["status"]["phase"] == "Running").then_some(pod)
    });
    let name = evicted["metadata"]["name"].as_str().expect("a name");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": name, "namespace": "default"}});
    let path = format!("/api/v1/namespaces/default/pods/{name}/eviction");
    cluster.ok_with(&["create", "--raw", &path, "-f", "-"], &eviction.to_string());

    let (status, reason) = over(&cluster, "many", "Complete");
    assert_eq!((&status["succeeded"], reason.as_str()), (&json!(4), "CompletionsReached"));
    let (_, reason) = over(&cluster, "code", "Failed");
    assert_eq!(reason, "PodFailurePolicy");
    assert_eq!(pods_of(&cluster, "code").len(), 1);
    let (status, reason) = over(&cluster, "indexed", "Failed");
    assert_eq!(reason, "FailedIndexes");
    assert_eq!([&status["completedIndexes"], &status["failedIndexes"]], ["0,2", "1"]);
    for pod in pods_of(&cluster, "indexed") {
        let meta = &pod["metadata"];
        let index = &meta["annotations"]["batch.kubernetes.io/job-completion-index"];
        let host = format!("indexed-{}\n", index.as_str().expect("an index"));
        assert_eq!(printed(&cluster, meta["name"].as_str().expect("a name")), host);
    }
    over(&cluster, "again", "Complete");
    let pods = pods_of(&cluster, "again");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 1);
    let (_, reason) = over(&cluster, "late", "Failed");
    assert_eq!(reason, "DeadlineExceeded");
    let (status, reason) = over(&cluster, "failing", "Failed");
    assert_eq!((&status["failed"], reason.as_str()), (&json!(2), "BackoffLimitExceeded"));
    // One that was disturbed counts as no failure: another takes its place.
    eventually("another takes the evicted one's place", || {
        let mut pods = pods_of(&cluster, "evicted").into_iter();
        pods.any(|pod| {
            pod["metadata"]["uid"] != evicted["metadata"]["uid"]
                && pod["status"]["phase"] == "Running"
        })
        .then_some(())
    });
    assert_eq!(condition(&cluster.get(&["job", "evicted"]), "Failed"), "");
}

#[test]
fn a_stateful_set_of_containers() {
    if skip_without_root("a_stateful_set_of_containers") {
        return;
    }
    let (cluster, image) = cluster();
    let serve = "hostname >> /data/log; mkdir /tmp/www; hostname -f > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www";
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
         "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Retain", "whenDeleted": "Delete"},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": image, "args": [serve],
                    "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}]}}]});
    cluster.apply(&objects.to_string());
    cluster.ok(&["rollout", "status", "statefulset/db", "--timeout=90s"]);
    for i in 0..2 {
        // From one of them, by the other's own name.
        let ask = format!("wget -q -O - http://db-{i}.db");
        let said = cluster.ok(&["exec", "db-0", "--", "sh", "-c", &ask]);
        assert_eq!(said.trim(), format!("db-{i}.db.default.svc.cluster.local"));
    }
    let uid = cluster.get(&["pod", "db-1"])["metadata"]["uid"].clone();
    cluster.ok(&["delete", "pod", "db-1", "--timeout=60s"]);
    until(&cluster, "db-1", "comes again", |pod| {
        pod["metadata"]["uid"] != uid && condition(pod, "Ready") == "True"
    });
    assert_eq!(cluster.ok(&["exec", "db-1", "--", "cat", "/data/log"]), "db-1\ndb-1\n");
    cluster.ok(&["scale", "statefulset/db", "--replicas=1"]);
    cluster.ok(&["wait", "--for=delete", "pod/db-1", "--timeout=60s"]);
    assert_eq!(condition(&cluster.get(&["pod", "db-0"]), "Ready"), "True");
}
