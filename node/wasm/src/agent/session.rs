//! Exec and attach, the agent's end: a connection to the run's host for each session.

use std::io;
use std::path::Path;

use rimward_node_pod::runtime::{Exit, Input, Output, RunId, StartError, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::link;
use super::terminal::{Closed, Terminal};
use crate::protocol::{
    self, EXIT, PIECE_BYTES_MAX, Reply, Request, STDERR, STDIN, STDOUT, ToAgent, ToHost,
};

/// What a terminal's user presses to end what runs: there is no signal that a guest could get.
const INTERRUPT: i32 = 130;

/// Runs a command in a run's host. Dropping the call closes the connection, which ends the command.
pub(super) async fn exec(
    data_dir: &Path,
    host: &str,
    id: &RunId,
    args: Vec<String>,
    tty: bool,
    streams: Streams,
) -> Result<Exit, StartError> {
    let request = Request::Exec { id: id.clone(), args, wanted: wanted(&streams, tty) };
    let (reader, writer) = open(data_dir, host, request).await?;
    let started_at = jiff::Timestamp::now();
    let ended = match tty {
        false => carry(reader, writer, streams).await?,
        true => carry_typed(reader, writer, streams).await?,
    };
    match ended {
        Ended::With(exit) => Ok(exit),
        Ended::Detached => Err(lost("it ended without a word")),
        Ended::Interrupted => Ok(Exit {
            code: INTERRUPT,
            signal: Some(INTERRUPT - 128),
            reason: "Error".into(),
            message: String::new(),
            started_at,
            finished_at: jiff::Timestamp::now(),
        }),
    }
}

/// Connects with what a run prints, and with its stdin. At a terminal, Ctrl-C lets go of it.
pub(super) async fn attach(
    data_dir: &Path,
    host: &str,
    id: &RunId,
    streams: Streams,
) -> Result<(), StartError> {
    let tty = streams.resize.is_some();
    let request = Request::Attach { id: id.clone(), wanted: wanted(&streams, tty) };
    let (reader, writer) = open(data_dir, host, request).await?;
    match tty {
        false => carry(reader, writer, streams).await.map(drop),
        true => carry_typed(reader, writer, streams).await.map(drop),
    }
}

/// How a session ended.
enum Ended {
    With(Exit),
    /// What was attached to has ended.
    Detached,
    /// The client wanted no more of it.
    Interrupted,
}

/// [`carry`] with a terminal between the client and the guest.
async fn carry_typed(
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    streams: Streams,
) -> Result<Ended, StartError> {
    let Streams { stdin, stdout, resize, .. } = streams;
    let terminal = Terminal::open().map_err(|e| lost(&format!("no terminal: {e}")))?;
    let (inner, client) = terminal.join(stdin, stdout, resize);
    let mut client = std::pin::pin!(client);
    let mut guest = std::pin::pin!(carry(reader, writer, inner));
    tokio::select! {
        ended = guest.as_mut() => {
            // What the terminal still holds goes to the client first.
            client.await;
            ended
        }
        closed = client.as_mut() => match closed {
            Closed::Interrupted => Ok(Ended::Interrupted),
            // A guest that has closed its streams tells how it ended when it has.
            Closed::Shown => guest.await,
        },
    }
}

fn wanted(streams: &Streams, tty: bool) -> protocol::Streams {
    protocol::Streams {
        stdin: streams.stdin.is_some(),
        stdout: streams.stdout.is_some(),
        stderr: streams.stderr.is_some(),
        tty,
    }
}

fn lost(cause: &str) -> StartError {
    let message = format!("the session with the wasm host was lost: {cause}");
    StartError { reason: "ExecFailed".into(), message }
}

async fn open(
    data_dir: &Path,
    host: &str,
    request: Request,
) -> Result<(OwnedReadHalf, OwnedWriteHalf), StartError> {
    let ask = async {
        let stream: UnixStream = link::open(data_dir, host).await?;
        let (mut reader, mut writer) = stream.into_split();
        protocol::write(&mut writer, &ToHost { seq: 0, request }).await?;
        let reply = protocol::read::<ToAgent>(&mut reader).await?;
        Ok::<_, io::Error>((reply, reader, writer))
    };
    match ask.await {
        Ok((Some(ToAgent::Reply { reply: Reply::Done, .. }), reader, writer)) => {
            Ok((reader, writer))
        }
        Ok((Some(ToAgent::Reply { reply: Reply::Refused { reason, message }, .. }), ..)) => {
            Err(StartError { reason, message })
        }
        // One of an earlier version does not know the request, and closes.
        Ok(_) => Err(lost("the host does not serve sessions; it is replaced with its pods")),
        Err(cause) => Err(lost(&cause.to_string())),
    }
}

/// Carries pieces until the last. An output that nobody reads any more is read over.
async fn carry(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    streams: Streams,
) -> Result<Ended, StartError> {
    let Streams { stdin, mut stdout, mut stderr, .. } = streams;
    let print = async {
        loop {
            let piece =
                protocol::read_piece(&mut reader).await.map_err(|e| lost(&e.to_string()))?;
            match piece {
                Some((STDOUT, bytes)) => put(&mut stdout, &bytes).await,
                Some((STDERR, bytes)) => put(&mut stderr, &bytes).await,
                Some((EXIT, bytes)) if bytes.is_empty() => return Ok(Ended::Detached),
                Some((EXIT, bytes)) => {
                    let exit = serde_json::from_slice(&bytes);
                    return exit.map(Ended::With).map_err(|e| lost(&e.to_string()));
                }
                Some(_) => {}
                None => return Err(lost("the host closed it")),
            }
        }
    };
    let feed = async {
        let typed = feed(&mut writer, stdin).await;
        let _the_other_direction_tells_it = typed;
        // The writer stays: its end would end the session.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = print => ended,
        () = feed => unreachable!("it waits for ever"),
    };
    for output in [stdout, stderr].iter_mut().flatten() {
        let _nobody_reads_it_any_more = output.shutdown().await;
    }
    ended
}

async fn put(output: &mut Option<Output>, bytes: &[u8]) {
    let Some(open) = output else { return };
    let written = match bytes.is_empty() {
        true => open.shutdown().await,
        false => {
            async {
                open.write_all(bytes).await?;
                open.flush().await
            }
            .await
        }
    };
    if written.is_err() || bytes.is_empty() {
        *output = None;
    }
}

async fn feed(writer: &mut OwnedWriteHalf, stdin: Option<Input>) -> io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    let mut buffer = vec![0; PIECE_BYTES_MAX / 4];
    loop {
        match stdin.read(&mut buffer).await? {
            0 => return protocol::write_piece(writer, STDIN, b"").await,
            n => protocol::write_piece(writer, STDIN, &buffer[..n]).await?,
        }
    }
}
