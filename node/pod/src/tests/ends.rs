//! How pods end.

use super::*;

#[tokio::test(start_paused = true)]
async fn restart_policies() {
    async fn check(policy: &str, code: i32, phase: &str, condition_reason: &str) {
        let b = Bench::new().await;
        b.world.runtime.script("c", vec![exits(code, 1)]);
        b.set(&pod(json!({"restartPolicy": policy})));
        let status = b.until_phase(phase).await;
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_deref()),
            ("False", Some(condition_reason))
        );
        b.until_true("the address is given back", || b.world.network.attached() == 0).await;
        b.until(|s| !is_true(s, "PodReadyToStartContainers")).await;
        assert_eq!(b.world.runtime.starts(), 1);
        // Deleting what is over takes no time.
        let before = b.seconds();
        b.set(&deleted(pod(json!({"restartPolicy": policy})), 30));
        b.until_terminated().await;
        assert_eq!(b.seconds(), before);
        assert_eq!(b.world.reports.status("u").unwrap().phase.as_deref(), Some(phase));
    }
    check("Never", 0, "Succeeded", "PodCompleted").await;
    check("Never", 3, "Failed", "PodFailed").await;
    check("OnFailure", 0, "Succeeded", "PodCompleted").await;
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![exits(1, 1), exits(0, 1)]);
    b.set(&pod(json!({"restartPolicy": "OnFailure"})));
    let status = b.until_phase("Succeeded").await;
    assert_eq!(container(&status, "c").restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let b = Bench::new().await;
    b.world.runtime.script("i", vec![exits(2, 1)]);
    b.set(&pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "i:1"}]}),
    ));
    let status = b.until_phase("Failed").await;
    assert_eq!(waiting(&status).0, "PodInitializing");
    assert_eq!(b.world.runtime.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn deletion_asks_first() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { stop_delay: Duration::from_secs(5), ..Script::default() }]);
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.set(&deleted(pod(json!({})), 30));
    b.until_terminated().await;
    assert_eq!((b.seconds(), b.message("Killing").as_str()), (5, "Stopping container c"));
    let status = b.world.reports.status("u").unwrap();
    let ended = container(&status, "c").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, status.phase.as_deref()), (143, Some("Failed")));
    assert_eq!(b.world.network.attached(), 0);
    assert_eq!(b.world.runtime.known(), 0, "the runtime may forget it");
    assert!(b.pod_dir().join("c").exists(), "logs stay while the object does");
    b.pods.remove("u");
    b.until_true("the directory goes", || !b.pod_dir().exists()).await;
    assert!(b.pods.uids().is_empty());
}

#[tokio::test(start_paused = true)]
async fn grace_is_cut_and_shortened() {
    let slow = || vec![Script { stop_delay: Duration::from_secs(600), ..Script::default() }];
    let b = Bench::new().await;
    b.world.runtime.script("c", slow());
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.set(&deleted(pod(json!({})), 20));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 20);
    let status = b.world.reports.status("u").unwrap();
    assert_eq!(
        container(&status, "c").state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code,
        137
    );

    let b = Bench::new().await;
    b.world.runtime.script("c", slow());
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.set(&deleted(pod(json!({})), 100));
    b.until_event("Killing").await;
    b.set(&deleted(pod(json!({})), 3));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 3);
    assert_eq!(b.events().iter().filter(|e| *e == "Killing").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn pre_stop_takes_its_time_from_the_grace() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { stop_delay: Duration::from_secs(600), ..Script::default() }]);
    let spec = |hook: Value| {
        pod(json!({"containers": [{"name": "c", "image": "i:1", "lifecycle": {"preStop": hook}}]}))
    };
    let p = spec(json!({"sleep": {"seconds": 7}}));
    b.set(&p);
    b.until_ready().await;
    b.set(&deleted(p, 30));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 30);

    let b = Bench::new().await;
    b.world.runtime.script("c", vec![Script { exec_codes: vec![9], ..Script::default() }]);
    let p = spec(json!({"exec": {"command": ["bye"]}}));
    b.set(&p);
    b.until_ready().await;
    b.set(&deleted(p, 30));
    b.until_terminated().await;
    assert!(b.events().contains(&"!FailedPreStopHook".to_owned()), "{:?}", b.events());
    assert_eq!(b.seconds(), 0);
}

