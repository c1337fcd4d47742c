//! A session in a container (exec, attach) as the API server holds it: pieces on a tunnel stream.
//!
//! Nothing is kept here. Who reads slowly lets the stream's window fill, and with it the command
//! wait; who drops the session resets the stream, which ends the command.

use futures::sink;
use futures::stream::{self, StreamExt as _};
use rimward_control_apiserver::nodes::{Input, Output, Session};
use rimward_tunnel::call::{Body, CallError, Duplex, FrameSender};
use rimward_tunnel::wire::{FrameReader, SessionData, SessionEnd, SessionOut, SessionResize};

use crate::reach::refused;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// Of one frame.
const PIECE_BYTES: usize = 32 << 10;

pub(crate) fn open(node: String, stream: Duplex) -> Session {
    let (send, receive) = stream.into_frames();
    let (told, heard) = (node.clone(), node);
    let input = sink::unfold(Sending(Some(send)), move |mut sending: Sending, input: Input| {
        let node = told.clone();
        async move {
            let sent = sending.piece(input).await;
            sent.map_err(|e| refused(&node, e)).map(|()| sending)
        }
    });
    let output = stream::unfold(Some((receive, heard)), |state| async {
        let (mut receive, node) = state?;
        match next(&mut receive).await {
            Ok(piece @ (Output::Stdout(_) | Output::Stderr(_))) => {
                Some((Ok(piece), Some((receive, node))))
            }
            Ok(last) => Some((Ok(last), None)),
            Err(e) => Some((Err(refused(&node, e)), None)),
        }
    });
    Session { input: Box::pin(input), output: output.boxed() }
}

/// The sending half; one that is dropped says that the client is gone, not that it has no more to say.
struct Sending(Option<FrameSender>);

impl Sending {
    async fn piece(&mut self, input: Input) -> Result<(), CallError> {
        let Some(send) = &mut self.0 else {
            return Err(CallError::Broken("the session is over".into()));
        };
        match input {
            // A client's message may be larger than a frame. No bytes at all would be the end.
            Input::Stdin(bytes) => {
                for piece in bytes.chunks(PIECE_BYTES) {
                    send.send(&SessionData { stream: STDIN, bytes: piece.to_vec() }).await?;
                }
                Ok(())
            }
            Input::StdinEnd => send.send(&SessionData { stream: STDIN, bytes: Vec::new() }).await,
            Input::Resize { width, height } => send.send(&SessionResize { width, height }).await,
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(mut send) = self.0.take() {
            send.abort();
        }
    }
}

async fn next(receive: &mut FrameReader<Body>) -> Result<Output, CallError> {
    loop {
        let frame = receive.next().await?;
        let frame = frame.ok_or_else(|| CallError::Broken("the session broke off".into()))?;
        match SessionOut::decode(&frame)? {
            Some(SessionOut::SessionData(SessionData { stream: STDOUT, bytes })) => {
                return Ok(Output::Stdout(bytes.into()));
            }
            Some(SessionOut::SessionData(SessionData { stream: STDERR, bytes })) => {
                return Ok(Output::Stderr(bytes.into()));
            }
            Some(SessionOut::SessionEnd(SessionEnd { exit_code: Some(code), .. })) => {
                return Ok(Output::Exit(code));
            }
            Some(SessionOut::SessionEnd(SessionEnd { exit_code: None, message }))
                if message.is_empty() =>
            {
                return Ok(Output::Exit(0));
            }
            Some(SessionOut::SessionEnd(SessionEnd { message, .. })) => {
                return Ok(Output::Failed(message));
            }
            // A stream that a newer node has.
            Some(SessionOut::SessionData(_)) | None => {}
        }
    }
}
