//! From start to end: output, environment, files, exits.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rimward_node_pod::outside::ImageForm;
use rimward_node_pod::runtime::{Mount, QosClass, Runtime, User};

use crate::node::{Node, by_runc, log, until};

#[tokio::test]
async fn what_it_prints_is_in_the_log_and_its_end_is_told() {
    let mut node = Node::new().await;
    let spec = node
        .spec("echo out; echo err >&2; printf 'no end'; echo bye > /dev/termination-log; exit 7");
    let exit = node.run(&spec).await;
    assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (7, None, "Error"));
    assert_eq!(exit.message, "bye\n");
    assert!(exit.finished_at >= exit.started_at);
    let mut lines = log(&spec);
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P no end"]);
    let good = node.spec("exit 0");
    assert_eq!(node.run(&good).await.reason, "Completed");
    node.end().await;
}

#[tokio::test]
async fn it_finds_itself_where_its_pod_says() {
    let mut node = Node::new().await;
    let shared = node.dir.join("volume");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from outside\n").unwrap();
    let mut spec = node.spec(
        "hostname; echo $GREETING $HOME; pwd; id -u; id -G; cat /data/file; echo back > /data/new; \
         cat /single; echo x 2>/dev/null > /single || echo refused; tail -1 /etc/hosts; \
         cat /etc/resolv.conf; ls -d /proc/1 /dev/null /dev/shm; readlink /proc/self/exe; ls /proc | grep -c '^[0-9]'",
    );
    spec.working_dir = "/made/for/it".into();
    spec.user = User { uid: Some(1001), supplemental_gids: vec![77], ..User::default() };
    spec.dns.servers = vec!["10.43.0.10:53".parse().unwrap()];
    std::os::unix::fs::chown(&shared, Some(1001), None).unwrap();
    spec.mounts = vec![
        Mount { host_path: shared.clone(), container_path: "/data".into(), read_only: false },
        Mount { host_path: shared.join("file"), container_path: "/single".into(), read_only: true },
    ];
    let name = spec.id.pod_uid.clone();
    let lines = node.output(&spec).await;
    let expected = [
        name.as_str(),
        "hello /home/web",
        "/made/for/it",
        "1001",
        "1002 77 1003",
        "from outside",
        "from outside",
        "refused",
        &format!("10.42.0.9\t{name}"),
        "nameserver 10.43.0.10",
        "/dev/null",
        "/dev/shm",
        "/proc/1",
        "/bin/busybox",
    ];
    assert_eq!(lines[..expected.len()], expected);
    assert!(lines[expected.len()].parse::<u32>().unwrap() <= 4, "its processes only: {lines:?}");
    assert_eq!(std::fs::read_to_string(shared.join("new")).unwrap(), "back\n");
    node.end().await;
}

#[tokio::test]
async fn what_it_writes_is_its_own_and_a_read_only_root_takes_nothing() {
    let mut node = Node::new().await;
    let spec = node.spec(
        "echo x > /bin/new && rm /bin/ls && test -e /bin/new && test ! -e /bin/ls && echo done",
    );
    assert_eq!(node.output(&spec).await, ["done"]);
    let mut other =
        node.spec("test -e /bin/new || ls -d /bin/ls; echo x 2>/dev/null > /new || echo refused");
    other.linux.read_only_root = true;
    assert_eq!(node.output(&other).await, ["/bin/ls", "refused"]);
    node.end().await;
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let mut node = Node::new().await;
    for (argv, part) in [
        (vec!["nosuch"], "exec: \"nosuch\": executable file not found in $PATH"),
        (vec!["/nosuch"], "exec: \"/nosuch\": stat /nosuch: no such file or directory"),
        (vec!["/bin/not-executable"], "exec: \"/bin/not-executable\": permission denied"),
        (
            vec!["/etc"],
            if by_runc() { "exec: \"/etc\": " } else { "exec: \"/etc\": is a directory" },
        ),
    ] {
        let spec = node.spec_of(&argv);
        let error = node.runtime.start(spec.clone()).await.unwrap_err();
        assert_eq!(error.reason, "RunContainerError", "{error}");
        assert!(error.message.contains(part), "{error}");
        assert!(!node.dir.join("run/oci").join(format!("{}.main.0", spec.id.pod_uid)).exists());
    }
    let nothing = node.runtime.start(node.spec_of(&[])).await.unwrap_err();
    assert_eq!(nothing.to_string(), "CreateContainerError: no command specified");
    let broken = node.dir.join("layer/bin/broken");
    std::fs::write(&broken, [0x7f, b'E', b'L', b'F']).unwrap();
    std::fs::set_permissions(&broken, PermissionsExt::from_mode(0o755)).unwrap();
    let broken = node.spec_of(&["/bin/broken"]);
    match node.runtime.start(broken.clone()).await {
        Err(error) => assert!(error.message.contains("exec format error"), "{error}"),
        // With runc it has started by then.
        Ok(()) => {
            assert!(by_runc());
            assert_ne!(node.exit(&broken.id).await.code, 0);
            assert_eq!(log(&broken), ["stderr F exec /bin/broken: exec format error"]);
        }
    }
    let mut spec = node.spec("exit 0");
    let ImageForm::Linux { user, .. } = &mut spec.image.form else { unreachable!() };
    *user = "ghost".into();
    let error = node.runtime.start(spec.clone()).await.unwrap_err();
    assert_eq!(error.reason, "CreateContainerError");
    assert!(error.message.contains("unable to find user ghost"), "{error}");
    let mut spec = node.spec("exit 0");
    spec.linux.capabilities_add = vec!["FLY".into()];
    assert_eq!(node.runtime.start(spec).await.unwrap_err().reason, "CreateContainerConfigError");
    // And the next one runs as if nothing had been.
    let spec = node.spec("echo well");
    assert_eq!(node.output(&spec).await, ["well"]);
    node.end().await;
}

