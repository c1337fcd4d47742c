//! The scheduler's decisions: nodes, pods that are there, a pod, and what becomes of it.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use rimward_control_lean::Pod;
use rimward_control_scheduler::cycle::{Decision, decide};
use rimward_control_scheduler::filter;
use rimward_control_scheduler::pod::PodInfo;
use rimward_control_scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut object = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    });
    merge(&mut object, more);
    Arc::new(serde_json::from_value(object).expect("a node"))
}

fn pod(name: &str, more: Value) -> Arc<PodInfo> {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut object, more);
    let pod: Pod = serde_json::from_value(object).expect("a pod");
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(k, v)| merge(into.entry(k).or_insert(Value::Null), v));
        }
        (into, from) => *into = from,
    }
}

fn requests(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn spec(spec: Value) -> Value {
    json!({ "spec": spec })
}

fn zone(zone: &str) -> Value {
    json!({"metadata": {"labels": {"zone": zone}}})
}

fn tainted(effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}})
}

/// `there`: (pod, node). Expected is a node's name or the whole message.
#[track_caller]
fn check(nodes: &[Arc<Node>], there: &[(Arc<PodInfo>, &str)], pod: &PodInfo, expected: &str) {
    let mut snapshot = Snapshot::default();
    nodes.iter().for_each(|n| snapshot.set_node(n.clone()));
    there.iter().for_each(|(p, n)| snapshot.place(p.clone(), n));
    let decided = match decide(&snapshot, pod, &mut 0, |_| 0) {
        Decision::Place(node) => node,
        Decision::Unschedulable { message, .. } => message,
    };
    assert_eq!(decided, expected);
}

#[test]
fn resources() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    check(&[], &[], &pod("p", json!({})), "no nodes available to schedule pods");
    check(&nodes, &[(pod("x", requests("1")), "a")], &pod("p", requests("1")), "b");
    check(&nodes, &[(pod("x", requests("3")), "a")], &pod("p", requests("4")), "b");
    check(&nodes, &[], &pod("p", requests("5")), "0/2 nodes are available: 2 Insufficient cpu.");
    let both = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "5", "memory": "9Gi", "example.com/gpu": "1"}}}]}});
    let text = "0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient example.com/gpu, 2 Insufficient memory.";
    check(&nodes, &[], &pod("p", both), text);
    let full = [node("a", json!({"status": {"allocatable": {"pods": "1"}}}))];
    check(
        &full,
        &[(pod("x", json!({})), "a")],
        &pod("p", json!({})),
        "0/1 nodes are available: 1 Too many pods.",
    );
    check(&full, &[], &pod("p", json!({})), "a");
}

#[test]
fn taints_and_cordons() {
    let nodes = [node("a", tainted("NoSchedule")), node("b", spec(json!({"unschedulable": true})))];
    let text = "0/2 nodes are available: 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable.";
    check(&nodes, &[], &pod("p", json!({})), text);
    let tolerating = |toleration: Value| pod("p", spec(json!({"tolerations": [toleration]})));
    check(&nodes, &[], &tolerating(json!({"key": "k", "value": "v"})), "a");
    check(
        &nodes,
        &[],
        &tolerating(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"})),
        "a",
    );
    check(&nodes, &[], &tolerating(json!({"key": "k", "value": "other"})), text);
    check(
        &nodes,
        &[],
        &tolerating(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})),
        text,
    );
    check(&nodes[1..], &[], &tolerating(json!({"operator": "Exists"})), "b");
    let soft = [node("a", tainted("PreferNoSchedule")), node("b", json!({}))];
    check(&soft, &[], &pod("p", json!({})), "b");
    check(&soft[..1], &[], &pod("p", json!({})), "a");
}

#[test]
fn node_affinity() {
    let nodes = [node("a", zone("x")), node("b", zone("y")), node("c", json!({}))];
    let required = |terms: Value| {
        spec(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}),
        )
    };
    let nowhere = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.";
    check(&nodes, &[], &pod("p", spec(json!({"nodeSelector": {"zone": "y"}}))), "b");
    check(&nodes, &[], &pod("p", spec(json!({"nodeSelector": {"zone": "z"}}))), nowhere);
    let expression = |op: &str, values: Value| json!([{"matchExpressions": [{"key": "zone", "operator": op, "values": values}]}]);
    check(&nodes, &[], &pod("p", required(expression("In", json!(["y", "z"])))), "b");
    check(&nodes, &[], &pod("p", required(expression("NotIn", json!(["x", "y"])))), "c");
    check(&nodes, &[], &pod("p", required(expression("DoesNotExist", json!([])))), "c");
    check(&nodes, &[], &pod("p", required(json!([{}]))), nowhere);
    let name = |name: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]);
    check(&nodes, &[], &pod("p", required(name("c"))), "c");
    check(&nodes, &[], &pod("p", required(name("d"))), nowhere);
    let preferred = spec(
        json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "preference": expression("In", json!(["y"]))[0]},
        ]}}}),
    );
    check(&nodes, &[], &pod("p", preferred), "b");
}

