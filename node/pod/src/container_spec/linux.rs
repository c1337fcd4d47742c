//! The Linux part of a container's spec: security contexts, QoS, the pod's own limits.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile};

use super::resources;
use crate::outside::{Image, ImageForm};
use crate::runtime::{Linux, PodLimits, QosClass, Seccomp};

/// What a pod may set without the node's operator having allowed it.
/// <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/#safe-and-unsafe-sysctls>
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

pub(crate) fn is_safe_sysctl(name: &str) -> bool {
    SAFE_SYSCTLS.contains(&name)
}

/// Err is the message of CreateContainerConfigError.
pub(super) fn of(
    pod: &Pod,
    container: &Container,
    image: &Image,
    domain: &str,
) -> Result<Linux, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let of_pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    if spec.share_process_namespace == Some(true) && matches!(image.form, ImageForm::Linux { .. }) {
        return Err("shareProcessNamespace is not supported by this node yet".into());
    }
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let privileged = own.and_then(|c| c.privileged) == Some(true);
    let seccomp = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or(of_pod.and_then(|p| p.seccomp_profile.as_ref()));
    Ok(Linux {
        hostname: crate::dns::hostname(pod, domain).0,
        host_network: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        privileged,
        read_only_root: own.and_then(|c| c.read_only_root_filesystem) == Some(true),
        no_new_privileges: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        capabilities_add: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        capabilities_drop: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        // A privileged container has no profile, whatever it asks for.
        seccomp: if privileged { Seccomp::Unconfined } else { profile(seccomp)? },
        proc_unmasked: own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked"),
        sysctls: sysctls(spec)?,
        qos: qos(spec)?,
        memory_request_bytes: memory_request(container)?,
        pod: pod_limits(spec)?,
        termination_message_path: container
            .termination_message_path
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "/dev/termination-log".into()),
        pid_of: None,
        stop_signal: stop_signal(container, image),
    })
}

fn profile(profile: Option<&SeccompProfile>) -> Result<Seccomp, String> {
    let Some(profile) = profile else { return Ok(Seccomp::Unconfined) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            Ok(Seccomp::Localhost(profile.localhost_profile.clone().unwrap_or_default()))
        }
        other => Err(format!("seccompProfile type {other:?} is not known")),
    }
}

fn sysctls(spec: &PodSpec) -> Result<Vec<(String, String)>, String> {
    let listed = spec.security_context.iter().flat_map(|p| p.sysctls.iter().flatten());
    listed
        .map(|sysctl| {
            let name = sysctl.name.replace('/', ".");
            match is_safe_sysctl(&name) {
                true => Ok((name, sysctl.value.clone())),
                false => Err(format!("forbidden sysctl: {:?} not allowlisted", sysctl.name)),
            }
        })
        .collect()
}

fn stop_signal(container: &Container, image: &Image) -> String {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    own.unwrap_or_else(|| match &image.form {
        ImageForm::Linux { stop_signal, .. } => stop_signal.clone(),
        ImageForm::Wasm { .. } => String::new(),
    })
}

fn everyone(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

fn amount(container: &Container, limits: bool, name: &str) -> Result<Option<i64>, String> {
    let resources = container.resources.as_ref();
    let map = resources.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
    let quantity = map.and_then(|m| m.get(name)).map(crate::downward::parse).transpose()?;
    Ok(quantity.map(|q| if name == "cpu" { q.millis() } else { q.value() }).filter(|n| *n > 0))
}

/// Guaranteed: each container has limits of both, and requests no other amount. BestEffort: none has
/// any.
fn qos(spec: &PodSpec) -> Result<QosClass, String> {
    let (mut any, mut all) = (false, true);
    for container in everyone(spec) {
        for name in ["cpu", "memory"] {
            let limit = amount(container, true, name)?;
            let request = amount(container, false, name)?;
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    Ok(match (any, all) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    })
}

fn memory_request(container: &Container) -> Result<u64, String> {
    let request = amount(container, false, "memory")?.or(amount(container, true, "memory")?);
    Ok(request.unwrap_or(0) as u64)
}

/// Ordinary init containers run alone and before: the pod gets the larger of what they and the others
/// want.
pub(crate) fn pod_limits(spec: &PodSpec) -> Result<PodLimits, String> {
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let init: Vec<&Container> = spec.init_containers.iter().flatten().collect();
    let together: Vec<&Container> =
        spec.containers.iter().chain(init.iter().copied().filter(sidecar)).collect();
    let alone: Vec<&Container> = init.into_iter().filter(|c| !sidecar(c)).collect();
    let all =
        |list: &[&Container]| list.iter().map(|c| resources(c)).collect::<Result<Vec<_>, _>>();
    let (together, alone) = (all(&together)?, all(&alone)?);
    let limit = |of: fn(&crate::runtime::Resources) -> Option<u64>| {
        let sum = together.iter().map(of).sum::<Option<u64>>()?;
        alone.iter().map(of).try_fold(sum, |most, one| Some(most.max(one?)))
    };
    let sum: u64 = together.iter().map(|r| r.cpu_request_millis).sum();
    Ok(PodLimits {
        cpu_request_millis: alone.iter().map(|r| r.cpu_request_millis).fold(sum, u64::max),
        cpu_limit_millis: limit(|r| r.cpu_limit_millis),
        memory_limit_bytes: limit(|r| r.memory_limit_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn classes() {
        #[track_caller]
        fn check(containers: Value, expected: QosClass) {
            assert_eq!(qos(&spec(json!({"containers": containers}))), Ok(expected));
        }
        let with = |resources: Value| json!({"name": "c", "resources": resources});
        let both = json!({"cpu": "1", "memory": "1Mi"});
        check(json!([with(json!({}))]), QosClass::BestEffort);
        check(json!([with(json!({"limits": both}))]), QosClass::Guaranteed);
        check(json!([with(json!({"limits": both, "requests": both}))]), QosClass::Guaranteed);
        check(json!([with(json!({"limits": both})), with(json!({}))]), QosClass::Burstable);
        check(json!([with(json!({"requests": {"cpu": "1"}}))]), QosClass::Burstable);
    }

    #[test]
    fn the_pod_as_a_whole() {
        let with = |cpu: &str| json!({"name": "c", "resources": {"limits": {"cpu": cpu}}});
        let limits = |init: Value, main: Value| {
            pod_limits(&spec(json!({"initContainers": init, "containers": main}))).unwrap()
        };
        let got = limits(json!([with("3")]), json!([with("1"), with("500m")]));
        assert_eq!((got.cpu_request_millis, got.cpu_limit_millis), (3000, Some(3000)));
        assert_eq!(got.memory_limit_bytes, None);
        let got = limits(json!([]), json!([with("1"), {"name": "d"}]));
        assert_eq!((got.cpu_request_millis, got.cpu_limit_millis), (1000, None));
    }

    #[test]
    fn sysctls_of_the_pod_only() {
        let with = |name: &str| {
            spec(
                json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}),
            )
        };
        let name = "net.ipv4.tcp_syncookies";
        assert_eq!(sysctls(&with(name)), Ok(vec![(name.into(), "1".into())]));
        let refused = sysctls(&with("kernel.msgmax")).unwrap_err();
        assert_eq!(refused, "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    }
}
