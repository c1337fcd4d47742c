//! exec and attach.

use std::time::Duration;

use rimward_node_pod::runtime::{ExecRequest, Exit, RunId, Runtime, Streams, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::node::{Node, log, until};

pub fn request(argv: &[&str], tty: bool) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|word| word.to_string()).collect(), tty }
}

/// Runs a command with an input; its exit and both outputs.
pub async fn run(
    node: &Node,
    id: &RunId,
    request: ExecRequest,
    input: &str,
) -> (Exit, String, String) {
    let (mut stdin, theirs) = tokio::io::duplex(1 << 16);
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let (mut out, their_out) = tokio::io::duplex(1 << 16);
    let (mut err, their_err) = tokio::io::duplex(1 << 16);
    let streams = Streams {
        stdin: Some(Box::new(theirs)),
        stdout: Some(Box::new(their_out)),
        stderr: Some(Box::new(their_err)),
        resize: None,
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (exit, ..) = tokio::join!(
        node.runtime.exec(id, request, streams),
        out.read_to_string(&mut stdout),
        err.read_to_string(&mut stderr)
    );
    (exit.unwrap(), stdout, stderr)
}

#[tokio::test]
async fn commands_run_where_the_container_is() {
    let mut node = Node::new().await;
    let mut spec = node.spec("echo ready; sleep 60");
    spec.user.uid = Some(1001);
    spec.working_dir = "/tmp".into();
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    let script = "hostname; pwd; id -u; echo $GREETING; cat; echo odd >&2; cat /proc/1/cmdline | tr '\\0' ' '; exit 5";
    let (exit, out, err) =
        run(&node, &spec.id, request(&["sh", "-c", script], false), "typed\n").await;
    let name = &spec.id.pod_uid;
    assert_eq!(exit.code, 5);
    assert!(out.starts_with(&format!("{name}\n/tmp\n1001\nhello\ntyped\n")), "{out}");
    assert!(out.contains("sleep 60"), "its processes are the container's: {out}");
    assert_eq!(err, "odd\n");
    let (exit, ..) = run(&node, &spec.id, request(&["sh", "-c", "kill -9 $$"], false), "").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    let error = node.runtime.exec(&spec.id, request(&["nosuch"], false), Streams::default()).await;
    let error = error.unwrap_err();
    assert!(
        error.message.contains("exec: \"nosuch\": executable file not found in $PATH"),
        "{error}"
    );
    // A client that goes ends what it began.
    let long = node.runtime.exec(&spec.id, request(&["sleep", "1234"], false), Streams::default());
    let _over = tokio::time::timeout(Duration::from_millis(500), long).await.unwrap_err();
    until("the command is gone", async || {
        let (_, out, _) = run(&node, &spec.id, request(&["ps"], false), "").await;
        !out.contains("sleep 1234")
    })
    .await;
    node.runtime.stop(&spec.id, Duration::ZERO).await;
    node.exit(&spec.id).await;
    let gone = node.runtime.exec(&spec.id, request(&["true"], false), Streams::default()).await;
    assert_eq!(gone.unwrap_err().reason, "NotFound");
    node.end().await;
}

#[tokio::test]
async fn a_command_on_a_terminal() {
    let mut node = Node::new().await;
    let spec = node.spec("echo ready; sleep 60");
    node.runtime.start(spec.clone()).await.unwrap();
    node.until_logged(&spec, "ready").await;
    let (mut keys, stdin) = tokio::io::duplex(1 << 16);
    let (mut screen, stdout) = tokio::io::duplex(1 << 16);
    let (sizes, resize) = tokio::sync::mpsc::channel(4);
    sizes.send(TerminalSize { width: 91, height: 37 }).await.unwrap();
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize: Some(resize),
    };
    let shell = node.runtime.exec(&spec.id, request(&["sh"], true), streams);
    let session = async {
        let mut shown = String::new();
        let mut buffer = [0; 1024];
        let mut until = async |text: &str| {
            while !shown.contains(text) {
                let len = screen.read(&mut buffer).await.unwrap();
                assert!(len > 0, "{shown}");
                shown.push_str(&String::from_utf8_lossy(&buffer[..len]));
            }
            shown.clear();
        };
        until("# ").await;
        keys.write_all(b"tty; stty size; echo $TERM\n").await.unwrap();
        until("37 91\r\nxterm\r\n").await;
        sizes.send(TerminalSize { width: 20, height: 10 }).await.unwrap();
        keys.write_all(b"while [ \"$(stty size)\" != '10 20' ]; do :; done; echo res'ized'\n")
            .await
            .unwrap();
        until("resized").await;
        keys.write_all(b"exit 4\n").await.unwrap();
        let mut rest = String::new();
        screen.read_to_string(&mut rest).await.unwrap();
    };
    let (exit, ()) = tokio::join!(shell, session);
    assert_eq!(exit.unwrap().code, 4);
    node.runtime.stop(&spec.id, Duration::ZERO).await;
    node.exit(&spec.id).await;
    node.end().await;
}

#[tokio::test]
async fn clients_attach_to_what_runs() {
    let mut node = Node::new().await;
    let mut spec =
        node.spec("while read line; do echo got $line; echo err $line >&2; done; echo over");
    (spec.stdin, spec.stdin_once) = (true, true);
    node.runtime.start(spec.clone()).await.unwrap();
    let (mut keys, stdin) = tokio::io::duplex(1 << 16);
    let (mut out, stdout) = tokio::io::duplex(1 << 16);
    let (mut err, stderr) = tokio::io::duplex(1 << 16);
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        resize: None,
    };
    let typing = async {
        keys.write_all(b"one\ntwo\n").await.unwrap();
        drop(keys);
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (attached, (), ..) = tokio::join!(
        node.runtime.attach(&spec.id, streams),
        typing,
        out.read_to_string(&mut stdout),
        err.read_to_string(&mut stderr)
    );
    attached.unwrap();
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        ("got one\ngot two\nover\n", "err one\nerr two\n")
    );
    assert_eq!(node.exit(&spec.id).await.code, 0);
    assert_eq!(log(&spec).len(), 5);
    node.end().await;
}
