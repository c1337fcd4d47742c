//! Volumes in a whole cluster, walked as Kubernetes' storage conformance does: what containers see of them, how
//! they follow their sources, and claims from order to removal. As root.

use rimward_tests_cluster::busybox;
use rimward_tests_cluster::{Cluster, eventually, skip_without_root};
use serde_json::{Value, json};

fn cluster() -> Cluster {
    let cluster = Cluster::up();
    busybox::push(&cluster, "busybox:v1", json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}));
    cluster
}

/// A pod whose one container runs a script with one volume at /v. `more` is laid over its spec.
fn pod(name: &str, script: &str, volume: Value, mount: Value, more: Value) -> Value {
    let (mut volume, mut place) = (volume, json!({"name": "v", "mountPath": "/v"}));
    volume["name"] = "v".into();
    for (key, value) in mount.as_object().into_iter().flatten() {
        place[key] = value.clone();
    }
    let mut spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "volumes": [volume],
        "containers": [{"name": "c", "image": "busybox:v1", "command": ["sh", "-c", script], "volumeMounts": [place]}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn apply(cluster: &Cluster, items: Vec<Value>) {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
}

#[track_caller]
fn output(cluster: &Cluster, name: &str) -> String {
    eventually(&format!("{name} ends"), || {
        let phase = cluster.get(&["pod", name])["status"]["phase"].clone();
        (phase == "Succeeded" || phase == "Failed").then_some(())
    });
    cluster.ok(&["logs", name])
}

#[track_caller]
fn event(cluster: &Cluster, about: &str, reason: &str, text: &str) {
    eventually(&format!("an Event {reason} about {about}: {text}"), || {
        let selector = format!("involvedObject.name={about},reason={reason}");
        let events = cluster.get(&["events", "--field-selector", &selector]);
        let mut messages =
            events["items"].as_array()?.iter().filter_map(|event| event["message"].as_str());
        messages.any(|message| message.contains(text)).then_some(())
    });
}

const LOOK: &str = "for f in $(find /v -follow -type f ! -path '*/..*'); do stat -L -c '%A %u:%g %n' $f; cat $f; echo; done; stat -c '%A %u:%g' /v";

#[test]
fn what_containers_see() {
    if skip_without_root("what_containers_see") {
        return;
    }
    let cluster = cluster();
    apply(
        &cluster,
        vec![
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"a": "1", "b": "2"}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"k": "s"}}),
        ],
    );
    let map = |more: Value| {
        let mut source = json!({"name": "map"});
        for (key, value) in more.as_object().into_iter().flatten() {
            source[key] = value.clone();
        }
        json!({ "configMap": source })
    };
    let someone = json!({"securityContext": {"runAsUser": 1000, "fsGroup": 1001}});
    let scratch = |mode: &str| format!("echo x > /v/f && chmod {mode} /v/f && {LOOK}");
    let memory = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}});
    let resource = json!({"path": "m", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory"}});
    let token = json!({"serviceAccountToken": {"path": "t", "expirationSeconds": 600}});
    let cases: Vec<(&str, Value, &[&str])> = vec![
        (
            "defaults",
            pod("defaults", LOOK, map(json!({})), json!({}), json!({})),
            &["-rw-r--r-- 0:0 /v/a\n1\n", "-rw-r--r-- 0:0 /v/b\n2\n"],
        ),
        (
            "modes",
            pod(
                "modes",
                LOOK,
                map(
                    json!({"defaultMode": 0o400, "items": [{"key": "a", "path": "x/y"}, {"key": "b", "path": "z", "mode": 0o444}]}),
                ),
                json!({}),
                json!({}),
            ),
            &["-r-------- 0:0 /v/x/y\n1\n", "-r--r--r-- 0:0 /v/z\n2\n"],
        ),
        (
            "group",
            pod(
                "group",
                LOOK,
                json!({"secret": {"secretName": "keys", "defaultMode": 0o440}}),
                json!({}),
                someone.clone(),
            ),
            &["-r--r----- 0:1001 /v/k\ns\n"],
        ),
        (
            "projected",
            pod(
                "projected",
                LOOK,
                json!({"projected": {"sources": [{"secret": {"name": "keys"}}, {"configMap": {"name": "map"}},
                    {"downwardAPI": {"items": [{"path": "me", "fieldRef": {"fieldPath": "metadata.name"}}, resource]}}]}}),
                json!({}),
                json!({}),
            ),
            &["/v/k\ns\n", "/v/a\n1\n", "/v/me\nprojected\n", "/v/m\n"],
        ),
        (
            "token",
            pod(
                "token",
                "stat -L -c '%A %u:%g' /v/t",
                json!({"projected": {"sources": [token]}}),
                json!({}),
                someone.clone(),
            ),
            &["-rw-r----- 1000:1001\n"],
        ),
        (
            "empty",
            pod("empty", &scratch("0666"), json!({"emptyDir": {}}), json!({}), json!({})),
            &["-rw-rw-rw- 0:0 /v/f\nx\n", "drwxrwxrwx 0:0\n"],
        ),
        (
            "memory",
            pod(
                "memory",
                &format!("{}; mount | grep ' /v '; df -k /v", scratch("0644")),
                memory,
                json!({}),
                someone.clone(),
            ),
            &["-rw-r--r-- 1000:1001 /v/f\nx\n", "drwxrwsrwx 0:1001\n", " type tmpfs (rw", " 8192 "],
        ),
        (
            "part",
            pod(
                "part",
                "stat -c '%A %u:%g' /v; echo x > /v/f; ls /v",
                json!({"emptyDir": {}}),
                json!({"subPath": "made/here"}),
                someone.clone(),
            ),
            &["drwxrwsrwx 0:1001\n", "f\n"],
        ),
        (
            "over-a-file",
            pod(
                "over-a-file",
                "cat /etc/resolv.conf",
                map(json!({})),
                json!({"mountPath": "/etc/resolv.conf", "subPath": "a"}),
                json!({}),
            ),
            &["1"],
        ),
        (
            "image",
            pod(
                "image",
                "cat /v/etc/passwd; touch /v/x || echo refused",
                json!({"image": {"reference": "busybox:v1", "pullPolicy": "IfNotPresent"}}),
                json!({}),
                json!({}),
            ),
            &["root:x:0:0", "refused"],
        ),
    ];
    apply(&cluster, cases.iter().map(|(_, pod, _)| pod.clone()).collect());
    for (name, _, wanted) in &cases {
        let seen = output(&cluster, name);
        for text in *wanted {
            assert!(seen.contains(text), "{name} lacks {text:?}:\n{seen}");
        }
    }
}

#[test]
fn what_cannot_be_mounted_says_why() {
    if skip_without_root("what_cannot_be_mounted_says_why") {
        return;
    }
    let cluster = cluster();
    let host = |kind: &str| json!({"hostPath": {"path": "/etc/passwd", "type": kind}});
    let cases = [
        ("dir", host("Directory"), "hostPath type check failed: /etc/passwd is not a directory"),
        ("socket", host("Socket"), "hostPath type check failed: /etc/passwd is not a socket file"),
        ("map", json!({"configMap": {"name": "none"}}), "configmap \"none\" not found"),
        ("secret", json!({"secret": {"secretName": "none"}}), "secret \"none\" not found"),
        ("csi", json!({"csi": {"driver": "d.example.com"}}), "volumes of type csi"),
        (
            "key",
            json!({"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "x", "path": "x"}]}}),
            "configmap references non-existent config key: x",
        ),
    ];
    let pods = cases
        .iter()
        .map(|(name, volume, _)| pod(name, "true", volume.clone(), json!({}), json!({})));
    apply(&cluster, pods.collect());
    // Another container of the pod made these: the test of a part that leads out of its volume.
    let escapes = [("outside", "/bin"), ("no-file", "/bin/none"), ("up", "..")];
    let escaping = escapes.map(|(name, to)| {
        let scratch = json!({"emptyDir": {}});
        let link = json!([{"name": "link", "image": "busybox:v1",
            "command": ["ln", "-s", to, "/v/part"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
        pod(name, "ls /v", scratch, json!({"subPath": "part"}), json!({"initContainers": link}))
    });
    apply(&cluster, escaping.to_vec());
    for (name, _, why) in cases {
        let text = "MountVolume.SetUp failed for volume \"v\" : ";
        event(&cluster, name, "FailedMount", text);
        event(&cluster, name, "FailedMount", why);
    }
    for (name, _) in escapes {
        let waiting = eventually(&format!("{name} is refused"), || {
            let status = cluster.get(&["pod", name])["status"].clone();
            let waiting = status["containerStatuses"][0]["state"]["waiting"].clone();
            (waiting["reason"] == "CreateContainerConfigError").then_some(waiting)
        });
        let text = "failed to prepare subPath for volumeMount \"v\" of container \"c\"";
        assert_eq!(waiting["message"], text, "{name}");
    }
}

fn claim(name: &str, spec: Value) -> Value {
    let mut whole =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": whole})
}

fn user(name: &str, script: &str, claim: &str, more: Value) -> Value {
    let volume = json!({"persistentVolumeClaim": {"claimName": claim}});
    pod(name, script, volume, json!({}), more)
}

#[test]
fn a_claim_keeps_what_pods_leave_in_it() {
    if skip_without_root("a_claim_keeps_what_pods_leave_in_it") {
        return;
    }
    let cluster = cluster();
    apply(&cluster, vec![claim("data", json!({}))]);
    event(&cluster, "data", "WaitForFirstConsumer", "waiting for first consumer");
    let someone = json!({"securityContext": {"runAsUser": 1000, "fsGroup": 2000}});
    apply(
        &cluster,
        vec![user("writer", "echo kept > /v/f; stat -c '%u:%g' /v/f", "data", someone)],
    );
    assert_eq!(output(&cluster, "writer"), "1000:2000\n");
    cluster.ok(&["delete", "pod", "writer", "--now"]);
    let cluster = cluster.kill_and_restart();
    apply(&cluster, vec![user("reader", "cat /v/f", "data", json!({}))]);
    assert_eq!(output(&cluster, "reader"), "kept\n");
    let bound = cluster.get(&["pvc", "data"]);
    assert_eq!(bound["status"]["phase"], "Bound");
    let volume = bound["spec"]["volumeName"].as_str().expect("its volume").to_owned();
    let path = cluster.get(&["pv", &volume])["spec"]["local"]["path"].clone();
    let path = std::path::PathBuf::from(path.as_str().expect("a path"));
    assert_eq!(std::fs::read_to_string(path.join("f")).expect("the file"), "kept\n");
    // One that a pod uses stays until the pod goes; then the claim, its volume and the data go.
    cluster.ok(&["delete", "pvc", "data", "--wait=false"]);
    apply(&cluster, vec![user("late", "true", "data", json!({}))]);
    event(&cluster, "late", "FailedScheduling", "persistentvolumeclaim \"data\" is being deleted");
    cluster.ok(&["delete", "pod", "reader", "late", "--now"]);
    eventually("the data goes", || (!path.exists()).then_some(()));
    eventually("the volume goes", || {
        (!cluster.kubectl(&["get", "pv", &volume]).status.success()).then_some(())
    });
}

#[test]
fn volumes_of_an_administrator() {
    if skip_without_root("volumes_of_an_administrator") {
        return;
    }
    let cluster = cluster();
    let dir = tempfile::tempdir().expect("a directory");
    let node = cluster.get(&["nodes"])["items"][0]["metadata"]["name"].clone();
    let volume = |name: &str, class: &str, source: Value| {
        let mut spec = source;
        spec["accessModes"] = json!(["ReadWriteOnce"]);
        spec["capacity"] = json!({"storage": "1Gi"});
        spec["storageClassName"] = class.into();
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    };
    let on = |node: &Value| {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
    };
    let local = |node: &Value| json!({"local": {"path": dir.path()}, "nodeAffinity": on(node)});
    let of = |class: &str| json!({"storageClassName": class});
    apply(
        &cluster,
        vec![
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "disks"},
                "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}),
            volume("here", "disks", local(&node)),
            volume("elsewhere", "far", local(&json!("another"))),
            volume("host", "manual", json!({"hostPath": {"path": dir.path().join("made")}})),
            claim("disk", of("disks")),
            claim("far", of("far")),
            claim("manual", of("manual")),
            user("disk", "echo x > /v/f", "disk", json!({})),
            user("far", "true", "far", json!({})),
            user("manual", "echo y > /v/g", "manual", json!({})),
        ],
    );
    output(&cluster, "disk");
    output(&cluster, "manual");
    assert!(dir.path().join("f").exists() && dir.path().join("made/g").exists());
    event(
        &cluster,
        "far",
        "FailedScheduling",
        "node(s) didn't match PersistentVolume's node affinity",
    );
    // Bound past the scheduler: the node looks too.
    let here = json!({"nodeName": node});
    let alone = json!({"storageClassName": "local-path", "accessModes": ["ReadWriteOncePod"]});
    apply(
        &cluster,
        vec![
            user("misled", "true", "far", here.clone()),
            claim("alone", alone),
            user("first", "touch /v/f; sleep 600", "alone", json!({})),
        ],
    );
    let not_here = "MountVolume.NodeAffinity check failed for volume \"elsewhere\" : no matching NodeSelectorTerms";
    event(&cluster, "misled", "FailedMount", not_here);
    cluster.ok(&["wait", "--for=condition=Ready", "pod/first", "--timeout=90s"]);
    apply(&cluster, vec![user("second", "ls /v", "alone", here)]);
    let taken = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    event(&cluster, "second", "FailedMount", taken);
    let told = cluster.ok(&[
        "get",
        "--raw",
        &format!("/api/v1/nodes/{}/proxy/metrics", node.as_str().expect("a name")),
    ]);
    let row = "kubelet_volume_stats_capacity_bytes{namespace=\"default\",persistentvolumeclaim=\"alone\"} ";
    assert!(told.contains(row), "{told}");
    cluster.ok(&["delete", "pod", "first", "--now"]);
    assert_eq!(output(&cluster, "second"), "f\n");
    // What an administrator made is kept.
    cluster.ok(&["delete", "pod", "manual", "--now"]);
    cluster.ok(&["delete", "pvc", "manual"]);
    eventually("it is released", || {
        (cluster.get(&["pv", "host"])["status"]["phase"] == "Released").then_some(())
    });
    assert!(dir.path().join("made/g").exists());
}
