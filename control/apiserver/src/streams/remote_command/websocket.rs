//! A client that speaks channels on a WebSocket: 0 to 2 are the standard streams, 3 is the error
//! stream, 4 the terminal's size.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use hyper::upgrade::OnUpgrade;

use super::ending::Ending;
use super::sizes::Sizes;
use super::{Client, ClientOutput, Kind};
use crate::nodes::{Input, Output as Piece, SessionOptions};
use crate::streams::channels::{Codec, Receiver, Said, Sender, split};
use crate::streams::spdy::Gone;
use crate::streams::websocket;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

pub struct Output {
    sender: Sender,
    /// Whether the error stream carries a Status.
    status: bool,
}

pub async fn client(
    upgrade: OnUpgrade,
    codec: Codec,
    status: bool,
    options: &SessionOptions,
) -> Result<Client, hyper::Error> {
    let (mut sender, receiver) = split(websocket::open(upgrade).await?, codec);
    // Tells a client that the connection stands.
    let lowest = match (options.stdout, options.stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    };
    let _a_client_that_is_gone_shows_at_once = sender.send(lowest, b"").await;
    let heard = Heard { receiver, sizes: Sizes::default(), stdin: options.stdin, tty: options.tty };
    let input = stream::unfold(heard, |mut heard| async {
        let input = heard.next().await?;
        Some((input, heard))
    });
    Ok(Client { input: input.boxed(), output: ClientOutput::Socket(Output { sender, status }) })
}

struct Heard {
    receiver: Receiver,
    sizes: Sizes,
    /// What was not asked for is not listened to.
    stdin: bool,
    tty: bool,
}

impl Heard {
    /// None when the client is gone.
    async fn next(&mut self) -> Option<Input> {
        loop {
            match self.receiver.next().await? {
                Said::Bytes(STDIN, bytes) if self.stdin && !bytes.is_empty() => {
                    return Some(Input::Stdin(bytes));
                }
                Said::Bytes(RESIZE, bytes) if self.tty => {
                    if let Some(size) = self.sizes.read(&bytes) {
                        return Some(size);
                    }
                }
                Said::Closed(STDIN) if self.stdin => return Some(Input::StdinEnd),
                Said::Bytes(..) | Said::Closed(_) | Said::Nothing => {}
            }
        }
    }
}

impl Output {
    pub async fn piece(&mut self, piece: Piece) -> Result<(), Gone> {
        let (channel, bytes): (u8, Bytes) = match piece {
            Piece::Stdout(bytes) => (STDOUT, bytes),
            Piece::Stderr(bytes) => (STDERR, bytes),
            Piece::Exit(_) | Piece::Failed(_) => return Ok(()),
        };
        // An end of one stream cannot be told.
        match bytes.is_empty() {
            true => Ok(()),
            false => self.sender.send(channel, &bytes).await,
        }
    }

    pub async fn ping(&mut self) -> Result<(), Gone> {
        self.sender.ping().await
    }

    pub async fn end(&mut self, ending: &Ending, kind: Kind) {
        if let Some(bytes) = ending.bytes(kind, self.status) {
            let _the_client_may_be_gone = self.sender.send(ERROR, &bytes).await;
        }
        self.sender.close().await;
    }
}
