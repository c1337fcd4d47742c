//! Whether this node takes a pod that was bound to it. What it does not take ends as `Failed`, with the reason
//! and in the words that a kubelet gives, and nothing of it begins.
//! <https://kubernetes.io/docs/reference/node/node-status/>

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint};
use rimward_api::nodes::{WantedNodes, tolerates};
use rimward_api::static_pods;

use crate::container_spec::linux::is_safe_sysctl;
use crate::status::qos_class;

/// `system-cluster-critical` and above.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// `status.reason`
    pub reason: String,
    pub message: String,
}

impl Rejection {
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// A rule of the scheduler's that was passed by.
    pub fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }
}

fn reject(reason: &'static str, message: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection::new(reason, message))
}

/// Whether it is of this node's own files.
pub(crate) fn is_static(pod: &Pod) -> bool {
    static_pods::annotation(&pod.metadata, static_pods::SOURCE).is_some_and(|from| from != "api")
}

/// What the node cannot do without: it is taken under pressure, and others make room for it.
/// <https://kubernetes.io/docs/tasks/administer-cluster/guaranteed-scheduling-critical-addon-pods/>
pub(crate) fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    is_static(pod)
        || static_pods::annotation(&pod.metadata, static_pods::MIRROR).is_some()
        || priority >= CRITICAL_PRIORITY
}

