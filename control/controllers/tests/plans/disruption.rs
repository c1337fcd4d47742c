use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rimward_control_controllers::disruption::{Wanted, plan, wanted};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
    serde_json::from_value(json!({
        "metadata": { "name": "b", "namespace": "n", "generation": 3 }, "spec": spec,
        "status": { "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0, "disruptedPods": disrupted },
    }))
    .expect("a budget")
}

fn pod(name: &str, ready: bool, deleting: bool) -> Arc<Pod> {
    let ready = if ready { "True" } else { "False" };
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "n" },
        "status": { "conditions": [{ "type": "Ready", "status": ready }] },
    });
    if deleting {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

#[test]
fn how_many_shall_be_healthy() {
    #[track_caller]
    fn check(spec: Value, scale: Result<i32, String>, expected: i32, healthy: i32) {
        let found = wanted(&budget(spec, Value::Null), 4, || scale).expect("is known");
        assert_eq!(found, Wanted { expected, healthy });
    }
    let nobody = || Err("nobody is to be asked".to_owned());
    check(json!({ "minAvailable": 3 }), nobody(), 4, 3);
    check(json!({}), nobody(), 0, 0);
    check(json!({ "minAvailable": "50%" }), Ok(5), 5, 3);
    check(json!({ "maxUnavailable": 1 }), Ok(5), 5, 4);
    check(json!({ "maxUnavailable": 9 }), Ok(5), 5, 0);
    check(json!({ "maxUnavailable": "30%" }), Ok(5), 5, 3);
    let unknown = budget(json!({ "maxUnavailable": 1 }), Value::Null);
    assert!(wanted(&unknown, 4, || Err("no scale".into())).is_err());
}

#[test]
fn how_many_may_go() {
    let now: Timestamp = "2026-01-01T00:02:00Z".parse().expect("a time");
    let pods = [
        pod("a", true, false),
        pod("b", true, false),
        pod("c", false, false),
        pod("d", true, true),
    ];
    let two = Wanted { expected: 4, healthy: 1 };
    let (status, failed, again) = plan(&budget(json!({}), Value::Null), &pods, &two, now);
    assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(2), Some(1)));
    assert_eq!((status.desired_healthy, status.expected_pods), (Some(1), Some(4)));
    assert_eq!(status.observed_generation, Some(3));
    let condition = &status.conditions.expect("one")[0];
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "SufficientPods"));
    assert!(failed.is_empty() && again.is_none());
    // One that was permitted a minute ago counts as gone; one long ago did not happen; one that is going
    // or gone is no longer told.
    let disrupted = json!({
        "a": "2026-01-01T00:01:00Z", "b": "2026-01-01T00:00:00Z",
        "d": "2026-01-01T00:01:00Z", "gone": "2026-01-01T00:01:00Z",
    });
    let (status, failed, again) = plan(&budget(json!({}), disrupted), &pods, &two, now);
    assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(1), Some(0)));
    assert_eq!(status.disrupted_pods.expect("one").into_keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(status.conditions.expect("one")[0].reason, "InsufficientPods");
    assert_eq!(failed, ["b"]);
    assert_eq!(again, Some(Duration::from_secs(60)));
}
