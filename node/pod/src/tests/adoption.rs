//! Agents come and go, containers stay.

use super::*;

#[tokio::test(start_paused = true)]
async fn nothing_restarts_with_the_agent() {
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![exits(1, 1), Script::default()]);
    let mut p = pod(json!({"containers": [{"name": "c", "image": "hello:v1",
        "readinessProbe": {"exec": {"command": ["x"]}}}]}));
    b.set(&p);
    let before = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    let (starts, sent) = (b.world.runtime.starts(), b.world.reports.sent());
    p["status"] = serde_json::to_value(&before).unwrap();
    let b = b.restart_agent().await;
    b.set(&p);
    b.pods.synced();
    b.until_true("the status is reported", || b.world.reports.sent() > sent).await;
    let after = b.world.reports.status("u").unwrap();
    assert_eq!(after, before, "also the times of the conditions");
    assert_eq!(b.world.runtime.starts(), starts);
    // Its end is counted on, and the back-off goes on where it was.
    b.world.runtime.kill(&run("c", 1), 1, "").await;
    let status = b.until_waiting("CrashLoopBackOff").await;
    assert_eq!(container(&status, "c").restart_count, 1);
    b.until(|s| container(s, "c").restart_count == 2).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_while_no_agent_was_there() {
    let b = Bench::new().await;
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.shutdown.cancel();
    b.world.runtime.kill(&run("c", 0), 9, "").await;
    let b = b.restart_agent().await;
    b.set(&pod(json!({})));
    let status = b.until(|s| container(s, "c").restart_count == 1).await;
    let last = container(&status, "c").last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 9);
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_lost_starts_again_with_its_count() {
    let b = Bench::new().await;
    b.set(&pod(json!({})));
    b.until_ready().await;
    b.shutdown.cancel();
    b.world.runtime.lose_everything();
    let b = b.restart_agent().await;
    b.set(&pod(json!({})));
    let status = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    let last = container(&status, "c").last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_init_containers_work_again() {
    let b = Bench::new().await;
    b.world.runtime.script("i", vec![exits(0, 1)]);
    let p = pod(json!({"initContainers": [{"name": "i", "image": "i:1"}]}));
    b.set(&p);
    b.until_ready().await;
    b.shutdown.cancel();
    b.world.runtime.lose_everything();
    let path = b.pod_dir().join(crate::record::FILE);
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["boot_id"] = json!("an earlier boot");
    std::fs::write(&path, record.to_string()).unwrap();
    let b = b.restart_agent().await;
    b.set(&p);
    let status = b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    assert_eq!(container(&status, "i").restart_count, 1);
    assert_eq!(b.world.runtime.starts(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_loses_no_container() {
    let b = Bench::new().await;
    b.world.runtime.script("c", vec![exits(1, 1), Script::default()]);
    b.set(&pod(json!({})));
    b.until(|s| container(s, "c").restart_count == 1 && is_true(s, "Ready")).await;
    b.shutdown.cancel();
    std::fs::write(b.pod_dir().join(crate::record::FILE), "{\"vers").unwrap();
    let (b, sent) = (b.restart_agent().await, 0);
    b.set(&pod(json!({})));
    b.until_true("reported", || b.world.reports.sent() > sent).await;
    let status = b.until_ready().await;
    assert_eq!((container(&status, "c").restart_count, b.world.runtime.starts()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_the_api_knows_is_not_counted_anew() {
    let b = Bench::new().await;
    let mut p = pod(json!({}));
    p["status"] = json!({"phase": "Running", "startTime": "2027-01-01T00:00:00Z", "containerStatuses": [
        {"name": "c", "image": "i", "imageID": "x", "containerID": "fake://00", "ready": true, "restartCount": 4, "state": {"running": {}}}]});
    b.set(&p);
    let status = b.until_ready().await;
    assert_eq!(container(&status, "c").restart_count, 5);
    assert_eq!(status.start_time.unwrap().0.to_string(), "2027-01-01T00:00:00Z");
    // And what was over stays over.
    let b = Bench::new().await;
    let mut p = pod(json!({"restartPolicy": "Never"}));
    p["status"] = json!({"phase": "Succeeded"});
    b.set(&p);
    b.until_phase("Succeeded").await;
    assert_eq!(b.world.runtime.starts(), 0);
}

#[tokio::test(start_paused = true)]
async fn orphans_are_stopped_and_cleaned_up() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { stop_delay: Duration::from_secs(3), ..Script::default() }]);
    b.set(&pod(json!({"terminationGracePeriodSeconds": 10})));
    b.until_ready().await;
    let b = b.restart_agent().await;
    let (sent, events) = (b.world.reports.sent(), b.world.reports.events().len());
    b.pods.synced();
    b.until_true("all is gone", || b.pods.uids().is_empty() && !b.pod_dir().exists()).await;
    assert_eq!((b.world.runtime.known(), b.world.network.attached()), (0, 0));
    assert!((3..=4).contains(&b.seconds()), "it had its grace: {}", b.seconds());
    assert_eq!(
        (b.world.reports.sent(), b.world.reports.events().len()),
        (sent, events),
        "nobody is told of what is nobody's"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deletion_goes_on_with_the_next_agent() {
    let b = Bench::new().await;
    b.world
        .runtime
        .script("c", vec![Script { stop_delay: Duration::from_secs(600), ..Script::default() }]);
    b.set(&pod(json!({})));
    b.until_ready().await;
    let p = deleted(pod(json!({})), 30);
    b.set(&p);
    b.until_event("Killing").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let b = b.restart_agent().await;
    b.set(&p);
    b.until_terminated().await;
    assert_eq!(b.seconds(), 30, "the grace is not given twice");
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_that_comes_back_counts_its_restart() {
    let b = Bench::new().await;
    let mut p = pod(json!({"initContainers": [{"name": "i", "image": "i:1"}]}));
    p["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
    b.world.runtime.script("i", vec![exits(0, 1), exits(0, 1)]);
    b.set(&p);
    b.until_ready().await;
    b.pods.remove("u");
    b.pods.gone("u").await;
    let before = b.world.reports.status("u").unwrap();
    p["status"] = serde_json::to_value(&before).unwrap();
    b.set(&p);
    let status = b.until(|s| is_true(s, "Ready") && container(s, "c").restart_count == 1).await;
    assert_eq!(container(&status, "i").restart_count, 1, "init containers too");
    assert!(container(&status, "c").last_state.as_ref().unwrap().terminated.is_some());
    assert!(status.start_time > before.start_time);
}
