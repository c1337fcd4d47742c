use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rimward_control_controllers::endpoints;
use rimward_control_controllers::endpointslice::{Plan, World, plan};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

fn service(more: Value) -> Service {
    let mut spec = json!({"clusterIP": "10.43.0.9", "selector": {"app": "a"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
    more.as_object().into_iter().flatten().for_each(|(k, v)| spec[k] = v.clone());
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns", "uid": "s", "labels": {"l": "v"}}, "spec": spec})).expect("a Service")
}

fn pod(i: usize, port: i32, state: &str) -> Arc<Pod> {
    let ready = if state.contains("ready") { "True" } else { "False" };
    let mut object = json!({
        "metadata": {"name": format!("p{i:03}"), "namespace": "ns", "uid": format!("u{i}"), "labels": {"app": "a"}},
        "spec": {"nodeName": "n", "hostname": format!("h{i}"), "subdomain": "s",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", i / 200, i % 200), "conditions": [{"type": "Ready", "status": ready}]},
    });
    if state.contains("leaving") {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(object).expect("a pod"))
}

fn decide(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Plan {
    plan(&World { service, pods, slices, zone: &|_| Some("z".into()) })
}

/// As the server would name and store them.
fn stored(slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
    let name = |(i, mut s): (usize, EndpointSlice)| {
        s.metadata.name.get_or_insert_with(|| format!("s-{i}"));
        Arc::new(s)
    };
    slices.into_iter().enumerate().map(name).collect()
}

fn sizes(slices: &[EndpointSlice]) -> Vec<usize> {
    slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect()
}

#[test]
fn slices_are_filled_and_left_alone() {
    let service = service(json!({}));
    let mut pods: Vec<_> = (0..250).map(|i| pod(i, 8080, "ready")).collect();
    let first = decide(&service, &pods, &[]);
    assert_eq!(sizes(&first.create), [100, 100, 50]);
    let slices = stored(first.create);
    assert_eq!(
        decide(&service, &pods, &slices),
        Plan::default(),
        "nothing changed, nothing is written"
    );

    pods[120] = pod(120, 8080, "");
    let one = decide(&service, &pods, &slices);
    assert_eq!(
        (one.create.len(), sizes(&one.update), one.delete.len()),
        (0, vec![100], 0),
        "one pod, one slice"
    );

    pods.push(pod(250, 8080, "ready"));
    let added = decide(&service, &pods[..], &slices);
    assert_eq!(sizes(&added.update), [100, 51]);

    pods.truncate(150);
    let fewer = decide(&service, &pods, &slices);
    assert_eq!((sizes(&fewer.update), fewer.delete.len()), (vec![50], 1));

    let none = decide(&service, &[], &slices);
    assert_eq!(
        (sizes(&none.update), none.create.len(), none.delete.len()),
        (vec![0], 0, 2),
        "one empty slice stays"
    );
}

#[test]
fn what_an_endpoint_says() {
    #[track_caller]
    fn check(more: Value, state: &str, conditions: [bool; 3]) {
        let plan = decide(&service(more), &[pod(1, 8080, state)], &[]);
        let endpoint = plan.create[0].endpoints.as_ref().expect("endpoints")[0].clone();
        let c = endpoint.conditions.expect("conditions");
        assert_eq!([c.ready, c.serving, c.terminating], conditions.map(Some));
        assert_eq!(
            (endpoint.zone.as_deref(), endpoint.hostname.as_deref()),
            (Some("z"), Some("h1"))
        );
    }
    check(json!({}), "ready", [true, true, false]);
    check(json!({}), "", [false, false, false]);
    check(json!({}), "ready leaving", [false, true, true]);
    check(json!({"publishNotReadyAddresses": true}), "leaving", [true, false, true]);
}

#[test]
fn named_ports_differ_from_pod_to_pod() {
    let service = service(json!({"clusterIP": "None"}));
    let plan = decide(&service, &[pod(1, 8080, "ready"), pod(2, 9090, "ready")], &[]);
    let ports: Vec<_> =
        plan.create.iter().map(|s| s.ports.as_ref().expect("ports")[0].port).collect();
    assert_eq!(ports, [Some(8080), Some(9090)]);
    let labels = plan.create[0].metadata.labels.clone().unwrap_or_default();
    assert_eq!(labels["kubernetes.io/service-name"], "s");
    assert!(labels.contains_key("service.kubernetes.io/headless") && labels.contains_key("l"));

    let older = endpoints::plan(
        &service,
        &[pod(1, 8080, "ready"), pod(2, 9090, ""), pod(3, 9090, "leaving")],
        None,
    );
    let subsets = older.subsets.expect("subsets");
    let shown: Vec<_> = subsets
        .iter()
        .map(|s| {
            (
                s.addresses.as_ref().map_or(0, Vec::len),
                s.not_ready_addresses.as_ref().map_or(0, Vec::len),
            )
        })
        .collect();
    assert_eq!(shown, [(1, 0), (0, 1)]);
}
