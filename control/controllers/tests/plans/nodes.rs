use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::jiff::Timestamp;
use rimward_control_controllers::node_lifecycle::plan;
use rimward_control_controllers::taint_eviction::leave_at;
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

#[test]
fn conditions_and_taints() {
    /// Taints are shown as "key:effect" without the common prefix.
    #[track_caller]
    fn check(
        ready: Option<&str>,
        more: Value,
        overdue: bool,
        any_ready: bool,
        conditions: usize,
        taints: Option<&[&str]>,
    ) {
        let conditions_now: Vec<Value> =
            ready.iter().map(|s| json!({"type": "Ready", "status": s})).collect();
        let mut node = json!({"metadata": {"name": "n"}, "spec": {}, "status": {"conditions": conditions_now}});
        more.as_object().into_iter().flatten().for_each(|(k, v)| node["spec"][k] = v.clone());
        let node: Node = serde_json::from_value(node).expect("a node");
        let plan = plan(&node, overdue, any_ready, at(100));
        let show =
            |t: &Taint| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect);
        let shown = plan.taints.map(|t| t.iter().map(show).collect::<Vec<_>>());
        let expected = taints.map(|t| t.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!((plan.conditions.len(), shown), (conditions, expected));
    }
    let own = |effects: &[&str]| {
        let taint = |e: &&str| json!({"key": "node.kubernetes.io/unreachable", "effect": e});
        json!({"taints": effects.iter().map(taint).chain([json!({"key": "mine", "effect": "NoSchedule"})]).collect::<Vec<_>>()})
    };
    check(Some("True"), json!({}), false, true, 0, None);
    check(None, json!({}), false, true, 0, Some(&["not-ready:NoSchedule"]));
    check(
        Some("True"),
        json!({}),
        true,
        true,
        4,
        Some(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
    );
    check(Some("True"), json!({}), true, false, 4, Some(&["unreachable:NoSchedule"]));
    check(
        Some("False"),
        json!({}),
        false,
        true,
        0,
        Some(&["not-ready:NoSchedule", "not-ready:NoExecute"]),
    );
    check(Some("Unknown"), own(&["NoSchedule", "NoExecute"]), false, true, 0, None);
    check(
        Some("Unknown"),
        own(&["NoSchedule", "NoExecute"]),
        false,
        false,
        0,
        Some(&["unreachable:NoSchedule", "mine:NoSchedule"]),
    );
    check(
        Some("True"),
        own(&["NoSchedule", "NoExecute"]),
        false,
        true,
        0,
        Some(&["mine:NoSchedule"]),
    );
    check(
        Some("True"),
        json!({"unschedulable": true}),
        false,
        true,
        0,
        Some(&["unschedulable:NoSchedule"]),
    );
}

#[test]
fn when_a_pod_must_leave() {
    #[track_caller]
    fn check(tolerations: Value, expected: Option<i64>) {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}}))
                .expect("a pod");
        let taint =
            |key: &str| Taint { key: key.into(), effect: "NoExecute".into(), ..Taint::default() };
        let taints = [(taint("a"), at(10)), (taint("b"), at(20))];
        assert_eq!(leave_at(&pod, &taints), expected.map(at));
    }
    let exists = |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
    check(json!([]), Some(10));
    check(json!([exists("a", json!(300))]), Some(20));
    check(json!([exists("a", json!(300)), exists("b", json!(5))]), Some(25));
    check(json!([exists("a", Value::Null), exists("b", Value::Null)]), None);
    check(json!([{"operator": "Exists"}]), None);
    check(json!([exists("a", json!(-3)), exists("b", Value::Null)]), Some(10));
}
