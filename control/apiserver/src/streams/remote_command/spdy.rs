//! A client that opens a SPDY stream for each: `streamtype` says which it is.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::ending::Ending;
use super::sizes::Sizes;
use super::{Client, ClientOutput, Kind, NotServed};
use crate::nodes::{Input, Output as Piece, SessionOptions};
use crate::streams::spdy::{Connection, Gone, StreamInput, StreamOutput};

/// How long a client may take to open its streams, as the kubelet has it.
const OPEN_MAX: Duration = Duration::from_secs(30);

pub struct Output {
    connection: Connection,
    error: StreamOutput,
    stdout: Option<StreamOutput>,
    stderr: Option<StreamOutput>,
    /// Of the streams that only come in: closed at the end.
    others: Vec<StreamOutput>,
    gone: CancellationToken,
    status: bool,
}

/// The streams of a client, as they come.
#[derive(Default)]
struct Opened {
    error: Option<StreamOutput>,
    stdout: Option<StreamOutput>,
    stderr: Option<StreamOutput>,
    stdin: Option<StreamInput>,
    resize: Option<StreamInput>,
    others: Vec<StreamOutput>,
}

pub async fn client(
    upgrade: OnUpgrade,
    resizes: bool,
    status: bool,
    options: &SessionOptions,
) -> Result<Client, NotServed> {
    let mut connection = Connection::new(Box::new(TokioIo::new(upgrade.await?)));
    let waited = tokio::time::timeout(OPEN_MAX, open(&mut connection, resizes, options)).await;
    let opened = waited.ok().flatten().ok_or(NotServed::Streams)?;
    let Opened { error: Some(error), stdout, stderr, stdin, resize, others } = opened else {
        return Err(NotServed::Streams);
    };
    let gone = connection.gone();
    let heard = Heard { stdin, resize, sizes: Sizes::default(), gone: gone.clone() };
    let input = stream::unfold(heard, |mut heard| async {
        let input = heard.next().await?;
        Some((input, heard))
    });
    let output = Output { connection, error, stdout, stderr, others: others, gone, status };
    Ok(Client { input: input.boxed(), output: ClientOutput::Spdy(output) })
}

/// Waits for every stream that the options promise; None when the client goes.
async fn open(
    connection: &mut Connection,
    resizes: bool,
    options: &SessionOptions,
) -> Option<Opened> {
    let resizes = resizes && options.tty;
    let wanted = [true, options.stdin, options.stdout, options.stderr, resizes];
    let mut missing = wanted.into_iter().filter(|wanted| *wanted).count();
    let mut opened = Opened::default();
    while missing > 0 {
        let stream = connection.next().await?;
        let free = match stream.headers.get("streamtype") {
            "error" => opened.error.is_none(),
            "stdin" => options.stdin && opened.stdin.is_none(),
            "stdout" => options.stdout && opened.stdout.is_none(),
            "stderr" => options.stderr && opened.stderr.is_none(),
            "resize" => resizes && opened.resize.is_none(),
            _ => false,
        };
        if !free {
            stream.refuse().await;
            continue;
        }
        let kind = stream.headers.get("streamtype").to_owned();
        let (input, output) = stream.accept().await.ok()?;
        missing -= 1;
        match kind.as_str() {
            "error" => opened.error = Some(output),
            "stdout" => opened.stdout = Some(output),
            "stderr" => opened.stderr = Some(output),
            "stdin" => {
                opened.stdin = Some(input);
                opened.others.push(output);
            }
            _ => {
                opened.resize = Some(input);
                opened.others.push(output);
            }
        }
    }
    Some(opened)
}

struct Heard {
    stdin: Option<StreamInput>,
    resize: Option<StreamInput>,
    sizes: Sizes,
    gone: CancellationToken,
}

impl Heard {
    /// None when the client is gone.
    async fn next(&mut self) -> Option<Input> {
        loop {
            tokio::select! {
                bytes = of(&mut self.stdin) => return Some(match bytes {
                    Some(bytes) => Input::Stdin(bytes),
                    None => {
                        self.stdin = None;
                        Input::StdinEnd
                    }
                }),
                bytes = of(&mut self.resize) => match bytes {
                    Some(bytes) => if let Some(size) = self.sizes.read(&bytes) {
                        return Some(size);
                    },
                    None => self.resize = None,
                },
                () = self.gone.cancelled() => return None,
            }
        }
    }
}

/// The stream's next bytes; waits for ever where there is none.
async fn of(stream: &mut Option<StreamInput>) -> Option<Bytes> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

impl Output {
    pub async fn piece(&mut self, piece: Piece) -> Result<(), Gone> {
        let (stream, bytes) = match piece {
            Piece::Stdout(bytes) => (&mut self.stdout, bytes),
            Piece::Stderr(bytes) => (&mut self.stderr, bytes),
            Piece::Exit(_) | Piece::Failed(_) => return Ok(()),
        };
        let Some(open) = stream else { return Ok(()) };
        if bytes.is_empty() {
            open.finish().await;
            return Ok(());
        }
        open.send(bytes).await
    }

    pub async fn ping(&mut self) -> Result<(), Gone> {
        self.connection.ping().await;
        if self.gone.is_cancelled() { Err(Gone) } else { Ok(()) }
    }

    /// Tells the end, closes every stream and then the connection.
    pub async fn end(mut self, ending: &Ending, kind: Kind) {
        let streams = [self.stdout.as_mut(), self.stderr.as_mut()];
        for stream in streams.into_iter().flatten() {
            stream.finish().await;
        }
        if let Some(bytes) = ending.bytes(kind, self.status) {
            let _the_client_may_be_gone = self.error.send(bytes.into()).await;
        }
        self.error.finish().await;
        for stream in &mut self.others {
            stream.finish().await;
        }
        self.connection.close().await;
    }
}