#[test]
fn host_ports() {
    let nodes = [node("a", json!({}))];
    let port = |ip: &str, protocol: &str| {
        let ports =
            json!([{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]);
        pod(
            &format!("{ip}{protocol}"),
            spec(json!({"containers": [{"name": "c", "ports": ports}]})),
        )
    };
    let taken =
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    check(&nodes, &[(port("10.0.0.1", "TCP"), "a")], &port("", "TCP"), taken);
    check(&nodes, &[(port("0.0.0.0", "TCP"), "a")], &port("10.0.0.1", "TCP"), taken);
    check(&nodes, &[(port("10.0.0.1", "TCP"), "a")], &port("10.0.0.2", "TCP"), "a");
    check(&nodes, &[(port("", "TCP"), "a")], &port("", "UDP"), "a");
}

#[test]
fn other_pods() {
    let nodes = [node("a", zone("x")), node("b", zone("x")), node("c", zone("y"))];
    let term = |key: &str, app: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]);
    let with = |name: &str, kind: &str, terms: Value| {
        pod(
            name,
            spec(
                json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}),
            ),
        )
    };
    let web = || pod("web", json!({}));
    check(&nodes, &[(web(), "c")], &with("p", "podAffinity", term("zone", "web")), "c");
    check(&nodes, &[(web(), "a")], &with("p", "podAntiAffinity", term("zone", "web")), "c");
    let no_friend = "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.";
    check(&nodes, &[], &with("p", "podAffinity", term("zone", "web")), no_friend);
    let first = with("web", "podAffinity", term("zone", "web"));
    assert!(
        matches!(decide_on(&nodes, &first), Decision::Place(_)),
        "the first of its kind may go anywhere"
    );
    let hermit = with("hermit", "podAntiAffinity", term("zone", "web"));
    check(&nodes, &[(hermit.clone(), "a")], &web(), "c");
    let nowhere =
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules.";
    check(&nodes[..2], &[(hermit, "a")], &web(), nowhere);
    let elsewhere = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}, "namespaces": ["other"]}]);
    check(&nodes[..1], &[(web(), "a")], &with("p", "podAntiAffinity", elsewhere), "a");
}

fn decide_on(nodes: &[Arc<Node>], pod: &PodInfo) -> Decision {
    let mut snapshot = Snapshot::default();
    nodes.iter().for_each(|n| snapshot.set_node(n.clone()));
    decide(&snapshot, pod, &mut 0, |_| 0)
}

#[test]
fn topology_spread() {
    let nodes =
        [node("a", zone("x")), node("b", zone("x")), node("c", zone("y")), node("d", json!({}))];
    let spread = |when: &str| {
        pod(
            "p",
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}},
            ]}}),
        )
    };
    let web = |name: &str| pod(name, json!({"metadata": {"labels": {"app": "web"}}}));
    check(&nodes, &[(web("1"), "a")], &spread("DoNotSchedule"), "c");
    check(&nodes, &[(web("1"), "a"), (web("2"), "b")], &spread("ScheduleAnyway"), "c");
    let cordoned = [
        nodes[0].clone(),
        node("c", merged(zone("y"), spec(json!({"unschedulable": true})))),
        nodes[1].clone(),
        nodes[3].clone(),
    ];
    let text = "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
                1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints.";
    check(&cordoned, &[(web("1"), "a")], &spread("DoNotSchedule"), text);
}

fn merged(mut a: Value, b: Value) -> Value {
    merge(&mut a, b);
    a
}

#[test]
fn pods_of_one_owner_spread() {
    let nodes: Vec<_> = ["a", "b", "c"].iter().map(|n| node(n, json!({}))).collect();
    let owned = |name: &str| {
        pod(
            name,
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "o", "controller": true}]}}),
        )
    };
    check(&nodes, &[(owned("1"), "a"), (owned("2"), "b")], &owned("3"), "c");
}

#[test]
fn the_snapshot_follows_every_change() {
    let mut snapshot = Snapshot::default();
    snapshot.place(pod("early", requests("3")), "a");
    assert!(snapshot.is_empty(), "a pod makes no node");
    snapshot.set_node(node("a", json!({})));
    let place = |snapshot: &Snapshot| decide(snapshot, &pod("p", requests("2")), &mut 0, |_| 0);
    let refused = |d: Decision| matches!(d, Decision::Unschedulable { healed_by, .. } if healed_by & filter::POD_REMOVED != 0);
    assert!(refused(place(&snapshot)));
    snapshot.remove_pod("early");
    assert_eq!(place(&snapshot), Decision::Place("a".into()));
    snapshot.place(pod("late", requests("3")), "a");
    snapshot.place(pod("late", requests("3")), "b");
    assert_eq!(place(&snapshot), Decision::Place("a".into()), "a pod counts once");
    snapshot.remove_node("a");
    snapshot.set_node(node("b", json!({})));
    assert!(refused(place(&snapshot)));
    snapshot.remove_node("b");
    snapshot.remove_pod("late");
    assert!(snapshot.is_empty() && snapshot.node("b").is_none());
}

/// 5,000 nodes: the time of one decision must not be that of looking at all of them.
#[test]
fn a_large_cluster_is_sampled() {
    let mut snapshot = Snapshot::default();
    for i in 0..5000 {
        snapshot.set_node(node(&format!("n{i}"), json!({})));
    }
    let (mut start, begin, pods) = (0, Instant::now(), 500);
    let mut used = std::collections::HashSet::new();
    for i in 0..pods {
        let pod = pod(&format!("p{i}"), requests("1"));
        let Decision::Place(node) = decide(&snapshot, &pod, &mut start, |_| 0) else {
            panic!("it fits")
        };
        snapshot.place(pod, &node);
        used.insert(node);
    }
    eprintln!("{pods} decisions over 5,000 nodes took {:?}", begin.elapsed());
    assert_eq!(used.len(), pods, "every pod got an empty node, though only some were looked at");
}
