//! The arrows of docs/architecture.md, asserted on what cargo resolves; and the paths that the
//! documents name, which must exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout")
}

/// Workspace crate → its normal (not dev, not build) dependencies by name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let normal = package["dependencies"].as_array().into_iter().flatten();
            let normal = normal.filter(|d| d["kind"].is_null());
            let names = normal.map(|d| d["name"].as_str().expect("a name").to_owned()).collect();
            (package["name"].as_str().expect("a name").to_owned(), names)
        })
        .collect()
}

/// Everything that a workspace crate reaches through workspace crates.
fn reach(all: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(name) = open.pop() {
        for dependency in all.get(&name).into_iter().flatten() {
            if seen.insert(dependency.clone()) {
                open.push(dependency.clone());
            }
        }
    }
    seen
}

const CONTRACT: [&str; 4] = ["rimward-api", "rimward-client", "rimward-features", "rimward-tunnel"];

#[test]
fn a_node_uses_only_the_contract_of_control_and_control_nothing_of_a_node() {
    let all = dependencies();
    for name in all.keys().filter(|n| n.starts_with("rimward-")) {
        let reached = reach(&all, name);
        if name.starts_with("rimward-node-") {
            let bad = reached.iter().find(|d| d.starts_with("rimward-control-"));
            assert_eq!(bad, None, "{name} must not reach the control plane");
        }
        if name.starts_with("rimward-control-") || CONTRACT.contains(&name.as_str()) {
            let bad = reached.iter().find(|d| d.starts_with("rimward-node-"));
            assert_eq!(bad, None, "{name} must not reach the node");
        }
    }
}

#[test]
fn the_contract_reaches_only_itself() {
    let all = dependencies();
    for name in CONTRACT {
        let reached = reach(&all, name);
        let bad =
            reached.iter().find(|d| d.starts_with("rimward-") && !CONTRACT.contains(&d.as_str()));
        assert_eq!(bad, None, "{name}");
    }
}

#[test]
fn only_their_homes_link_the_heavy_libraries() {
    let all = dependencies();
    #[track_caller]
    fn check(all: &BTreeMap<String, BTreeSet<String>>, library: &str, homes: &[&str]) {
        for (name, dependencies) in all {
            let links = dependencies.iter().any(|d| d == library);
            assert!(!links || homes.contains(&name.as_str()), "{name} must not link {library}");
        }
    }
    check(&all, "rocksdb", &["rimward-control-store-rocksdb"]);
    check(&all, "wasmtime", &["rimward-node-wasm", "rimward-control-registry"]);
    check(&all, "bincode", &["rimward-tunnel"]);
    check(&all, "redb", &["rimward-node-agent"]);
    check(&all, "libcontainer", &["rimward-node-oci"]);
}

#[test]
fn controllers_and_scheduler_use_the_client_never_the_store() {
    let all = dependencies();
    for name in ["rimward-control-controllers", "rimward-control-scheduler", "rimward-control-hub"]
    {
        assert!(!all[name].contains("rimward-control-store"), "{name} must use rimward-client");
    }
}

#[test]
fn pod_logic_knows_no_runtime() {
    let all = dependencies();
    let reached = reach(&all, "rimward-node-pod");
    for runtime in ["rimward-node-wasm", "rimward-node-oci", "wasmtime"] {
        assert!(!reached.contains(runtime), "rimward-node-pod must not reach {runtime}");
    }
}

#[test]
fn paths_that_the_documents_name_exist() {
    let root = root();
    let mut documents = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    documents.extend(std::fs::read_dir(root.join("docs")).expect("docs").filter_map(|e| {
        let path = e.expect("an entry").path();
        (path.extension()? == "md").then_some(path)
    }));
    let tops =
        ["control/", "node/", "wit/", "examples/", "tests/", "scripts/", "docs/", "src/", ".ci/"];
    let mut missing = Vec::new();
    for document in documents {
        let text = std::fs::read_to_string(&document).expect("a document");
        let quoted = text.split('`').skip(1).step_by(2);
        for path in quoted.filter(|q| tops.iter().any(|top| q.starts_with(top))) {
            let plain = path.split_whitespace().next().unwrap_or_default();
            if !plain.contains(['{', '*', '<', '…']) && !root.join(plain).exists() {
                missing.push(format!("{}: {plain}", document.display()));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}
