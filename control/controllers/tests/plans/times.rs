use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use rimward_control_controllers::ttl_after_finished::over_in;
use serde_json::{Value, json};

#[test]
fn jobs_end_their_time() {
    #[track_caller]
    fn check(ttl: Value, conditions: Value, expected: Option<u64>) {
        let object = json!({
            "metadata": {"name": "j"},
            "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
            "status": {"conditions": conditions},
        });
        let job: Job = serde_json::from_value(object).expect("a Job");
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        assert_eq!(over_in(&job, now), expected.map(Duration::from_secs));
    }
    let ended = |kind: &str, status: &str| json!([{"type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    check(json!(100), ended("Complete", "True"), Some(40));
    check(json!(60), ended("Failed", "True"), Some(0));
    check(json!(0), ended("Failed", "True"), Some(0));
    check(json!(100), ended("Complete", "False"), None);
    check(json!(100), json!([]), None);
    check(Value::Null, ended("Complete", "True"), None);
}
