//! Exec and attach: commands beside what runs, and what runs itself.

use std::time::Duration;

use rimward_node_pod::runtime::{
    ContainerSpec, ExecRequest, Exit, Runtime, StartError, Streams, TerminalSize,
};
use rimward_node_pod::session::{Inputs, Outputs, Stream, Wanted, plug};

use crate::node::{Node, log, until};

/// Copies its stdin to its stdout, then ends with the number of its arguments, its name included.
const CAT: &str = r#"(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args (i32.const 0) (i32.const 4)))
    (block $end (loop $again
      (i32.store (i32.const 16) (i32.const 1024)) (i32.store (i32.const 20) (i32.const 4096))
      (br_if $end (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 8)))
      (br_if $end (i32.eqz (i32.load (i32.const 8))))
      (i32.store (i32.const 20) (i32.load (i32.const 8)))
      (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 12)))
      (br $again)))
    (call $exit (i32.load (i32.const 0)))))"#;

/// A running container that waits for what is typed.
async fn cat(node: &Node, change: impl FnOnce(&mut ContainerSpec)) -> ContainerSpec {
    let file = node.dir.join("cat.wasm");
    std::fs::write(&file, wat::parse_str(CAT).unwrap()).unwrap();
    let mut spec = node.spec_of("cat", &file, "sha256:cat");
    spec.stdin = true;
    change(&mut spec);
    node.runtime.start(spec.clone()).await.unwrap();
    spec
}

fn wanted(tty: bool) -> (Streams, Inputs, Outputs) {
    plug(Wanted { stdin: true, stdout: true, stderr: true, tty })
}

fn request(words: &[&str], tty: bool) -> ExecRequest {
    ExecRequest { argv: words.iter().map(|w| (*w).to_owned()).collect(), tty }
}

/// Runs a command with text on its stdin: how it ended, and its stdout.
async fn exec(
    node: &Node,
    spec: &ContainerSpec,
    words: &[&str],
    typed: &[u8],
) -> Result<(Exit, Vec<u8>), StartError> {
    let (streams, mut inputs, mut outputs) = wanted(false);
    let run = node.runtime.exec(&spec.id, request(words, false), streams);
    let type_it = async {
        inputs.stdin(typed).await;
        inputs.end();
    };
    let read = async {
        let mut out = Vec::new();
        while let Some((stream, bytes)) = outputs.next().await {
            if stream == Stream::Stdout {
                out.extend_from_slice(&bytes);
            }
        }
        out
    };
    let (exit, (), out) = tokio::join!(run, type_it, read);
    Ok((exit?, out))
}

