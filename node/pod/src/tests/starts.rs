//! From nothing to running, and what changes while it runs.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_runs() {
    let b = Bench::new().await;
    b.set(&pod(json!({})));
    let status = b.until_ready().await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    for condition in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert!(is_true(&status, condition), "{condition}");
    }
    assert_eq!(status.pod_ip.as_deref(), Some("10.42.0.2"));
    let c = container(&status, "c");
    assert!(c.container_id.as_deref().unwrap().starts_with("fake://"), "{c:?}");
    assert!(c.image_id.starts_with("hello:v1@sha256:"), "{c:?}");
    assert_eq!((c.ready, c.started, c.restart_count), (true, Some(true), 0));
    assert_eq!(b.events(), ["Pulled", "Created", "Started"]);
    assert_eq!(
        b.message("Pulled"),
        "Container image \"hello:v1\" already present on machine and can be accessed by the pod"
    );
    assert_eq!(b.world.reports.sent(), 1, "what would change in a moment is not reported");
    assert_eq!(b.seconds(), 0, "nothing waits for a timer");
    let spec = b.world.runtime.spec(&run("c", 0)).unwrap();
    assert_eq!((spec.argv, spec.pod_name.as_str()), (vec!["hello".to_owned()], "p"));
    assert_eq!(spec.env.iter().find(|(n, _)| n == "HOSTNAME").unwrap().1, "p");
    assert_eq!(b.pods.usage().await[0].containers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_with_words() {
    let b = Bench::new().await;
    b.world.images.script("hello:v1", vec![Ok(Duration::from_millis(1500))]);
    b.set(&pod(json!({})));
    b.until_ready().await;
    assert_eq!(b.events(), ["Pulling", "Pulled", "Created", "Started"]);
    assert_eq!(b.message("Pulling"), "Pulling image \"hello:v1\"");
    assert_eq!(
        b.message("Pulled"),
        "Successfully pulled image \"hello:v1\" in 1.5s (1.5s including waiting)."
    );
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_stay() {
    let b = Bench::new().await;
    b.world.runtime.script("first", vec![exits(1, 2), exits(0, 2)]);
    b.world.runtime.script("second", vec![exits(0, 2)]);
    b.set(&pod(json!({"initContainers": [
        {"name": "first", "image": "i"},
        {"name": "side", "image": "i", "restartPolicy": "Always"},
        {"name": "second", "image": "i"}]})));
    let status = b.until(|s| waiting(s).0 == "PodInitializing").await;
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert!(!is_true(&status, "Initialized"));
    let status = b.until_ready().await;
    assert!(is_true(&status, "Initialized"));
    let names: Vec<String> = b.world.runtime.running().into_iter().map(|id| id.container).collect();
    assert_eq!(names, ["c", "side"]);
    assert_eq!(container(&status, "first").restart_count, 1);
    assert_eq!(b.seconds(), 6, "first twice (its first restart is immediate), second once");
    // A sidecar that ends is started again, and holds nothing else up.
    b.world.runtime.kill(&run("side", 0), 3, "").await;
    b.until(|s| container(s, "side").restart_count == 1 && is_true(s, "Ready")).await;
    assert_eq!(b.world.runtime.running().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_image_restarts_its_container_only() {
    let b = Bench::new().await;
    let two = json!([{"name": "c", "image": "hello:v1"}, {"name": "d", "image": "other:v1"}]);
    let mut p = pod(json!({"containers": two}));
    b.set(&p);
    b.until_ready().await;
    p["spec"]["containers"][0]["image"] = json!("hello:v2");
    p["metadata"]["generation"] = json!(2);
    b.set(&p);
    let status = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    assert_eq!(b.message("Killing"), "Container c definition changed, will be restarted");
    assert!(container(&status, "c").image_id.starts_with("hello:v2@"));
    assert_eq!(container(&status, "d").restart_count, 0);
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(b.seconds(), 0, "a replacement is not held back");
}

#[tokio::test(start_paused = true)]
async fn readiness_gates_hold() {
    let b = Bench::new().await;
    let mut p = pod(json!({"readinessGates": [{"conditionType": "example.com/lb"}]}));
    b.set(&p);
    b.until(|s| is_true(s, "ContainersReady") && !is_true(s, "Ready")).await;
    p["status"] = json!({"conditions": [{"type": "example.com/lb", "status": "True"}]});
    b.set(&p);
    let status = b.until_ready().await;
    assert!(is_true(&status, "example.com/lb"), "conditions of others are kept");
}

#[tokio::test(start_paused = true)]
async fn post_start_and_its_failure() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { exec_codes: vec![1], ..Script::default() }, Script::default()]);
    b.set(&pod(json!({"containers": [{"name": "c", "image": "i:1", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]})));
    let status = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    assert!(b.events().contains(&"!FailedPostStartHook".to_owned()), "{:?}", b.events());
    assert_eq!(
        container(&status, "c").last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code,
        143
    );
}

#[tokio::test(start_paused = true)]
async fn logs_of_now_and_before() {
    use futures::StreamExt;
    let b = Bench::new().await;
    let says = |line: &str, script: Script| Script { log: vec![line.into()], ..script };
    b.world.runtime.script("c", vec![says("one", exits(1, 5)), says("two", Script::default())]);
    b.set(&pod(json!({})));
    b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    let text = async |request: crate::LogRequest| {
        let mut stream = b.pods.logs("default", "p", "", request).await?;
        let mut text = String::new();
        while let Some(block) = stream.next().await {
            text += std::str::from_utf8(&block?).unwrap();
        }
        Ok::<_, crate::LogError>(text)
    };
    let request = crate::LogRequest::default();
    assert_eq!(text(request.clone()).await.unwrap(), "two\n");
    assert_eq!(
        text(crate::LogRequest { previous: true, ..request.clone() }).await.unwrap(),
        "one\n"
    );
    let stamped = text(crate::LogRequest { timestamps: true, ..request.clone() }).await.unwrap();
    assert!(stamped.starts_with("2027-01-15T08:00:05.000000000Z two"), "{stamped}");
    assert!(text(crate::LogRequest { container: "x".into(), ..request.clone() }).await.is_err());
    assert!(b.pods.logs("default", "q", "", request.clone()).await.is_err());

    // A follower ends when the run does.
    let follow = text(crate::LogRequest { follow: true, ..request });
    let kill = async { b.world.runtime.kill(&run("c", 1), 0, "").await };
    let (followed, ()) = tokio::join!(follow, kill);
    assert_eq!(followed.unwrap(), "two\n");
}

#[tokio::test(start_paused = true)]
async fn ephemeral_containers_join_a_pod_that_runs() {
    let b = Bench::new().await;
    let mut p = pod(json!({}));
    b.set(&p);
    b.until_ready().await;
    p["metadata"]["generation"] = json!(2);
    p["spec"]["ephemeralContainers"] = json!([
        {"name": "debug", "image": "i", "targetContainerName": "c", "stdin": true},
        {"name": "brief", "image": "i"}]);
    b.world.runtime.script("brief", vec![exits(3, 1)]);
    b.set(&p);
    let ended = |s: &PodStatus| {
        let all = s.ephemeral_container_statuses.iter().flatten();
        all.filter(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some())).count() == 1
    };
    let status = b.until(ended).await;
    assert!(is_true(&status, "Ready"), "its end is nothing to the pod");
    let names: Vec<String> = b.world.runtime.running().into_iter().map(|id| id.container).collect();
    assert_eq!(names, ["c", "debug"]);
    let spec = b.world.runtime.spec(&run("debug", 0)).unwrap();
    assert_eq!((spec.linux.pid_of, spec.stdin), (Some(run("c", 0)), true));
    let b = b.restart_agent().await;
    b.set(&p);
    p["spec"]["ephemeralContainers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "more", "image": "i"}));
    b.set(&p);
    let more = run("more", 0);
    b.until_true("it runs too", || b.world.runtime.running().contains(&more)).await;
    assert_eq!(b.world.runtime.running().len(), 3);
    // The pod is over when its own containers are.
    b.set(&deleted(p, 1));
    b.until_terminated().await;
    assert!(b.world.runtime.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_this_node_does_not_take_ends_before_it_begins() {
    let b = Bench::new().await;
    b.set(&pod(json!({"os": {"name": "windows"}})));
    let status = b.until_phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("PodOSNotSupported"));
    assert!(status.message.as_deref().unwrap().starts_with("Pod was rejected: "), "{status:?}");
    assert_eq!(status.container_statuses, None);
    assert_eq!((b.events(), b.world.runtime.starts()), (vec!["!PodOSNotSupported".to_owned()], 0));
    let b = b.restart_agent().await;
    b.set(&pod(json!({"os": {"name": "windows"}})));
    b.until_true("it knows", || b.pods.status("u").is_some()).await;
    assert_eq!(b.pods.status("u").unwrap().container_statuses, None);
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_holds_up_what_comes_after() {
    let b = Bench::new().await;
    let hook = json!({"postStart": {"sleep": {"seconds": 7}}});
    b.set(&pod(json!({"containers": [
        {"name": "before", "image": "i:1"},
        {"name": "proxy", "image": "i:1", "lifecycle": hook},
        {"name": "after", "image": "i:1"},
    ]})));
    let status = b.until_ready().await;
    let since = |name: &str| {
        let state = container(&status, name).state.clone().unwrap();
        state.running.unwrap().started_at.unwrap().0.as_second() - 1_800_000_000
    };
    assert_eq!((since("before"), since("proxy"), since("after")), (0, 0, 7));
}

#[tokio::test(start_paused = true)]
async fn a_status_shows_the_image_that_ran() {
    let b = Bench::new().await;
    b.world.runtime.script("i", vec![exits(0, 1)]);
    let p = |image: &str| {
        pod(
            json!({"initContainers": [{"name": "i", "image": image}], "containers": [{"name": "c", "image": image}]}),
        )
    };
    b.set(&p("first:v1"));
    b.until_ready().await;
    b.set(&p("second:v1"));
    let status = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    assert_eq!(container(&status, "c").image, "second:v1");
    let init = container(&status, "i");
    assert_eq!((init.image.as_str(), init.restart_count), ("first:v1", 0), "its work is done");
    let b = b.restart_agent().await;
    b.set(&p("second:v1"));
    assert_eq!(container(&b.until_ready().await, "i").image, "first:v1");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_is_updated_while_others_initialize() {
    let b = Bench::new().await;
    b.world.runtime.script("i", vec![exits(0, 600)]);
    let p = |image: &str| {
        pod(json!({"initContainers": [
            {"name": "side", "image": image, "restartPolicy": "Always"}, {"name": "i", "image": "i:1"}]}))
    };
    b.set(&p("first:v1"));
    let runs =
        |s: &PodStatus, name: &str| container(s, name).state.as_ref().unwrap().running.is_some();
    b.until(|s| runs(s, "i")).await;
    b.set(&p("second:v1"));
    let status = b.until(|s| container(s, "side").restart_count == 1 && runs(s, "side")).await;
    assert_eq!(
        (container(&status, "side").image.as_str(), status.phase.as_deref()),
        ("second:v1", Some("Pending"))
    );
    assert!(b.seconds() < 600);
    assert_eq!(container(&b.until_ready().await, "i").restart_count, 0);
}
