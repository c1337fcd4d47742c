//! Exec, attach and port-forward: tunnel streams joined to containers and to ports of pods.
//!
//! A session ends the command when its stream breaks, from whichever side: the command's call is
//! dropped with it. What is printed goes as fast as the stream's window lets it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rimward_node_pod::runtime::{ExecRequest, TerminalSize};
use rimward_node_pod::session::{Inputs, Outputs, Stream, Wanted, plug};
use rimward_node_pod::{NoSession, RunningContainer, connect_text};
use rimward_tunnel::call::{Body, CallError, FrameSender, Incoming};
use rimward_tunnel::wire::{
    FrameReader, PortForwardRequest, Reply, SessionData, SessionEnd, SessionIn, SessionRequest,
};
use tokio::net::TcpStream;

use crate::Parts;

/// How long a pod may take to accept a connection.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(10);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Refuses what is not there, as the kubelet does.
async fn refuse(incoming: Incoming, why: &NoSession) {
    let code = match why {
        NoSession::NoPod => 404,
        NoSession::NotRunning(_) | NoSession::NoNetwork(_) => 500,
    };
    incoming.refuse(code, why.to_string()).await;
}

/// Runs a command in a container, or attaches to it.
pub(crate) async fn session(parts: &Parts, request: SessionRequest, incoming: Incoming) {
    let SessionRequest { namespace, pod, pod_uid, container, .. } = &request;
    let target = match parts.pods.running(namespace, pod, pod_uid, container) {
        Ok(target) => target,
        Err(why) => return refuse(incoming, &why).await,
    };
    let Ok(stream) = incoming.begin(Reply { code: 200, ..Reply::default() }).await else { return };
    let (send, receive) = stream.into_frames();
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    let (streams, inputs, outputs) = plug(wanted);
    let work = async {
        let run = async { Ok(run(&target, &request, streams).await) };
        let (end, mut send) = tokio::try_join!(run, print(outputs, send))?;
        send.send(&end).await?;
        send.finish();
        Ok::<(), CallError>(())
    };
    tokio::select! {
        ended = work => if let Err(cause) = ended {
            tracing::debug!(pod, container, %cause, "a session broke off");
        },
        // The client is gone; so is what it ran.
        () = feed(receive, inputs) => {}
    }
}

async fn run(
    target: &RunningContainer,
    request: &SessionRequest,
    streams: rimward_node_pod::runtime::Streams,
) -> SessionEnd {
    let RunningContainer { runtime, id } = target;
    if request.command.is_empty() {
        return match runtime.attach(id, streams).await {
            Ok(()) => SessionEnd::default(),
            Err(cause) => SessionEnd { exit_code: None, message: cause.message },
        };
    }
    let exec = ExecRequest { argv: request.command.clone(), tty: request.tty };
    match runtime.exec(id, exec, streams).await {
        Ok(exit) => SessionEnd { exit_code: Some(exit.code), message: exit.message },
        Err(cause) => SessionEnd { exit_code: None, message: cause.message },
    }
}

/// Sends what comes out, to its end.
async fn print(mut outputs: Outputs, mut send: FrameSender) -> Result<FrameSender, CallError> {
    while let Some((stream, bytes)) = outputs.next().await {
        let stream = match stream {
            Stream::Stdout => STDOUT,
            Stream::Stderr => STDERR,
        };
        send.send(&SessionData { stream, bytes: bytes.into() }).await?;
    }
    Ok(send)
}

/// Hands in what the client sends, until it is gone.
async fn feed(mut receive: FrameReader<Body>, mut inputs: Inputs) {
    while let Ok(Some(frame)) = receive.next().await {
        match SessionIn::decode(&frame) {
            Ok(Some(SessionIn::SessionData(SessionData { stream: STDIN, bytes }))) => {
                match bytes.is_empty() {
                    true => inputs.end(),
                    false => inputs.stdin(&bytes).await,
                }
            }
            Ok(Some(SessionIn::SessionResize(size))) => {
                inputs.resize(TerminalSize { width: size.width, height: size.height });
            }
            // What a newer control plane has.
            Ok(Some(SessionIn::SessionData(_)) | None) => {}
            Err(cause) => return tracing::warn!(%cause, "a session's frame cannot be read"),
        }
    }
}

/// A byte stream to a port of a pod.
pub(crate) async fn port_forward(parts: &Parts, request: PortForwardRequest, incoming: Incoming) {
    let PortForwardRequest { namespace, pod, pod_uid, port } = &request;
    let attachment = match parts.pods.attachment(namespace, pod, pod_uid) {
        Ok(attachment) => attachment,
        Err(why) => return refuse(incoming, &why).await,
    };
    let on_host = attachment.pod_ips.contains(&parts.network.host_ip());
    let near = attachment.pod_ips.first().map(|ip| parts.network.reach_port(*ip, *port));
    let far = dial(near, attachment.netns.as_deref(), on_host, *port).await;
    match far {
        Ok(far) => splice(incoming, far).await,
        Err(cause) => {
            let text = format!("failed to connect to localhost:{port} inside the pod: {}", connect_text(&cause));
            incoming.refuse(502, text).await;
        }
    }
}

/// The pod's own address first, where Wasm listens; then the localhost of its network namespace,
/// where a server in a container may listen alone.
async fn dial(
    near: Option<SocketAddr>,
    netns: Option<&Path>,
    on_host: bool,
    port: u16,
) -> io::Result<TcpStream> {
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    if let Some(address) = near {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(cause) => refused = cause,
        }
    }
    if netns.is_none() && !on_host {
        return Err(refused);
    }
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let connected = match netns {
            None => connect(address).await,
            Some(netns) => connect_inside(netns.to_owned(), address).await,
        };
        if let Ok(stream) = connected {
            return Ok(stream);
        }
    }
    Err(refused)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(CONNECT_WAIT, TcpStream::connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects from inside a network namespace, by a thread of its own: one that has entered a
/// namespace is no use for anything else.
async fn connect_inside(netns: PathBuf, address: SocketAddr) -> io::Result<TcpStream> {
    let (done, connected) = tokio::sync::oneshot::channel();
    let enter = move || -> io::Result<std::net::TcpStream> {
        let namespace = std::fs::File::open(&netns)?;
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        std::net::TcpStream::connect_timeout(&address, CONNECT_WAIT)
    };
    std::thread::Builder::new().name("pod-dial".into()).stack_size(128 << 10).spawn(move || {
        let _the_client_may_be_gone = done.send(enter());
    })?;
    let stream = connected.await.map_err(|_| io::Error::other("its thread ended"))??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Joins a connection with a tunnel stream until both ends are done.
pub(crate) async fn splice(incoming: Incoming, mut far: TcpStream) {
    // Small requests and answers must not wait for each other.
    let _only_slower_without = far.set_nodelay(true);
    let Ok(mut near) = incoming.begin(Reply { code: 200, ..Reply::default() }).await else {
        return;
    };
    if tokio::io::copy_bidirectional(&mut near, &mut far).await.is_err() {
        near.abort();
    }
}
