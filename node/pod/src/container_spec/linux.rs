//! The Linux part of a container's spec: security contexts, QoS, the pod's own limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile, VolumeMount};

use super::{amounts, quantity, resources};
use crate::allocation::Amounts;
use crate::outside::{Image, ImageForm};
use crate::runtime::{DiskDevice, Linux, MountFlags, PodLimits, Propagation, QosClass, Seccomp};

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
    disks: Vec<DiskDevice>,
) -> Result<Linux, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let of_pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
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
        share_processes: spec.share_process_namespace == Some(true),
        own_users: spec.host_users == Some(false),
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
        mount_flags: mount_flags(container),
        disks,
        huge_pages: huge_pages(container)?,
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

fn mount_flags(container: &Container) -> BTreeMap<String, MountFlags> {
    let flags = |mount: &VolumeMount| MountFlags {
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::None,
        },
        recursive_read_only: mount.read_only == Some(true)
            && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
    };
    let mounts = container.volume_mounts.iter().flatten();
    let all = mounts.map(|mount| (mount.mount_path.clone(), flags(mount)));
    all.filter(|(_, flags)| *flags != MountFlags::default()).collect()
}

/// `hugepages-2Mi` and its like, which are limits alone.
fn huge_pages(container: &Container) -> Result<Vec<(u64, u64)>, String> {
    let limits = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
    let mut found = Vec::new();
    for (name, amount) in limits {
        let Some(size) = name.strip_prefix("hugepages-") else { continue };
        let size = rimward_api::Quantity::parse(size).map_err(|e| format!("{name}: {e}"))?;
        let amount = crate::downward::parse(amount)?;
        found.push((size.value().max(0) as u64, amount.value().max(0) as u64));
    }
    Ok(found)
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
    let given = container.resources.as_ref();
    let request = quantity(given.and_then(|g| g.requests.as_ref()), "memory")?;
    let limit = quantity(given.and_then(|g| g.limits.as_ref()), "memory")?;
    // A request of nothing is one: only where there is none does the limit stand for it.
    Ok(request.or(limit).map_or(0, |q| q.value().max(0) as u64))
}

