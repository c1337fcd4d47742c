//! A profile as runc takes it: the rules that hold for one container on one machine, in the words of the OCI
//! runtime specification alone.
//!
//! It names no architecture: then it is of this machine's own calls, as the compiled one is.

use serde_json::{Value, json};

use super::{Machine, Profile, Rule};

/// Of a process that has one thread it says nothing, and older versions of runc take no flags at all.
const OF_THREADS: &str = "SECCOMP_FILTER_FLAG_TSYNC";

/// # Errors
/// What is wrong in the profile, and where: the same as of a profile that is compiled.
pub(crate) fn resolve(text: &[u8], machine: &Machine) -> Result<Value, String> {
    let profile = Profile::read(text)?;
    let rules = profile.rules(machine, one)?;
    let mut resolved = json!({
        "defaultAction": profile.default_action,
        "syscalls": rules.into_iter().flatten().collect::<Vec<_>>(),
    });
    if let Some(errno) = profile.default_errno_ret {
        resolved["defaultErrnoRet"] = json!(errno);
    }
    let flags: Vec<_> = profile.flags.iter().filter(|flag| *flag != OF_THREADS).collect();
    if !flags.is_empty() {
        resolved["flags"] = json!(flags);
    }
    Ok(resolved)
}

/// None for a rule about no call: runc takes no such rule.
fn one(rule: &Rule) -> Result<Option<Value>, String> {
    let names: Vec<_> = rule.names().collect();
    let args: Vec<_> = rule.args.iter().flatten().collect();
    for argument in &args {
        argument.check()?;
    }
    let mut resolved = json!({"names": names, "action": rule.action});
    if let Some(errno) = rule.errno_ret {
        resolved["errnoRet"] = json!(errno);
    }
    if !args.is_empty() {
        resolved["args"] = json!(args);
    }
    Ok((!names.is_empty()).then_some(resolved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;

    #[track_caller]
    fn check(profile: Value, expected: Result<Value, &str>) {
        let machine = Machine { capabilities: capabilities::bit("CHOWN").unwrap(), kernel: (6, 1) };
        let got = resolve(profile.to_string().as_bytes(), &machine);
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    #[test]
    fn what_holds_is_left() {
        let args = json!([{"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 15, "valueTwo": 5}]);
        check(
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "archMap": [],
                "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"], "syscalls": [
                {"name": "read", "action": "SCMP_ACT_ALLOW", "args": null},
                {"names": [], "action": "SCMP_ACT_ALLOW"},
                {"names": ["chown"], "action": "SCMP_ACT_ALLOW", "args": args, "includes": {"caps": ["CAP_CHOWN"]}},
                {"names": ["reboot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_BOOT"]}},
                {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"minKernel": "6.2"}}]}),
            Ok(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["chown"], "action": "SCMP_ACT_ALLOW", "args": args},
                {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]})),
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = json!({"defaultAction": "DENY"});
        check(wrong, Err("defaultAction: unknown action \"DENY\""));
        let args = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
        let rule = json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args});
        let wrong = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        check(wrong, Err("syscalls[0]: args: index 6 is not between 0 and 5"));
    }
}
