use serde_json::json;

use super::policy::Version;
use super::*;

fn at(level: Level, version: Version) -> LevelVersion {
    LevelVersion { level, version }
}

const RESTRICTED: LevelVersion =
    LevelVersion { level: Level::Restricted, version: Version::Latest };
const BASELINE: LevelVersion = LevelVersion { level: Level::Baseline, version: Version::Latest };

/// A pod that every level lets in, changed by a merge patch.
fn pod(change: Value) -> Value {
    let pod = json!({
        "metadata": { "name": "p" },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "a", "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } }],
        },
    });
    let change = change.to_string();
    rimward_control_schema::patch::merge_patch(&pod, change.as_bytes()).expect("a merge patch")
}

#[track_caller]
fn check(policy: LevelVersion, pod: Value, expected: &str) {
    assert_eq!(details(&checks::evaluate(policy, &pod)), expected);
}

#[test]
fn what_each_level_forbids() {
    let plain = json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }] } });
    check(BASELINE, plain.clone(), "");
    check(
        RESTRICTED,
        plain,
        r#"allowPrivilegeEscalation != false (container "a" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "a" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "a" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "a" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
    );
    check(RESTRICTED, pod(json!({})), "");
    check(at(Level::Privileged, Version::Latest), pod(json!({ "spec": { "hostPID": true } })), "");
    check(
        BASELINE,
        pod(json!({ "spec": { "hostNetwork": true, "hostPID": true } })),
        "host namespaces (hostNetwork=true, hostPID=true)",
    );
    let volumes = json!({ "spec": { "volumes": [{ "name": "v", "hostPath": { "path": "/" } }, { "name": "w", "nfs": {} }] } });
    check(BASELINE, pod(volumes.clone()), r#"hostPath volumes (volume "v")"#);
    check(
        RESTRICTED,
        pod(volumes),
        r#"restricted volume types (volumes "v", "w" use restricted volume types "hostPath", "nfs")"#,
    );
    let ports = json!([{ "name": "a", "ports": [{ "hostPort": 80 }] }, { "name": "b", "ports": [{ "hostPort": 443 }] }]);
    check(
        BASELINE,
        pod(json!({ "spec": { "containers": ports } })),
        r#"hostPort (containers "a", "b" use hostPorts 443, 80)"#,
    );
    let container = |context: Value| {
        pod(json!({ "spec": { "containers": [{ "name": "a", "securityContext": context }] } }))
    };
    check(
        BASELINE,
        container(json!({ "privileged": true, "capabilities": { "add": ["NET_ADMIN", "CHOWN"] } })),
        r#"non-default capabilities (container "a" must not include "NET_ADMIN" in securityContext.capabilities.add), privileged (container "a" must not set securityContext.privileged=true)"#,
    );
    check(
        BASELINE,
        container(
            json!({ "procMount": "Unmasked", "seLinuxOptions": { "type": "x", "user": "u" } }),
        ),
        r#"procMount (container "a" must not set securityContext.procMount to "Unmasked"), seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "x"; user may not be set)"#,
    );
    check(
        BASELINE,
        pod(
            json!({ "spec": { "securityContext": { "seccompProfile": { "type": "Unconfined" }, "appArmorProfile": { "type": "Unconfined" }, "sysctls": [{ "name": "kernel.msgmax" }] } } }),
        ),
        r#"forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined"), seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined"), forbidden sysctls (kernel.msgmax)"#,
    );
    check(
        RESTRICTED,
        pod(json!({ "spec": { "securityContext": { "runAsNonRoot": false, "runAsUser": 0 } } })),
        "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0)",
    );
    check(
        BASELINE,
        pod(
            json!({ "spec": { "containers": [{ "name": "a", "livenessProbe": { "httpGet": { "host": "h" } } }] } }),
        ),
        r#"probe or lifecycle host (container "a" uses probe or lifecycle host "h")"#,
    );
}

#[test]
fn versions() {
    let windows =
        pod(json!({ "spec": { "os": { "name": "windows" }, "containers": [{ "name": "a" }] } }));
    check(RESTRICTED, windows.clone(), "");
    let old = checks::evaluate(at(Level::Restricted, Version::Minor(24)), &windows);
    let reasons: Vec<&str> = old.iter().map(|v| v.reason.as_str()).collect();
    assert_eq!(reasons, ["allowPrivilegeEscalation != false", "unrestricted capabilities"]);
    let engine = pod(
        json!({ "spec": { "securityContext": { "seLinuxOptions": { "type": "container_engine_t" } } } }),
    );
    check(BASELINE, engine.clone(), "");
    assert_eq!(checks::evaluate(at(Level::Baseline, Version::Minor(30)), &engine).len(), 1);
}

#[test]
fn labels() {
    #[track_caller]
    fn check(labels: Value, expected: &str, wrong: &[&str]) {
        let read = |label: &str| {
            let short = label.strip_prefix("pod-security.kubernetes.io/")?;
            labels.get(short)?.as_str().map(str::to_owned)
        };
        let (p, errors) = Policy::of(read);
        assert_eq!(format!("{} {} {}", p.enforce, p.audit, p.warn), expected);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, wrong);
    }
    check(json!({}), "privileged:latest privileged:latest privileged:latest", &[]);
    check(
        json!({ "enforce": "baseline", "enforce-version": "v1.25" }),
        "baseline:v1.25 privileged:latest baseline:v1.25",
        &[],
    );
    check(
        json!({ "enforce": "baseline", "warn": "privileged", "audit": "restricted" }),
        "baseline:latest restricted:latest privileged:latest",
        &[],
    );
    check(
        json!({ "enforce": "high", "warn-version": "1.25" }),
        "restricted:latest privileged:latest privileged:latest",
        &[
            r#"metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "high": must be one of privileged, baseline, restricted"#,
            r#"metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: "1.25": must be "latest" or "v1.x""#,
        ],
    );
}

#[test]
fn what_is_told_of_pods_that_are_there() {
    let host =
        |name: &str| pod(json!({ "metadata": { "name": name }, "spec": { "hostPID": true } }));
    let pods = vec![host("b"), pod(json!({})), host("a"), host("c")];
    assert_eq!(
        existing("ns", RESTRICTED, pods),
        [
            "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"restricted:latest\"",
            "a (and 2 other pods): host namespaces",
        ]
    );
    assert!(existing("ns", RESTRICTED, vec![pod(json!({}))]).is_empty());
}