/// What does not depend on other pods, nor on what others say of the node. `pressures` are the node's conditions
/// that hold.
///
/// # Errors
/// The first reason against it.
pub(crate) fn check(pod: &Pod, pressures: &[&str]) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    pressure(pod, spec, pressures)?;
    sysctls(spec)?;
    operating_system(pod, spec)?;
    app_armor(spec)
}

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-conditions>
fn pressure(pod: &Pod, spec: &PodSpec, pressures: &[&str]) -> Result<(), Rejection> {
    if pressures.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if pressures == ["MemoryPressure"] {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let mut tolerations = spec.tolerations.iter().flatten();
        if qos_class(spec) != "BestEffort" || tolerations.any(|t| tolerates(t, &taint)) {
            return Ok(());
        }
    }
    reject("Evicted", format!("The node had condition: [{}]. ", pressures.join(" ")))
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/#pod-os>
fn operating_system(pod: &Pod, spec: &PodSpec) -> Result<(), Rejection> {
    let labelled = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if labelled.is_some_and(|os| os != "linux") {
        return reject(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        );
    }
    match spec.os.as_ref().filter(|os| os.name != "linux") {
        Some(_) => {
            reject("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
        }
        None => Ok(()),
    }
}

/// This node has no AppArmor: what asks for a profile of it is not run without one.
/// <https://kubernetes.io/docs/tutorials/security/apparmor/>
fn app_armor(spec: &PodSpec) -> Result<(), Rejection> {
    let of_pod = spec.security_context.iter().filter_map(|pod| pod.app_armor_profile.as_ref());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let own = containers
        .filter_map(|c| c.security_context.as_ref().and_then(|own| own.app_armor_profile.as_ref()));
    match of_pod.chain(own).any(|profile| profile.type_ != "Unconfined") {
        true => reject("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"),
        false => Ok(()),
    }
}

/// What the scheduler looks at of a node, for a pod that was bound past it.
///
/// # Errors
/// It is none of the nodes that the pod wants.
pub(crate) fn affinity(spec: &PodSpec, node: &Node) -> Result<(), Rejection> {
    let wanted = WantedNodes::new(spec.node_selector.as_ref(), spec.affinity.as_ref());
    match wanted.allow(node) {
        true => Ok(()),
        false => Err(Rejection::predicate(
            "NodeAffinity",
            "node(s) didn't match Pod's node affinity/selector",
        )),
    }
}

/// # Errors
/// The node has a NoExecute taint that the pod does not tolerate. Others are the scheduler's alone, and none is
/// for static pods.
pub(crate) fn taints(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    if is_static(pod) {
        return Ok(());
    }
    let tolerations = || pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut drives_away = taints.filter(|taint| taint.effect == "NoExecute");
    match drives_away.any(|taint| !tolerations().any(|t| tolerates(t, taint))) {
        true => Err(Rejection::predicate(
            "TaintToleration",
            "node(s) had taints that the pod didn't tolerate",
        )),
        false => Ok(()),
    }
}

/// <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>
fn sysctls(spec: &PodSpec) -> Result<(), Rejection> {
    const REASON: &str = "SysctlForbidden";
    let listed = spec.security_context.iter().flat_map(|p| p.sysctls.iter().flatten());
    for sysctl in listed {
        let name = sysctl.name.replace('/', ".");
        let shown = &sysctl.name;
        let of_ipc = name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p));
        if of_ipc && spec.host_ipc == Some(true) {
            return reject(
                REASON,
                format!("forbidden sysctl: {shown:?} not allowed with host ipc enabled"),
            );
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return reject(
                REASON,
                format!("forbidden sysctl: {shown:?} not allowed with host net enabled"),
            );
        }
        if !is_safe_sysctl(&name) {
            return reject(REASON, format!("forbidden sysctl: {shown:?} not allowlisted"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_is_not_taken() {
        #[track_caller]
        fn check(spec: Value, reason: Option<&str>) {
            let got = super::check(&pod(spec), &[]).err().map(|r| r.reason);
            assert_eq!(got.as_deref(), reason);
        }
        let sysctl = |name: &str| json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": name, "value": "1"}]});
        check(json!({}), None);
        check(json!({"os": {"name": "linux"}}), None);
        check(json!({"os": {"name": "windows"}}), Some("PodOSNotSupported"));
        let mut labelled = pod(json!({}));
        labelled.metadata.labels = Some([("kubernetes.io/os".into(), "windows".into())].into());
        let reason = super::check(&labelled, &[]).unwrap_err().reason;
        assert_eq!(reason, "PodOSSelectorNodeLabelDoesNotMatch");
        check(json!({"securityContext": sysctl("net.ipv4.tcp_syncookies")}), None);
        check(json!({"securityContext": sysctl("net/ipv4/tcp_syncookies")}), None);
        check(json!({"securityContext": sysctl("kernel.msgmax")}), Some("SysctlForbidden"));
        let host =
            json!({"securityContext": sysctl("net.ipv4.tcp_syncookies"), "hostNetwork": true});
        check(host, Some("SysctlForbidden"));
        let armed = |kind: &str| json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": kind}}}]});
        check(armed("Unconfined"), None);
        check(armed("RuntimeDefault"), Some("AppArmor"));
    }

    #[test]
    fn what_is_taken_under_pressure() {
        #[track_caller]
        fn check(spec: Value, pressures: &[&str], message: Option<&str>) {
            let got = super::check(&pod(spec), pressures).err().map(|r| r.message);
            assert_eq!(got.as_deref(), message);
        }
        let memory = "The node had condition: [MemoryPressure]. ";
        let asks =
            json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]});
        check(json!({}), &["MemoryPressure"], Some(memory));
        check(asks.clone(), &["MemoryPressure"], None);
        check(asks.clone(), &["DiskPressure"], Some("The node had condition: [DiskPressure]. "));
        let both = "The node had condition: [MemoryPressure PIDPressure]. ";
        check(asks, &["MemoryPressure", "PIDPressure"], Some(both));
        let bears = json!({"tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
        check(bears, &["MemoryPressure"], None);
        check(json!({"priority": 2_000_000_000}), &["DiskPressure"], None);
    }

    #[test]
    fn where_a_pod_may_be() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "b", "value": "1", "effect": "NoExecute"}]},
        }))
        .unwrap();
        let wants = |label: &str| {
            let pod = pod(json!({"nodeSelector": {"disk": label}}));
            affinity(pod.spec.as_ref().unwrap(), &node).err()
        };
        assert_eq!(wants("ssd"), None);
        let why = wants("hdd").unwrap();
        assert_eq!(why.reason, "NodeAffinity");
        let words =
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        assert_eq!(why.message, words);
        let bears = |key: &str| {
            let tolerations = json!([{"key": key, "operator": "Exists"}]);
            taints(&pod(json!({"tolerations": tolerations})), &node).err().map(|r| r.reason)
        };
        assert_eq!(bears("b"), None, "NoSchedule is for the scheduler");
        assert_eq!(bears("a").as_deref(), Some("TaintToleration"));
        let mut own = pod(json!({}));
        let source = (static_pods::SOURCE.to_owned(), "file".to_owned());
        own.metadata.annotations = Some([source].into());
        assert_eq!(taints(&own, &node), Ok(()));
    }
}
