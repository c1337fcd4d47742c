//! What pods say of sharing, ports, runtimes and resources, in a whole cluster by kubectl. As root.

use rimward_tests_cluster::busybox;
use rimward_tests_cluster::{Cluster, curl, eventually, repository, skip_without_root};
use serde_json::{Value, json};

fn cluster() -> (Cluster, String) {
    let cluster = Cluster::up();
    let image = busybox::push(
        &cluster,
        "busybox:v1",
        json!({"Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"]}),
    );
    (cluster, image)
}

fn pod(name: &str, spec: Value) -> String {
    let mut spec = spec;
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

fn condition(pod: &Value, type_: &str) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_).cloned()
}

#[test]
fn ports_of_the_machine_lead_to_one_pod() {
    if skip_without_root("ports_of_the_machine_lead_to_one_pod") {
        return;
    }
    let (cluster, image) = cluster();
    cluster.push(&repository().join("examples/greeter/greeter.wasm"), "greeter:v1");
    cluster.ok(&["create", "configmap", "greeter", "--from-literal=greeting=Hello"]);
    let serve =
        "mkdir -p /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    let web = |image: &str, args: &str, port: u16| {
        json!({"containers": [{"name": "main", "image": image, "args": [args],
            "ports": [{"containerPort": 8080, "hostPort": port}]}]})
    };
    cluster.apply(&pod("first", web(&image, serve, 18080)));
    let greeter = json!({"volumes": [{"name": "greeting", "configMap": {"name": "greeter"}}],
        "containers": [{"name": "main", "image": "greeter:v1",
            "ports": [{"containerPort": 8080, "hostPort": 18081}],
            "volumeMounts": [{"name": "greeting", "mountPath": "/etc/greeter"}]}]});
    cluster.apply(&pod("wasm", greeter));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/first", "pod/wasm", "--timeout=90s"]);
    let ip = cluster.get(&["pod", "first"])["status"]["hostIP"].as_str().expect("an IP").to_owned();
    for at in [ip.as_str(), "127.0.0.1"] {
        assert_eq!(curl(cluster.wrap(), &[&format!("http://{at}:18080/")]).trim(), "first");
        assert!(curl(cluster.wrap(), &[&format!("http://{at}:18081/")]).contains("Hello"));
    }
    // From a pod of the same node, and from the pod itself.
    let ask = format!("wget -q -O - http://{ip}:18080/");
    assert_eq!(cluster.ok(&["exec", "first", "--", "sh", "-c", &ask]).trim(), "first");

    // Bound past the scheduler.
    let node = cluster.get(&["pod", "first"])["spec"]["nodeName"].clone();
    let mut second = web(&image, serve, 18080);
    second["nodeName"] = node;
    cluster.apply(&pod("second", second));
    let status = eventually("the second is turned away", || {
        let status = cluster.get(&["pod", "second"])["status"].clone();
        (status["phase"] == "Failed").then_some(status)
    });
    assert_eq!(status["reason"], "NodePorts");
    // The next agent knows them, and they go with the pod.
    let cluster = cluster.kill_and_restart();
    assert_eq!(curl(cluster.wrap(), &["http://127.0.0.1:18080/"]).trim(), "first");
    cluster.ok(&["delete", "pod", "first", "--timeout=60s"]);
    cluster.apply(&pod("third", web(&image, serve, 18080)));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/third", "--timeout=90s"]);
    assert_eq!(curl(cluster.wrap(), &["http://127.0.0.1:18080/"]).trim(), "third");
}

