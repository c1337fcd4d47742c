//! Linux containers in a whole cluster: images from its own registry, the real kubectl. As root.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use rimward_tests_cluster::pods::{busybox_cluster as cluster, pod, status, terminated};
use rimward_tests_cluster::{condition, curl, eventually, repository, skip_without_root};
use serde_json::{Value, json};

#[test]
fn a_deployment_of_containers() {
    if skip_without_root("a_deployment_of_containers") {
        return;
    }
    let (cluster, image) = cluster();
    let script = "echo started as $HOSTNAME with $MODE; cat /config/greeting; echo kept > /scratch/file; \
                  mkdir -p /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "texts"}, "data": {"greeting": "hello from a file\n", "mode": "fast"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
         "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": image, "args": [script],
                    "env": [{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "texts", "key": "mode"}}}],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                    "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
                    "volumeMounts": [{"name": "config", "mountPath": "/config"}, {"name": "scratch", "mountPath": "/scratch"}]}],
                "volumes": [{"name": "config", "configMap": {"name": "texts"}}, {"name": "scratch", "emptyDir": {}}]}}}},
    ]});
    cluster.apply(&objects.to_string());
    cluster.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let pods = cluster.get(&["pods", "-l", "app=web"]);
    let pods: Vec<(String, String)> = pods["items"]
        .as_array()
        .expect("pods")
        .iter()
        .map(|pod| {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))
        })
        .collect();
    assert_eq!(pods.len(), 2);
    let (name, _) = &pods[0];
    let logs = cluster.ok(&["logs", name]);
    assert_eq!(logs, format!("started as {name} with fast\nhello from a file\n"));
    let id = status(&cluster, name)["containerID"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("oci://"), "{id}");

    // By the Service from the host; each pod from the host, and from the other pod.
    let service =
        cluster.get(&["service", "web"])["spec"]["clusterIP"].as_str().expect("an IP").to_owned();
    let names: Vec<&str> = pods.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&curl(cluster.wrap(), &[&format!("http://{service}/")]).trim()));
    for (name, ip) in &pods {
        assert_eq!(curl(cluster.wrap(), &[&format!("http://{ip}:8080/")]).trim(), name);
    }
    let (other, other_ip) = &pods[1];
    let from_pod = pod(
        "client",
        json!({"image": image, "args": [format!(
        "wget -q -O - http://{other_ip}:8080/; wget -q -O - http://web/ && echo by name")]}),
        json!({"restartPolicy": "Never"}),
    );
    cluster.apply(&from_pod);
    assert_eq!(
        terminated(&cluster, "client")["exitCode"],
        0,
        "{}",
        cluster.ok(&["logs", "client"])
    );
    let seen = cluster.ok(&["logs", "client"]);
    assert!(seen.starts_with(&format!("{other}\n")) && seen.ends_with("by name\n"), "{seen}");

    // Scaled down, the pod is asked to end and gone within its grace.
    cluster.ok(&["scale", "deployment/web", "--replicas=0"]);
    cluster.ok(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"]);
}

