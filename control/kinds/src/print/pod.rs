//! The row of a pod: what its containers add up to.

use jiff::Timestamp;
use serde_json::Value;

use super::{NONE, age, condition, deleted, labels, name, since, text_or};
use crate::read::Read;

/// READY, STATUS and RESTARTS, gathered from the container statuses.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// When a container last ended and was started again; "" when none was.
    restarted: String,
}

pub fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (pod.at("spec"), pod.at("status"));
    let sum = Summary::of(pod);
    let restarts = match (sum.restarts, sum.restarted.as_str()) {
        (0, _) | (_, "") => sum.restarts.to_string(),
        (n, last) => format!("{n} ({} ago)", since(last, now)),
    };
    let ip = match status.list("podIPs").first() {
        Some(first) => first.at("ip"),
        None => status.at("podIP"),
    };
    let filled = |value: &Value| match value.as_str() {
        None | Some("") => NONE.into(),
        Some(text) => Value::from(text),
    };
    vec![
        name(pod),
        format!("{}/{}", sum.ready, sum.total).into(),
        sum.reason.into(),
        restarts.into(),
        age(pod, now),
        filled(ip),
        filled(spec.at("nodeName")),
        filled(status.at("nominatedNodeName")),
        readiness_gates(spec, status),
    ]
}