#[test]
fn runtime_classes_name_what_nodes_have() {
    if skip_without_root("runtime_classes_name_what_nodes_have") {
        return;
    }
    let (cluster, image) = cluster();
    let classes = eventually("the classes are made", || {
        let classes = cluster.ok(&["get", "runtimeclasses", "-o", "name"]);
        (classes.lines().count() == 3).then_some(classes)
    });
    for name in ["oci", "wasm", "wasm-isolated"] {
        assert!(classes.contains(&format!("runtimeclass.node.k8s.io/{name}\n")), "{classes}");
    }
    let class = |name: &str, handler: &str| {
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": handler, "overhead": {"podFixed": {"cpu": "10m"}}}).to_string()
    };
    cluster.apply(&class("mine", "oci"));
    cluster.apply(&class("nowhere", "gone"));
    let main = json!([{"name": "main", "image": image, "args": ["sleep 3600"]}]);
    for (name, class) in [("a", "mine"), ("b", "nowhere"), ("c", "wasm")] {
        cluster.apply(&pod(name, json!({"runtimeClassName": class, "containers": main})));
    }
    cluster.ok(&["wait", "--for=condition=Ready", "pod/a", "--timeout=90s"]);
    assert_eq!(cluster.get(&["pod", "a"])["spec"]["overhead"]["cpu"], "10m");
    assert_eq!(cluster.get(&["pod", "a"])["spec"]["runtimeClassName"], "mine");
    let told = |pod: &str, reason: &str| {
        eventually(&format!("{reason} of {pod}"), || {
            let events = cluster.ok(&[
                "get",
                "events",
                "--field-selector",
                &format!("involvedObject.name={pod},reason={reason}"),
                "-o",
                "jsonpath={.items[*].message}",
            ]);
            (!events.is_empty()).then_some(events)
        })
    };
    let why = told("b", "FailedCreatePodSandBox");
    assert!(why.contains("no runtime for \"gone\" is configured"), "{why}");
    let why = told("c", "Failed");
    assert!(why.contains("the runtime handler \"wasm\" does not run it"), "{why}");
}

#[test]
fn a_pod_is_resized_in_place() {
    if skip_without_root("a_pod_is_resized_in_place") {
        return;
    }
    let (cluster, image) = cluster();
    let amounts = json!({"cpu": "100m", "memory": "32Mi"});
    cluster.apply(&pod(
        "p",
        json!({"containers": [{"name": "main", "image": image, "args": ["sleep 3600"],
        "resources": {"requests": amounts, "limits": amounts}}]}),
    ));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=90s"]);
    let patch = |cpu: &str| {
        let amounts = json!({"cpu": cpu, "memory": "48Mi"});
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": {"requests": amounts, "limits": amounts}}]}});
        cluster.ok(&["patch", "pod", "p", "--subresource", "resize", "-p", &patch.to_string()]);
    };
    patch("200m");
    let resized = eventually("it is resized", || {
        let pod = cluster.get(&["pod", "p"]);
        let status = &pod["status"]["containerStatuses"][0];
        (status["resources"]["limits"]["cpu"] == "200m").then(|| pod.clone())
    });
    let status = &resized["status"]["containerStatuses"][0];
    assert_eq!(status["allocatedResources"], json!({"cpu": "200m", "memory": "48Mi"}));
    assert_eq!(status["restartCount"], 0);
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
    assert_eq!(cluster.ok(&["exec", "p", "--", "sh", "-c", limit]).trim(), (48 << 20).to_string());
    patch("900");
    let pending =
        eventually("it cannot be", || condition(&cluster.get(&["pod", "p"]), "PodResizePending"));
    assert_eq!(pending["reason"], "Infeasible");
    patch("100m");
    eventually("it is no more asked for", || {
        let pod = cluster.get(&["pod", "p"]);
        let limit = &pod["status"]["containerStatuses"][0]["resources"]["limits"]["cpu"];
        (condition(&pod, "PodResizePending").is_none() && *limit == "100m").then_some(())
    });
}

#[test]
fn containers_share_their_processes() {
    if skip_without_root("containers_share_their_processes") {
        return;
    }
    let (cluster, image) = cluster();
    let spec = json!({"shareProcessNamespace": true, "containers": [
        {"name": "one", "image": image, "args": ["sleep 3600"]},
        {"name": "two", "image": image, "args": ["sleep 3601"]}]});
    cluster.apply(&pod("p", spec));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=90s"]);
    let shown = cluster.ok(&["exec", "p", "-c", "two", "--", "ps"]);
    for process in ["/pause", "sleep 3600", "sleep 3601"] {
        assert!(shown.contains(process), "{process}: {shown}");
    }
}
