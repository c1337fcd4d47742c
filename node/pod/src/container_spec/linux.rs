//! The Linux part of a container's spec: security contexts, QoS, the pod's own limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile, VolumeMount};

use super::{amounts, quantity, resources};
use crate::allocation::Amounts;
use crate::outside::{Image, ImageForm};
use crate::runtime::{DiskDevice, Linux, MountFlags, PodLimits, Propagation, QosClass, Seccomp};
use crate::status::qos_class;

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
        qos: qos(spec),
        memory_request_bytes: bytes_requested(container, "memory")?,
        memory_due_bytes: memory_due(spec, container)?,
        node_critical: spec.priority_class_name.as_deref() == Some("system-node-critical"),
        may_swap: may_swap(pod, container)?,
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

/// What asks it to end: the container's own word, else its image's, else SIGTERM. A component has none.
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination-stop-signals>
pub(crate) fn stop_signal(container: &Container, image: &Image) -> String {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    own.unwrap_or_else(|| match &image.form {
        ImageForm::Linux { stop_signal, .. } => signal_name(stop_signal),
        ImageForm::Wasm { .. } => String::new(),
    })
}

/// As Kubernetes writes signals: images say `SIGINT`, `int`, `2`, or nothing.
fn signal_name(text: &str) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    const RTMIN: usize = 34;
    let upper = text.trim().to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    match bare.parse::<usize>() {
        Ok(number @ 1..=31) => format!("SIG{}", NAMES[number - 1]),
        Ok(RTMIN) => "SIGRTMIN".into(),
        Ok(number @ 35..=64) => format!("SIGRTMIN+{}", number - RTMIN),
        _ if NAMES.contains(&bare) || bare.starts_with("RTM") => format!("SIG{bare}"),
        _ => "SIGTERM".into(),
    }
}

fn qos(spec: &PodSpec) -> QosClass {
    match qos_class(spec) {
        "Guaranteed" => QosClass::Guaranteed,
        "Burstable" => QosClass::Burstable,
        _ => QosClass::BestEffort,
    }
}

fn bytes_requested(container: &Container, name: &str) -> Result<u64, String> {
    let given = container.resources.as_ref();
    let request = quantity(given.and_then(|g| g.requests.as_ref()), name)?;
    let limit = quantity(given.and_then(|g| g.limits.as_ref()), name)?;
    // A request of nothing is one: only where there is none does the limit stand for it.
    Ok(request.or(limit).map_or(0, |q| q.value().max(0) as u64))
}

/// Its request and its share of what the pod requests beyond all requests of containers. A sidecar goes no sooner than
/// the main container that requests the least.
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior>
fn memory_due(spec: &PodSpec, container: &Container) -> Result<u64, String> {
    let own = bytes_requested(container, "memory")?;
    let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let share = match quantity(of_pod, "memory")? {
        Some(whole) => {
            let bare = PodSpec { resources: None, overhead: None, ..spec.clone() };
            let requested = pod_requests(&bare)?.memory_bytes;
            let count = spec.containers.len() + spec.init_containers.iter().flatten().count();
            (whole.value().max(0) as u64).saturating_sub(requested) / count.max(1) as u64
        }
        None => 0,
    };
    let sidecar = container.restart_policy.as_deref() == Some("Always")
        && spec.init_containers.iter().flatten().any(|c| c.name == container.name);
    let mut due = own;
    if sidecar {
        let main = spec.containers.iter().map(|c| bytes_requested(c, "memory"));
        let least = main.collect::<Result<Vec<_>, _>>()?.into_iter().min();
        due = due.max(least.unwrap_or(0));
    }
    Ok(due + share)
}

/// Of Burstable pods, containers that ask for less memory than they may have; none of pods that the cluster
/// needs.
/// <https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/#how-is-the-swap-limit-being-determined-with-limitedswap>
pub(crate) fn may_swap(pod: &Pod, container: &Container) -> Result<bool, String> {
    let Some(spec) = &pod.spec else { return Ok(false) };
    let request = bytes_requested(container, "memory")?;
    let limit = resources(container)?.memory_limit_bytes;
    let burstable = qos(spec) == QosClass::Burstable && !crate::admission::is_critical(pod);
    Ok(burstable && request > 0 && limit != Some(request))
}

