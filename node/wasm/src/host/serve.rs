//! The host's end of the socket.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::runs::Host;
use super::session;
use crate::protocol::{self, Reply, Request, ToAgent, ToHost};

/// Events and replies that wait for the agent to read them.
const OUTBOX: usize = 4096;

/// Answers agents until the host ends.
pub(crate) async fn serve(host: Arc<Host>, listener: UnixListener) {
    let listener =
        listener.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return eprintln!("cannot listen for the agent: {error}"),
    };
    host.linger();
    loop {
        tokio::select! {
            () = host.ended.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(converse(host.clone(), stream))),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            },
        }
    }
}

async fn converse(host: Arc<Host>, stream: UnixStream) {
    let (mut reader, mut writer) = stream.into_split();
    let mut first = match protocol::read(&mut reader).await {
        Ok(Some(ToHost { seq, request: Request::Exec { id, args, wanted } })) => {
            let begun = host.exec(&id, args, wanted);
            return session::serve(reader, writer, seq, begun).await;
        }
        Ok(Some(ToHost { seq, request: Request::Attach { id, wanted } })) => {
            let begun = host.attach_to(&id, wanted);
            return session::serve(reader, writer, seq, begun).await;
        }
        Ok(first) => first,
        Err(error) => return eprintln!("the agent's connection is closed: {error}"),
    };
    let (outbox, mut out) = mpsc::channel::<ToAgent>(OUTBOX);
    let written = tokio::spawn(async move {
        while let Some(frame) = out.recv().await {
            if protocol::write(&mut writer, &frame).await.is_err() {
                return;
            }
        }
    });
    loop {
        let next = match first.take() {
            Some(first) => Ok(Some(first)),
            None => protocol::read(&mut reader).await,
        };
        let ToHost { seq, request } = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                eprintln!("the agent's connection is closed: {error}");
                break;
            }
        };
        let reply = match request {
            // The snapshot goes out before any event that is newer.
            Request::Hello => {
                let reply = host.attach(outbox.clone());
                Some(reply)
            }
            Request::Start { spec, artifact } => {
                let (host, outbox) = (host.clone(), outbox.clone());
                tokio::spawn(async move {
                    let started = host.start(*spec, &artifact).await;
                    let reply = started.map_or_else(Reply::from, |()| Reply::Done);
                    let _ = outbox.send(ToAgent::Reply { seq, reply }).await;
                });
                None
            }
            Request::Stop { id, grace_ms } => {
                host.stop(&id, std::time::Duration::from_millis(grace_ms));
                Some(Reply::Done)
            }
            Request::Remove { id } => {
                host.remove(&id);
                Some(Reply::Done)
            }
            Request::Usage { id } => Some(host.usage(&id)),
            // Only as the first, and then the only one.
            Request::Exec { .. } | Request::Attach { .. } => break,
            Request::End => {
                host.end();
                Some(Reply::Done)
            }
        };
        if let Some(reply) = reply
            && outbox.send(ToAgent::Reply { seq, reply }).await.is_err()
        {
            break;
        }
    }
    drop(outbox);
    written.abort();
}
