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
            &Path::Root.field("spec").field("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(context.list("sysctls"), &path.field("sysctls"), e);
    let changes = context.at("fsGroupChangePolicy");
    check::one_of(changes, &["Always", "OnRootMismatch"], &path.field("fsGroupChangePolicy"), e);
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
    profile(context.at("seccompProfile"), &path.field("seccompProfile"), e);
    profile(context.at("appArmorProfile"), &path.field("appArmorProfile"), e);
}

fn sysctls(sysctls: &[Value], path: &Path<'_>, e: &mut Errors) {
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

/// Seccomp and AppArmor profiles have one form.
fn profile(profile: &Value, path: &Path<'_>, e: &mut Errors) {
    if !profile.is_object() {
        return;
    }
    let local = profile.at("localhostProfile");
    let kind = profile.text("type");
    match kind {
        "" => e.required(&path.field("type"), ""),
        "Localhost" => match local.as_str() {
            None => e.required(
                &path.field("localhostProfile"),
                "must be set when seccomp type is Localhost",
            ),
            Some(file) => e.invalid_each(
                &path.field("localhostProfile"),
                file,
                check::text::descending_path(file),
            ),
        },
        "RuntimeDefault" | "Unconfined" => {
            if !local.is_null() {
                e.invalid(
                    &path.field("localhostProfile"),
                    local.clone(),
                    "can only be set when seccomp type is Localhost",
                );
            }
        }
        other => e.not_supported(
            &path.field("type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        ),
    }
}

pub fn container(context: &Value, path: &Path<'_>, e: &mut Errors) {
    if !context.is_object() {
        return;
    }
    id(context.at("runAsUser"), &path.field("runAsUser"), e);
    id(context.at("runAsGroup"), &path.field("runAsGroup"), e);
    let proc_mount = context.at("procMount");
    check::one_of(proc_mount, &["Default", "Unmasked"], &path.field("procMount"), e);
    profile(context.at("seccompProfile"), &path.field("seccompProfile"), e);
    profile(context.at("appArmorProfile"), &path.field("appArmorProfile"), e);
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
}
