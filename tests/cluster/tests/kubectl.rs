//! Every kubectl command against a control plane, without a node. The cases are text, in `kubectl/*.txt`:
//!
//! ```text
//! # a section, in a namespace of its own
//! $ a command that succeeds
//! ! one that fails
//! ? one that is tried until its output is as expected
//! < a line of its standard input
//! > what stands in its output
//! - what does not
//! ```
//!
//! Words are split at blanks; single quotes keep them together. `@DIR` is the section's directory, which
//! `= name` begins a file of, whose lines follow after `|`.

use std::path::Path;
use std::process::Command;

use rimward_tests_cluster::{Cluster, PATIENCE, Process, binary, text};

#[derive(Debug, Default)]
struct Case {
    line: usize,
    mode: char,
    command: String,
    input: String,
    has: Vec<String>,
    lacks: Vec<String>,
}

enum Step {
    Section,
    File(String, String),
    Case(Case),
}

fn parse(script: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (i, line) in script.lines().enumerate() {
        let Some(mode) = line.chars().next() else { continue };
        let rest = line[mode.len_utf8()..].strip_prefix(' ').unwrap_or("").to_owned();
        match (mode, steps.last_mut()) {
            ('#', _) => steps.push(Step::Section),
            ('=', _) => steps.push(Step::File(rest, String::new())),
            ('|', Some(Step::File(_, content))) => *content += &format!("{rest}\n"),
            ('$' | '!' | '?', _) => {
                let case = Case { line: i + 1, mode, command: rest, ..Case::default() };
                steps.push(Step::Case(case));
            }
            ('<', Some(Step::Case(case))) => case.input += &format!("{rest}\n"),
            ('>', Some(Step::Case(case))) => case.has.push(rest),
            ('-', Some(Step::Case(case))) => case.lacks.push(rest),
            _ => panic!("line {}: {line:?} is out of place", i + 1),
        }
    }
    steps
}

/// Words at blanks, but for what single quotes keep together.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in command.chars() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// What is wrong with the outcome of a case; None when it is as it should be.
fn outcome(cluster: &Cluster, case: &Case, dir: &Path) -> Option<String> {
    use std::io::Write as _;
    let here = dir.to_str().expect("a plain path");
    let args: Vec<String> = words(&case.command.replace("@DIR", here));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut child = cluster
        .kubectl_command(&args)
        .env("EDITOR", format!("{here}/editor"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl is on the PATH");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let _it_may_not_read = stdin.write_all(case.input.replace("@DIR", here).as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("kubectl can be waited for");
    let shown = text(&output.stdout) + &text(&output.stderr);
    let wrong =
        |what: String| Some(format!("line {}: {}\n  {what}\n{shown}", case.line, case.command));
    match (case.mode, output.status.success()) {
        ('!', true) => return wrong("should fail".into()),
        ('$' | '?', false) => return wrong("should succeed".into()),
        _ => {}
    }
    if let Some(missing) = case.has.iter().find(|h| !shown.contains(h.as_str())) {
        return wrong(format!("should say {missing:?}"));
    }
    let found = case.lacks.iter().find(|l| shown.contains(l.as_str()));
    found.and_then(|found| wrong(format!("should not say {found:?}")))
}

fn run(name: &str, script: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(binary("rimward-control"));
    command.arg("control").arg("--data-dir").arg(dir.path());
    command.args(["--listen", "127.0.0.1", "--api-port", "0", "--tunnel-port", "0"]);
    let process = Process::start("rimward-control", dir.path(), command);
    let mut cluster = Cluster::of(process, dir.path(), Vec::new());
    cluster.wait_api();
    let (mut section, mut wrong) = (0, Vec::new());
    let mut here = dir.path().join("none");
    for step in parse(script) {
        match step {
            Step::Section => {
                section += 1;
                let namespace = format!("{name}-{section}");
                cluster.ok(&["create", "namespace", &namespace]);
                cluster.ok(&["config", "set-context", "--current", "--namespace", &namespace]);
                here = dir.path().join(namespace);
                std::fs::create_dir_all(&here).expect("a directory");
            }
            Step::File(file, content) => {
                use std::os::unix::fs::PermissionsExt as _;
                let path = here.join(file);
                std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
                std::fs::write(&path, content).expect("a file");
                let all = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(&path, all).expect("a mode");
            }
            Step::Case(case) => {
                let start = std::time::Instant::now();
                let mut outcome_now = outcome(&cluster, &case, &here);
                while case.mode == '?' && outcome_now.is_some() && start.elapsed() < PATIENCE {
                    std::thread::park_timeout(std::time::Duration::from_millis(100));
                    outcome_now = outcome(&cluster, &case, &here);
                }
                wrong.extend(outcome_now);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of the cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn creating() {
    run("creating", include_str!("../kubectl/creating.txt"));
}

#[test]
fn changing() {
    run("changing", include_str!("../kubectl/changing.txt"));
}

#[test]
fn applying() {
    run("applying", include_str!("../kubectl/applying.txt"));
}

#[test]
fn looking() {
    run("looking", include_str!("../kubectl/looking.txt"));
}

#[test]
fn access() {
    run("access", include_str!("../kubectl/access.txt"));
}

#[test]
fn debugging() {
    run("debugging", include_str!("../kubectl/debugging.txt"));
}

#[test]
fn rollouts() {
    run("rollouts", include_str!("../kubectl/rollouts.txt"));
}
