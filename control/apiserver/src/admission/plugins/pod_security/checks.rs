//! The checks of the two standards that forbid anything, in the order in which they are told.
//! <https://kubernetes.io/docs/concepts/security/pod-security-standards/>

use std::collections::BTreeSet;

use rimward_control_kinds::read::{Read, members};
use serde_json::Value;

use super::policy::{Level, LevelVersion, Version};

/// What a check forbids, and who does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

/// A pod, or the template of one.
struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    version: Version,
}

type Check = fn(&Pod<'_>) -> Option<Violation>;

/// By name, which is the order. The last: the version from which on a restricted check says the same
/// more strictly; under `restricted` the baseline one is then left out.
const BASELINE: [(Check, Option<u32>); 12] = [
    (app_armor, None),
    (capabilities_baseline, Some(22)),
    (host_namespaces, None),
    (host_path_volumes, Some(0)),
    (host_ports, None),
    (host_probes, None),
    (privileged, None),
    (proc_mount_baseline, Some(35)),
    (selinux, None),
    (seccomp_baseline, Some(19)),
    (sysctls, None),
    (windows_host_process, None),
];

const RESTRICTED: [Check; 7] = [
    privilege_escalation,
    capabilities_restricted,
    proc_mount_restricted,
    restricted_volumes,
    run_as_non_root,
    run_as_user,
    seccomp_restricted,
];

/// What of a pod (or a template) a level forbids.
pub fn evaluate(policy: LevelVersion, object: &Value) -> Vec<Violation> {
    let version = policy.version;
    let pod = Pod { metadata: object.at("metadata"), spec: object.at("spec"), version };
    let strict = policy.level == Level::Restricted;
    let baseline = BASELINE
        .iter()
        .filter(|(_, overridden)| !(strict && overridden.is_some_and(|v| version.has(v))))
        .map(|(check, _)| *check);
    let restricted = RESTRICTED.iter().copied().filter(|_| strict);
    match policy.level {
        Level::Privileged => Vec::new(),
        _ => baseline.chain(restricted).filter_map(|check| check(&pod)).collect(),
    }
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| spec.list(list))
    }

    /// The names of the containers of which `is` holds.
    fn named(&self, is: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| is(c)).map(|c| c.text("name")).collect()
    }

    fn is_windows(&self) -> bool {
        self.spec.at("os").text("name") == "windows"
    }

    /// Root in a user namespace of its own is not root.
    fn has_user_namespace(&self) -> bool {
        self.spec.at("hostUsers").as_bool() == Some(false)
    }
}

fn quoted<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let all: Vec<String> = items.into_iter().map(|i| format!("\"{}\"", i.as_ref())).collect();
    all.join(", ")
}

