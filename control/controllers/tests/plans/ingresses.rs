//! What an Ingress' status says of where it answers.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::Ingress;
use rimward_control_controllers::ingress::{plan, serving_address};
use serde_json::{Value, json};

fn ingress(class: Value, at: &[&str]) -> Ingress {
    let at: Vec<Value> = at.iter().map(|ip| json!({"ip": ip})).collect();
    let ingress = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": class},
        "status": {"loadBalancer": {"ingress": at}}});
    serde_json::from_value(ingress).expect("an Ingress")
}

#[test]
fn statuses_follow_the_nodes() {
    #[track_caller]
    fn check(class: Value, at: &[&str], nodes: &[&str], expected: Option<&[&str]>) {
        let nodes: Vec<String> = nodes.iter().map(|n| (*n).to_owned()).collect();
        let planned = plan(&ingress(class, at), &nodes).map(|status| {
            let balancer = status.load_balancer.expect("a balancer");
            balancer.ingress.into_iter().flatten().filter_map(|i| i.ip).collect::<Vec<_>>()
        });
        assert_eq!(
            planned.as_deref(),
            expected.map(|ips| ips.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>()).as_deref()
        );
    }
    check(json!(null), &[], &["10.0.0.1"], Some(&["10.0.0.1"]));
    check(json!("rimward"), &["10.0.0.1"], &["10.0.0.1"], None);
    check(
        json!("rimward"),
        &["10.0.0.1"],
        &["10.0.0.1", "10.0.0.2"],
        Some(&["10.0.0.1", "10.0.0.2"]),
    );
    check(json!("rimward"), &["10.0.0.1"], &[], Some(&[]));
    check(json!("nginx"), &["192.0.2.1"], &["10.0.0.1"], None);
}

#[test]
fn only_ready_nodes_serve() {
    let node = |ready: &str, addresses: Value| -> Node {
        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": addresses,
            "conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(node).expect("a Node")
    };
    let inner = json!({"type": "InternalIP", "address": "10.0.0.1"});
    let outer = json!({"type": "ExternalIP", "address": "192.0.2.1"});
    assert_eq!(serving_address(&node("True", json!([inner]))).as_deref(), Some("10.0.0.1"));
    assert_eq!(serving_address(&node("True", json!([inner, outer]))).as_deref(), Some("192.0.2.1"));
    assert_eq!(serving_address(&node("Unknown", json!([inner]))), None);
}
