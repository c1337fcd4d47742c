//! Situations in short words, and the status that each gets.

use super::*;
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn exit(code: i32) -> Exit {
    let reason = if code == 0 { "Completed" } else { "Error" };
    Exit {
        code,
        signal: None,
        reason: reason.into(),
        message: String::new(),
        started_at: at(0),
        finished_at: at(1),
    }
}

/// `main running ready`, `init ended 0`, `main waiting CrashLoopBackOff last 1`, `sidecar running` …
fn container(text: &str, index: usize) -> Container {
    let words: Vec<&str> = text.split(' ').collect();
    let kind = match words[0] {
        "init" => Kind::Init,
        "sidecar" => Kind::Sidecar,
        _ => Kind::Main,
    };
    let (state, rest) = match words[1] {
        "running" => (State::Running { since: at(0) }, &words[2..]),
        "ended" => (State::Terminated(exit(words[2].parse().unwrap())), &words[3..]),
        _ => (State::Waiting { reason: words[2].into(), message: String::new() }, &words[3..]),
    };
    let last = rest.iter().position(|w| *w == "last").map(|i| exit(rest[i + 1].parse().unwrap()));
    let running = matches!(state, State::Running { .. });
    let done = kind == Kind::Init && matches!(&state, State::Terminated(e) if e.code == 0);
    Container {
        kind,
        name: format!("{}{index}", words[0]),
        image: "i".into(),
        image_id: String::new(),
        container_id: String::new(),
        last_container_id: String::new(),
        state,
        identity: None,
        mounts: Vec::new(),
        stop_signal: None,
        restarts: u32::from(last.is_some()),
        last,
        started: running && !rest.contains(&"starting"),
        ready: rest.contains(&"ready") || done,
        granted: Default::default(),
        resources: Default::default(),
    }
}

