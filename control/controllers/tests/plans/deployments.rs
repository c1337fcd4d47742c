//! A Deployment's ReplicaSets are written as "name size/available/max@template"; `max` is the
//! max-replicas annotation. The plan is shown as the sizes that it leads to.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rimward_control_controllers::deployment::rollout::{Plan, World, plan};
use serde_json::{Value, json};

fn deployment(replicas: i32, template: &str, more: Value) -> Deployment {
    let mut object = json!({
        "metadata": {"name": "d", "namespace": "ns", "uid": "d", "generation": 2},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": template}]}},
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).expect("a Deployment")
}

fn sets(text: &str, desired: i32) -> Vec<Arc<ReplicaSet>> {
    let parse = |(i, word): (usize, &str)| {
        let (name, rest) = word.split_once(':').expect("name:");
        let (sizes, template) = rest.split_once('@').expect("@template");
        let n: Vec<i32> = sizes.split('/').map(|n| n.parse().expect("a number")).collect();
        let object = json!({
            "metadata": {
                "name": name, "namespace": "ns", "uid": name, "generation": 1, "creationTimestamp": format!("2026-01-01T00:00:0{i}Z"),
                "annotations": {
                    "deployment.kubernetes.io/revision": (i + 1).to_string(),
                    "deployment.kubernetes.io/desired-replicas": desired.to_string(),
                    "deployment.kubernetes.io/max-replicas": n[2].to_string(),
                },
            },
            "spec": {"replicas": n[0], "selector": {}, "template": {
                "metadata": {"labels": {"app": "d", "pod-template-hash": "h"}}, "spec": {"containers": [{"name": "c", "image": template}]},
            }},
            "status": {"replicas": n[0], "availableReplicas": n[1], "readyReplicas": n[1], "observedGeneration": 1},
        });
        Arc::new(serde_json::from_value(object).expect("a ReplicaSet"))
    };
    text.split_whitespace().enumerate().map(parse).collect()
}

fn decide(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Plan {
    plan(&World {
        deployment,
        sets,
        running: &|_| false,
        now: "2026-02-01T00:00:00Z".parse().expect("a time"),
    })
}

fn shown(plan: &Plan) -> String {
    let size = |s: &ReplicaSet| s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let mut parts: Vec<String> = plan.create.iter().map(|s| format!("new={}", size(s))).collect();
    let mut changed: Vec<String> = plan
        .update
        .iter()
        .map(|s| format!("{}={}", s.metadata.name.clone().unwrap_or_default(), size(s)))
        .collect();
    changed.sort();
    parts.extend(changed);
    parts.extend(
        plan.delete.iter().map(|s| format!("-{}", s.metadata.name.clone().unwrap_or_default())),
    );
    parts.join(" ")
}

#[test]
fn rolling_update() {
    #[track_caller]
    fn check(strategy: Value, replicas: i32, before: &str, expected: &str) {
        let strategy = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": strategy}});
        let plan = decide(&deployment(replicas, "v2", strategy), &sets(before, replicas));
        assert_eq!(shown(&plan), expected);
    }
    let quarter = || json!({"maxSurge": "25%", "maxUnavailable": "25%"});
    let counts =
        |surge: i32, unavailable: i32| json!({"maxSurge": surge, "maxUnavailable": unavailable});
    check(quarter(), 4, "", "new=4");
    check(quarter(), 4, "old:4/4/5@v1", "new=1 old=3");
    check(quarter(), 10, "old:10/10/13@v1", "new=3 old=8");
    check(quarter(), 4, "old:3/3/5@v1 new:1/0/5@v2", "new=2");
    check(quarter(), 4, "old:3/3/5@v1 new:2/1/5@v2", "old=2");
    check(quarter(), 4, "old:3/3/5@v1 new:2/0/5@v2", "");
    check(quarter(), 4, "old:2/2/5@v1 new:2/2/5@v2", "new=3");
    check(quarter(), 4, "old:1/1/5@v1 new:4/4/5@v2", "old=0");
    check(quarter(), 4, "old:0/0/5@v1 new:4/4/5@v2", "");
    // What is not available anyway goes first, wherever it is.
    check(counts(1, 0), 3, "old:3/1/4@v1 new:1/1/4@v2", "old=2");
    check(counts(1, 0), 3, "older:1/1/4@v0 old:2/2/4@v1 new:1/1/4@v2", "older=0");
    check(counts(0, 1), 3, "old:3/3/3@v1", "new=0 old=2");
    // Both rounded to nothing: one may be unavailable.
    check(json!({"maxSurge": 0, "maxUnavailable": "10%"}), 3, "old:3/3/3@v1", "new=0 old=2");
    check(counts(3, 0), 3, "old:3/3/6@v1", "new=3");
    check(quarter(), 0, "old:0/0/0@v1", "new=0");
}

#[test]
fn scaling_in_the_middle_of_a_rollout() {
    #[track_caller]
    fn check(replicas: i32, before: &str, desired: i32, expected: &str) {
        let surge = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}});
        assert_eq!(
            shown(&decide(&deployment(replicas, "v2", surge), &sets(before, desired))),
            expected
        );
    }
    // Kubernetes' own example: 10 replicas, 8 old and 5 new; scaled to 15 that is 11 and 7.
    check(15, "old:8/8/13@v1 new:5/0/13@v2", 10, "new=7 old=11");
    check(5, "old:8/8/13@v1 new:5/0/13@v2", 10, "new=3 old=5");
    check(0, "old:8/8/13@v1 new:5/0/13@v2", 10, "new=0 old=0");
    check(12, "old:10/10/13@v1", 10, "old=12");
    check(10, "old:5/5/14@v1 new:10/10/14@v2", 11, "new=8 old=5");
}

