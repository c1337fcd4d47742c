//! Exec and attach, the host's end: a connection of its own for each, whose end ends the command.

use std::sync::Arc;

use rimward_node_pod::runtime::{Exit, StartError};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::pipe::Pipe;
use crate::protocol::{
    self, EXIT, PIECE_BYTES_MAX, Reply, STDERR, STDIN, STDOUT, Streams, ToAgent,
};

/// A session that has begun.
pub(crate) struct Session {
    /// Where what is typed goes; None is not listened to.
    pub stdin: Option<Arc<Pipe>>,
    /// The client's end is the end of stdin, also when it goes without a word.
    pub ends_stdin: bool,
    pub stdout: Arc<Pipe>,
    pub stderr: Arc<Pipe>,
    /// How the command ended; None when attached.
    pub exit: Option<oneshot::Receiver<Exit>>,
    /// Ends the command.
    pub stop: CancellationToken,
}

/// The pipes of a session: what is not wanted is read over.
pub(crate) fn outputs(wanted: Streams) -> (Arc<Pipe>, Arc<Pipe>) {
    let pipe = |wanted: bool| if wanted { Pipe::new() } else { Pipe::nowhere() };
    let stdout = pipe(wanted.stdout);
    // One terminal shows both.
    let stderr = if wanted.tty { stdout.clone() } else { pipe(wanted.stderr) };
    (stdout, stderr)
}

/// Answers the request, then carries pieces until either side is done.
pub(crate) async fn serve(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    seq: u64,
    begun: Result<Session, StartError>,
) {
    let (reply, session) = match begun {
        Ok(session) => (Reply::Done, Some(session)),
        Err(refused) => (refused.into(), None),
    };
    let answered = protocol::write(&mut writer, &ToAgent::Reply { seq, reply }).await;
    let (Some(session), Ok(())) = (session, answered) else { return };
    let Session { stdin, ends_stdin, stdout, stderr, exit, stop } = session;
    // Nothing holds up the guest, and the command ends, when this is over, however it ends.
    let _over = Over { outputs: [stdout.clone(), stderr.clone()], stop };
    tokio::select! {
        result = print(&mut writer, &stdout, &stderr, exit) => {
            let _the_agent_may_be_gone = result;
        }
        () = feed(&mut reader, stdin.as_deref()) => {}
    }
    if let Some(stdin) = stdin.filter(|_| ends_stdin) {
        stdin.end();
    }
}

struct Over {
    outputs: [Arc<Pipe>; 2],
    stop: CancellationToken,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.outputs.iter().for_each(|pipe| pipe.leave());
        self.stop.cancel();
    }
}

async fn print(
    writer: &mut OwnedWriteHalf,
    stdout: &Arc<Pipe>,
    stderr: &Arc<Pipe>,
    exit: Option<oneshot::Receiver<Exit>>,
) -> std::io::Result<()> {
    let mut open = [(STDOUT, !stdout.is_unread()), (STDERR, !stderr.is_unread())];
    // The same pipe twice is one stream.
    open[1].1 &= !Arc::ptr_eq(stdout, stderr);
    while open.iter().any(|(_, open)| *open) {
        let (index, bytes) = tokio::select! {
            bytes = stdout.next(PIECE_BYTES_MAX), if open[0].1 => (0, bytes),
            bytes = stderr.next(PIECE_BYTES_MAX), if open[1].1 => (1, bytes),
        };
        let (kind, is_open) = &mut open[index];
        match bytes {
            Some(bytes) => protocol::write_piece(writer, *kind, &bytes).await?,
            None => {
                *is_open = false;
                protocol::write_piece(writer, *kind, b"").await?;
            }
        }
    }
    let exit = match exit {
        None => Vec::new(),
        Some(exit) => {
            let exit = exit.await.map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
            serde_json::to_vec(&exit)?
        }
    };
    protocol::write_piece(writer, EXIT, &exit).await
}

/// Until the agent closes its end.
async fn feed(reader: &mut OwnedReadHalf, stdin: Option<&Pipe>) {
    while let Ok(Some((kind, bytes))) = protocol::read_piece(reader).await {
        let Some(stdin) = stdin.filter(|_| kind == STDIN) else { continue };
        match bytes.is_empty() {
            true => stdin.end(),
            false => stdin.write_all(&bytes).await,
        }
    }
}