#[test]
fn a_pod_of_both_kinds() {
    if skip_without_root("a_pod_of_both_kinds") {
        return;
    }
    let (cluster, image) = cluster();
    cluster.push(&repository().join("examples/greeter/greeter.wasm"), "greeter:v1");
    let ask = "httpd -p 127.0.0.1:7001 -h /etc; for at in $POD_IP 127.0.0.1; do \
               until wget -q -O - http://$at:8080/ 2>/dev/null; do sleep 0.1; done; done; echo asked; sleep 3600";
    let field = |name: &str, path: &str| json!([{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}]);
    cluster.ok(&["create", "configmap", "greeter", "--from-literal=greeting=Hello"]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "both"}, "spec": {
    "terminationGracePeriodSeconds": 1,
    "volumes": [{"name": "greeting", "configMap": {"name": "greeter"}}],
    "containers": [
        {"name": "web", "image": "greeter:v1", "ports": [{"containerPort": 8080}],
         "env": field("POD_NAME", "metadata.name"),
         "volumeMounts": [{"name": "greeting", "mountPath": "/etc/greeter"}]},
        {"name": "client", "image": image, "args": [ask], "env": field("POD_IP", "status.podIP")},
    ]}});
    cluster.apply(&pod.to_string());
    cluster.ok(&["wait", "--for=condition=Ready", "pod/both", "--timeout=90s"]);
    let logs = eventually("the one asked the other", || {
        let logs = cluster.ok(&["logs", "both", "-c", "client"]);
        logs.contains("asked").then_some(logs)
    });
    assert_eq!(
        logs.matches("Hello from both").count(),
        2,
        "at its address and at localhost: {logs}"
    );
    let ip = cluster.get(&["pod", "both"])["status"]["podIP"].as_str().expect("an IP").to_owned();
    assert!(curl(cluster.wrap(), &[&format!("http://{ip}:8080/")]).starts_with("Hello from both"));
    // A server that listens at localhost alone is found there.
    let mut forward = cluster
        .kubectl_command(&["port-forward", "pod/both", ":7001"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl is on the PATH");
    let mut said = BufReader::new(forward.stdout.take().expect("it is piped")).lines();
    let line = said.next().expect("it says where it listens").expect("it is text");
    let local = line.strip_prefix("Forwarding from ").and_then(|l| l.split_once(' '));
    let (local, _) = local.unwrap_or_else(|| panic!("{line}"));
    let release = curl(cluster.wrap(), &[&format!("http://{local}/release")]);
    forward.kill().and_then(|()| forward.wait()).expect("it ends");
    assert_eq!(release, "from the upper layer\n");
    cluster.ok(&["delete", "pod", "both", "--timeout=60s"]);
}

#[test]
fn ends_of_containers() {
    if skip_without_root("ends_of_containers") {
        return;
    }
    let (cluster, image) = cluster();
    let never = || json!({"restartPolicy": "Never"});
    let run = |name: &str, container: Value, more: Value| {
        cluster.apply(&pod(name, container, more));
    };
    run("image-says", json!({"image": image}), json!({}));
    run(
        "three",
        json!({"image": image, "args": ["echo why > /dev/termination-log; exit 3"]}),
        never(),
    );
    run(
        "hungry",
        json!({"image": image, "args": ["exec tail /dev/zero"], "resources": {"limits": {"memory": "16Mi"}}}),
        never(),
    );
    run("lost", json!({"image": image, "command": ["nosuch"]}), never());
    run("rootless", json!({"image": image, "securityContext": {"runAsNonRoot": true}}), never());
    run("again", json!({"image": image, "args": ["echo run; exit 1"]}), json!({}));
    run("absent", json!({"image": "nothing/like-this:v1"}), never());
    run(
        "layers",
        json!({"image": image, "args": ["cat /etc/release; test ! -e /etc/hidden && echo hidden; echo $COLOUR; pwd; id -u"], "securityContext": {"runAsUser": 1001}}),
        never(),
    );

    let three = terminated(&cluster, "three");
    assert_eq!(
        (&three["exitCode"], &three["reason"], &three["message"]),
        (&json!(3), &json!("Error"), &json!("why\n"))
    );
    assert_eq!(cluster.get(&["pod", "three"])["status"]["phase"], "Failed");
    let hungry = terminated(&cluster, "hungry");
    assert_eq!((&hungry["exitCode"], &hungry["reason"]), (&json!(137), &json!("OOMKilled")));
    let lost = terminated(&cluster, "lost");
    assert_eq!((&lost["exitCode"], &lost["reason"]), (&json!(128), &json!("StartError")));
    assert!(
        lost["message"].as_str().expect("text").contains("executable file not found in $PATH"),
        "{lost}"
    );
    let waiting = |name: &str, reason: &str| {
        eventually(&format!("{name} waits for {reason}"), || {
            let waiting = status(&cluster, name)["state"]["waiting"].clone();
            (waiting["reason"] == reason)
                .then(|| waiting["message"].as_str().unwrap_or_default().to_owned())
        })
    };
    assert!(waiting("rootless", "CreateContainerConfigError").contains("image will run as root"));
    waiting("absent", "ImagePullBackOff");
    terminated(&cluster, "layers");
    assert_eq!(
        cluster.ok(&["logs", "layers"]),
        "from the upper layer\nhidden\ngreen\n/tmp\n1001\n"
    );
    eventually("it was begun again", || {
        (status(&cluster, "again")["restartCount"].as_u64()? >= 2).then_some(())
    });
    waiting("again", "CrashLoopBackOff");
    assert_eq!(cluster.ok(&["logs", "again", "--previous"]), "run\n");
    cluster.ok(&["wait", "--for=condition=Ready", "pod/image-says", "--timeout=60s"]);
    assert_eq!(cluster.ok(&["logs", "image-says"]), "from the image\n");
    assert_eq!(condition(&cluster.get(&["pod", "image-says"]), "Ready"), "True");
}

#[test]
fn containers_outlive_the_agent() {
    if skip_without_root("containers_outlive_the_agent") {
        return;
    }
    let (cluster, image) = cluster();
    let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo $n; sleep 0.1; done";
    cluster.apply(&pod(
        "long",
        json!({"image": image, "args": [script]}),
        json!({"restartPolicy": "Never"}),
    ));
    cluster.apply(&pod(
        "short",
        json!({"image": image, "args": ["sleep 4; exit 6"]}),
        json!({"restartPolicy": "Never"}),
    ));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/long", "pod/short", "--timeout=60s"]);
    let before = status(&cluster, "long");
    let cluster = cluster.kill_and_restart();
    assert_eq!(terminated(&cluster, "short")["exitCode"], 6);
    let after = eventually("the status is there again", || {
        let status = status(&cluster, "long");
        status["state"]["running"].is_object().then_some(status)
    });
    assert_eq!(after["containerID"], before["containerID"]);
    assert_eq!(after["restartCount"], 0);
    assert_eq!(after["state"], before["state"]);
    // Its log has no gap.
    let logs = cluster.ok(&["logs", "long"]);
    let numbers: Vec<usize> = logs.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.len() > 10 && numbers.iter().enumerate().all(|(i, n)| *n == i + 1), "{logs}");
    cluster.ok(&["delete", "pod", "long", "--timeout=60s"]);
}
