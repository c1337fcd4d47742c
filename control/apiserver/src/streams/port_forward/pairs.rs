//! Pairs of SPDY streams, `data` and `error`, that belong together by their `requestid`.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{PING_EVERY, Side, Sink, Target, copy};
use crate::streams::spdy::{Connection, Gone, Stream, StreamInput, StreamOutput};

/// The half of a pair that came first.
struct Half {
    data: Option<(StreamInput, StreamOutput)>,
    error: Option<StreamOutput>,
    port: u16,
    since: Instant,
}

/// Which stream of which pair a stream is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    pair: String,
    port: u16,
    is_error: bool,
}

/// Forwards until the client goes or `stop`.
pub async fn serve(mut connection: Connection, to: &Target, stop: CancellationToken) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    // Aborted when this ends.
    let mut running = JoinSet::new();
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let gone = connection.gone();
    loop {
        tokio::select! {
            stream = connection.next() => match stream {
                Some(stream) => {
                    if let Some((pair, port)) = pair(&mut halves, stream).await {
                        running.spawn(one(to.clone(), port, pair));
                    }
                }
                None => break,
            },
            _ = ticks.tick() => {
                halves.retain(|_, half| half.since.elapsed() < PING_EVERY);
                connection.ping().await;
            }
            Some(_) = running.join_next() => {}
            () = gone.cancelled() => break,
            () = stop.cancelled() => break,
        }
    }
    drop(running);
    connection.close().await;
}

type Pair = ((StreamInput, StreamOutput), StreamOutput);

/// Puts a stream into its pair; answers a pair that is whole.
async fn pair(halves: &mut HashMap<String, Half>, stream: Stream) -> Option<(Pair, u16)> {
    let header = |name: &str| stream.headers.get(name);
    let place = place(stream.id, header("port"), header("streamtype"), header("requestid"));
    let taken = place.as_ref().is_some_and(|place| {
        halves.get(&place.pair).is_some_and(|half| match place.is_error {
            true => half.error.is_some(),
            false => half.data.is_some(),
        })
    });
    let Some(Place { pair, port, is_error }) = place.filter(|_| !taken) else {
        stream.refuse().await;
        return None;
    };
    let (input, output) = stream.accept().await.ok()?;
    let half = halves.entry(pair.clone()).or_insert_with(|| Half {
        data: None,
        error: None,
        port,
        since: Instant::now(),
    });
    match is_error {
        true => half.error = Some(output),
        false => half.data = Some((input, output)),
    }
    if half.data.is_none() || half.error.is_none() {
        return None;
    }
    let Half { data, error, port, .. } = halves.remove(&pair)?;
    Some(((data?, error?), port))
}

/// What a stream's headers say; None when they do not say enough.
fn place(stream: u32, port: &str, kind: &str, request: &str) -> Option<Place> {
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let is_error = match kind {
        "error" => true,
        "data" => false,
        _ => return None,
    };
    // Clients without request ids open the two one after the other, the error stream first.
    let pair = match (request, is_error) {
        ("", true) => format!("#{stream}"),
        ("", false) => format!("#{}", stream.wrapping_sub(2)),
        (id, _) => id.to_owned(),
    };
    Some(Place { pair, port, is_error })
}

async fn one(to: Target, port: u16, pair: Pair) {
    let ((mut input, mut output), mut error) = pair;
    match to.dial(port).await {
        Ok(far) => copy(far, &mut input, &mut output).await,
        Err(text) => {
            let _the_client_may_be_gone = error.send(text.into()).await;
        }
    }
    output.finish().await;
    error.finish().await;
}

impl Side for StreamInput {
    async fn next(&mut self) -> Option<Bytes> {
        StreamInput::next(self).await
    }
}

impl Sink for StreamOutput {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        StreamOutput::send(self, bytes).await
    }

    async fn finish(&mut self) {
        StreamOutput::finish(self).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let at = |pair: &str, is_error| Some(Place { pair: pair.into(), port: 80, is_error });
        assert_eq!(place(1, "80", "error", "7"), at("7", true));
        assert_eq!(place(3, "80", "data", "7"), at("7", false));
        assert_eq!(place(5, "80", "error", ""), at("#5", true));
        assert_eq!(place(7, "80", "data", ""), at("#5", false));
        assert_eq!(place(1, "0", "data", ""), None);
        assert_eq!(place(1, "http", "data", ""), None);
        assert_eq!(place(1, "80", "stdin", ""), None);
    }
}
