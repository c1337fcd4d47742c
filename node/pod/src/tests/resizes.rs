//! Resources that change while the pod runs.

use super::*;

fn sized(cpu: &str, memory: &str) -> Value {
    let amounts = json!({"cpu": cpu, "memory": memory});
    let mut pod = pod(json!({}));
    pod["spec"]["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
    pod
}

fn condition(status: &PodStatus, type_: &str) -> Option<(String, String)> {
    let mut all = status.conditions.iter().flatten();
    let found = all.find(|c| c.type_ == type_)?;
    assert_eq!(found.status, "True");
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

fn cpu_of(status: &PodStatus) -> (String, String) {
    let c = container(status, "c");
    let limits = c.resources.as_ref().unwrap().limits.as_ref().unwrap();
    (c.allocated_resources.as_ref().unwrap()["cpu"].0.clone(), limits["cpu"].0.clone())
}

#[tokio::test(start_paused = true)]
async fn a_container_is_resized_while_it_runs() {
    let b = Bench::new().await;
    b.set(&sized("1", "64Mi"));
    let status = b.until_ready().await;
    assert_eq!(cpu_of(&status), ("1".into(), "1".into()));
    b.world.runtime.fail_update("it takes more than that");
    b.set(&sized("2", "64Mi"));
    let status =
        b.until(|s| condition(s, "PodResizeInProgress").is_some_and(|c| c.0 == "Error")).await;
    assert_eq!(condition(&status, "PodResizeInProgress").unwrap().1, "it takes more than that");
    assert_eq!(cpu_of(&status), ("2".into(), "1".into()));
    // It goes on with it, the next agent too.
    let b = b.restart_agent().await;
    b.set(&sized("2", "64Mi"));
    let status = b.until(|s| cpu_of(s).1 == "2").await;
    assert_eq!(condition(&status, "PodResizeInProgress"), None);
    assert_eq!(container(&status, "c").restart_count, 0);
    let spec = b.world.runtime.spec(&run("c", 0)).unwrap();
    assert_eq!(spec.resources.cpu_limit_millis, Some(2000));
    assert_eq!(spec.linux.pod.cpu_limit_millis, Some(2000));
    for reason in ["ResizeStarted", "!ResizeError", "ResizeCompleted"] {
        assert!(b.events().contains(&reason.to_owned()), "{reason}: {:?}", b.events());
    }
    let both = r#"{"cpu":"2","memory":"64Mi"}"#;
    let words = format!(
        r#"Pod resize started: {{"containers":[{{"name":"c","resources":{{"limits":{both},"requests":{both}}}}}],"generation":1}}"#
    );
    assert_eq!(b.message("ResizeStarted"), words);
    assert!(
        b.message("ResizeError").ends_with(r#","generation":1,"error":"it takes more than that"}"#)
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_node_does_not_have_waits() {
    let b = Bench::new().await;
    let mut other = sized("2", "64Mi");
    other["metadata"]["uid"] = json!("other");
    b.set(&other);
    b.world.reports.wait(|r| r.status("other").is_some_and(|s| is_true(&s, "Ready"))).await;
    b.world.runtime.script("c", vec![exits(1, 3600), Script::default()]);
    b.set(&sized("1", "64Mi"));
    b.until_ready().await;
    b.set(&sized("40", "64Mi"));
    let status = b.until(|s| condition(s, "PodResizePending").is_some()).await;
    let why = "Node didn't have enough capacity: cpu, requested: 40000, capacity: 4000";
    assert_eq!(condition(&status, "PodResizePending"), Some(("Infeasible".into(), why.into())));
    assert_eq!(cpu_of(&status), ("1".into(), "1".into()));
    b.set(&sized("3", "64Mi"));
    let status =
        b.until(|s| condition(s, "PodResizePending").is_some_and(|c| c.0 == "Deferred")).await;
    let why = "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000";
    assert_eq!(condition(&status, "PodResizePending").unwrap().1, why);
    // It starts anew with what it was granted.
    b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    let limit =
        |attempt| b.world.runtime.spec(&run("c", attempt)).unwrap().resources.cpu_limit_millis;
    assert_eq!(limit(1), Some(1000));
    b.pods.remove("other");
    b.until(|s| {
        cpu_of(s) == ("3".into(), "3".into()) && condition(s, "PodResizePending").is_none()
    })
    .await;
    assert_eq!(limit(1), Some(3000));
    // A new pod that does not fit is turned away.
    let mut late = sized("2", "64Mi");
    late["metadata"]["uid"] = json!("late");
    b.set(&late);
    b.world
        .reports
        .wait(|r| r.status("late").is_some_and(|s| s.reason.as_deref() == Some("OutOfcpu")))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_resize_begins_it_anew_where_its_policy_says_so() {
    let b = Bench::new().await;
    let with_policy = |cpu: &str, memory: &str| {
        let mut pod = sized(cpu, memory);
        pod["spec"]["containers"][0]["resizePolicy"] = json!([
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        pod
    };
    b.set(&with_policy("1", "64Mi"));
    b.until_ready().await;
    b.set(&with_policy("2", "64Mi"));
    let status = b.until(|s| cpu_of(s).1 == "2").await;
    assert_eq!(container(&status, "c").restart_count, 0);
    b.set(&with_policy("2", "128Mi"));
    b.until(|s| condition(s, "PodResizeInProgress").is_some()).await;
    let status = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    assert_eq!(condition(&status, "PodResizeInProgress"), None);
    assert_eq!(b.events().iter().filter(|e| *e == "ResizeCompleted").count(), 2);
    assert_eq!(b.message("Killing"), "Container c resize requires restart");
    let spec = b.world.runtime.spec(&run("c", 1)).unwrap();
    assert_eq!(spec.resources.memory_limit_bytes, Some(128 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_share_of_swap_is_not_resized() {
    let b = Bench::new().await;
    b.world.runtime.give_swap();
    let asks = |cpu: &str, memory: &str| {
        let mut pod = sized(cpu, "256Mi");
        pod["spec"]["containers"][0]["resources"]["requests"] =
            json!({"cpu": "1", "memory": memory});
        pod
    };
    b.set(&asks("1", "64Mi"));
    b.until_ready().await;
    // What has nothing to do with it is.
    b.set(&asks("2", "64Mi"));
    b.until(|s| cpu_of(s).1 == "2").await;
    b.set(&asks("2", "128Mi"));
    let status = b.until(|s| condition(s, "PodResizePending").is_some()).await;
    let why = "In-place resize of containers with swap is not supported.";
    assert_eq!(condition(&status, "PodResizePending"), Some(("Infeasible".into(), why.into())));
    b.set(&asks("2", "64Mi"));
    b.until(|s| condition(s, "PodResizePending").is_none()).await;
}
