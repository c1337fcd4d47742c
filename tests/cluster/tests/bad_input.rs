//! What bad input gets: Kubernetes' own words for bad manifests, and a status that names the cause for what
//! cannot run.

use rimward_tests_cluster::{Cluster, Process, binary, eventually};
use serde_json::{Value, json};

fn pod(name: &str, image: &str, more: Value) -> String {
    let mut container = json!({"name": "c", "image": image});
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [container]}})
    .to_string()
}

/// The container's state: (`waiting` or `terminated`, reason, message).
fn state(cluster: &Cluster, name: &str) -> Option<(String, String, String)> {
    let pod = cluster.get(&["pod", name]);
    let state = pod["status"]["containerStatuses"][0]["state"].as_object()?.clone();
    let (kind, detail) = state.into_iter().next()?;
    let text = |key: &str| detail[key].as_str().unwrap_or_default().to_owned();
    Some((kind, text("reason"), text("message")))
}

#[test]
fn bad_manifests_and_images_say_what_is_wrong() {
    let cluster = Cluster::up();
    for (what, manifest, expected) in [
        (
            "an unknown field",
            pod("x", "a", json!({"imagePolicy": "y"})),
            "unknown field \"spec.containers[0].imagePolicy\"",
        ),
        ("a wrong type", pod("x", "a", json!({"args": 5})), "cannot unmarshal"),
        (
            "a bad name",
            pod("Bad_Name", "a", json!({})),
            "a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            "an unparsable quantity",
            pod("x", "a", json!({"resources": {"limits": {"memory": "much"}}})),
            "quantities must match the regular expression",
        ),
        ("no container", pod("x", "", json!({})), "spec.containers[0].image: Required value"),
    ] {
        let said = cluster.refused(&["create", "-f", "-"], &manifest);
        assert!(said.contains(expected), "{what}: {said}");
    }

    // A component that exports nothing: eight bytes.
    let empty = cluster.dir.join("empty.wasm");
    std::fs::write(&empty, b"\0asm\x0d\0\x01\0").expect("a file");
    cluster.push(&empty, "empty:v1");
    let good = rimward_tests_cluster::repository().join("examples/greeter/greeter.wasm");
    cluster.push(&good, "good:v1");
    let text = cluster.dir.join("text.wasm");
    std::fs::write(&text, b"#!/bin/sh\n").expect("a file");
    let refused = std::process::Command::new(binary("rimward"))
        .args(["image", "push"])
        .arg(&text)
        .args(["text:v1", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .output()
        .expect("the binary runs");
    assert!(!refused.status.success());
    assert!(rimward_tests_cluster::text(&refused.stderr).contains("is not Wasm"));

    for (name, image, more, reasons, part) in [
        ("missing", "nosuch:v1", json!({}), &["ErrImagePull", "ImagePullBackOff"][..], "nosuch"),
        ("odd-name", "UPPER:v1", json!({}), &["InvalidImageName"][..], "UPPER"),
        (
            "never",
            "nosuch:v1",
            json!({"imagePullPolicy": "Never"}),
            &["ErrImageNeverPull"][..],
            "Never",
        ),
        ("nothing", "empty:v1", json!({}), &[][..], "export"),
        (
            "no-configmap",
            "good:v1",
            json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "k"}}}]}),
            &["CreateContainerConfigError"][..],
            "configmap \"nope\" not found",
        ),
    ] {
        cluster.ok_with(&["create", "-f", "-"], &pod(name, image, more));
        let mut last = None;
        eventually(&format!("{name} says why"), || {
            let (kind, reason, message) = state(&cluster, name)?;
            let fits = reasons.is_empty() || reasons.contains(&reason.as_str());
            last = Some((kind, reason, message.clone()));
            (fits && message.contains(part)).then_some(())
        });
        let (kind, ..) = last.expect("it was looked at");
        assert!(kind == "waiting" || kind == "terminated", "{name}: {kind}");
    }
}

/// Wants an interface that no node has.
const THERMOMETER: &str = r#"(component
    (import "example:thermometer/probe@1.0.0" (instance $probe (export "read" (func (result u32)))))
    (core module $m (func (export "run") (result i32) i32.const 0))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (component $c
        (import "import-func-run" (func $run (result (result))))
        (export "run" (func $run)))
    (instance $r (instantiate $c (with "import-func-run" (func $run))))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#;
/// The same in a preview-1 module.
const GPIO: &str = r#"(module
    (import "env" "gpio_read" (func (param i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")))"#;
/// Cannot be instantiated: its data does not fit its memory.
const MISFIT: &str = r#"(module
    (memory (export "memory") 1)
    (data (i32.const 65530) "does not fit")
    (func (export "_start")))"#;
const TRAP: &str = r#"(module
    (memory (export "memory") 1)
    (func $read_sensor unreachable)
    (func (export "_start") call $read_sensor))"#;

#[test]
fn guests_that_cannot_run_say_why_in_status_and_events() {
    let cluster = Cluster::up();
    for (name, text, kind, parts) in [
        (
            "thermometer",
            THERMOMETER,
            "waiting",
            &["CreateContainerError", "imports example:thermometer/probe@1.0.0"][..],
        ),
        ("gpio", GPIO, "waiting", &["CreateContainerError", "imports env::gpio_read"][..]),
        ("misfit", MISFIT, "terminated", &["Error", "out of bounds memory access"][..]),
        ("trap", TRAP, "terminated", &["Error", "unreachable", "read_sensor"][..]),
    ] {
        let file = cluster.dir.join(format!("{name}.wasm"));
        std::fs::write(&file, wat::parse_str(text).expect("valid WAT")).expect("a file");
        cluster.push(&file, &format!("{name}:v1"));
        cluster.ok_with(&["create", "-f", "-"], &pod(name, &format!("{name}:v1"), json!({})));
        let said = eventually(&format!("{name} says why"), || {
            let (found, reason, message) = state(&cluster, name)?;
            (found == kind && !message.is_empty()).then(|| format!("{reason}: {message}"))
        });
        for part in parts {
            assert!(said.contains(part), "{name}: {part} in {said}");
        }
        // And an Event names the same, for who looks there.
        let cause = parts[1];
        eventually(&format!("an Event names {cause}"), || {
            let described = cluster.ok(&["describe", "pod", name]);
            let (_, events) = described.split_once("\nEvents:")?;
            (events.contains("Warning") && events.contains(cause)).then_some(())
        });
    }
}

#[test]
fn taken_ports_and_damaged_stores_say_which_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let start = |name: &str, port: &str| {
        let mut command = std::process::Command::new(binary("rimward-control"));
        command.args([
            "control",
            "--listen",
            "127.0.0.1",
            "--tunnel-port",
            "0",
            "--api-port",
            port,
        ]);
        command.arg("--data-dir").arg(dir.path().join("data"));
        Process::start(name, dir.path(), command)
    };
    let mut process = start("taken", &port);
    assert!(!process.wait().success());
    let said = process.log();
    assert!(said.contains(&port) && said.contains("--api-port"), "{said}");

    let mut process = start("good", "0");
    eventually("it is ready", || process.log().contains("control plane is ready").then_some(()));
    // A second one on the same directory.
    let mut second = start("second", "0");
    assert!(!second.wait().success());
    assert!(second.log().contains("data/control/store"), "{}", second.log());
    assert!(process.stop().success(), "{}", process.log());

    let format = dir.path().join("data/control/store/format");
    std::fs::write(&format, "from the future").expect("the format file");
    let mut damaged = start("damaged", "0");
    assert!(!damaged.wait().success());
    assert!(damaged.log().contains("data/control/store"), "{}", damaged.log());
}