#[tokio::test]
async fn it_is_asked_to_end_then_made_to() {
    let mut node = Node::new().await;
    let polite =
        node.spec("trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    node.runtime.start(polite.clone()).await.unwrap();
    node.until_logged(&polite, "ready").await;
    node.runtime.stop(&polite.id, Duration::from_secs(30)).await;
    assert_eq!(node.exit(&polite.id).await.code, 3);
    assert_eq!(log(&polite).last().unwrap(), "stdout F asked");
    let mut deaf = node.spec("trap '' TERM QUIT; echo ready; while :; do sleep 0.05; done");
    deaf.linux.stop_signal = "SIGQUIT".into();
    node.runtime.start(deaf.clone()).await.unwrap();
    node.until_logged(&deaf, "ready").await;
    let began = std::time::Instant::now();
    node.runtime.stop(&deaf.id, Duration::from_millis(700)).await;
    let exit = node.exit(&deaf.id).await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(began.elapsed() >= Duration::from_millis(700));
    node.end().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_what_a_pod_shares() {
    let mut node = Node::new().await;
    let first = node.spec("echo x > /dev/shm/note; for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done; sleep 60");
    node.runtime.start(first.clone()).await.unwrap();
    until("three links", async || log(&first).len() == 3).await;
    let mut second = node
        .spec("cat /dev/shm/note; for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done");
    second.id = first.id.clone();
    second.id.container = "second".into();
    second.linux.qos = QosClass::BestEffort;
    let lines = node.output(&second).await;
    let links: Vec<String> =
        log(&first).iter().map(|l| l.strip_prefix("stdout F ").unwrap().to_owned()).collect();
    assert_eq!(lines[0], "x");
    assert_eq!(lines[1..3], links[..2]);
    assert_ne!(lines[3], links[2], "processes are not shared");
    node.runtime.stop(&first.id, Duration::ZERO).await;
    node.exit(&first.id).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_start_at_once_share_too() {
    let mut node = Node::new().await;
    for _ in 0..5 {
        let first = node.spec("readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts");
        let mut second = first.clone();
        second.id.container = "second".into();
        second.log_path = first.log_path.with_file_name("second.log");
        let (one, two) =
            tokio::join!(node.runtime.start(first.clone()), node.runtime.start(second.clone()));
        one.unwrap();
        two.unwrap();
        node.exit(&first.id).await;
        node.exit(&second.id).await;
        assert_eq!(log(&first), log(&second));
        assert_eq!(log(&first).len(), 2);
    }
    node.end().await;
}

#[tokio::test]
async fn a_log_is_whole_and_rotates() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = crate::node::config(dir.path());
    (config.log_bytes_max, config.log_files_max) = (256 << 10, 1000);
    let mut node = Node::with(config).await;
    let half = "seq 1 50000; while [ ! -e /tmp/go ]; do sleep 0.05; done; seq 50001 100000";
    let spec = node.spec(half);
    node.runtime.start(spec.clone()).await.unwrap();
    let dir = spec.log_path.parent().unwrap();
    until("it is rotated", async || std::fs::read_dir(dir).unwrap().count() > 1).await;
    let go = crate::commands::request(&["touch", "/tmp/go"], false);
    assert_eq!(crate::commands::run(&node, &spec.id, go, "").await.0.code, 0);
    assert_eq!(node.exit(&spec.id).await.code, 0);
    let lines = log(&spec);
    assert_eq!(lines.len(), 100_000);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line.strip_prefix("stdout F "), Some((index + 1).to_string().as_str()));
    }
    node.end().await;
}
