//! Capabilities by name and number, and which of them a container has.

use rimward_node_pod::runtime::Linux;

/// In the kernel's order: the index is the number. <https://man7.org/linux/man-pages/man7/capabilities.7.html>
pub(crate) const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What every container has that does not drop it, as container runtimes agree.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

pub(crate) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == bare).map(|number| 1 << number)
}

/// Those of a set.
pub(crate) fn names(set: u64) -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().enumerate().filter(move |(n, _)| set & (1 << n) != 0).map(|(_, name)| name)
}

/// The container's set, within what this machine has to give.
///
/// # Errors
/// Names a capability that is not known.
pub(crate) fn of(linux: &Linux, available: u64) -> Result<u64, String> {
    if linux.privileged {
        return Ok(available);
    }
    let set = |names: &[String]| {
        names.iter().try_fold(0, |set, name| match name.as_str() {
            "ALL" | "all" => Ok(u64::MAX),
            name => bit(name).map(|bit| set | bit).ok_or_else(|| {
                format!("unknown capability {name:?} in securityContext.capabilities")
            }),
        })
    };
    let (add, drop) = (set(&linux.capabilities_add)?, set(&linux.capabilities_drop)?);
    let default = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
    // Each of the two prevails over the defaults; what is named is meant more than `ALL`.
    let named =
        |names: &[String]| names.iter().filter_map(|n| bit(n)).fold(0, |set, bit| set | bit);
    let set = match (add, drop) {
        (u64::MAX, drop) => {
            !drop | if drop == u64::MAX { named(&linux.capabilities_add) } else { 0 }
        }
        (_, u64::MAX) => named(&linux.capabilities_add),
        (add, drop) => (default | add) & !drop,
    };
    Ok(set & available)
}

/// What this process may hand down.
pub(crate) fn available() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        #[track_caller]
        fn check(add: &[&str], drop: &[&str], expected: &[&str]) {
            let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
            let linux = Linux {
                capabilities_add: list(add),
                capabilities_drop: list(drop),
                ..Linux::default()
            };
            let all = (1 << NAMES.len()) - 1;
            let got = of(&linux, all).unwrap();
            assert_eq!(names(got).collect::<Vec<_>>(), expected);
        }
        check(&[], &["ALL"], &[]);
        check(&["NET_ADMIN"], &["ALL"], &["NET_ADMIN"]);
        check(&["CAP_KILL", "sys_time"], &["ALL"], &["KILL", "SYS_TIME"]);
        let default: Vec<&str> = NAMES.into_iter().filter(|n| DEFAULT.contains(n)).collect();
        check(&[], &[], &default);
        check(
            &["KILL"],
            &["KILL"],
            &default.iter().copied().filter(|n| *n != "KILL").collect::<Vec<_>>(),
        );
        check(&["ALL"], &[], &NAMES);
        let odd = Linux { capabilities_add: vec!["FLY".into()], ..Linux::default() };
        assert!(of(&odd, u64::MAX).unwrap_err().contains("\"FLY\""));
    }
}
