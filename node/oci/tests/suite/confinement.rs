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
    let mut local = node.spec("exit 0");
    local.linux.seccomp = Seccomp::Localhost("mine.json".into());
    let error = node.runtime.start(local).await.unwrap_err();
    assert!(error.message.contains("not started unconfined"), "{error}");
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
