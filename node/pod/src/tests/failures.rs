//! What fails says why, is held back, and is tried again.

use super::*;
use crate::outside::ImageError;

#[tokio::test(start_paused = true)]
async fn crash_loops_are_held_back() {
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![exits(7, 1)]);
    b.set(&pod(json!({})));
    let status = b.until_waiting("CrashLoopBackOff").await;
    assert_eq!(waiting(&status).1, "back-off 10s restarting failed container=c pod=p_default(u)");
    assert_eq!(b.message("BackOff"), "Back-off restarting failed container c in pod p_default(u)");
    let c = container(&status, "c");
    assert_eq!(c.restart_count, 1, "the first restart is immediate");
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 7);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    // Runs of 1 s with pauses of 0, 10, 20, 40, 80, 160, 300, 300.
    for (restarts, seconds) in [(2, 12), (3, 33), (4, 74), (5, 155), (6, 316), (7, 617), (8, 918)] {
        b.until(|s| container(s, "c").restart_count == restarts).await;
        assert_eq!(b.seconds(), seconds, "restart {restarts}");
    }
    let status = b.until_waiting("CrashLoopBackOff").await;
    assert!(waiting(&status).1.starts_with("back-off 5m0s restarting"), "{}", waiting(&status).1);
    // No more than the newest two logs are kept.
    let logs = std::fs::read_dir(b.pod_dir().join("c")).unwrap().count();
    assert!(logs <= 2, "{logs}");
}

#[tokio::test(start_paused = true)]
async fn images_that_do_not_come() {
    let b = Bench::new().await;
    let error =
        || Err(ImageError { reason: "ErrImagePull".into(), message: "no such manifest".into() });
    b.world.images.script("hello:v1", vec![error(), error(), Ok(Duration::ZERO)]);
    b.set(&pod(json!({})));
    let status = b.until_waiting("ErrImagePull").await;
    assert_eq!(
        (waiting(&status).1, status.phase.as_deref()),
        ("no such manifest", Some("Pending"))
    );
    let status = b.until_waiting("ImagePullBackOff").await;
    assert_eq!(
        waiting(&status).1,
        "Back-off pulling image \"hello:v1\": ErrImagePull: no such manifest"
    );
    let first: Vec<String> = b.events().into_iter().take(5).collect();
    assert_eq!(first, ["Pulling", "!Failed", "!Failed", "BackOff", "!Failed"]);
    assert_eq!(b.message("Failed"), "Failed to pull image \"hello:v1\": no such manifest");
    b.until_ready().await;
    assert_eq!(b.seconds(), 30, "10 s, then 20 s");
}

#[tokio::test(start_paused = true)]
async fn a_corrected_image_is_pulled_at_once() {
    let b = Bench::new().await;
    let error = ImageError {
        reason: "InvalidImageName".into(),
        message: "invalid reference format".into(),
    };
    b.world.images.script("HELLO", vec![Err(error)]);
    let mut p = pod(
        json!({"containers": [{"name": "c", "image": "HELLO", "imagePullPolicy": "IfNotPresent"}]}),
    );
    b.set(&p);
    b.until_waiting("InvalidImageName").await;
    p["spec"]["containers"][0]["image"] = json!("hello:v1");
    b.set(&p);
    b.until_ready().await;
    assert_eq!(b.seconds(), 0);
}

#[tokio::test(start_paused = true)]
async fn missing_config_is_waited_for() {
    let b = Bench::new().await;
    let from = json!({"configMapKeyRef": {"name": "cfg", "key": "k"}});
    b.set(&pod(json!({"containers": [{"name": "c", "image": "i:1", "env": [{"name": "A", "valueFrom": from}]}]})));
    let status = b.until_waiting("CreateContainerConfigError").await;
    assert_eq!(waiting(&status).1, "configmap \"cfg\" not found");
    assert_eq!(b.message("Failed"), "Error: configmap \"cfg\" not found");
    b.world.objects.put_config_map("default", "cfg", &[("other", "x")]);
    let status = b.until(|s| waiting(s).1 == "couldn't find key k in ConfigMap default/cfg").await;
    assert_eq!(container(&status, "c").restart_count, 0);
    b.world.objects.put_config_map("default", "cfg", &[("k", "v")]);
    b.until_ready().await;
    assert!(b.seconds() < 2, "it wakes the pod: {} s", b.seconds());
    let env = b.world.runtime.spec(&run("c", 0)).unwrap().env;
    assert!(env.contains(&("A".into(), "v".into())), "{env:?}");
}