fn plural<'t>(one: &'t str, many: &'t str, count: usize) -> &'t str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and containers "a", "b"`: who sets something that they must not.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names) {
        (false, []) => None,
        (true, []) => Some("pod".to_owned()),
        (false, names) => Some(containers(names)),
        (true, names) => Some(format!("pod and {}", containers(names))),
    }
}

fn security(holder: &Value) -> &Value {
    holder.at("securityContext")
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad = |holder: &Value| {
        let profile = security(holder).at("appArmorProfile");
        let kind = profile.text("type");
        (profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost"))
            .then(|| kind.to_owned())
    };
    let names = pod.named(|c| bad(c).is_some());
    let types: BTreeSet<String> =
        bad(pod.spec).into_iter().chain(pod.containers().filter_map(bad)).collect();
    let annotations: BTreeSet<String> = members(pod.metadata.at("annotations"))
        .filter_map(|(key, value)| {
            let value = value.as_str()?;
            let fine =
                value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            (key.starts_with(ANNOTATION) && !fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    let mut who: Vec<String> = setters(bad(pod.spec).is_some(), &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = types.into_iter().chain(annotations).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let who = who.join(" and ");
    violation(reason, format!("{who} must not set AppArmor profile type to {}", quoted(values)))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    security(container).at("capabilities").list("add").iter().filter_map(Value::as_str)
}

fn capabilities_baseline(pod: &Pod<'_>) -> Option<Violation> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let foreign = |capability: &&str| !DEFAULT.contains(capability);
    let names = pod.named(|c| added(c).any(|a| foreign(&a)));
    let all: BTreeSet<&str> = pod.containers().flat_map(added).filter(foreign).collect();
    if names.is_empty() {
        return None;
    }
    let (who, what) = (containers(&names), quoted(all));
    violation(
        "non-default capabilities",
        format!("{who} must not include {what} in securityContext.capabilities.add"),
    )
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if !pod.version.has(22) || (pod.version.has(25) && pod.is_windows()) {
        return None;
    }
    let drops_all = |c: &Value| {
        security(c).at("capabilities").list("drop").iter().any(|d| d.as_str() == Some("ALL"))
    };
    let foreign = |capability: &&str| *capability != "NET_BIND_SERVICE";
    let missing = pod.named(|c| !drops_all(c));
    let adding = pod.named(|c| added(c).any(|a| foreign(&a)));
    let mut told = Vec::new();
    if !missing.is_empty() {
        let who = containers(&missing);
        told.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if !adding.is_empty() {
        let all: BTreeSet<&str> = pod.containers().flat_map(added).filter(foreign).collect();
        let (who, what) = (containers(&adding), quoted(all));
        told.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if told.is_empty() { None } else { violation("unrestricted capabilities", told.join("; ")) }
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|f| pod.spec.flag(f));
    let set: Vec<String> = set.map(|field| format!("{field}=true")).collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn host_path_volumes(pod: &Pod<'_>) -> Option<Violation> {
    let volumes = pod.spec.list("volumes").iter().filter(|v| v.has("hostPath"));
    let names: Vec<&str> = volumes.map(|v| v.text("name")).collect();
    let word = plural("volume", "volumes", names.len());
    match names.is_empty() {
        true => None,
        false => violation("hostPath volumes", format!("{word} {}", quoted(names))),
    }
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    fn ports(container: &Value) -> impl Iterator<Item = i64> {
        let ports = container.list("ports").iter();
        ports.filter_map(|p| p.int("hostPort")).filter(|p| *p != 0)
    }
    let names = pod.named(|c| ports(c).next().is_some());
    // As texts: that is how they are sorted.
    let all: BTreeSet<String> =
        pod.containers().flat_map(ports).map(|port| port.to_string()).collect();
    if names.is_empty() {
        return None;
    }
    let (uses, word) =
        (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", all.len()));
    let list = all.into_iter().collect::<Vec<_>>().join(", ");
    violation("hostPort", format!("{} {uses} {word} {list}", containers(&names)))
}

fn host_probes(pod: &Pod<'_>) -> Option<Violation> {
    if !pod.version.has(34) {
        return None;
    }
    fn hosts(container: &Value) -> impl Iterator<Item = &str> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"];
        let hooks = ["postStart", "preStop"];
        let handlers = probes
            .into_iter()
            .map(|p| container.at(p))
            .chain(hooks.into_iter().map(|h| container.at("lifecycle").at(h)));
        handlers
            .flat_map(|h| [h.at("httpGet").text("host"), h.at("tcpSocket").text("host")])
            .filter(|host| !host.is_empty())
    }
    let names: BTreeSet<&str> = pod.named(|c| hosts(c).next().is_some()).into_iter().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let all: BTreeSet<&str> = pod.containers().flat_map(hosts).collect();
    if names.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", names.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", all.len());
    let detail = format!("{} {uses} {word} {}", containers(&names), quoted(all));
    violation("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.named(|c| security(c).flag("privileged"));
    if names.is_empty() {
        return None;
    }
    let who = containers(&names);
    violation("privileged", format!("{who} must not set securityContext.privileged=true"))
}

fn proc_mount_baseline(pod: &Pod<'_>) -> Option<Violation> {
    if pod.version.has(35) && pod.has_user_namespace() {
        return None;
    }
    proc_mount(pod)
}

fn proc_mount_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.version.has(35) { proc_mount(pod) } else { None }
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    fn bad(container: &Value) -> Option<&str> {
        security(container).at("procMount").as_str().filter(|kind| *kind != "Default")
    }
    let names = pod.named(|c| bad(c).is_some());
    let kinds: BTreeSet<&str> = pod.containers().filter_map(bad).collect();
    if names.is_empty() {
        return None;
    }
    let (who, what) = (containers(&names), quoted(kinds));
    violation("procMount", format!("{who} must not set securityContext.procMount to {what}"))
}

fn selinux(pod: &Pod<'_>) -> Option<Violation> {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (kind == "container_engine_t" && pod.version.has(31))
    };
    fn options(holder: &Value) -> &Value {
        security(holder).at("seLinuxOptions")
    }
    let bad = |holder: &Value| {
        let o = options(holder);
        !allowed(o.text("type")) || !o.text("user").is_empty() || !o.text("role").is_empty()
    };
    let who = setters(bad(pod.spec), &pod.named(bad))?;
    let all = || std::iter::once(pod.spec).chain(pod.containers()).map(options);
    let kinds: BTreeSet<&str> = all().map(|o| o.text("type")).filter(|k| !allowed(k)).collect();
    let mut told = Vec::new();
    if !kinds.is_empty() {
        told.push(format!("{} {}", plural("type", "types", kinds.len()), quoted(kinds)));
    }
    for field in ["user", "role"] {
        if all().any(|o| !o.text(field).is_empty()) {
            told.push(format!("{field} may not be set"));
        }
    }
    let told = told.join("; ");
    violation(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {told}"),
    )
}

/// The type of a seccomp profile that is set and allowed (Ok) or not (Err).
fn seccomp(holder: &Value) -> Option<Result<(), &str>> {
    let profile = security(holder).at("seccompProfile");
    let allowed = matches!(profile.text("type"), "RuntimeDefault" | "Localhost");
    profile.is_object().then(|| if allowed { Ok(()) } else { Err(profile.text("type")) })
}

fn forbidden_seccomp(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |holder| seccomp(holder).and_then(Result::err);
    let who = setters(bad(pod.spec).is_some(), &pod.named(|c| bad(c).is_some()))?;
    let kinds: BTreeSet<&str> =
        std::iter::once(pod.spec).chain(pod.containers()).filter_map(bad).collect();
    let what = quoted(kinds);
    violation(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {what}"),
    )
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<Violation> {
    if pod.version.has(19) {
        return forbidden_seccomp(pod);
    }
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    let keys = pod
        .containers()
        .map(|c| format!("container.{}/{}", POD.trim_end_matches("/pod"), c.text("name")));
    let annotations = pod.metadata.at("annotations");
    let bad: BTreeSet<String> = std::iter::once(POD.to_owned())
        .chain(keys)
        .filter_map(|key| {
            let value = annotations.at(&key).as_str()?;
            let fine = matches!(value, "runtime/default" | "docker/default")
                || value.starts_with("localhost/");
            (!fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    let list = bad.into_iter().collect::<Vec<_>>().join(", ");
    violation("seccompProfile", format!("forbidden {word} {list}"))
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if !pod.version.has(19) || (pod.version.has(25) && pod.is_windows()) {
        return None;
    }
    if let Some(forbidden) = forbidden_seccomp(pod) {
        return Some(forbidden);
    }
    if seccomp(pod.spec).is_some() {
        return None;
    }
    let names = pod.named(|c| seccomp(c).is_none());
    if names.is_empty() {
        return None;
    }
    let who = containers(&names);
    violation(
        "seccompProfile",
        format!(
            "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    /// The version from which on each is allowed.
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let set = security(pod.spec).list("sysctls").iter().map(|s| s.text("name"));
    let allowed = |name: &&str| ALLOWED.iter().any(|(n, v)| n == name && pod.version.has(*v));
    let bad: Vec<&str> = set.filter(|name| !allowed(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |holder: &Value| security(holder).at("windowsOptions").flag("hostProcess");
    let who = setters(bad(pod.spec), &pod.named(bad))?;
    violation(
        "hostProcess",
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if !pod.version.has(8) || (pod.version.has(25) && pod.is_windows()) {
        return None;
    }
    let denied = |c: &Value| security(c).at("allowPrivilegeEscalation").as_bool() == Some(false);
    let names = pod.named(|c| !denied(c));
    if names.is_empty() {
        return None;
    }
    let who = containers(&names);
    violation(
        "allowPrivilegeEscalation != false",
        format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn restricted_volumes(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let volumes = pod.spec.list("volumes");
    let bad: Vec<&Value> =
        volumes.iter().filter(|v| !ALLOWED.iter().any(|kind| v.has(kind))).collect();
    let kind = |volume: &'_ Value| {
        let mut sources = members(volume).filter(|(key, value)| *key != "name" && !value.is_null());
        sources.next().map_or_else(|| "unknown".to_owned(), |(key, _)| key.clone())
    };
    let kinds: BTreeSet<String> = bad.iter().map(|v| kind(v)).collect();
    if bad.is_empty() {
        return None;
    }
    let (word, uses) = (plural("volume", "volumes", bad.len()), plural("uses", "use", bad.len()));
    let what = plural("restricted volume type", "restricted volume types", kinds.len());
    let names = quoted(bad.iter().map(|v| v.text("name")));
    violation("restricted volume types", format!("{word} {names} {uses} {what} {}", quoted(kinds)))
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.version.has(35) && pod.has_user_namespace() {
        return None;
    }
    let says = |holder: &Value| security(holder).at("runAsNonRoot").as_bool();
    let refusing = pod.named(|c| says(c) == Some(false));
    if let Some(who) = setters(says(pod.spec) == Some(false), &refusing) {
        return violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = pod.named(|c| says(c).is_none());
    if silent.is_empty() || says(pod.spec) == Some(true) {
        return None;
    }
    let who = containers(&silent);
    violation(REASON, format!("pod or {who} must set securityContext.runAsNonRoot=true"))
}

fn run_as_user(pod: &Pod<'_>) -> Option<Violation> {
    if !pod.version.has(23) || (pod.version.has(35) && pod.has_user_namespace()) {
        return None;
    }
    let is_root = |holder: &Value| security(holder).int("runAsUser") == Some(0);
    let who = setters(is_root(pod.spec), &pod.named(is_root))?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}