/// What the node promises the pod: the larger of what its containers need together and what the init phase
/// needs at its largest moment, and its overhead.
/// <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>
pub(crate) fn pod_requests(spec: &PodSpec) -> Result<Amounts, String> {
    let of = |container: &Container| -> Result<Amounts, String> {
        Ok(Amounts {
            cpu_millis: resources(container)?.cpu_request_millis,
            memory_bytes: memory_request(container)?,
        })
    };
    let add = |a: Amounts, b: Amounts| Amounts {
        cpu_millis: a.cpu_millis + b.cpu_millis,
        memory_bytes: a.memory_bytes + b.memory_bytes,
    };
    let (mut sidecars, mut most) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let moment = add(sidecars, of(container)?);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = moment;
        }
        most.cpu_millis = most.cpu_millis.max(moment.cpu_millis);
        most.memory_bytes = most.memory_bytes.max(moment.memory_bytes);
    }
    let mut together = sidecars;
    for container in &spec.containers {
        together = add(together, of(container)?);
    }
    most.cpu_millis = most.cpu_millis.max(together.cpu_millis);
    most.memory_bytes = most.memory_bytes.max(together.memory_bytes);
    if let Some(requests) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let given = |name: &str| quantity(Some(requests), name);
        most.cpu_millis = given("cpu")?.map_or(most.cpu_millis, |q| q.millis().max(0) as u64);
        most.memory_bytes = given("memory")?.map_or(most.memory_bytes, |q| q.value().max(0) as u64);
    }
    let overhead = |name: &str| quantity(spec.overhead.as_ref(), name);
    let overhead = Amounts {
        cpu_millis: overhead("cpu")?.map_or(0, |q| q.millis().max(0) as u64),
        memory_bytes: overhead("memory")?.map_or(0, |q| q.value().max(0) as u64),
    };
    Ok(add(most, overhead))
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
    let mut limits = PodLimits {
        cpu_request_millis: alone.iter().map(|r| r.cpu_request_millis).fold(sum, u64::max),
        cpu_limit_millis: limit(|r| r.cpu_limit_millis),
        memory_limit_bytes: limit(|r| r.memory_limit_bytes),
    };
    // What the pod as a whole is given stands instead of its containers' sum.
    if let Some(whole) = &spec.resources {
        let given = amounts(whole.limits.as_ref(), whole.requests.as_ref())?;
        limits.cpu_limit_millis = given.cpu_limit_millis.or(limits.cpu_limit_millis);
        limits.memory_limit_bytes = given.memory_limit_bytes.or(limits.memory_limit_bytes);
        if given.cpu_request_millis > 0 {
            limits.cpu_request_millis = given.cpu_request_millis;
        }
    }
    let overhead = amounts(None, spec.overhead.as_ref())?;
    limits.cpu_request_millis += overhead.cpu_request_millis;
    limits.cpu_limit_millis = limits.cpu_limit_millis.map(|n| n + overhead.cpu_request_millis);
    let memory = quantity(spec.overhead.as_ref(), "memory")?.map_or(0, |q| q.value().max(0) as u64);
    limits.memory_limit_bytes = limits.memory_limit_bytes.map(|n| n + memory);
    Ok(limits)
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
        let got = pod_limits(&spec(json!({"overhead": {"cpu": "250m", "memory": "1Mi"},
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}]})));
        let expected = PodLimits {
            cpu_request_millis: 1250,
            cpu_limit_millis: Some(1250),
            memory_limit_bytes: Some(2 << 20),
        };
        assert_eq!(got, Ok(expected));
        let got = pod_limits(&spec(json!({"resources": {"limits": {"cpu": "2"}},
            "containers": [with("1"), {"name": "d"}]})));
        assert_eq!(got.unwrap().cpu_limit_millis, Some(2000));
    }

    #[test]
    fn what_the_pod_is_promised() {
        let with = |cpu: &str, more: Value| {
            let mut container =
                json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            container
        };
        let plain = |cpu: &str| with(cpu, json!({}));
        let check = |pod: Value, cpu: u64, mebibytes: u64| {
            let expected = Amounts { cpu_millis: cpu, memory_bytes: mebibytes << 20 };
            assert_eq!(pod_requests(&spec(pod)), Ok(expected));
        };
        check(json!({"containers": [plain("1"), plain("500m")]}), 1500, 2);
        check(json!({"initContainers": [plain("3")], "containers": [plain("1")]}), 3000, 1);
        let sidecar = with("1", json!({"restartPolicy": "Always"}));
        check(
            json!({"initContainers": [sidecar, plain("2")], "containers": [plain("1")]}),
            3000,
            2,
        );
        check(json!({"containers": [plain("1")], "overhead": {"cpu": "250m"}}), 1250, 1);
        let limits = json!({"cpu": "1", "memory": "64Mi"});
        let limited = |requests: Value| json!({"containers": [{"name": "c", "resources": {"limits": limits, "requests": requests}}]});
        check(limited(json!({})), 1000, 64);
        check(limited(json!({"cpu": "0", "memory": "0"})), 0, 0);
        check(
            json!({"containers": [plain("1")], "resources": {"requests": {"cpu": "4"}}}),
            4000,
            1,
        );
    }

    #[test]
    fn mounts_and_pages() {
        let container: Container = serde_json::from_value(json!({"name": "c",
            "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "1Mi"}},
            "volumeMounts": [{"name": "a", "mountPath": "/a"},
                {"name": "b", "mountPath": "/b", "mountPropagation": "HostToContainer"},
                {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"}]}))
        .unwrap();
        assert_eq!(huge_pages(&container), Ok(vec![(2 << 20, 4 << 20)]));
        let flags = mount_flags(&container);
        assert_eq!(flags.keys().collect::<Vec<_>>(), ["/b", "/c"]);
        assert_eq!(flags["/b"].propagation, Propagation::HostToContainer);
        assert!(flags["/c"].recursive_read_only);
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