#[tokio::test(start_paused = true)]
async fn starts_that_fail() {
    // What ran into an error counts as a run …
    let b = Bench::new().await;
    b.world.runtime.script(
        "c",
        vec![Script::fails_to_start("RunContainerError", "it trapped"), Script::default()],
    );
    b.set(&pod(json!({})));
    let status = b.until_ready().await;
    let c = container(&status, "c");
    let last = c.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(
        (c.restart_count, last.exit_code, last.reason.as_deref(), last.message.as_deref()),
        (1, 128, Some("StartError"), Some("it trapped"))
    );
    assert_eq!(b.message("Failed"), "Error: it trapped");

    // … what cannot be created does not, and says so until it can.
    let b = Bench::new().await;
    let why = "unsatisfied import `x:y/z`";
    b.world.runtime.script("c", vec![Script::fails_to_start("CreateContainerError", why)]);
    b.set(&pod(json!({})));
    let status = b.until_waiting("CreateContainerError").await;
    assert_eq!((waiting(&status).1, container(&status, "c").restart_count), (why, 0));
    b.world.runtime.script("c", vec![Script::default()]);
    b.until_ready().await;
    assert_eq!(b.seconds(), 10);

    let b = Bench::new().await;
    b.world.runtime.script("c", vec![Script::fails_to_start("RunContainerError", "it trapped")]);
    b.set(&pod(json!({"restartPolicy": "Never"})));
    let status = b.until_phase("Failed").await;
    assert_eq!(
        container(&status, "c")
            .state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .message
            .as_deref(),
        Some("it trapped")
    );
}

#[tokio::test(start_paused = true)]
async fn no_address_no_containers() {
    let b = Bench::new().await;
    b.world.network.fail(&["the block is used up", "the block is used up"]);
    b.set(&pod(json!({})));
    let status = b.until_waiting("ContainerCreating").await;
    assert_eq!(waiting(&status).1, "Failed to create pod sandbox: the block is used up");
    assert!(!is_true(&status, "PodReadyToStartContainers"));
    b.until_ready().await;
    assert_eq!((b.seconds(), b.events()[0].as_str()), (3, "!FailedCreatePodSandBox"));
}

#[tokio::test(start_paused = true)]
async fn out_of_memory_is_told() {
    let b = Bench::new().await;
    let script = Script { exit_reason: "OOMKilled".into(), ..exits(137, 1) };
    b.world.runtime.script("c", vec![script]);
    b.set(&pod(json!({"restartPolicy": "Never"})));
    let status = b.until_phase("Failed").await;
    let ended = container(&status, "c").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("OOMKilled")));
    // A notice is an Event, nothing more.
    let b = Bench::new().await;
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.world.runtime.notice(&run("c", 0), "OutOfMemory", "a request was refused").await;
    b.until_event("OutOfMemory").await;
    assert_eq!(b.world.reports.sent(), 1);
}

#[tokio::test(start_paused = true)]
async fn termination_messages_from_logs() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { log: vec!["first".into(), "the cause".into()], ..exits(1, 1) }]);
    b.set(&pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1", "terminationMessagePolicy": "FallbackToLogsOnError"}]})));
    let status = b.until_phase("Failed").await;
    let ended = container(&status, "c").state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.message.as_deref(), Some("first\nthe cause\n"));
}