#[tokio::test(start_paused = true)]
async fn sidecars_end_last_and_in_reverse() {
    let b = Bench::new().await;
    for name in ["c", "one", "two"] {
        b.world
            .runtime
            .script(name, vec![Script { stop_delay: Duration::from_secs(4), ..Script::default() }]);
    }
    let side = |name: &str| json!({"name": name, "image": "i:1", "restartPolicy": "Always"});
    let p = pod(json!({"initContainers": [side("one"), side("two")]}));
    b.set(&p);
    b.until_ready().await;
    b.set(&deleted(p, 30));
    b.until_terminated().await;
    let killed: Vec<String> = b
        .world
        .reports
        .events()
        .into_iter()
        .filter(|e| e.reason == "Killing")
        .map(|e| e.message)
        .collect();
    assert_eq!(
        killed,
        ["Stopping container c", "Stopping container two", "Stopping container one"]
    );
    assert_eq!(b.seconds(), 12, "each in its turn");
    // A pod whose work is done takes its sidecars along.
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![exits(0, 1)]);
    b.set(&pod(json!({"restartPolicy": "Never", "initContainers": [side("one")]})));
    let status = b.until_phase("Succeeded").await;
    assert_eq!(container(&status, "one").restart_count, 0);
    b.until_true("the sidecar ends", || b.world.runtime.running().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn hooks_of_sidecars_wait_for_nobody() {
    let slow =
        |seconds| vec![Script { stop_delay: Duration::from_secs(seconds), ..Script::default() }];
    let side = |name: &str, sleep: u64| {
        json!({"name": name, "image": "i:1", "restartPolicy": "Always",
            "lifecycle": {"preStop": {"sleep": {"seconds": sleep}}}})
    };
    // Their hooks sleep while the container ends; then each ends at once.
    let b = Bench::new().await;
    b.world.runtime.script("c", slow(4));
    let p = pod(json!({"initContainers": [side("one", 4), side("two", 4)]}));
    b.set(&p);
    b.until_ready().await;
    b.set(&deleted(p, 30));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 4);
    // A hook that takes longer than the container holds its own sidecar up, and those before it.
    let b = Bench::new().await;
    let p = pod(json!({"initContainers": [side("one", 1), side("two", 9)]}));
    b.set(&p);
    b.until_ready().await;
    b.set(&deleted(p, 30));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 9);
    assert_eq!(b.events().iter().filter(|e| *e == "Killing").count(), 3);
    // When the grace is over nobody waits any more; each has two seconds left.
    let b = Bench::new().await;
    for name in ["c", "one", "two"] {
        b.world.runtime.script(name, slow(600));
    }
    let p = pod(json!({"initContainers": [side("one", 1), side("two", 600)]}));
    b.set(&p);
    b.until_ready().await;
    b.set(&deleted(p, 10));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 12);
}

#[tokio::test(start_paused = true)]
async fn deadlines() {
    let b = Bench::new().await;
    b.set(&pod(json!({"activeDeadlineSeconds": 60})));
    let status = b.until_phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(b.seconds(), 60);
    b.until_true("it is stopped", || b.world.runtime.running().is_empty()).await;
    assert_eq!(b.world.runtime.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_vanishes_stops_its_pod() {
    let b = Bench::new().await;
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.pods.remove("u");
    b.until_true("everything goes", || b.pods.uids().is_empty() && !b.pod_dir().exists()).await;
    assert_eq!((b.world.runtime.known(), b.world.network.attached()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn deletion_in_the_middle_of_a_start() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { start_delay: Duration::from_secs(60), ..Script::default() }]);
    b.set(&pod(json!({})));
    b.until_true("it starts", || b.world.runtime.starts() == 1).await;
    b.set(&deleted(pod(json!({})), 5));
    b.until_terminated().await;
    assert_eq!(b.world.runtime.known(), 0);
    // In the middle of a pull that does not end, nothing waits for it.
    let b = Bench::new().await;
    b.world.images.script("hello:v1", vec![Ok(Duration::from_secs(100_000))]);
    b.set(&pod(json!({})));
    b.until_event("Pulling").await;
    b.set(&deleted(pod(json!({})), 5));
    b.until_terminated().await;
    assert_eq!(b.world.runtime.starts(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_not_reported_is_given_up() {
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![Script { silent: true, ..Script::default() }]);
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.set(&deleted(pod(json!({})), 10));
    b.until_terminated().await;
    assert_eq!(b.seconds(), 25);
    let status = b.world.reports.status("u").unwrap();
    let ended = container(&status, "c").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_begins_the_whole_pod_anew() {
    let b = Bench::new().await;
    b.world.runtime.script("first", vec![exits(0, 1), exits(0, 1)]);
    b.world.runtime.script("c", vec![exits(42, 5)]);
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    b.set(&pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "i"},
            {"name": "side", "image": "i", "restartPolicy": "Always"}],
        "containers": [
            {"name": "c", "image": "hello:v1", "restartPolicy": "Never", "restartPolicyRules": rule},
            {"name": "d", "image": "hello:v1", "lifecycle": {"preStop": {"sleep": {"seconds": 9}}}}],
    })));
    let status = b.until_ready().await;
    assert!(!is_true(&status, "AllContainersRestarting"));
    let status = b.until(|s| is_true(s, "AllContainersRestarting")).await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let status = b.until_ready().await;
    for name in ["first", "side", "c", "d"] {
        assert_eq!(container(&status, name).restart_count, 1, "{name}");
    }
    assert!(b.seconds() < 9 + 5, "no hook was waited for: {}", b.seconds());
    assert_eq!(b.world.runtime.running().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_fails_and_says_why() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { stop_delay: Duration::from_secs(5), ..Script::default() }]);
    b.set(&pod(json!({})));
    b.until_ready().await;
    assert_eq!(b.pods.active(), ["u"]);
    assert!(b.pods.evict("u", "no room".into(), true, 1));
    assert!(!b.pods.evict("u", "again".into(), true, 1), "it ends already");
    let status = b.until(|s| s.reason.as_deref() == Some("Evicted")).await;
    assert_eq!(
        (status.phase.as_deref(), status.message.as_deref()),
        (Some("Failed"), Some("no room"))
    );
    let target = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget");
    let target = target.expect("a disrupted pod says so");
    assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));
    assert_eq!(target.message.as_deref(), Some("no room"));
    b.until_true("it is stopped", || b.world.network.attached() == 0).await;
    assert_eq!(b.world.runtime.starts(), 1, "it does not start again");
    assert_eq!(b.message("Evicted"), "no room");
    assert!(b.pods.active().is_empty());
    // The next agent knows it too.
    let b = b.restart_agent().await;
    b.set(&pod(json!({})));
    b.pods.synced();
    let status = b.until(|s| s.reason.as_deref() == Some("Evicted")).await;
    assert!(is_true(&status, "DisruptionTarget"));
    assert_eq!(b.world.runtime.starts(), 1);
}
