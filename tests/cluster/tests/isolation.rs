//! What pods say of sharing, ports, runtimes and resources, in a whole cluster by kubectl. As root.

use rimward_tests_cluster::busybox;
use rimward_tests_cluster::{Cluster, binary, curl, eventually, repository, skip_without_root};
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
        (classes.lines().count() == 4).then_some(classes)
    });
    for name in ["oci", "runc", "wasm", "wasm-isolated"] {
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
fn a_pod_is_made_by_runc_beside_one_that_is_not() {
    if skip_without_root("a_pod_is_made_by_runc_beside_one_that_is_not") {
        return;
    }
    let (cluster, image) = cluster();
    eventually("the class is made", || {
        cluster.kubectl(&["get", "runtimeclass", "runc"]).status.success().then_some(())
    });
    let script = "grep -E '^(Seccomp|NoNewPrivs|Cap.*):' /proc/self/status; cat /hook/said; echo ready; \
                  until [ -e /tmp/go ]; do sleep 0.1; done; exit 7";
    let amounts = json!({"cpu": "100m", "memory": "32Mi"});
    let spec = |class: Value| {
        json!({"runtimeClassName": class, "restartPolicy": "Never", "volumes": [{"name": "hook", "emptyDir": {}}],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": [{"name": "first", "image": image, "args": ["echo from the first > /hook/said"],
                "volumeMounts": [{"name": "hook", "mountPath": "/hook"}]}],
            "containers": [{"name": "main", "image": image, "args": [script],
                "securityContext": {"allowPrivilegeEscalation": false},
                "resources": {"requests": amounts, "limits": amounts},
                "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/started"]}, "periodSeconds": 1},
                "lifecycle": {"postStart": {"exec": {"command": ["touch", "/tmp/started"]}}},
                "volumeMounts": [{"name": "hook", "mountPath": "/hook"}]}]})
    };
    let pods = [("by-runc", json!("runc"), "runc"), ("plain", Value::Null, "lc")];
    for (name, class, _) in &pods {
        cluster.apply(&pod(name, spec(class.clone())));
    }
    cluster.ok(&["wait", "--for=condition=Ready", "pod/by-runc", "pod/plain", "--timeout=90s"]);
    let logs = pods.each_ref().map(|(name, ..)| cluster.ok(&["logs", name]));
    assert!(
        logs[0].contains("Seccomp:\t2\n") && logs[0].contains("NoNewPrivs:\t1\n"),
        "{}",
        logs[0]
    );
    assert!(logs[0].ends_with("from the first\nready\n"), "{}", logs[0]);
    assert_eq!(logs[0], logs[1]);
    for (name, _, made_by) in &pods {
        let uid =
            cluster.get(&["pod", name])["metadata"]["uid"].as_str().expect("a UID").to_owned();
        let run = cluster.dir.join("node/run/oci").join(format!("{uid}.main.0"));
        assert!(run.join(made_by).is_dir(), "{name}: {}", run.display());
        let seen = cluster.ok(&[
            "exec",
            name,
            "--",
            "sh",
            "-c",
            "hostname; grep Seccomp: /proc/self/status",
        ]);
        assert_eq!(seen, format!("{name}\nSeccomp:\t2\n"));
        let more = json!({"spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "48Mi"}, "requests": {"memory": "48Mi"}}}]}});
        cluster.ok(&["patch", "pod", name, "--subresource", "resize", "-p", &more.to_string()]);
        eventually("it is resized", || {
            let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
            let limit = cluster.ok(&["exec", name, "--", "sh", "-c", limit]);
            (limit.trim() == (48 << 20).to_string()).then_some(())
        });
    }
    let why = cluster.refused(&["exec", "by-runc", "--", "nosuch"], "");
    assert!(why.contains("exec: \"nosuch\": executable file not found in $PATH"), "{why}");
    assert_eq!(why.matches("nosuch").count(), 1, "{why}");

    // The next agent finds both.
    let cluster = cluster.kill_and_restart();
    for (name, ..) in &pods {
        cluster.ok(&["exec", name, "--", "touch", "/tmp/go"]);
        let ended = eventually(&format!("{name} ends"), || {
            let pod = cluster.get(&["pod", name]);
            let state = pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
            state.is_object().then_some(state)
        });
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(7), &json!("Error")), "{name}");
    }
    // What cannot start says so where it says so of others.
    for (name, class, _) in &pods {
        let mut spec = spec(class.clone());
        spec["containers"][0]["command"] = json!(["nosuch"]);
        let name = format!("{name}-odd");
        cluster.apply(&pod(&name, spec));
        let ended = eventually(&format!("{name} cannot start"), || {
            let pod = cluster.get(&["pod", &name]);
            let state = pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
            state.is_object().then_some(state)
        });
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(128), &json!("StartError")));
        let why = ended["message"].as_str().unwrap_or_default();
        assert!(why.contains("exec: \"nosuch\": executable file not found in $PATH"), "{why}");
    }
    cluster.ok(&["delete", "pod", "--all", "--timeout=60s"]);

    // What is asked for and is not there is said at the start.
    for (options, parts) in [
        (
            &["--container-runtime", "runc", "--runc-path", "/nosuch/runc"][..],
            &["--runc-path /nosuch/runc: cannot run /nosuch/runc", "apt install runc"][..],
        ),
        (
            &["--container-runtime", "runc", "--user-mode"][..],
            &["--container-runtime runc: a node in user mode runs no Linux containers"][..],
        ),
    ] {
        let mut command = std::process::Command::new(binary("rimward"));
        command.args(["up", "--data-dir"]).arg(cluster.dir.join("none")).args(options);
        let output = command.output().expect("the binary runs");
        assert!(!output.status.success());
        let said = rimward_tests_cluster::text(&output.stderr);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
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

#[test]
fn users_of_a_pod_are_none_of_the_machine() {
    if skip_without_root("users_of_a_pod_are_none_of_the_machine") {
        return;
    }
    let (cluster, image) = cluster();
    cluster.push(&repository().join("examples/greeter/greeter.wasm"), "greeter:v1");
    cluster.ok(&["create", "configmap", "texts", "--from-literal=greeting=Hello"]);
    let node = cluster.get(&["nodes"])["items"][0].clone();
    let handlers = node["status"]["runtimeHandlers"].as_array().expect("handlers").clone();
    let oci = handlers.iter().find(|handler| handler["name"] == "oci").expect("it has oci");
    assert_eq!(oci["features"]["userNamespaces"], true);

    let serve = "cat /etc/greeter/greeting > /tmp/index.html; cat /token/token | wc -c; id -u; \
                 stat -L -c '%u:%g' /etc/greeter/greeting /scratch; echo new > /scratch/file; exec httpd -f -p 80 -h /tmp";
    let spec = |own: bool| {
        json!({"hostUsers": !own, "shareProcessNamespace": true, "securityContext": {"fsGroup": 70},
        "volumes": [{"name": "texts", "configMap": {"name": "texts"}}, {"name": "scratch", "emptyDir": {}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        "containers": [
            {"name": "main", "image": image, "args": [serve],
             "readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "grep -q 0 /proc/self/uid_map"]}, "periodSeconds": 1},
             "lifecycle": {"postStart": {"exec": {"command": ["/bin/sh", "-c", "tr -s ' ' < /proc/self/uid_map > /scratch/hook"]}}},
             "volumeMounts": [{"name": "texts", "mountPath": "/etc/greeter"}, {"name": "token", "mountPath": "/token"},
                {"name": "scratch", "mountPath": "/scratch"}]},
            {"name": "wasm", "image": "greeter:v1", "ports": [{"containerPort": 8080}],
             "volumeMounts": [{"name": "texts", "mountPath": "/etc/greeter"}]}]})
    };
    cluster.apply(&pod("own", spec(true)));
    cluster.apply(&pod("others", spec(true)));
    cluster.apply(&pod("machine", spec(false)));
    cluster.ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/own",
        "pod/others",
        "pod/machine",
        "--timeout=90s",
    ]);
    let run = |pod: &str, script: &str| {
        cluster.ok(&["exec", pod, "-c", "main", "--", "sh", "-c", script]).trim().to_owned()
    };
    let map = "tr -s ' ' < /proc/self/uid_map";
    let (own, others) = (run("own", map), run("others", map));
    let first = |map: &str| map.split(' ').nth(1).expect("a map").parse::<u64>().expect("a number");
    assert!(first(&own).abs_diff(first(&others)) >= 65_536, "{own} {others}");
    assert!(first(&own) >= 65_536 && own.ends_with(" 65536"), "{own}");
    assert_eq!(run("machine", map), "0 0 4294967295");
    assert_eq!(run("own", "cat /scratch/hook").trim(), own, "hooks are of the same users");
    for name in ["own", "machine"] {
        let logs = cluster.ok(&["logs", name, "-c", "main"]);
        let lines: Vec<&str> = logs.lines().collect();
        assert_eq!(lines[1..], ["0", "0:70", "0:70"], "{name}: {logs}");
        let ip = cluster.get(&["pod", name])["status"]["podIP"].as_str().expect("an IP").to_owned();
        assert_eq!(curl(cluster.wrap(), &[&format!("http://{ip}/")]), "Hello");
        assert!(curl(cluster.wrap(), &[&format!("http://{ip}:8080/")]).contains("Hello"));
    }
    // The next agent finds them as they are.
    let id = |cluster: &Cluster| {
        cluster.get(&["pod", "own"])["status"]["containerStatuses"][0]["containerID"].clone()
    };
    let before = id(&cluster);
    let cluster = cluster.kill_and_restart();
    assert_eq!(id(&cluster), before);
    assert_eq!(cluster.ok(&["exec", "own", "-c", "main", "--", "sh", "-c", map]).trim(), own);
    cluster.ok(&["delete", "pod", "--all", "--timeout=60s"]);
    let refused = cluster.refused(
        &["apply", "-f", "-"],
        &pod("odd", {
            let mut spec = spec(true);
            spec["hostNetwork"] = json!(true);
            spec
        }),
    );
    assert!(refused.contains("when `pod.Spec.HostUsers` is false"), "{refused}");
}
