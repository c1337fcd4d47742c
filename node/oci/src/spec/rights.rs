//! What a container may do, as it is said to a low-level runtime that sees to it: runc.

use serde_json::{Value, json};

use crate::capabilities;
use crate::runtime_default::{self, Masked};
use crate::syscalls;
use crate::user_ids::IDS_OF_POD;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rights {
    /// Bits by capability number.
    pub capabilities: u64,
    /// The specification's `linux.seccomp`.
    pub seccomp: Option<Value>,
    /// The machine's id of the pod's user 0, if the pod has users of its own: runc before 1.2 does not ask
    /// their namespace, which is there, for it.
    pub first_user: Option<u32>,
    /// Open files at most, soft and hard: a runc that was built with Go 1.19 raises the one to the other, unless it
    /// is told.
    pub files: (u64, u64),
}

impl Rights {
    /// None is inheritable or ambient: a user who is not root has none, as with other runtimes.
    pub fn add_to(&self, config: &mut Value) {
        let names = capabilities::names(self.capabilities);
        let names: Vec<String> = names.map(|name| format!("CAP_{name}")).collect();
        config["process"]["capabilities"] =
            json!({"bounding": names, "effective": names, "permitted": names});
        let (soft, hard) = self.files;
        config["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]);
        if let Some(seccomp) = &self.seccomp {
            config["linux"]["seccomp"] = seccomp.clone();
        }
        if let Some(first) = self.first_user {
            let map = json!([{"containerID": 0, "hostID": first, "size": IDS_OF_POD}]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
        }
    }
}

/// The runtime's own profile. runc adds ENOSYS for calls that are newer than all it names.
pub(crate) fn runtime_default(capabilities: u64) -> Value {
    let allowed = runtime_default::allowed(capabilities);
    let name = |call: i64| syscalls::name(call).expect("what is allowed has a name");
    let (always, sometimes): (Vec<_>, Vec<_>) =
        allowed.iter().partition(|(_, cases)| cases.is_empty());
    let names: Vec<&str> = always.iter().map(|(call, _)| name(**call)).collect();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    // A rule each: of several cases any will do.
    for (call, cases) in sometimes {
        rules.extend(cases.iter().map(
            |case| json!({"names": [name(*call)], "action": "SCMP_ACT_ALLOW", "args": [test(case)]}),
        ));
    }
    if !allowed.contains_key(&libc::SYS_clone3) {
        rules.push(
            json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
        );
    }
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::EPERM, "syscalls": rules})
}

fn test(case: &Masked) -> Value {
    let Masked { argument, mask, value } = case;
    json!({"index": argument, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": value})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_in_the_specs_words() {
        let rights = Rights {
            capabilities: capabilities::bit("CHOWN").unwrap() | capabilities::bit("KILL").unwrap(),
            seccomp: Some(json!({"defaultAction": "SCMP_ACT_LOG"})),
            first_user: Some(131_072),
            files: (1024, 4096),
        };
        let mut config = json!({"process": {"args": ["sh"]}, "linux": {}});
        rights.add_to(&mut config);
        let names = json!(["CAP_CHOWN", "CAP_KILL"]);
        let map = json!([{"containerID": 0, "hostID": 131_072, "size": 65_536}]);
        let expected = json!({
            "process": {"args": ["sh"],
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
                "capabilities": {"bounding": names, "effective": names, "permitted": names}},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_LOG"}, "uidMappings": map, "gidMappings": map},
        });
        assert_eq!(config, expected);
        let none = Rights { capabilities: 0, seccomp: None, first_user: None, files: (1, 1) };
        let mut config = json!({"process": {}, "linux": {}});
        none.add_to(&mut config);
        assert_eq!(config["process"]["capabilities"]["bounding"], json!([]));
        assert_eq!(config["linux"], json!({}));
    }

    #[test]
    fn the_default_profile_is_the_same_list() {
        let rules = |capabilities: u64, call: &str| -> Vec<Value> {
            let profile = runtime_default(capabilities);
            let all = profile["syscalls"].as_array().unwrap().clone();
            let names = |rule: &Value| rule["names"].as_array().unwrap().contains(&json!(call));
            all.into_iter().filter(names).collect()
        };
        let actions = |found: Vec<Value>| -> Vec<String> {
            found.iter().map(|rule| rule["action"].as_str().unwrap().to_owned()).collect()
        };
        let sys_admin = capabilities::bit("SYS_ADMIN").unwrap();
        for (capabilities, call, expected) in [
            (0, "read", &["SCMP_ACT_ALLOW"][..]),
            (0, "mount", &[]),
            (sys_admin, "mount", &["SCMP_ACT_ALLOW"]),
            (0, "clone3", &["SCMP_ACT_ERRNO"]),
            (sys_admin, "clone3", &["SCMP_ACT_ALLOW"]),
            (0, "socket", &["SCMP_ACT_ALLOW"; 6]),
            (0, "personality", &["SCMP_ACT_ALLOW"; 5]),
        ] {
            assert_eq!(actions(rules(capabilities, call)), expected, "{call}");
        }
        assert_eq!(rules(0, "clone")[0]["args"][0]["valueTwo"], 0);
        assert!(rules(sys_admin, "clone")[0].get("args").is_none());
    }
}