/// What the node promises the pod: the larger of what its containers need together and what the init phase
/// needs at its largest moment, and its overhead.
/// <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>
pub(crate) fn pod_requests(spec: &PodSpec) -> Result<Amounts, String> {
    let of = |container: &Container| -> Result<Amounts, String> {
        Ok(Amounts {
            pods: 0,
            cpu_millis: resources(container)?.cpu_request_millis,
            memory_bytes: bytes_requested(container, "memory")?,
            storage_bytes: bytes_requested(container, "ephemeral-storage")?,
        })
    };
    let (mut sidecars, mut most) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let moment = sidecars.and(of(container)?);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = moment;
        }
        most = most.at_least(moment);
    }
    let mut together = sidecars;
    for container in &spec.containers {
        together = together.and(of(container)?);
    }
    most = most.at_least(together);
    if let Some(requests) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let given = |name: &str| quantity(Some(requests), name);
        most.cpu_millis = given("cpu")?.map_or(most.cpu_millis, |q| q.millis().max(0) as u64);
        most.memory_bytes = given("memory")?.map_or(most.memory_bytes, |q| q.value().max(0) as u64);
    }
    let overhead = |name: &str| quantity(spec.overhead.as_ref(), name);
    let bytes =
        |name: &str| Ok::<_, String>(overhead(name)?.map_or(0, |q| q.value().max(0) as u64));
    let overhead = Amounts {
        pods: 1,
        cpu_millis: overhead("cpu")?.map_or(0, |q| q.millis().max(0) as u64),
        memory_bytes: bytes("memory")?,
        storage_bytes: bytes("ephemeral-storage")?,
    };
    Ok(most.and(overhead))
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
            assert_eq!(qos(&spec(json!({"containers": containers}))), expected);
        }
        let with = |resources: Value| json!({"name": "c", "resources": resources});
        let both = json!({"cpu": "1", "memory": "1Mi"});
        check(json!([with(json!({}))]), QosClass::BestEffort);
        check(json!([with(json!({"limits": both}))]), QosClass::Guaranteed);
        check(json!([with(json!({"limits": both, "requests": both}))]), QosClass::Guaranteed);
        check(json!([with(json!({"limits": both})), with(json!({}))]), QosClass::Burstable);
        check(json!([with(json!({"requests": {"cpu": "1"}}))]), QosClass::Burstable);
        let whole = json!({"resources": {"limits": both, "requests": both}, "containers": [with(json!({}))]});
        assert_eq!(
            qos(&spec(whole)),
            QosClass::Guaranteed,
            "what is said of the pod as a whole counts"
        );
    }

    #[test]
    fn signals() {
        let check = |text: &str, expected: &str| assert_eq!(signal_name(text), expected, "{text}");
        check("", "SIGTERM");
        check("SIGQUIT", "SIGQUIT");
        check("int", "SIGINT");
        check("10", "SIGUSR1");
        check("37", "SIGRTMIN+3");
        check("SIGRTMIN+3", "SIGRTMIN+3");
        check("SIGNONSENSE", "SIGTERM");
    }

    #[test]
    fn who_may_swap() {
        let check = |pod: Value, expected: bool| {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(may_swap(&pod, container), Ok(expected), "{pod:?}");
        };
        let with =
            |resources: Value| json!({"containers": [{"name": "c", "resources": resources}]});
        let more = json!({"requests": {"memory": "1Mi"}, "limits": {"memory": "2Mi"}});
        check(json!({"spec": with(more.clone())}), true);
        check(json!({"spec": with(json!({"requests": {"memory": "1Mi"}}))}), true);
        check(json!({"spec": with(json!({"limits": {"memory": "1Mi"}}))}), false);
        check(json!({"spec": with(json!({"requests": {"cpu": "1"}}))}), false);
        check(json!({"spec": with(json!({}))}), false);
        let mut critical = with(more.clone());
        critical["priority"] = json!(2_000_001_000);
        check(json!({"spec": critical}), false);
        let source = |source: &str| json!({"annotations": {"kubernetes.io/config.source": source}});
        check(json!({"metadata": source("file"), "spec": with(more.clone())}), false);
        check(json!({"metadata": source("api"), "spec": with(more)}), true);
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
            let expected = Amounts {
                pods: 1,
                cpu_millis: cpu,
                memory_bytes: mebibytes << 20,
                storage_bytes: 0,
            };
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

    #[test]
    fn what_memory_is_due() {
        #[track_caller]
        fn check(more: Value, expected: [u64; 3]) {
            let request = |bytes: u64| json!({"requests": {"memory": bytes.to_string()}});
            let mut pod = json!({
                "initContainers": [{"name": "side", "restartPolicy": "Always", "resources": request(10)},
                    {"name": "init", "resources": request(20)}],
                "containers": [{"name": "main", "resources": request(50)}, {"name": "more", "resources": request(40)}]});
            for (key, value) in more.as_object().unwrap() {
                pod[key] = value.clone();
            }
            let pod = spec(pod);
            let init = pod.init_containers.iter().flatten();
            let due = |c: &Container| memory_due(&pod, c).unwrap();
            let got: Vec<u64> = init.chain(&pod.containers[..1]).map(due).collect();
            assert_eq!(got, expected);
        }
        check(json!({}), [40, 20, 50]);
        check(json!({"resources": {"requests": {"memory": "500"}}}), [140, 120, 150]);
        check(json!({"resources": {"requests": {"cpu": "1"}}}), [40, 20, 50]);
    }
}
