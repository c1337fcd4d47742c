//! Security contexts of pods and containers.

use serde_json::Value;

use crate::check;
use crate::path::{Errors, Path};
use crate::read::Read;

const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

fn id(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(n) = value.as_i64()
        && !(0..=2_147_483_647).contains(&n)
    {
        e.invalid(path, n, ID_RANGE);
    }
}

pub fn pod(context: &Value, spec: &Value, path: &Path<'_>, e: &mut Errors) {
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(context.at(field), &path.field(field), e);
    }
    let groups = path.field("supplementalGroups");
    for (i, group) in context.list("supplementalGroups").iter().enumerate() {
        id(group, &groups.index(i), e);
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        e.invalid(
            &path.field("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(context.list("sysctls"), spec, &path.field("sysctls"), e);
    let changes = context.at("fsGroupChangePolicy");
    check::one_of(changes, &["Always", "OnRootMismatch"], &path.field("fsGroupChangePolicy"), e);
    seccomp(context.at("seccompProfile"), &path.field("seccompProfile"), e);
    windows(context.at("windowsOptions"), &path.field("windowsOptions"), e);
    app_armor(context.at("appArmorProfile"), &path.field("appArmorProfile"), e);
    check::one_of(
        context.at("supplementalGroupsPolicy"),
        &["Merge", "Strict"],
        &path.field("supplementalGroupsPolicy"),
        e,
    );
    check::one_of(
        context.at("seLinuxChangePolicy"),
        &["MountOption", "Recursive"],
        &path.field("seLinuxChangePolicy"),
        e,
    );
}

/// A pod with users of its own shares nothing else with the host.
pub fn host_users(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    if spec.at("hostUsers") != &Value::Bool(false) {
        return;
    }
    for (field, shown) in
        [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
    {
        if spec.flag(field) {
            e.forbidden(&path.field(shown), "when `pod.Spec.HostUsers` is false");
        }
    }
}

/// Processes of a Windows host: all containers of a pod are such, or none, and they need the host's
/// network.
pub fn host_process(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let asked = |context: &Value| {
        context.at("securityContext").deep(&["windowsOptions", "hostProcess"]).as_bool()
    };
    let of_pod = asked(spec);
    let (mut containers, mut on_host) = (0, 0);
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in spec.list(field).iter().enumerate() {
            let own = asked(container);
            if let (Some(own), Some(of_pod)) = (own, of_pod)
                && own != of_pod
            {
                let list = path.field(field);
                let (item, why) = (
                    list.index(i),
                    format!(
                        "pod hostProcess value must be identical if both are specified, was {of_pod}"
                    ),
                );
                let context = item.field("securityContext");
                let options = context.field("windowsOptions");
                e.invalid(&options.field("hostProcess"), own, &why);
            }
            containers += 1;
            on_host += usize::from(own.or(of_pod) == Some(true));
        }
    }
    if on_host == 0 {
        return;
    }
    if on_host != containers {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess";
        e.invalid(path, "", why);
    }
    if !spec.flag("hostNetwork") {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        e.invalid(&path.field("hostNetwork"), false, why);
    }
}

fn sysctls(sysctls: &[Value], spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let mut seen = check::Seen::default();
    for (i, sysctl) in sysctls.iter().enumerate() {
        let (name, at) = (sysctl.text("name"), path.index(i));
        let again = seen.again(name);
        if name.is_empty() {
            e.required(&at.field("name"), "");
        } else if !is_sysctl(name) {
            e.invalid(&at.field("name"), name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if again {
            e.duplicate(&at.field("name"), name);
        }
        // What the host's kernel has only once must not be set by a pod that shares it.
        let dotted = name.replace('/', ".");
        let network = dotted.starts_with("net.");
        let messages = dotted == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
        if network && spec.flag("hostNetwork") {
            let why = "may not be specified when 'hostNetwork' is true";
            e.invalid(&at.field("name"), name, why);
        } else if messages && spec.flag("hostIPC") {
            let why = "may not be specified when 'hostIPC' is true";
            e.invalid(&at.field("name"), name, why);
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let good = |part: &str| {
        let inner =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        part.bytes().all(inner) && edge(part.as_bytes().first()) && edge(part.as_bytes().last())
    };
    name.len() <= 253 && name.split(['.', '/']).all(good)
}

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(profile: &Value, path: &Path<'_>, e: &mut Errors) {
    if !profile.is_object() {
        return;
    }
    let (kind, local) = (profile.text("type"), profile.at("localhostProfile"));
    match kind {
        "" => e.required(&path.field("type"), "type is required when seccompProfile is set"),
        _ => check::one_of(&kind.into(), &PROFILES, &path.field("type"), e),
    }
    let at = path.field("localhostProfile");
    match (kind, local.as_str()) {
        ("Localhost", None) => e.required(&at, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(file)) => {
            e.invalid_each(&at, file, check::text::descending_path(file));
        }
        (_, Some(_)) => {
            e.invalid(&at, profile.clone(), "can only be set when seccomp type is Localhost");
        }
        (_, None) => {}
    }
}

fn app_armor(profile: &Value, path: &Path<'_>, e: &mut Errors) {
    const MISSING: &str = "must be set when AppArmor type is Localhost";
    const PATH_MAX: usize = 4095;
    if !profile.is_object() {
        return;
    }
    let (kind, local) = (profile.text("type"), profile.at("localhostProfile").as_str());
    let at = path.field("localhostProfile");
    match (kind, local) {
        ("Localhost", None) => e.required(&at, MISSING),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                e.invalid(&at, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                e.required(&at, MISSING);
            }
            if name.len() > PATH_MAX {
                e.too_long(&at, PATH_MAX);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            e.invalid(&at, name, "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => {
            e.required(&path.field("type"), "type is required when appArmorProfile is set");
        }
        (other, _) => e.not_supported(&path.field("type"), other, &PROFILES),
    }
}

/// What only Windows has: names of credentials and users.
fn windows(options: &Value, path: &Path<'_>, e: &mut Errors) {
    const SPEC_MAX_KIB: usize = 64;
    if let Some(name) = options.at("gmsaCredentialSpecName").as_str() {
        let at = path.field("gmsaCredentialSpecName");
        e.invalid_each(&at, name, rimward_api::names::dns1123_subdomain(name));
    }
    if let Some(spec) = options.at("gmsaCredentialSpec").as_str() {
        let at = path.field("gmsaCredentialSpec");
        if spec.is_empty() {
            e.invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > SPEC_MAX_KIB * 1024 {
            let why = format!("gmsaCredentialSpec size must be under {SPEC_MAX_KIB} KiB");
            e.invalid(&at, spec, &why);
        }
    }
    if let Some(user) = options.at("runAsUserName").as_str() {
        for why in windows_user(user) {
            e.invalid(&path.field("runAsUserName"), user, why);
        }
    }
}

/// `DOMAIN\\user` or `user`.
fn windows_user(text: &str) -> Vec<&'static str> {
    const USER_MAX: usize = 104;
    const DOMAIN_MAX: usize = 256;
    if text.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    if text.matches('\\').count() > 1 {
        return vec!["runAsUserName cannot contain more than one backslash"];
    }
    let (domain, user) = match text.split_once('\\') {
        Some((domain, user)) => (Some(domain), user),
        None => (None, text),
    };
    let mut wrong = Vec::new();
    if domain.is_some_and(|d| d.len() >= DOMAIN_MAX) {
        wrong.push("runAsUserName's Domain length must be under 256 characters");
    }
    if domain.is_some_and(|d| !is_netbios(d) && !is_windows_domain(d)) {
        wrong.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty");
    } else if user.len() > USER_MAX {
        wrong.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        wrong.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c| r#""/\:;|=,+*?<>@[]"#.contains(c)) {
        wrong.push(
            r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#,
        );
    }
    wrong
}

fn is_netbios(domain: &str) -> bool {
    let good = |c: char| !r#"\/:*?"<>|"#.contains(c);
    (1..=15).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && domain.chars().all(good)
}

fn is_windows_domain(domain: &str) -> bool {
    let label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        label.len() <= 63
            && edge(label.chars().next())
            && edge(label.chars().last())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    domain.split('.').all(label)
}

pub fn container(context: &Value, host_users: bool, path: &Path<'_>, e: &mut Errors) {
    if !context.is_object() {
        return;
    }
    id(context.at("runAsUser"), &path.field("runAsUser"), e);
    id(context.at("runAsGroup"), &path.field("runAsGroup"), e);
    let proc_mount = context.at("procMount");
    check::one_of(proc_mount, &["Default", "Unmasked"], &path.field("procMount"), e);
    if host_users && proc_mount == "Unmasked" {
        let why = "`hostUsers` must be false to use `Unmasked`";
        e.invalid(&path.field("procMount"), proc_mount.clone(), why);
    }
    seccomp(context.at("seccompProfile"), &path.field("seccompProfile"), e);
    // What keeps a process from gaining rights must not be contradicted.
    if context.at("allowPrivilegeEscalation") == &Value::Bool(false) {
        if context.flag("privileged") {
            e.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let added = context.deep(&["capabilities"]).list("add");
        if added.iter().any(|c| c == "CAP_SYS_ADMIN") {
            e.invalid(path, context.clone(), "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows(context.at("windowsOptions"), &path.field("windowsOptions"), e);
    app_armor(context.at("appArmorProfile"), &path.field("appArmorProfile"), e);
}
