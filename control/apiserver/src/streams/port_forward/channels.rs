//! Channels on a WebSocket: for the port at index i, 2i carries its bytes and 2i+1 an error's text.
//! Both begin with the port, little endian.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{PING_EVERY, Side, Sink, Target, copy};
use crate::streams::channels::{Codec, Receiver, Said, Sender, split};
use crate::streams::spdy::Gone;
use crate::streams::websocket::Socket;

/// Messages that wait for a pod to take them.
const WAITING: usize = 4;

type Shared = Arc<Mutex<Sender>>;

/// Forwards until the client goes, every port is closed, or `stop`.
pub async fn serve(
    socket: Socket,
    codec: Codec,
    ports: &[u16],
    to: &Target,
    stop: CancellationToken,
) {
    let (sender, receiver) = split(socket, codec);
    let sender = Arc::new(Mutex::new(sender));
    let mut running = JoinSet::new();
    let mut inputs = Vec::new();
    for (port, data) in ports.iter().zip((0_u8..).step_by(2)) {
        let (input, bytes) = mpsc::channel(WAITING);
        inputs.push(input);
        running.spawn(one(to.clone(), *port, data, sender.clone(), bytes));
    }
    let ended = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        () = feed(receiver, inputs) => {}
        () = ping(&sender) => {}
        () = stop.cancelled() => {}
    }
    sender.lock().await.close().await;
}

async fn feed(mut receiver: Receiver, inputs: Vec<mpsc::Sender<Bytes>>) {
    while let Some(said) = receiver.next().await {
        if let Said::Bytes(channel, bytes) = said
            && channel % 2 == 0
            && let Some(input) = inputs.get(usize::from(channel / 2))
        {
            let _a_closed_port_reads_no_more = input.send(bytes).await;
        }
    }
}

/// Ends when the client does not answer any more.
async fn ping(sender: &Shared) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        if sender.lock().await.ping().await.is_err() {
            return;
        }
    }
}

async fn one(to: Target, port: u16, data: u8, sender: Shared, bytes: mpsc::Receiver<Bytes>) {
    let error = data + 1;
    for channel in [data, error] {
        if sender.lock().await.send(channel, &port.to_le_bytes()).await.is_err() {
            return;
        }
    }
    match to.dial(port).await {
        Ok(far) => copy(far, &mut Input(bytes), &mut Output { channel: data, sender }).await,
        Err(text) => {
            let _the_client_may_be_gone = sender.lock().await.send(error, text.as_bytes()).await;
        }
    }
}

struct Input(mpsc::Receiver<Bytes>);

impl Side for Input {
    async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

struct Output {
    channel: u8,
    sender: Shared,
}

impl Sink for Output {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.sender.lock().await.send(self.channel, &bytes).await
    }

    /// The end of one channel cannot be told.
    async fn finish(&mut self) {}
}
