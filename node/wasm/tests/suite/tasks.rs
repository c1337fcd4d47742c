use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rimward_node_pod::runtime::{Mount, Runtime};

use crate::node::{Node, address, free_port, get, log, until};

#[tokio::test(flavor = "multi_thread")]
async fn arguments_environment_and_output() {
    let mut node = Node::new().await;
    for guest in ["args-rust-p2.wasm", "args-c-zig.wasm"] {
        let mut spec = node.spec(guest);
        spec.argv = vec!["prog".into(), "two words".into()];
        spec.env = vec![("A".into(), "1".into()), ("B".into(), "x=y".into())];
        let exit = node.run(&spec).await;
        assert_eq!((exit.code, exit.reason.as_str(), exit.message.as_str()), (0, "Completed", ""));
        let lines = log(&spec);
        for line in ["arg[0]=prog", "arg[1]=two words", "env A=1", "env B=x=y"] {
            assert!(
                lines.contains(&format!("stdout F {line}")),
                "{guest}: {line} is missing in {lines:?}"
            );
        }
        assert_eq!(guest.contains("rust"), lines.contains(&"stderr F to stderr".to_owned()));
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_exact() {
    let mut node = Node::new().await;
    for (guest, wanted, got) in [
        ("exitc-rust-p2.wasm", 0, 0),
        ("exitc-rust-p2.wasm", 42, 42),
        ("args-c-zig.wasm", 7, 7),
        ("args-c-zig.wasm", 255, 255),
        // std's exit in WASI 0.2 has but success and failure.
        ("args-rust-p2.wasm", 9, 1),
    ] {
        let mut spec = node.spec(guest);
        spec.env = vec![("EXIT_CODE".into(), wanted.to_string())];
        let exit = node.run(&spec).await;
        assert_eq!(exit.code, got, "{guest} {wanted}: {exit:?}");
        assert_eq!(exit.reason, if got == 0 { "Completed" } else { "Error" });
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_ends_a_task_as_oomkilled() {
    let mut node = Node::new().await;
    let mut spec = node.spec("alloc-rust-p2.wasm");
    spec.argv.push("8".into());
    spec.resources.memory_limit_bytes = Some(32 << 20);
    assert_eq!(node.run(&spec).await.code, 0);
    assert_eq!(log(&spec), ["stdout F held 8 MiB"]);

    let mut spec = node.spec("alloc-rust-p2.wasm");
    spec.argv.push("64".into());
    spec.resources.memory_limit_bytes = Some(32 << 20);
    let exit = node.run(&spec).await;
    assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (137, Some(9), "OOMKilled"));
    assert!(exit.message.contains("33554432"), "{}", exit.message);

    let mut spec = node.spec("alloc-rust-p2.wasm");
    spec.resources.memory_limit_bytes = Some(1000);
    let error = node.runtime.start(spec).await.unwrap_err();
    assert!(error.message.contains("does not fit its memory limit"), "{error}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_told_with_its_place() {
    let mut node = Node::new().await;
    let module = r#"(module (func $deep unreachable) (func (export "_start") call $deep))"#;
    let file = node.dir.join("trap.wasm");
    std::fs::write(&file, wat::parse_str(module).unwrap()).unwrap();
    let spec = node.spec_of("trap", &file, "sha256:trap");
    let exit = node.run(&spec).await;
    assert_eq!((exit.code, exit.reason.as_str()), (134, "Error"));
    assert!(
        exit.message.contains("unreachable") && exit.message.contains("deep"),
        "{}",
        exit.message
    );
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_task_stops_at_once() {
    let mut node = Node::new().await;
    let mut spec = node.spec("burn-rust-p2.wasm");
    spec.resources.cpu_limit_millis = Some(10);
    node.runtime.start(spec.clone()).await.unwrap();
    until("it has used up its first period", async || {
        node.runtime.usage(&spec.id).await.unwrap().cpu_nanos > 1_000_000
    })
    .await;
    let start = Instant::now();
    node.runtime.stop(&spec.id, Duration::from_secs(30)).await;
    let exit = node.exit(&spec.id).await;
    assert_eq!((exit.code, exit.signal), (143, Some(15)));
    assert!(start.elapsed() < Duration::from_secs(5));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_answer_while_tasks_burn() {
    let node = Node::new().await;
    for _ in 0..4 {
        node.runtime.start(node.spec("burn-rust-p2.wasm")).await.unwrap();
    }
    let spec = node.spec("http-wat-p2.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    for _ in 0..20 {
        assert!(get(address(&spec)).await.contains("hello from wat"));
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_sockets_has_a_host_and_its_address() {
    let mut node = Node::new().await;
    // The guest binds 127.0.0.1: its pod's loopback is its address.
    for host in ["127.0.0.1", "0.0.0.0"] {
        let mut spec = node.spec("echo-rust-p2.wasm");
        let port = free_port(spec.bind_ip);
        spec.argv.push(format!("{host}:{port}"));
        node.runtime.start(spec.clone()).await.unwrap();
        let to = SocketAddr::new(spec.bind_ip, port);
        until("it listens", async || TcpStream::connect(to).is_ok()).await;
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The guest serves one connection at a time; those of the wait are closed.
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
    }
    let mut spec = node.spec("echo-rust-p2.wasm");
    spec.argv.push("192.0.2.1:7000".into());
    assert_ne!(node.run(&spec).await.code, 0, "another's address is not for it to bind");
    assert!(node.runtime.host_pids().await.len() >= 2, "each has a host of its own");
    node.end().await;
}

/// Reads /data/in, writes /data/out; in WAT, so that the test needs no other toolchain.
const COPY: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "in") (data (i32.const 8) "out")
  (func (export "_start") (local $e i32)
    (local.set $e (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
    (if (local.get $e) (then (call $exit (i32.const 100))))
    (i32.store (i32.const 32) (i32.const 1024)) (i32.store (i32.const 36) (i32.const 512))
    (drop (call $read (i32.load (i32.const 16)) (i32.const 32) (i32.const 1) (i32.const 40)))
    (local.set $e (call $open (i32.const 3) (i32.const 0) (i32.const 8) (i32.const 3) (i32.const 1)
      (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 20)))
    (if (local.get $e) (then (call $exit (i32.const 101))))
    (i32.store (i32.const 36) (i32.load (i32.const 40)))
    (drop (call $write (i32.load (i32.const 20)) (i32.const 32) (i32.const 1) (i32.const 44)))
    (call $exit (i32.const 0))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_directories_and_read_only_is_honoured() {
    use std::os::unix::fs::PermissionsExt;
    let mut node = Node::new().await;
    let file = node.dir.join("copy.wasm");
    std::fs::write(&file, wat::parse_str(COPY).unwrap()).unwrap();
    for (read_only, code) in [(false, 0), (true, 101)] {
        let mut spec = node.spec_of("copy", &file, "sha256:copy");
        let volume = node.dir.join("pods").join(&spec.id.pod_uid).join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("in"), "from the host").unwrap();
        // As an emptyDir is: the guest's user may write.
        std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o777)).unwrap();
        spec.mounts =
            vec![Mount { host_path: volume.clone(), container_path: "/data".into(), read_only }];
        assert_eq!(node.run(&spec).await.code, code);
        assert_eq!(
            std::fs::read_to_string(volume.join("out")).ok().as_deref(),
            (!read_only).then_some("from the host")
        );
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_bounded_on_disk() {
    let mut node = Node::new().await;
    let module = r#"(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 2)
      (func (export "_start") (local $n i32)
        (memory.fill (i32.const 1024) (i32.const 97) (i32.const 65536))
        (i32.store8 (i32.const 66559) (i32.const 10))
        (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 65536))
        (loop $again
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
          (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 400))))))"#;
    let file = node.dir.join("flood.wasm");
    std::fs::write(&file, wat::parse_str(module).unwrap()).unwrap();
    let spec = node.spec_of("flood", &file, "sha256:flood");
    assert_eq!(node.run(&spec).await.code, 0);
    let sizes = [spec.log_path.clone(), spec.log_path.with_extension("log.1")]
        .map(|path| std::fs::metadata(path).unwrap().len());
    assert!(sizes.iter().all(|size| *size <= 10 << 20), "{sizes:?}");
    assert!(log(&spec).iter().any(|line| line.starts_with("stdout P aaa")));
    node.end().await;
}
