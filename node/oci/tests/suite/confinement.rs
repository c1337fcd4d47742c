//! What a container may not do.

use rimward_node_pod::runtime::{ExecRequest, Runtime, Seccomp, User};

use crate::commands::run;
use crate::node::Node;

const STATUS: &str =
    "grep -E '^(CapEff|CapBnd|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";

#[tokio::test]
async fn capabilities_are_what_the_pod_says() {
    let mut node = Node::new().await;
    let default = node.spec(STATUS);
    let lines = node.output(&default).await;
    let hex = "00000000a80425fb";
    assert_eq!(
        lines,
        [
            format!("CapPrm:{hex}"),
            format!("CapEff:{hex}"),
            format!("CapBnd:{hex}"),
            "NoNewPrivs:0".into(),
            "Seccomp:0".into()
        ]
    );
    let mut dropped = node.spec(&format!("{STATUS}; chown 5 /tmp 2>/dev/null || echo refused"));
    dropped.linux.capabilities_drop = vec!["ALL".into()];
    dropped.linux.capabilities_add = vec!["NET_BIND_SERVICE".into()];
    dropped.linux.no_new_privileges = true;
    let lines = node.output(&dropped).await;
    assert_eq!(
        lines[1..],
        [
            "CapEff:0000000000000400",
            "CapBnd:0000000000000400",
            "NoNewPrivs:1",
            "Seccomp:0",
            "refused"
        ]
    );
    let mut user = node.spec(STATUS);
    user.user = User { uid: Some(1001), ..User::default() };
    assert_eq!(node.output(&user).await[1], "CapEff:0000000000000000");
    node.end().await;
}

#[tokio::test]
async fn the_default_profile_limits_system_calls_of_all_that_run_in_it() {
    let mut node = Node::new().await;
    let try_it = "unshare -U true 2>/dev/null && echo made || echo refused";
    let free = node.spec(try_it);
    assert_eq!(node.output(&free).await, ["made"]);
    for no_new_privileges in [false, true] {
        let mut spec = node.spec(&format!("{try_it}; {STATUS} | tail -2; sleep 60"));
        spec.linux.seccomp = Seccomp::RuntimeDefault;
        spec.linux.no_new_privileges = no_new_privileges;
        node.runtime.start(spec.clone()).await.unwrap();
        let nnp = format!("NoNewPrivs:{}", u8::from(no_new_privileges));
        node.until_logged(&spec, "Seccomp:2").await;
        let log = crate::node::log(&spec);
        assert_eq!(log, ["stdout F refused", &format!("stdout F {nnp}"), "stdout F Seccomp:2"]);
        let request = ExecRequest {
            argv: vec!["sh".into(), "-c".into(), format!("{try_it}; {STATUS} | tail -2")],
            tty: false,
        };
        let (exit, out, _) = run(&node, &spec.id, request, "").await;
        assert_eq!((exit.code, out), (0, format!("refused\n{nnp}\nSeccomp:2\n")));
        node.runtime.stop(&spec.id, std::time::Duration::ZERO).await;
        node.exit(&spec.id).await;
    }
    node.end().await;
}

#[tokio::test]
async fn an_operators_profile_limits_all_that_runs_in_the_container() {
    let mut node = Node::new().await;
    let profiles = node.dir.join("seccomp/team");
    std::fs::create_dir_all(&profiles).unwrap();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO",
         "args": [{"index": 1, "value": 511, "op": "SCMP_CMP_EQ"}]},
        {"names": ["fchmodat"], "action": "SCMP_ACT_ERRNO",
         "args": [{"index": 2, "value": 511, "op": "SCMP_CMP_EQ"}]}]}"#;
    std::fs::write(profiles.join("audit.json"), profile).unwrap();
    let try_it = "mkdir /tmp/x 2>&1; chmod 777 /tmp/y 2>/dev/null || echo refused; chmod 700 /tmp/y && echo changed";
    let mut spec = node.spec(&format!("touch /tmp/y; {try_it}; {STATUS} | tail -1; sleep 60"));
    spec.linux.seccomp = Seccomp::Localhost("team/audit.json".into());
    spec.user = User { uid: Some(1001), ..User::default() };
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "Seccomp:2").await;
    let said =
        ["mkdir: can't create directory '/tmp/x': No space left on device", "refused", "changed"];
    let log = crate::node::log(&spec);
    assert_eq!(log[..3], said.map(|line| format!("stdout F {line}")));
    // What the file says by now is another matter.
    std::fs::remove_file(profiles.join("audit.json")).unwrap();
    let request =
        ExecRequest { argv: ["sh", "-c", try_it].map(str::to_owned).to_vec(), tty: false };
    let (exit, out, _) = run(&node, &spec.id, request, "").await;
    assert_eq!((exit.code, out), (0, said.join("\n") + "\n"));
    node.runtime.stop(&spec.id, std::time::Duration::ZERO).await;
    node.exit(&spec.id).await;

    std::fs::write(profiles.join("bad.json"), r#"{"defaultAction": "SCMP_ACT_DENY"}"#).unwrap();
    for (name, why) in [
        ("team/none.json", "team/none.json: no such file or directory"),
        ("team/bad.json", "defaultAction: unknown action \"SCMP_ACT_DENY\""),
        ("../pods", "must be a path below"),
    ] {
        let mut spec = node.spec("exit 0");
        spec.linux.seccomp = Seccomp::Localhost(name.into());
        let error = node.runtime.start(spec).await.unwrap_err();
        assert_eq!(error.reason, "CreateContainerError");
        assert!(
            error.message.starts_with("cannot load seccomp profile") && error.message.contains(why),
            "{error}"
        );
    }
    node.end().await;
}