#[test]
fn strategy_pause_and_history() {
    let recreate = || json!({"strategy": {"type": "Recreate"}});
    assert_eq!(shown(&decide(&deployment(3, "v2", recreate()), &sets("old:3/3/3@v1", 3))), "old=0");
    assert_eq!(shown(&decide(&deployment(3, "v2", recreate()), &sets("old:0/0/3@v1", 3))), "new=3");
    let world = deployment(3, "v2", recreate());
    let old = sets("old:0/0/3@v1", 3);
    let waits =
        plan(&World { deployment: &world, sets: &old, running: &|_| true, now: Timestamp::now() });
    assert_eq!(shown(&waits), "", "an old pod still runs");

    let paused = || json!({"paused": true});
    assert_eq!(shown(&decide(&deployment(4, "v2", paused()), &sets("old:3/3/4@v1", 3))), "old=4");
    assert_eq!(shown(&decide(&deployment(3, "v2", paused()), &sets("old:3/3/4@v1", 3))), "");

    let mut done = deployment(1, "v4", json!({"revisionHistoryLimit": 1}));
    done.status = serde_json::from_value(json!({"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 2})).ok();
    let all = sets("a:0/0/2@v1 b:0/0/2@v2 c:0/0/2@v3 d:1/1/2@v4", 1);
    assert_eq!(shown(&decide(&done, &all)), "-a -b");
}

#[test]
fn undo_makes_an_old_set_the_newest_revision() {
    let all = sets("a:0/0/5@v1 b:4/4/5@v2", 4);
    let plan = decide(&deployment(4, "v1", json!({})), &all);
    assert_eq!(shown(&plan), "a=1");
    let a = plan.update.iter().find(|s| s.metadata.name.as_deref() == Some("a")).expect("a");
    let annotations = a.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
    let changed = plan.deployment.and_then(|d| d.metadata.annotations).unwrap_or_default();
    assert_eq!(changed["deployment.kubernetes.io/revision"], "3");
}

#[test]
fn what_the_status_says() {
    #[track_caller]
    fn check(before: &str, progressing: Value, expected: &str) {
        let mut world = deployment(4, "v2", json!({}));
        let old = json!({"replicas": 4, "updatedReplicas": 4, "availableReplicas": 4, "readyReplicas": 4, "conditions": [progressing]});
        world.status = serde_json::from_value(old).ok();
        let plan = decide(&world, &sets(before, 4));
        let status = plan.deployment.and_then(|d| d.status).expect("a status");
        let conditions = status.conditions.iter().flatten();
        let mut shown: Vec<String> = conditions
            .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.as_deref().unwrap_or("-")))
            .collect();
        shown.sort();
        assert_eq!(shown.join(", "), expected);
    }
    let since = |seconds: i64, reason: &str| {
        let now: Timestamp = "2026-02-01T00:00:00Z".parse().expect("a time");
        let at = (now - SignedDuration::from_secs(seconds)).to_string();
        json!({"type": "Progressing", "status": "True", "reason": reason, "lastUpdateTime": at, "lastTransitionTime": at})
    };
    let unavailable = "Available False MinimumReplicasUnavailable";
    check(
        "new:4/4/5@v2",
        since(9, "ReplicaSetUpdated"),
        "Available True MinimumReplicasAvailable, Progressing True NewReplicaSetAvailable",
    );
    check(
        "new:4/2/5@v2",
        since(9, "ReplicaSetUpdated"),
        &format!("{unavailable}, Progressing True ReplicaSetUpdated"),
    );
    check(
        "new:4/2/5@v2",
        since(601, "ReplicaSetUpdated"),
        &format!("{unavailable}, Progressing False ProgressDeadlineExceeded"),
    );
    check(
        "new:4/2/5@v2",
        since(9999, "NewReplicaSetAvailable"),
        &format!("{unavailable}, Progressing True NewReplicaSetAvailable"),
    );
}
