use std::path::Path;

use rimward_node_pod::runtime::Runtime;

use crate::node::{Node, address, get};

async fn check_refused(node: &Node, name: &str, bytes: &[u8], said: &str) {
    let file = node.dir.join(name);
    std::fs::write(&file, bytes).unwrap();
    let error =
        node.runtime.start(node.spec_of(name, &file, &format!("sha256:{name}"))).await.unwrap_err();
    assert!(error.message.contains(said), "{name}: {error}");
    assert!(error.reason.ends_with("Error"), "{name}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let node = Node::new().await;
    let component = |text: &str| wat::parse_str(text).unwrap();
    check_refused(&node, "script", b"#!/bin/sh\n", "is not WebAssembly").await;
    check_refused(&node, "cut", &component("(component)")[..6], "is not WebAssembly").await;
    check_refused(
        &node,
        "library",
        &component("(module (func (export \"f\")))"),
        "without `_start`",
    )
    .await;
    check_refused(&node, "empty", &component("(component)"), "exports nothing").await;
    check_refused(
        &node,
        "p1-import",
        &component(r#"(module (import "env" "magic" (func)) (func (export "_start")))"#),
        "imports env::magic which this node does not offer",
    )
    .await;
    let run = r#"
        (core module $m (func (export "run") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli))"#;
    let import = r#"(import "acme:radio/tuner@1.0.0" (instance (export "tune" (func))))"#;
    check_refused(
        &node,
        "import",
        &component(&format!("(component {import} {run})")),
        "imports acme:radio/tuner@1.0.0 which this node does not offer",
    )
    .await;
    let handler = r#"(component
        (core module $m (func (export "f")) (func $s unreachable) (start $s))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $h (export "handle" (func $f)))
        (export "wasi:http/incoming-handler@0.2.0" (instance $h)))"#;
    check_refused(
        &node,
        "trapping",
        &component(handler),
        "it traps at its start: wasm trap: wasm `unreachable`",
    )
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::at(dir.path()).await;
    let (one, two) = (node.spec("http-wat-p2.wasm"), node.spec("http-wat-p2.wasm"));
    let (first, second) =
        tokio::join!(node.runtime.prepare(&one.image), node.runtime.prepare(&two.image));
    first.and(second).unwrap();
    assert_eq!(node.runtime.images_compiled(), 1);
    node.runtime.start(one.clone()).await.unwrap();
    node.end().await;

    // The next node finds the code, and needs neither image nor compiler.
    let node = Node::at(dir.path()).await;
    node.runtime.remove(&one.id).await;
    node.runtime.start(two.clone()).await.unwrap();
    assert!(get(address(&two)).await.contains("hello from wat"));
    assert_eq!(node.runtime.images_compiled(), 0);
    node.end().await;
}

fn machine_code(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir.join("aot")).unwrap().map(|file| file.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|end| end == "cwasm")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_machine_code_is_made_again() {
    let node = Node::new().await;
    let spec = node.spec("http-wat-p2.wasm");
    node.runtime.prepare(&spec.image).await.unwrap();
    let file = machine_code(&node.dir);
    let whole = std::fs::read(&file).unwrap();

    // Bytes changed: the host notices. (Renamed over, as the cache itself does it.)
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 0xff;
    std::fs::write(file.with_extension("new"), changed).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    node.runtime.start(spec.clone()).await.unwrap();
    assert!(get(address(&spec)).await.contains("hello from wat"));
    assert_eq!(node.runtime.images_compiled(), 2);
    assert_eq!(std::fs::read(&file).unwrap(), whole);

    // Cut short: the agent notices.
    std::fs::write(file.with_extension("new"), &whole[..100]).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    node.runtime.prepare(&spec.image).await.unwrap();
    assert_eq!(node.runtime.images_compiled(), 3);
    node.end().await;
}
