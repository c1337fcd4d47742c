//! The node's own commands in containers: what exec probes and exec hooks run.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use crate::runtime::{ExecRequest, Exit, RunId, Runtime, StartError, Streams};

/// What is kept of a command's output, in bytes; the rest is read and dropped. As the kubelet's
/// exec probe keeps it.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// Runs a command without a stdin to its end; answers how it ended and what it printed first, on
/// either output. Dropping the call ends the command.
pub(crate) async fn run(
    runtime: &dyn Runtime,
    id: &RunId,
    argv: Vec<String>,
) -> Result<(Exit, String), StartError> {
    let printed = Kept::default();
    let streams = Streams {
        stdout: Some(Box::new(printed.clone())),
        stderr: Some(Box::new(printed.clone())),
        ..Streams::default()
    };
    let exit = runtime.exec(id, ExecRequest { argv, tty: false }, streams).await?;
    let printed = printed.0.lock();
    Ok((exit, String::from_utf8_lossy(&printed).into_owned()))
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Kept {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut kept = self.0.lock();
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
