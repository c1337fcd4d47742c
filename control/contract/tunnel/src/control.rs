//! The control stream, at either end.

use quinn::{RecvStream, SendStream, WriteError};

use crate::wire::codec::{Frame, FrameReader, Malformed, RawFrame, ReadError, encode};

/// A set of frames that a stream may carry.
pub trait Message: Sized {
    /// None for a kind that is skipped.
    fn decode(frame: &RawFrame) -> Result<Option<Self>, Malformed>;
}

/// Writes frames, several at once.
pub struct Writer {
    stream: SendStream,
    buffer: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(stream: SendStream) -> Self {
        // Control before bulk: a log that is followed must not delay a pod's start.
        let _only_a_closed_stream_refuses = stream.set_priority(10);
        Self { stream, buffer: Vec::new() }
    }

    /// Queues a frame until the next [`Writer::flush`].
    pub fn push<F: Frame>(&mut self, frame: &F) {
        encode(frame, &mut self.buffer);
    }

    /// Queues bytes as they are, to try the other end with.
    #[cfg(test)]
    pub(crate) fn push_raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for a flush.
    pub fn queued(&self) -> usize {
        self.buffer.len()
    }

    /// Sends what is queued; waits while the other end's window is full. Not cancel-safe.
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let sent = self.stream.write_all(&self.buffer).await;
        self.buffer.clear();
        self.buffer.shrink_to(64 << 10);
        sent
    }
}

/// Reads frames of one set.
pub struct Reader<M> {
    frames: FrameReader<RecvStream>,
    set: std::marker::PhantomData<fn() -> M>,
}

impl<M: Message> Reader<M> {
    pub(crate) fn new(frames: FrameReader<RecvStream>) -> Self {
        Self { frames, set: std::marker::PhantomData }
    }

    /// The next frame that is known; None when the other end finished the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<M>, ReadError> {
        while let Some(frame) = self.frames.next().await? {
            if let Some(message) = M::decode(&frame)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// A frame that has arrived already, so that what came together is handled together.
    pub fn buffered(&mut self) -> Result<Option<M>, Malformed> {
        while let Some(frame) = self.frames.buffered()? {
            if let Some(message) = M::decode(&frame)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}