#[tokio::test(start_paused = true)]
async fn pods_that_make_no_sense_are_ignored() {
    let b = Bench::new().await;
    b.set(&json!({"metadata": {"name": "no-uid"}, "spec": {"containers": []}}));
    b.set(&json!({"metadata": {"name": "no-spec", "uid": "x"}}));
    b.set(&json!({"metadata": {"name": "bad", "uid": "../../etc"}, "spec": {"containers": []}}));
    b.pods.remove("nobody");
    b.pods.synced();
    assert!(b.pods.uids().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_status_that_others_changed_is_said_again() {
    let b = Bench::new().await;
    let mut p = pod(json!({}));
    b.set(&p);
    let status = b.until_ready().await;
    p["status"] = serde_json::to_value(&status).unwrap();
    b.set(&p);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(b.world.reports.sent(), 1, "an echo is no reason");
    // The node was out of reach, and comes back.
    for condition in p["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Ready" {
            condition["status"] = json!("False");
        }
    }
    b.set(&p);
    b.until_true("said again", || b.world.reports.sent() == 2).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(b.world.reports.sent(), 2, "once");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_cannot_be_is_ignored() {
    let b = Bench::new().await;
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.set(&pod(json!({"containers": []})));
    b.set(&pod(
        json!({"containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "i:1"}]}),
    ));
    b.world.runtime.kill(&run("c", 0), 1, "").await;
    b.until(|s| container(s, "c").restart_count == 1).await;
    assert_eq!(b.world.runtime.spec(&run("c", 1)).unwrap().image.reference, "hello:v1");
}

#[tokio::test(start_paused = true)]
async fn a_port_of_the_machine_is_had_once() {
    let b = Bench::new().await;
    let with_port = |uid: &str| {
        let mut pod = pod(json!({}));
        pod["metadata"]["uid"] = json!(uid);
        pod["metadata"]["name"] = json!(uid);
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]);
        pod
    };
    b.set(&with_port("first"));
    let ready = |uid| {
        move |r: &crate::fake::FakeReports| r.status(uid).is_some_and(|s| is_true(&s, "Ready"))
    };
    b.world.reports.wait(ready("first")).await;
    b.set(&with_port("u"));
    let status = b.until_phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("NodePorts"));
    let why =
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    assert_eq!(status.message, Some(format!("Pod was rejected: {why}")));
    assert_eq!(b.message("NodePorts"), why);
    let b = b.restart_agent().await;
    b.set(&with_port("first"));
    b.world.reports.wait(ready("first")).await;
    b.pods.remove("first");
    b.until_true("the first is gone", || !b.pods.uids().contains(&"first".to_owned())).await;
    b.set(&with_port("third"));
    b.world.reports.wait(ready("third")).await;
}

/// A pod of its own name, which is its UID.
fn named(name: &str, spec: Value) -> Value {
    let mut pod = pod(spec);
    pod["metadata"]["uid"] = json!(name);
    pod["metadata"]["name"] = json!(name);
    pod
}

async fn until_status(b: &Bench, uid: &str, test: impl Fn(&PodStatus) -> bool) -> PodStatus {
    let wait = b.world.reports.wait(|r| r.status(uid).is_some_and(|s| test(&s)));
    tokio::time::timeout(Duration::from_secs(3600), wait).await.expect(uid);
    b.world.reports.status(uid).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_takes_what_it_matches() {
    let b = Bench::new().await;
    let node = |labels: Value, taints: Value| {
        serde_json::from_value(
            json!({"metadata": {"name": "node-1", "labels": labels}, "spec": {"taints": taints}}),
        )
        .unwrap()
    };
    b.world.this_node.tell(node(json!({"disk": "hdd"}), json!([])));
    let wants = json!({"nodeSelector": {"disk": "ssd"}});
    b.set(&named("one", wants.clone()));
    let status = until_status(&b, "one", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
    let words = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    assert_eq!(status.message.as_deref(), Some(words));
    // A label that came a moment ago counts.
    b.world.this_node.change(node(json!({"disk": "ssd"}), json!([])));
    b.set(&named("two", wants.clone()));
    until_status(&b, "two", |s| is_true(s, "Ready")).await;
    // What runs here stays, whatever becomes of the node.
    b.world.this_node.change(node(json!({}), json!([])));
    b.world.this_node.tell(node(json!({}), json!([{"key": "out", "effect": "NoExecute"}])));
    let b = b.restart_agent().await;
    b.set(&named("two", wants));
    until_status(&b, "two", |s| is_true(s, "Ready")).await;
    b.set(&named("three", json!({})));
    let status = until_status(&b, "three", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("TaintToleration"));
    b.world.this_node.press(&["PIDPressure"]);
    b.set(&named("four", json!({"tolerations": [{"operator": "Exists"}]})));
    let status = until_status(&b, "four", |s| s.phase.as_deref() == Some("Failed")).await;
    let words = "Pod was rejected: The node had condition: [PIDPressure]. ";
    assert_eq!(
        (status.reason.as_deref(), status.message.as_deref()),
        (Some("Evicted"), Some(words))
    );
}

#[tokio::test(start_paused = true)]
async fn others_make_room_for_a_critical_pod() {
    let b = Bench::new().await;
    let asks =
        |cpu: &str| json!([{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": cpu}}}]);
    let p = |name: &str, cpu: &str| named(name, json!({"containers": asks(cpu)}));
    b.set(&p("small", "500m"));
    b.set(&p("large", "3"));
    b.set(&named("idle", json!({})));
    for name in ["small", "large", "idle"] {
        until_status(&b, name, |s| is_true(s, "Ready")).await;
    }
    b.set(&p("late", "1"));
    let status = until_status(&b, "late", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    let critical = json!({"containers": asks("2"), "priority": 2_000_001_000});
    b.set(&named("critical", critical));
    until_status(&b, "critical", |s| is_true(s, "Ready")).await;
    let status = b.world.reports.status("large").unwrap();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("Preempting"))
    );
    assert_eq!(status.message.as_deref(), Some("Preempted in order to admit critical pod"));
    let target =
        status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
    let words = "Pod was preempted by Kubelet to accommodate a critical pod.";
    assert_eq!(
        (target.reason.as_deref(), target.message.as_deref()),
        (Some("TerminationByKubelet"), Some(words))
    );
    for name in ["small", "idle"] {
        assert!(is_true(&b.world.reports.status(name).unwrap(), "Ready"), "{name} goes on");
    }
    // Not even all of them would do.
    b.set(&named("greedy", json!({"containers": asks("9"), "priority": 2_000_001_000})));
    let status = until_status(&b, "greedy", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("UnexpectedAdmissionError"));
}

#[tokio::test(start_paused = true)]
async fn image_volumes_that_do_not_come() {
    let b = Bench::new().await;
    let error =
        || Err(ImageError { reason: "ErrImagePull".into(), message: "no such manifest".into() });
    b.world.images.script("files:v1", vec![error(), error()]);
    let mounts = json!([{"name": "files", "mountPath": "/files"}]);
    b.set(&pod(json!({
        "volumes": [{"name": "files", "image": {"reference": "files:v1"}}],
        "containers": [
            {"name": "c", "image": "i:1", "volumeMounts": mounts},
            {"name": "other", "image": "i:1"},
        ],
    })));
    // Whoever mounts it waits, and says so in the words for images; whoever does not is not held up.
    let status = b.until_waiting("ErrImagePull").await;
    assert_eq!(waiting(&status).1, "no such manifest");
    let status = b.until_waiting("ImagePullBackOff").await;
    assert_eq!(
        waiting(&status).1,
        "Back-off pulling image \"files:v1\": ErrImagePull: no such manifest"
    );
    b.until(|s| container(s, "other").state.as_ref().is_some_and(|s| s.running.is_some())).await;
    let events = b.world.reports.events();
    let of = |reason: &str, message: &str| {
        let event = events.iter().find(|e| e.reason == reason && e.message == message);
        event.unwrap_or_else(|| panic!("no {reason}: {message} in {events:?}")).field_path.clone()
    };
    let pulling = "Failed to pull image \"files:v1\": no such manifest";
    assert_eq!(of("Failed", pulling), "", "the volume is the pod's");
    assert_eq!(of("Failed", "Error: ErrImagePull"), "spec.containers{c}");
    assert_eq!(of("BackOff", "Back-off pulling image \"files:v1\""), "");
    // What the fake has is a component.
    let status = b.until_waiting("CreateContainerError").await;
    assert!(waiting(&status).1.contains("it has no files to mount"), "{}", waiting(&status).1);
}