fn status(spec: Value, containers: &[&str], stopped: bool, ended: Option<&Ended>) -> PodStatus {
    let mut spec = spec;
    spec["containers"] = json!([]);
    let conditions = json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        {"type": "gate", "status": "False"}]);
    let pod = json!({"metadata": {"name": "p", "generation": 3}, "spec": spec, "status": {"conditions": conditions}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let facts = Facts {
        rejected: false,
        restarting_all: false,
        started_at: at(0),
        pod_ips: &["10.42.0.5".parse().unwrap()],
        host_ip: "192.0.2.1".parse().unwrap(),
        network_ready: true,
        containers: containers.iter().enumerate().map(|(i, c)| container(c, i)).collect(),
        ended,
        stopped,
        since: &Transitions::from([("Ready", (true, at(-50)))]),
        resize: Vec::new(),
    };
    compute(&pod, &facts, at(9))
}

#[track_caller]
fn check(policy: &str, containers: &[&str], phase: &str, conditions: &str) {
    let status = status(json!({"restartPolicy": policy}), containers, false, None);
    assert_eq!((status.phase.as_deref().unwrap(), shown(&status).as_str()), (phase, conditions));
}

/// `I` Initialized, `C` ContainersReady, `R` Ready: those that are true.
fn shown(status: &PodStatus) -> String {
    let conditions = status.conditions.as_deref().unwrap();
    let letters = [("Initialized", 'I'), ("ContainersReady", 'C'), ("Ready", 'R')];
    letters
        .iter()
        .filter(|(t, _)| conditions.iter().any(|c| c.type_ == *t && c.status == "True"))
        .map(|(_, l)| l)
        .collect()
}

#[test]
fn phases_and_conditions() {
    check("Always", &["main waiting ContainerCreating"], "Pending", "I");
    check("Always", &["main running ready"], "Running", "ICR");
    check("Always", &["main running"], "Running", "I");
    check("Always", &["main running ready", "main waiting ImagePullBackOff"], "Pending", "I");
    check(
        "Always",
        &["main running ready", "main waiting CrashLoopBackOff last 1"],
        "Running",
        "I",
    );
    check("Always", &["main waiting CrashLoopBackOff last 1"], "Running", "I");
    check("Always", &["main ended 0"], "Running", "I");
    check("Never", &["main ended 0"], "Succeeded", "I");
    check("Never", &["main ended 0", "main running ready"], "Running", "I");
    check("Never", &["main ended 0", "main ended 3"], "Failed", "I");
    check("OnFailure", &["main ended 0"], "Succeeded", "I");
    check("OnFailure", &["main ended 1"], "Running", "I");
    check("Always", &["init running", "main waiting PodInitializing"], "Pending", "");
    check("Always", &["init ended 0", "main waiting PodInitializing"], "Pending", "I");
    check("Always", &["init ended 1", "main waiting PodInitializing"], "Pending", "");
    check("Never", &["init ended 1", "main waiting PodInitializing"], "Failed", "");
    check(
        "Always",
        &["init waiting CrashLoopBackOff last 1", "main waiting PodInitializing"],
        "Pending",
        "",
    );
    check("Always", &["sidecar running starting", "main waiting PodInitializing"], "Pending", "");
    check("Always", &["sidecar running ready", "main running ready"], "Running", "ICR");
    check("Always", &["sidecar running", "main running ready"], "Running", "I");
    check(
        "Always",
        &["sidecar waiting CrashLoopBackOff last 1", "main running ready"],
        "Running",
        "I",
    );
}

#[test]
fn reasons_and_messages() {
    #[track_caller]
    fn check(status: &PodStatus, type_: &str, expected: (&str, Option<&str>, Option<&str>)) {
        let c = status.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap();
        assert_eq!((c.status.as_str(), c.reason.as_deref(), c.message.as_deref()), expected);
    }
    let s = status(json!({}), &["main running", "main running"], false, None);
    let unready = "containers with unready status: [main0 main1]";
    check(&s, "ContainersReady", ("False", Some("ContainersNotReady"), Some(unready)));
    check(&s, "Ready", ("False", Some("ContainersNotReady"), Some(unready)));
    check(&s, "PodScheduled", ("True", None, None));
    let s = status(json!({}), &["init running", "main waiting PodInitializing"], false, None);
    let incomplete = "containers with incomplete status: [init0]";
    check(&s, "Initialized", ("False", Some("ContainersNotInitialized"), Some(incomplete)));
    let s = status(json!({"restartPolicy": "Never"}), &["main ended 0"], false, None);
    check(&s, "Initialized", ("True", Some("PodCompleted"), None));
    check(&s, "Ready", ("False", Some("PodCompleted"), None));
    let gate = |name: &str| json!({"readinessGates": [{"conditionType": name}]});
    let s = status(gate("gate"), &["main running ready"], false, None);
    check(&s, "ContainersReady", ("True", None, None));
    check(
        &s,
        "Ready",
        (
            "False",
            Some("ReadinessGatesNotReady"),
            Some("the status of pod readiness gate \"gate\" is not \"True\", but False"),
        ),
    );
    let s = status(gate("other"), &["main running ready"], false, None);
    check(
        &s,
        "Ready",
        (
            "False",
            Some("ReadinessGatesNotReady"),
            Some("corresponding condition of pod readiness gate \"other\" does not exist."),
        ),
    );
}

#[test]
fn times_of_change_are_kept() {
    let time = |s: &PodStatus| transitions(s)["Ready"].1;
    assert_eq!(time(&status(json!({}), &["main running ready"], false, None)), at(-50));
    assert_eq!(time(&status(json!({}), &["main running"], false, None)), at(9));
}

#[test]
fn the_end() {
    let phase = |containers: &[&str], ended: Option<&Ended>| {
        status(json!({}), containers, true, ended).phase.unwrap()
    };
    assert_eq!(phase(&["main ended 0"], None), "Succeeded");
    assert_eq!(phase(&["main ended 143"], None), "Failed");
    assert_eq!(phase(&["main waiting ContainerCreating"], None), "Failed");
    let ended = Ended {
        succeeded: false,
        reason: "DeadlineExceeded".into(),
        message: "m".into(),
        disrupted: false,
    };
    let s = status(json!({}), &["main ended 0"], true, Some(&ended));
    assert_eq!(
        (s.phase.as_deref(), s.reason.as_deref(), s.message.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"), Some("m"))
    );
}

#[test]
fn the_rest_of_it() {
    let s = status(json!({}), &["main waiting CrashLoopBackOff last 7"], false, None);
    let value = serde_json::to_value(&s).unwrap();
    assert_eq!(value["podIP"], "10.42.0.5");
    assert_eq!(value["podIPs"], json!([{"ip": "10.42.0.5"}]));
    assert_eq!(value["hostIPs"], json!([{"ip": "192.0.2.1"}]));
    assert_eq!(value["observedGeneration"], 3);
    assert_eq!(value["qosClass"], "BestEffort");
    let c = &value["containerStatuses"][0];
    assert_eq!(c["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!(
        (&c["restartCount"], &c["started"], &c["ready"]),
        (&json!(1), &json!(false), &json!(false))
    );
}

#[test]
fn quality_of_service() {
    #[track_caller]
    fn check(resources: &[Value], expected: &str) {
        let containers: Vec<Value> =
            resources.iter().map(|r| json!({"name": "c", "resources": r})).collect();
        let spec = serde_json::from_value(json!({"containers": containers})).unwrap();
        assert_eq!(qos_class(&spec), expected);
    }
    let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
    check(&[json!({})], "BestEffort");
    check(std::slice::from_ref(&full), "Guaranteed");
    check(&[json!({"limits": {"cpu": "1", "memory": "1Gi"}})], "Guaranteed");
    check(&[full, json!({})], "Burstable");
    check(&[json!({"requests": {"cpu": "1m"}})], "Burstable");
    check(&[json!({"limits": {"memory": "1Gi"}})], "Burstable");
    check(&[json!({"requests": {"cpu": "0"}})], "BestEffort");
}
