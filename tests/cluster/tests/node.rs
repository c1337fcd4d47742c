//! What Kubernetes' conformance suite requires of a node ([sig-node]), on real containers. As root.
//!
//! Pods of one group run at the same time in one cluster; each is looked at once it is where it should be.

use rimward_tests_cluster::pods::{busybox_cluster, phase, pod, printed, status, until, waiting};
use rimward_tests_cluster::{condition, eventually, skip_without_root};
use serde_json::{Value, json};

fn never() -> Value {
    json!({"restartPolicy": "Never"})
}

fn with(fields: Value) -> Value {
    let mut all = never();
    for (key, value) in fields.as_object().expect("fields") {
        all[key] = value.clone();
    }
    all
}

/// Environment, names, files of /etc, users: a pod prints what it sees.
#[test]
fn what_containers_see() {
    if skip_without_root("what_containers_see") {
        return;
    }
    let (cluster, image) = busybox_cluster();
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"key": "of the map"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"key": "of the secret"}},
    ]});
    cluster.apply(&objects.to_string());
    let show = |script: &str| json!({"image": image, "args": [script]});
    let env = |script: &str, env: Value| json!({"image": image, "args": [script], "env": env});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let file = |key: &str| {
        let reference =
            json!({"volumeName": "v", "path": "env", "key": key, "optional": key == "NONE"});
        json!({"name": key, "valueFrom": {"fileKeyRef": reference}})
    };
    let mounted = json!([{"name": "v", "mountPath": "/v"}]);
    let empty = json!([{"name": "v", "emptyDir": {}}]);
    let cases: Vec<(&str, Value, Value, &str)> = vec![
        (
            "prefixes",
            json!({"image": image, "command": ["env"], "envFrom": [
                {"prefix": "1#!%&.", "configMapRef": {"name": "map"}}, {"prefix": "$_-", "secretRef": {"name": "secret"}}]}),
            never(),
            "1#!%&.key=of the map\n|$_-key=of the secret\n",
        ),
        (
            "composed",
            env(
                "echo $ALL; echo $(A)",
                json!([{"name": "A", "value": "a"}, {"name": "ALL", "value": "$(A);;$$(A)"}]),
            ),
            never(),
            "a;;$(A)\na\n",
        ),
        // Only what the pod gives is expanded: neither the image's variables nor HOSTNAME.
        (
            "images-own",
            json!({"image": image, "command": ["echo", "$(COLOUR) $(HOSTNAME)"]}),
            never(),
            "$(COLOUR) $(HOSTNAME)\n",
        ),
        (
            "files",
            env(
                "env | grep -E '^(ONE|TWO|NONE)=' | sort",
                json!([file("ONE"), file("TWO"), file("NONE")]),
            ),
            with(
                json!({"volumes": empty, "initContainers": [{"name": "i", "image": image, "volumeMounts": mounted,
                "args": ["printf \"# set up\\nONE=1\\nTWO='and 2'\\n\" > /v/env"]}]}),
            ),
            "ONE=1\nTWO=and 2\n",
        ),
        (
            "sub-path",
            json!({"image": image, "args": ["touch /sub/x; find /v -type f"], "env": [field("NAME", "metadata.name")],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/sub", "subPathExpr": "$(NAME)"}]}),
            with(json!({"volumes": empty})),
            "/v/sub-path/x\n",
        ),
        (
            "aliases",
            show("tail -n 2 /etc/hosts; head -n 1 /etc/hosts"),
            with(json!({"hostAliases": [{"ip": "192.0.2.7", "hostnames": ["foo", "bar"]}]})),
            "# Entries added by HostAliases.\n192.0.2.7\tfoo\tbar\n# Kubernetes-managed hosts file.\n",
        ),
        (
            "on-host",
            show("head -n 1 /etc/hosts"),
            with(json!({"hostNetwork": true})),
            "# Kubernetes-managed hosts file (host network).\n",
        ),
        (
            "resolver",
            show("cat /etc/resolv.conf"),
            with(
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"], "searches": ["a.example"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}, {"name": "attempts", "value": "4"}]}}),
            ),
            "search a.example\nnameserver 192.0.2.53\noptions ndots:2 edns0 attempts:4\n",
        ),
        (
            "groups",
            show("id"),
            with(
                json!({"securityContext": {"runAsUser": 1001, "supplementalGroups": [3003], "fsGroup": 4004}}),
            ),
            "groups=3003,4004",
        ),
        (
            "confined",
            json!({"image": image, "args": ["grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status"],
                "securityContext": {"runAsUser": 77, "allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"}}}),
            never(),
            "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
        ),
        (
            "sysctl",
            show("cat /proc/sys/kernel/shm_rmid_forced"),
            with(
                json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}}),
            ),
            "1\n",
        ),
        ("no-newline", show("printf odd"), never(), "odd"),
    ];
    for (name, container, more, _) in &cases {
        cluster.apply(&pod(name, container.clone(), more.clone()));
    }
    for (name, _, _, expected) in &cases {
        phase(&cluster, name, "Succeeded");
        let seen = printed(&cluster, name);
        for part in expected.split('|') {
            assert!(seen.contains(part), "{name}: {seen:?} lacks {part:?}");
        }
    }
    assert_eq!(printed(&cluster, "no-newline"), "odd", "nothing is added");
    let user = &status(&cluster, "groups")["user"]["linux"];
    assert_eq!((&user["uid"], &user["gid"]), (&json!(1001), &json!(1001)), "{user}");
    assert_eq!(status(&cluster, "sub-path")["volumeMounts"][1]["mountPath"], "/sub");

    // What cannot be expanded or found holds a container back, until it can.
    let needs = json!({"image": image, "args": ["sleep 3600"], "env": [field("PART", "metadata.annotations['part']")],
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "$(PART)"}]});
    cluster.apply(&pod("later", needs, with(json!({"volumes": empty}))));
    let why = waiting(&cluster, "later", "CreateContainerConfigError");
    assert!(why.contains("missing value for PART"), "{why}");
    cluster.ok(&["annotate", "pod", "later", "part=here"]);
    cluster.ok(&["wait", "--for=condition=Ready", "pod/later", "--timeout=60s"]);
}