fn readiness_gates(spec: &Value, status: &Value) -> Value {
    let gates = spec.list("readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let open = gates.iter().filter(|g| condition(status, g.text("conditionType")) == Some("True"));
    format!("{}/{}", open.count(), gates.len()).into()
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (pod.at("spec"), pod.at("status"));
        let phase = status.text("phase");
        let mut sum = Self {
            ready: 0,
            total: spec.list("containers").len()
                + spec.list("initContainers").iter().filter(|c| is_sidecar(c)).count(),
            reason: phase.to_owned(),
            restarts: 0,
            restarted: String::new(),
        };
        if status.has("reason") && !status.text("reason").is_empty() {
            sum.reason = status.text("reason").to_owned();
        }
        let gated =
            |c: &&Value| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated";
        if status.list("conditions").iter().any(|c| gated(&c)) {
            sum.reason = "SchedulingGated".to_owned();
        }
        let (sidecar_restarts, sidecar_restarted, initializing) = sum.count_init(spec, status);
        if !initializing || condition(status, "Initialized") == Some("True") {
            sum.restarts = sidecar_restarts;
            sum.restarted = sidecar_restarted;
            sum.count_containers(status);
        }
        if deleted(pod) {
            if status.text("reason") == "NodeLost" {
                sum.reason = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                sum.reason = "Terminating".to_owned();
            }
        }
        sum
    }

    /// Walks the init containers up to the first that has not done its part. Returns restarts and
    /// last restart of the sidecars, and whether initialization is still under way.
    fn count_init(&mut self, spec: &Value, status: &Value) -> (i64, String, bool) {
        let init = spec.list("initContainers");
        let (mut sidecar_restarts, mut sidecar_restarted) = (0, String::new());
        for (i, container) in status.list("initContainerStatuses").iter().enumerate() {
            let restarts = container.int("restartCount").unwrap_or_default();
            let sidecar =
                init.iter().any(|c| c.text("name") == container.text("name") && is_sidecar(c));
            self.restarts += restarts;
            later(&mut self.restarted, container);
            if sidecar {
                sidecar_restarts += restarts;
                later(&mut sidecar_restarted, container);
            }
            let (terminated, waiting) =
                (container.deep(&["state", "terminated"]), container.deep(&["state", "waiting"]));
            if terminated.is_object() && terminated.int("exitCode").unwrap_or_default() == 0 {
                continue;
            }
            if sidecar && container.flag("started") {
                self.ready += usize::from(container.flag("ready"));
                continue;
            }
            self.reason = if terminated.is_object() {
                format!("Init:{}", end_reason(terminated))
            } else if !matches!(waiting.text("reason"), "" | "PodInitializing") {
                format!("Init:{}", waiting.text("reason"))
            } else {
                format!("Init:{i}/{}", init.len())
            };
            return (sidecar_restarts, sidecar_restarted, true);
        }
        (sidecar_restarts, sidecar_restarted, false)
    }

    fn count_containers(&mut self, status: &Value) {
        let mut running = false;
        for container in status.list("containerStatuses").iter().rev() {
            self.restarts += container.int("restartCount").unwrap_or_default();
            later(&mut self.restarted, container);
            let state = container.at("state");
            if !state.at("waiting").text("reason").is_empty() {
                self.reason = state.at("waiting").text("reason").to_owned();
            } else if state.at("terminated").is_object() {
                self.reason = end_reason(state.at("terminated"));
            } else if container.flag("ready") && state.at("running").is_object() {
                running = true;
                self.ready += 1;
            }
        }
        // One container is done while another runs on.
        if self.reason == "Completed" && running {
            let ready = condition(status, "Ready") == Some("True");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn is_sidecar(init_container: &Value) -> bool {
    init_container.text("restartPolicy") == "Always"
}

/// Why a container ended, in one word.
fn end_reason(terminated: &Value) -> String {
    let signal = terminated.int("signal").unwrap_or_default();
    match terminated.text("reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", terminated.int("exitCode").unwrap_or_default()),
        reason => reason.to_owned(),
    }
}

/// Moves `latest` on to when the container's previous run ended. Times of one form and zone compare
/// as text.
fn later(latest: &mut String, container: &Value) {
    let ended =
        container.deep(&["lastState", "terminated", "finishedAt"]).as_str().unwrap_or_default();
    if ended > latest.as_str() {
        *latest = ended.to_owned();
    }
}

/// PodTemplate.
pub fn template(object: &Value, _now: Timestamp) -> Vec<Value> {
    let template = object.at("template");
    let [names, images] = super::containers(template.at("spec"));
    vec![name(object), names, images, labels(template.at("metadata").at("labels")).into()]
}

/// ComponentStatus.
pub fn component_status(object: &Value, _now: Timestamp) -> Vec<Value> {
    let healthy = object.list("conditions").iter().find(|c| c.text("type") == "Healthy");
    let Some(healthy) = healthy else {
        return vec![name(object), "Unknown".into(), "".into(), "".into()];
    };
    let state = match healthy.text("status") {
        "True" => "Healthy",
        "False" => "Unhealthy",
        _ => "Unknown",
    };
    vec![
        name(object),
        state.into(),
        text_or(healthy.at("message"), ""),
        text_or(healthy.at("error"), ""),
    ]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check as check_row;
    use serde_json::{Value, json};

    /// Status, restarts and readiness of a pod with the given spec additions and status.
    #[track_caller]
    fn check(metadata: Value, spec: Value, status: Value, expected: [&str; 3]) {
        let mut meta = json!({ "name": "p", "creationTimestamp": "2026-11-21T11:59:00Z" });
        meta.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        let [ready, reason, restarts] = expected;
        check_row(
            "",
            "v1",
            "Pod",
            json!({ "metadata": meta, "spec": spec, "status": status }),
            json!(["p", ready, reason, restarts, "60s", "<none>", "<none>", "<none>", "<none>"]),
        );
    }

    #[test]
    fn statuses() {
        let spec = || json!({ "containers": [{ "name": "a" }] });
        let two = || json!({ "containers": [{ "name": "a" }, { "name": "b" }] });
        check(json!({}), spec(), json!({ "phase": "Pending" }), ["0/1", "Pending", "0"]);
        let crash = json!({ "phase": "Running", "containerStatuses": [{
            "name": "a", "restartCount": 3, "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 1, "finishedAt": "2026-11-21T11:59:55Z" } } }] });
        check(json!({}), spec(), crash, ["0/1", "CrashLoopBackOff", "3 (5s ago)"]);
        let running = json!({ "phase": "Running", "containerStatuses": [
            { "name": "a", "ready": true, "restartCount": 0, "state": { "running": {} } }] });
        check(json!({}), spec(), running.clone(), ["1/1", "Running", "0"]);
        let leaving = json!({ "deletionTimestamp": "2026-11-21T12:00:00Z" });
        check(leaving.clone(), spec(), running, ["1/1", "Terminating", "0"]);
        check(
            leaving.clone(),
            spec(),
            json!({ "phase": "Running", "reason": "NodeLost" }),
            ["0/1", "Unknown", "0"],
        );
        let done = json!({ "phase": "Succeeded", "containerStatuses": [
            { "name": "a", "restartCount": 0, "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } }] });
        check(leaving, spec(), done, ["0/1", "Completed", "0"]);
        let half = json!({ "phase": "Running", "containerStatuses": [
            { "name": "a", "restartCount": 0, "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } },
            { "name": "b", "ready": true, "restartCount": 0, "state": { "running": {} } }] });
        check(json!({}), two(), half, ["1/2", "NotReady", "0"]);
        let killed = json!({ "phase": "Failed", "containerStatuses": [
            { "name": "a", "restartCount": 0, "state": { "terminated": { "exitCode": 137, "signal": 9 } } }] });
        check(json!({}), spec(), killed, ["0/1", "Signal:9", "0"]);
        let gated = json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "SchedulingGated" }] });
        check(json!({}), spec(), gated, ["0/1", "SchedulingGated", "0"]);
    }

    #[test]
    fn init_containers() {
        let spec = || {
            json!({ "containers": [{ "name": "a" }], "initContainers": [
            { "name": "i" }, { "name": "s", "restartPolicy": "Always" }] })
        };
        let first = json!({ "phase": "Pending", "initContainerStatuses": [
            { "name": "i", "restartCount": 0, "state": { "running": {} } }, { "name": "s", "restartCount": 0, "state": {} }] });
        check(json!({}), spec(), first, ["0/2", "Init:0/2", "0"]);
        let failed = json!({ "phase": "Pending", "initContainerStatuses": [
            { "name": "i", "restartCount": 2, "state": { "terminated": { "exitCode": 3 } } }] });
        check(json!({}), spec(), failed, ["0/2", "Init:ExitCode:3", "2"]);
        let sidecar = json!({ "phase": "Running", "initContainerStatuses": [
            { "name": "i", "restartCount": 2, "state": { "terminated": { "exitCode": 0 } } },
            { "name": "s", "restartCount": 1, "started": true, "ready": true, "state": { "running": {} } }],
            "containerStatuses": [{ "name": "a", "ready": true, "restartCount": 0, "state": { "running": {} } }] });
        check(json!({}), spec(), sidecar, ["2/2", "Running", "1"]);
        let waiting = json!({ "phase": "Pending", "initContainerStatuses": [
            { "name": "i", "restartCount": 0, "state": { "waiting": { "reason": "ImagePullBackOff" } } }] });
        check(json!({}), spec(), waiting, ["0/2", "Init:ImagePullBackOff", "0"]);
    }
}
