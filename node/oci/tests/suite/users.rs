//! Pods whose users are none of the machine's.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rimward_node_oci::{Config, IDS_OF_POD, UserIds};
use rimward_node_pod::runtime::{ContainerSpec, Mount, Runtime};

use crate::commands::{request, run};
use crate::node::{Node, config};
use crate::sharing::beside;

const FIRST: u32 = 1_000_000;

fn with_ids(dir: &Path, ranges: u32) -> Config {
    let user_ids = Ok(UserIds { first: FIRST, count: ranges * IDS_OF_POD });
    Config { user_ids, ..config(dir) }
}

fn of_own_users(node: &Node, script: &str) -> ContainerSpec {
    let mut spec = node.spec(script);
    spec.linux.own_users = true;
    spec
}

fn volume(dir: &Path, place: &str) -> Mount {
    Mount { host_path: dir.into(), container_path: place.into(), read_only: false }
}

/// The user and group that a file belongs to, as the machine sees it.
fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[tokio::test]
async fn root_of_the_pod_is_nobody_of_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::with(with_ids(dir.path(), 4)).await;
    let disk = dir.path().join("disk");
    let memory = dir.path().join("memory");
    for dir in [&disk, &memory] {
        std::fs::create_dir(dir).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
    }
    std::fs::write(disk.join("secret"), "of root").unwrap();
    std::fs::set_permissions(disk.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    rustix::mount::mount("t", &memory, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    // Not in the node's directory, and guarded: what the machine's owner has beside.
    let guarded = tempfile::tempdir().unwrap();
    std::fs::write(guarded.path().join("file"), "x").unwrap();

    let mut spec = of_own_users(
        &node,
        "cat /disk/secret; echo; id -u; id -g; stat -c '%u %g %n' / /bin /etc/hosts /dev/shm /disk; \
         echo new > /disk/new; echo new > /memory/new; chown 1001:1002 /memory/new; echo new > /root-file; \
         rm -r /home; mkdir /home; hostname; cat /guarded; echo; ls /sys/class/net; \
         mount -t tmpfs t /tmp 2>/dev/null || echo no mounts; echo ready; sleep 60",
    );
    spec.working_dir = "/made/here".into();
    spec.mounts = vec![
        volume(&disk, "/disk"),
        volume(&memory, "/memory"),
        volume(&guarded.path().join("file"), "/guarded"),
    ];
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    let printed: Vec<String> = crate::node::log(&spec)
        .iter()
        .map(|line| line.trim_start_matches("stdout F ").trim_start_matches("stderr F ").to_owned())
        .collect();
    let name = spec.id.pod_uid.clone();
    let expected = [
        "of root",
        "0",
        "0",
        "0 0 /",
        "0 0 /bin",
        "0 0 /etc/hosts",
        "0 0 /dev/shm",
        "0 0 /disk",
        &name,
        "x",
        "lo",
        "no mounts",
        "ready",
    ];
    assert_eq!(printed, expected);
    // As the machine sees it: processes are of the pod's range, files of volumes as if there were none.
    let run_dir = dir.path().join("run/oci").join(format!("{name}.main.0"));
    let started = std::fs::read_to_string(run_dir.join("started.json")).unwrap();
    let pid = serde_json::from_str::<serde_json::Value>(&started).unwrap()["pid"].clone();
    assert_eq!(owner(format!("/proc/{pid}")), (FIRST, FIRST));
    assert_eq!(
        std::fs::read_to_string(format!("/proc/{pid}/uid_map"))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["0", "1000000", "65536"]
    );
    assert_eq!(owner(disk.join("new")), (0, 0));
    assert_eq!(owner(memory.join("new")), (1001, 1002));
    assert_eq!(owner(run_dir.join("upper/root-file")), (FIRST, FIRST));
    assert_eq!(owner(run_dir.join("upper/made/here")), (FIRST, FIRST));
    let link = |of: &str, kind: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
    let pid = pid.to_string();
    for kind in ["user", "ipc", "uts", "net", "pid", "mnt", "cgroup"] {
        assert_ne!(link(&pid, kind), link("self", kind), "{kind}");
    }
    // Commands are in the same namespace, with as few rights over the machine.
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; id -G; kill -0 1 && echo may";
    let (exit, out, err) = run(&node, &spec.id, request(&["sh", "-c", script], false), "").await;
    assert_eq!((exit.code, err.as_str()), (0, ""));
    assert_eq!(out, "0\n 0 1000000 65536\n0\nmay\n");
    node.runtime.stop(&spec.id, Duration::ZERO).await;
    node.exit(&spec.id).await;
    node.runtime.remove(&spec.id).await;
    assert_eq!(std::fs::read_to_string(disk.join("secret")).unwrap(), "of root", "volumes stay");
    assert_eq!(std::fs::read_to_string(guarded.path().join("file")).unwrap(), "x");
    rustix::mount::unmount(&memory, rustix::mount::UnmountFlags::DETACH).unwrap();
    node.end().await;
}

#[tokio::test]
async fn ranges_are_one_pods_until_it_is_gone_over_agents() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::with(with_ids(dir.path(), 2)).await;
    let map = "tr -s ' ' < /proc/self/uid_map; echo ready; sleep 60";
    let (one, two) = (of_own_users(&node, map), of_own_users(&node, map));
    for (spec, line) in [(&one, " 0 1000000 65536"), (&two, " 0 1065536 65536")] {
        node.runtime.start(spec.clone()).await.unwrap();
        node.until_logged(spec, "ready").await;
        assert_eq!(crate::node::log(spec)[0], format!("stdout F {line}"));
    }
    drop(node);

    let mut node = Node::with(with_ids(dir.path(), 2)).await;
    let third = of_own_users(&node, map);
    let error = node.runtime.start(third.clone()).await.unwrap_err();
    assert_eq!(error.reason, "CreateContainerError");
    assert!(error.message.contains("all 2 ranges of 65536 user ids from 1000000 on"), "{error}");
    // Another container of a pod that has users is one of them, and sees its processes if they are shared.
    let (exit, out, _) = run(&node, &one.id, request(&["id", "-u"], false), "").await;
    assert_eq!((exit.code, out.as_str()), (0, "0\n"));
    let again = beside(&one, "again", "tr -s ' ' < /proc/self/uid_map");
    assert_eq!(node.output(&again).await, [" 0 1000000 65536"]);
    node.runtime.stop(&one.id, Duration::ZERO).await;
    node.exit(&one.id).await;
    for spec in [&one, &again] {
        node.runtime.remove(&spec.id).await;
    }
    node.runtime.release(&one.id.pod_uid).await;
    let mut third = third;
    third.argv[2] = "tr -s ' ' < /proc/self/uid_map".into();
    assert_eq!(node.output(&third).await, [" 0 1000000 65536"], "it is free again");
    node.runtime.stop(&two.id, Duration::ZERO).await;
    node.exit(&two.id).await;
    node.end().await;
}