/// Last words, restarts by policy and rule, and pods that a node does not take.
#[test]
fn how_containers_end() {
    if skip_without_root("how_containers_end") {
        return;
    }
    let (cluster, image) = busybox_cluster();
    let run = |name: &str, container: Value, more: Value| {
        let mut container = container;
        container["image"] = json!(image);
        cluster.apply(&pod(name, container, more));
    };
    let fallback = |script: &str| json!({"args": [script], "terminationMessagePolicy": "FallbackToLogsOnError"});
    let words = [
        ("log-of-error", fallback("printf DONE; exit 1"), "DONE"),
        ("log-of-success", fallback("printf DONE"), ""),
        ("file-first", fallback("printf OK > /dev/termination-log; echo log"), "OK"),
        (
            "another-place",
            json!({"args": ["printf DONE > /tmp/last/words"], "terminationMessagePath": "/tmp/last/words",
                "securityContext": {"runAsUser": 1001}}),
            "DONE",
        ),
    ];
    for (name, container, _) in &words {
        run(name, container.clone(), never());
    }
    let count =
        "f=/c/n; echo >> $f; case $(wc -l < $f) in 1) exit 1;; 2) exit 0;; *) sleep 3600;; esac";
    let counted = json!({"args": [count], "volumeMounts": [{"name": "c", "mountPath": "/c"}]});
    for policy in ["Always", "OnFailure", "Never"] {
        let more = json!({"restartPolicy": policy, "volumes": [{"name": "c", "emptyDir": {}}]});
        run(&policy.to_lowercase(), counted.clone(), more);
    }
    let rule =
        |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
    run(
        "ruled",
        json!({"args": ["exit 42"], "restartPolicy": "Never", "restartPolicyRules": rule("Restart")}),
        never(),
    );
    // One end begins all of them anew, init containers first.
    let once = "if [ -e /c/x ]; then sleep 3600; fi; touch /c/x; exit 42";
    let other = |name: &str, script: &str, more: Value| {
        let mut container = json!({"name": name, "image": image, "args": [script]});
        for (key, value) in more.as_object().expect("fields") {
            container[key] = value.clone();
        }
        container
    };
    let cause = json!({"restartPolicy": "Never", "restartPolicyRules": rule("RestartAllContainers"),
        "volumeMounts": [{"name": "c", "mountPath": "/c"}]});
    let spec = with(json!({
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "c", "emptyDir": {}}],
        "initContainers": [other("first", "exit 0", json!({})), other("side", "sleep 3600", json!({"restartPolicy": "Always"}))],
        "containers": [other("cause", once, cause), other("bystander", "sleep 3600", json!({}))],
    }));
    run("all", json!({}), spec);
    run("windows", json!({}), with(json!({"os": {"name": "windows"}})));
    run(
        "sysctl",
        json!({}),
        with(
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "65536"}]}}),
        ),
    );

    for (name, _, expected) in &words {
        let end = rimward_tests_cluster::pods::terminated(&cluster, name);
        assert_eq!(end["message"].as_str().unwrap_or_default(), *expected, "{name}");
    }
    let counts = |pod: &Value, phase: &str, restarts: u32, state: &str| {
        let c = &pod["status"]["containerStatuses"][0];
        pod["status"]["phase"] == phase
            && c["restartCount"] == restarts
            && c["state"].get(state).is_some()
    };
    until(&cluster, "never", "failed", |p| counts(p, "Failed", 0, "terminated"));
    until(&cluster, "onfailure", "succeeded", |p| counts(p, "Succeeded", 1, "terminated"));
    until(&cluster, "always", "runs", |p| counts(p, "Running", 2, "running"));
    until(&cluster, "ruled", "restarts", |p| {
        p["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    let all = until(&cluster, "all", "runs again", |p| {
        condition(p, "Ready") == "True" && p["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    for list in ["initContainerStatuses", "containerStatuses"] {
        for c in all["status"][list].as_array().expect("statuses") {
            assert_eq!(c["restartCount"], 1, "{c}");
        }
    }
    assert_eq!(condition(&all, "AllContainersRestarting"), "False");
    for (name, reason) in [("windows", "PodOSNotSupported"), ("sysctl", "SysctlForbidden")] {
        let pod = phase(&cluster, name, "Failed");
        assert_eq!(pod["status"]["reason"], reason);
        assert!(pod["status"]["containerStatuses"].is_null(), "{pod}");
        assert!(cluster.ok(&["get", "pod", name]).contains(reason));
    }
}

/// `kubectl debug`, and how a pod's generation is counted.
#[test]
fn containers_that_come_later() {
    if skip_without_root("containers_that_come_later") {
        return;
    }
    let (cluster, image) = busybox_cluster();
    let sleeps = json!({"image": image, "command": ["/bin/sleep"], "args": ["10000"]});
    cluster.apply(&pod("target", sleeps.clone(), json!({})));
    cluster.ok(&["wait", "--for=condition=Ready", "pod/target", "--timeout=60s"]);
    let generations = |pod: &Value| {
        (pod["metadata"]["generation"].as_u64(), pod["status"]["observedGeneration"].as_u64())
    };
    let target = cluster.get(&["pod", "target"]);
    assert_eq!(generations(&target), (Some(1), Some(1)), "that it was scheduled does not count");
    for condition in target["status"]["conditions"].as_array().expect("conditions") {
        assert_eq!(condition["observedGeneration"], 1, "{condition}");
    }

    let polo = ["sh", "-c", "while true; do echo polo; sleep 0.2; done"];
    let image = format!("--image={image}");
    let debug = |name: &str, more: &[&str], command: &[&str]| {
        let all = [&["debug", "target", &image, "-c", name], more, &["--"], command].concat();
        cluster.ok(&all);
    };
    debug("debugger", &[], &polo);
    let state = |pod: &Value, name: &str| {
        let mut all = pod["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
        all.find(|c| c["name"] == name).map(|c| c["state"].clone()).unwrap_or_default()
    };
    until(&cluster, "target", "has a debugger", |p| {
        state(p, "debugger")["running"].is_object() && generations(p) == (Some(2), Some(2))
    });
    assert_eq!(cluster.ok(&["exec", "target", "-c", "debugger", "--", "echo", "marco"]), "marco\n");
    eventually("it answers", || {
        cluster.ok(&["logs", "target", "-c", "debugger"]).starts_with("polo\n").then_some(())
    });
    // One that looks into another's processes, and one that ends.
    debug("sees", &["--target=main"], &["ps"]);
    debug("brief", &[], &["sh", "-c", "exit 7"]);
    let pod = until(&cluster, "target", "both ended", |p| {
        state(p, "sees")["terminated"].is_object() && state(p, "brief")["terminated"].is_object()
    });
    assert_eq!(state(&pod, "brief")["terminated"]["exitCode"], 7);
    assert_eq!(condition(&pod, "Ready"), "True", "that is nothing to the pod");
    let seen = cluster.ok(&["logs", "target", "-c", "sees"]);
    assert!(seen.contains("/bin/sleep 10000"), "{seen}");
    cluster.ok(&["patch", "pod", "target", "-p", r#"{"spec":{"activeDeadlineSeconds":5000}}"#]);
    until(&cluster, "target", "observed", |p| generations(p) == (Some(5), Some(5)));
    cluster.ok(&["delete", "pod", "target", "--timeout=60s"]);
}
