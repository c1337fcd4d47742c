//! Whether this node takes a pod that was bound to it. What it does not take ends as `Failed`, with the reason
//! that a kubelet gives, and nothing of it begins.

use k8s_openapi::api::core::v1::PodSpec;

use crate::container_spec::linux::is_safe_sysctl;

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// `status.reason`
    pub reason: &'static str,
    pub message: String,
}

fn reject(reason: &'static str, message: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection { reason, message: message.into() })
}

/// # Errors
/// The first reason against it.
pub(crate) fn check(spec: &PodSpec) -> Result<(), Rejection> {
    operating_system(spec)?;
    sysctls(spec)
}

/// <https://kubernetes.io/docs/concepts/workloads/pods/#pod-os>
fn operating_system(spec: &PodSpec) -> Result<(), Rejection> {
    let labelled = spec.node_selector.as_ref().and_then(|s| s.get("kubernetes.io/os"));
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

    #[test]
    fn what_is_not_taken() {
        #[track_caller]
        fn check(spec: Value, reason: Option<&str>) {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let spec = serde_json::from_value(spec).unwrap();
            assert_eq!(super::check(&spec).err().map(|r| r.reason), reason);
        }
        let sysctl = |name: &str| json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": name, "value": "1"}]});
        check(json!({}), None);
        check(json!({"os": {"name": "linux"}}), None);
        check(json!({"os": {"name": "windows"}}), Some("PodOSNotSupported"));
        check(
            json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
            Some("PodOSSelectorNodeLabelDoesNotMatch"),
        );
        check(json!({"securityContext": sysctl("net.ipv4.tcp_syncookies")}), None);
        check(json!({"securityContext": sysctl("net/ipv4/tcp_syncookies")}), None);
        check(json!({"securityContext": sysctl("kernel.msgmax")}), Some("SysctlForbidden"));
        let host =
            json!({"securityContext": sysctl("net.ipv4.tcp_syncookies"), "hostNetwork": true});
        check(host, Some("SysctlForbidden"));
    }
}