/// Reads stdout until it holds `wanted`.
async fn read_until(outputs: &mut Outputs, wanted: &str) -> String {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(wanted) {
            let (_, bytes) = outputs.next().await.unwrap_or_else(|| panic!("ended after {seen:?}"));
            seen += &String::from_utf8_lossy(&bytes);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("it is printed in time");
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_the_component_once_more() {
    let node = Node::new().await;
    let spec = cat(&node, |_| {}).await;
    let (exit, out) = exec(&node, &spec, &["two", "words"], b"typed").await.unwrap();
    assert_eq!((exit.code, out.as_slice()), (3, &b"typed"[..]));
    // More than all pipes between hold.
    let long: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let (exit, out) = exec(&node, &spec, &[], &long).await.unwrap();
    assert!(exit.code == 1 && out == long);
    assert!(log(&spec).is_empty(), "what commands print is not the container's log");

    // A component of WASI 0.2, and one that traps.
    let burning = node.spec("burn-rust-p2.wasm");
    node.runtime.start(burning.clone()).await.unwrap();
    assert_eq!(exec(&node, &burning, &["10"], b"").await.unwrap().0.code, 0);
    let gone = {
        let mut id = spec.id.clone();
        id.attempt = 9;
        id
    };
    let (streams, ..) = wanted(false);
    let error = node.runtime.exec(&gone, request(&["x"], false), streams).await.unwrap_err();
    assert_eq!(error.reason, "NotFound");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_without_a_command_says_so() {
    let node = Node::new().await;
    let spec = node.spec("http-wat-p2.wasm");
    node.runtime.start(spec.clone()).await.unwrap();
    let error = exec(&node, &spec, &["x"], b"").await.unwrap_err();
    assert_eq!(error.reason, "ExecNotSupported");
    assert!(error.message.contains("exports no wasi:cli/run"), "{error}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_caller_and_with_its_container() {
    let mut node = Node::new().await;
    let spec = cat(&node, |_| {}).await;
    let memory = async || node.runtime.usage(&spec.id).await.unwrap().memory_bytes;
    let before = memory().await;
    let (streams, _inputs, _outputs) = wanted(false);
    let runtime = node.runtime.clone();
    let id = spec.id.clone();
    let call = tokio::spawn(async move { runtime.exec(&id, request(&[], false), streams).await });
    until("it runs", async || memory().await > before).await;
    call.abort();
    until("it is ended", async || memory().await == before).await;

    let (streams, _inputs, _outputs) = wanted(false);
    let runtime = node.runtime.clone();
    let id = spec.id.clone();
    let call = tokio::spawn(async move { runtime.exec(&id, request(&[], false), streams).await });
    until("it runs", async || memory().await > before).await;
    node.runtime.stop(&spec.id, Duration::from_secs(1)).await;
    assert_eq!(node.exit(&spec.id).await.code, 143);
    let exit = tokio::time::timeout(Duration::from_secs(60), call).await.unwrap().unwrap();
    assert_eq!(exit.unwrap().code, 143);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_attached_to_what_runs() {
    let mut node = Node::new().await;
    let spec = cat(&node, |spec| spec.stdin_once = true).await;
    let attach = |wanted: Wanted| {
        let (streams, inputs, outputs) = plug(wanted);
        let (runtime, id) = (node.runtime.clone(), spec.id.clone());
        let call = tokio::spawn(async move { runtime.attach(&id, streams).await });
        (call, inputs, outputs)
    };
    let watching = Wanted { stdout: true, ..Wanted::default() };
    let (watch, _inputs, mut watched) = attach(watching);
    let (call, mut inputs, mut outputs) = attach(Wanted { stdin: true, ..watching });
    // What was printed before a session stood is not repeated.
    let mut typed = 0;
    let mut seen = String::new();
    while !seen.contains("ping") {
        typed += 1;
        inputs.stdin(format!("ping {typed}\n").as_bytes()).await;
        let wait = tokio::time::timeout(Duration::from_millis(200), watched.next()).await;
        if let Ok(Some((_, bytes))) = wait {
            seen += &String::from_utf8_lossy(&bytes);
        }
    }
    read_until(&mut outputs, "ping").await;
    // The end of this session's stdin is the container's, and that ends it.
    inputs.end();
    assert_eq!(node.exit(&spec.id).await.code, 1);
    for call in [watch, call] {
        tokio::time::timeout(Duration::from_secs(60), call).await.unwrap().unwrap().unwrap();
    }
    assert!(log(&spec).iter().any(|line| line.contains("ping")));
    node.end().await;
}

/// One who is attached and reads nothing does not stop the container for ever, nor another's session.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_leaves_holds_nothing_up() {
    let node = Node::new().await;
    let spec = cat(&node, |_| {}).await;
    let watching = Wanted { stdout: true, ..Wanted::default() };
    let (streams, _inputs, outputs) = plug(watching);
    let (runtime, id) = (node.runtime.clone(), spec.id.clone());
    let call = tokio::spawn(async move { runtime.attach(&id, streams).await });
    let (streams, mut inputs, mut read) = plug(Wanted { stdin: true, ..watching });
    let (runtime, id) = (node.runtime.clone(), spec.id.clone());
    let _typing = tokio::spawn(async move { runtime.attach(&id, streams).await });
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    let reading = tokio::spawn(async move {
        let mut all = 0;
        while all < 2 << 20 {
            all += read.next().await.unwrap().1.len();
        }
    });
    let leave = async {
        until("it is held up", async || outputs_full(&spec)).await;
        call.abort();
        drop(outputs);
    };
    let type_it = async {
        for _ in 0..4 << 10 {
            inputs.stdin(&line).await;
        }
    };
    tokio::pin!(type_it);
    tokio::select! {
        () = type_it.as_mut() => {}
        () = leave => type_it.await,
    }
    tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap().unwrap();
    node.end().await;
}

/// Something was printed.
fn outputs_full(spec: &ContainerSpec) -> bool {
    std::fs::metadata(&spec.log_path).is_ok_and(|file| file.len() > 64 << 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_edits_lines_and_ctrl_c_ends() {
    let node = Node::new().await;
    let spec = cat(&node, |_| {}).await;
    let (streams, mut inputs, mut outputs) = wanted(true);
    inputs.resize(TerminalSize { width: 80, height: 24 });
    let (runtime, id) = (node.runtime.clone(), spec.id.clone());
    let call = tokio::spawn(async move { runtime.exec(&id, request(&["x"], true), streams).await });
    inputs.stdin(b"hellp\x7fo\r").await;
    read_until(&mut outputs, "hello\r\n").await;
    inputs.stdin(b"\x04").await;
    let exit = tokio::time::timeout(Duration::from_secs(60), call).await.unwrap().unwrap();
    assert_eq!(exit.unwrap().code, 2);

    let (streams, mut inputs, mut outputs) = wanted(true);
    let (runtime, id) = (node.runtime.clone(), spec.id.clone());
    let call = tokio::spawn(async move { runtime.exec(&id, request(&[], true), streams).await });
    inputs.stdin(b"a\r").await;
    read_until(&mut outputs, "a\r\na\r\n").await;
    inputs.stdin(b"\x03").await;
    let exit = tokio::time::timeout(Duration::from_secs(60), call).await.unwrap().unwrap();
    assert_eq!(exit.unwrap().code, 130);
    node.end().await;
}