#[tokio::test]
async fn the_machine_is_out_of_reach() {
    let mut node = Node::new().await;
    let spec = node.spec(
        "wc -c < /proc/interrupts; echo 1 2>/dev/null > /proc/sys/kernel/hostname || echo refused; \
         mount -t tmpfs none /tmp 2>/dev/null || echo refused; mknod /tmp/disk b 254 0 && cat /tmp/disk 2>/dev/null || echo refused; \
         ls /sys/firmware | wc -l; kill -9 1; echo alive; (echo x > /proc/self/exe) 2>/dev/null || echo refused",
    );
    assert_eq!(
        node.output(&spec).await,
        ["0", "refused", "refused", "refused", "0", "alive", "refused"]
    );
    let mut privileged =
        node.spec("mount -t tmpfs none /tmp && echo mounted; test -c /dev/kmsg && echo devices");
    privileged.linux.privileged = true;
    assert_eq!(node.output(&privileged).await, ["mounted", "devices"]);
    node.end().await;
}

#[tokio::test]
async fn devices_of_the_machine_are_not_a_containers() {
    let mut node = Node::new().await;
    // One of the test's own: those that the machine began with may be out of reach for root too.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let attached = Attached(losetup(&["--find", "--show", file.to_str().unwrap()]));
    let name = attached.0.trim_start_matches("/dev/");
    let number = std::fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap();
    let disk = number.trim().replace(':', " ");
    let script = format!(
        "mknod /tmp/disk b {disk} && echo made; \
         head -c 1 /tmp/disk 2>&1 >/dev/null | grep -o 'Operation not permitted'; \
         mknod /tmp/memory c 1 1 && head -c 1 /tmp/memory 2>&1 >/dev/null | grep -o 'Operation not permitted'; \
         head -c 3 /dev/zero | wc -c; echo x > /dev/null && head -c 1 /dev/urandom | wc -c"
    );
    let spec = node.spec(&script);
    let lines = node.output(&spec).await;
    let refused = "Operation not permitted";
    assert_eq!(lines, ["made", refused, refused, "3", "1"]);
    // Commands in it are no less confined.
    let mut spec = node.spec("sleep 60");
    node.runtime.start(spec.clone()).await.unwrap();
    let script = format!("mknod /tmp/disk b {disk}; head -c 1 /tmp/disk");
    let request = ExecRequest { argv: vec!["sh".into(), "-c".into(), script.clone()], tty: false };
    let (exit, out, err) = run(&node, &spec.id, request, "").await;
    assert!(exit.code != 0 && out.is_empty() && err.contains(refused), "{exit:?} {out} {err}");
    node.runtime.stop(&spec.id, std::time::Duration::ZERO).await;
    node.exit(&spec.id).await;
    // A privileged one has them all.
    spec = node.spec(&format!("{script} | wc -c"));
    spec.linux.privileged = true;
    assert_eq!(node.output(&spec).await, ["1"]);
    node.end().await;
}

/// A loop device, detached when dropped.
struct Attached(String);

impl Drop for Attached {
    fn drop(&mut self) {
        losetup(&["--detach", &self.0]);
    }
}

fn losetup(args: &[&str]) -> String {
    let output = std::process::Command::new("losetup").args(args).output().unwrap();
    assert!(output.status.success(), "losetup {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