#[tokio::test]
async fn users_share_processes_and_have_rights_in_their_own_namespaces_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::with(with_ids(dir.path(), 4)).await;
    let mut main = of_own_users(&node, "echo ready; sleep 60");
    main.linux.share_processes = true;
    main.linux.sysctls = vec![("net.ipv4.ip_unprivileged_port_start".into(), "80".into())];
    node.runtime.start(main.clone()).await.unwrap();
    node.until_logged(&main, "ready").await;
    let mut other = beside(
        &main,
        "other",
        "head -1 /proc/1/status; cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '6[0]'; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname own && hostname; \
         ip link set lo up && ip link show lo | grep -c UP; \
         date -s 1@1 2>/dev/null || echo no clock; \
         mknod /tmp/sda b 8 0 2>/dev/null || echo no devices; \
         (echo 1 > /proc/sys/vm/drop_caches) 2>/dev/null || echo no vm",
    );
    // Everything that there is to be had.
    other.linux.privileged = true;
    let lines = node.output(&other).await;
    let expected = ["Name:\tpause", "1", "80", "own", "1", "no clock", "no devices", "no vm"];
    assert_eq!(lines, expected);
    let mut long = beside(&main, "long", "echo ready; sleep 60");
    long.user.uid = Some(1001);
    long.linux.capabilities_drop = vec!["ALL".into()];
    node.runtime.start(long.clone()).await.unwrap();
    node.until_logged(&long, "ready").await;
    let script = "tr -s ' ' < /proc/self/uid_map; grep -c 'Cap...:.0000000000000000' /proc/self/status; id -u; id -G";
    let (_, out, err) = run(&node, &long.id, request(&["sh", "-c", script], true), "").await;
    assert_eq!(
        (out.as_str(), err.as_str()),
        (" 0 1000000 65536\r\n5\r\n1001\r\n1002 1003\r\n", "")
    );
    node.runtime.stop(&long.id, Duration::ZERO).await;
    node.exit(&long.id).await;
    let mut user = beside(&main, "user", "id -u; id -g; id -G; echo x > /dev/termination-log");
    user.user.uid = Some(1001);
    user.user.supplemental_gids = vec![70];
    user.linux.no_new_privileges = true;
    user.linux.seccomp = rimward_node_pod::runtime::Seccomp::RuntimeDefault;
    assert_eq!(node.output(&user).await, ["1001", "1002", "1002 70 1003"]);
    let mut far = beside(&main, "far", "true");
    far.user.uid = Some(70_000);
    let error = node.runtime.start(far).await.unwrap_err();
    assert!(error.message.contains("user id 70000 is not in the pod's user namespace"), "{error}");
    node.runtime.stop(&main.id, Duration::ZERO).await;
    node.exit(&main.id).await;
    node.end().await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_mapped_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::with(with_ids(dir.path(), 2)).await;
    let mut spec = of_own_users(&node, "true");
    spec.mounts = vec![volume(Path::new("/proc"), "/machine")];
    let error = node.runtime.start(spec).await.unwrap_err();
    assert_eq!(error.reason, "CreateContainerError");
    assert!(error.message.starts_with("failed to map the ids of volume /proc: "), "{error}");

    // An overlay is mounted anew of its layers: they are the pod's as an image's are.
    let mut node = node;
    let image = dir.path().join("image");
    std::fs::create_dir(&image).unwrap();
    let lower = dir.path().join("layer");
    let options = std::ffi::CString::new(format!("lowerdir={0}/etc:{0}/bin", lower.display()));
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("image", &image, "overlay", flags, options.unwrap().as_c_str()).unwrap();
    let mut spec = of_own_users(&node, "head -1 /image/group; stat -c %u /image/group");
    spec.mounts = vec![Mount { read_only: true, ..volume(&image, "/image") }];
    assert_eq!(node.output(&spec).await, ["root:x:0:", "0"]);
    rustix::mount::unmount(&image, rustix::mount::UnmountFlags::DETACH).unwrap();
    node.end().await;
}
