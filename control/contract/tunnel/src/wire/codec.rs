//! The one place that knows bincode, and how frames are laid out.
//!
//! A frame is `format (1 byte) · kind (2, big endian) · length (4, big endian) · fields`. Fields are
//! bincode values one after another, so a newer end may append fields: an older one does not look at
//! the rest, and a newer one that finds none takes the default. A frame of a kind that is not known
//! is skipped. Golden bytes in `golden.txt` hold all of this still.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Format and version of the frames: 1 is bincode 2 with its standard configuration.
pub const FORMAT: u8 = 1;

/// The longest frame, in bytes, that either end accepts: room for the largest object that the store
/// takes (1.5 MiB) and what is batched with it.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Bytes before a frame's fields.
pub const HEAD_BYTES: usize = 7;

type Config = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_BYTES_MAX>,
>;

const CONFIG: Config = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

/// Bytes that are not what the protocol says. The connection that brought them is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("frame format {0} is not known, expected {FORMAT}")]
    Format(u8),
    #[error("a frame of kind {kind} has {bytes} bytes, at most {FRAME_BYTES_MAX} are allowed")]
    TooLong { kind: u16, bytes: usize },
    #[error("field {field} of frame {frame} cannot be decoded: {cause}")]
    Field { frame: &'static str, field: &'static str, cause: String },
    #[error("a frame of kind {kind} is not expected here")]
    Unexpected { kind: u16 },
    #[error("the stream ended inside a frame")]
    Truncated,
}

/// A frame as it stands on the wire, its fields not yet decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    pub kind: u16,
    pub fields: Bytes,
}

impl RawFrame {
    /// The one whole frame in `bytes`: for frames that are kept, not sent.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        FrameReader { stream: tokio::io::empty(), buffer: bytes.into() }.parse()
    }

    /// The frame as an `F`; None when it is of another kind.
    pub fn decode<F: Frame>(&self) -> Result<Option<F>, Malformed> {
        if self.kind != F::KIND {
            return Ok(None);
        }
        F::decode_fields(Fields { frame: F::NAME, rest: &self.fields }).map(Some)
    }
}

/// A kind of frame. Implemented by the `frames!` macro only.
pub trait Frame: Sized {
    const KIND: u16;
    const NAME: &'static str;
    fn encode_fields(&self, out: &mut Vec<u8>);
    fn decode_fields(fields: Fields<'_>) -> Result<Self, Malformed>;
}

/// Appends a frame to `out`. The caller keeps frames under [`FRAME_BYTES_MAX`] by what it puts in;
/// the other end refuses longer ones.
pub fn encode<F: Frame>(frame: &F, out: &mut Vec<u8>) {
    out.push(FORMAT);
    out.extend_from_slice(&F::KIND.to_be_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    frame.encode_fields(out);
    let length = u32::try_from(out.len() - length_at - 4).unwrap_or(u32::MAX);
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends one field.
pub(super) fn put<T: bincode::Encode>(value: &T, out: &mut Vec<u8>) {
    bincode::encode_into_std_write(value, out, CONFIG).expect("a Vec takes all bytes");
}

/// The fields of one frame that are not read yet.
pub struct Fields<'a> {
    frame: &'static str,
    rest: &'a [u8],
}

impl Fields<'_> {
    /// The next field; its default when the sender is older than the field.
    pub(super) fn take<T>(&mut self, field: &'static str) -> Result<T, Malformed>
    where
        T: bincode::Decode<()> + Default,
    {
        if self.rest.is_empty() {
            return Ok(T::default());
        }
        let (value, used) = bincode::decode_from_slice(self.rest, CONFIG)
            .map_err(|e| Malformed::Field { frame: self.frame, field, cause: e.to_string() })?;
        self.rest = &self.rest[used..];
        Ok(value)
    }
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads frames from a byte stream. Holds at most one frame.
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next frame of any kind; None when the stream ended between frames. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<RawFrame>, ReadError> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(Malformed::Truncated.into()),
                };
            }
        }
    }

    /// A frame that is whole in the buffer already.
    pub fn buffered(&mut self) -> Result<Option<RawFrame>, Malformed> {
        self.parse()
    }

    fn parse(&mut self) -> Result<Option<RawFrame>, Malformed> {
        if let Some(format) = self.buffer.first().filter(|format| **format != FORMAT) {
            return Err(Malformed::Format(*format));
        }
        if self.buffer.len() < HEAD_BYTES {
            self.buffer.reserve(HEAD_BYTES.max(4096));
            return Ok(None);
        }
        let mut head = &self.buffer[1..HEAD_BYTES];
        let (kind, length) = (head.get_u16(), head.get_u32() as usize);
        if length > FRAME_BYTES_MAX {
            return Err(Malformed::TooLong { kind, bytes: length });
        }
        if self.buffer.len() < HEAD_BYTES + length {
            // Grown as bytes arrive, not at once: a claim of 4 MiB alone costs nothing.
            self.buffer.reserve((HEAD_BYTES + length - self.buffer.len()).min(64 << 10));
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        Ok(Some(RawFrame { kind, fields: self.buffer.split_to(length).freeze() }))
    }

    /// The raw bytes that follow the frames: those already read, then the stream itself.
    pub fn into_rest(self) -> (Bytes, R) {
        (self.buffer.freeze(), self.stream)
    }
}

/// Declares frames: structs whose fields are encoded in order, each with a fixed kind number.
macro_rules! frames {
    ($($(#[$doc:meta])* $name:ident = $kind:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl $crate::wire::codec::Frame for $name {
            const KIND: u16 = $kind;
            const NAME: &'static str = stringify!($name);

            fn encode_fields(&self, out: &mut Vec<u8>) {
                $($crate::wire::codec::put(&self.$field, out);)*
            }

            fn decode_fields(
                mut fields: $crate::wire::codec::Fields<'_>,
            ) -> Result<Self, $crate::wire::codec::Malformed> {
                Ok(Self { $($field: fields.take(stringify!($field))?,)* })
            }
        }
    )*};
}

/// Declares which frames a stream may carry.
macro_rules! frame_set {
    ($(#[$doc:meta])* $set:ident: $($name:ident),*) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $set { $($name($name),)* }

        impl $set {
            /// None for a kind that is not known here: it is skipped.
            pub fn decode(
                frame: &$crate::wire::codec::RawFrame,
            ) -> Result<Option<Self>, $crate::wire::codec::Malformed> {
                use $crate::wire::codec::Frame;
                Ok(match frame.kind {
                    $($name::KIND => frame.decode::<$name>()?.map(Self::$name),)*
                    _ => None,
                })
            }
        }

        impl $crate::control::Message for $set {
            fn decode(
                frame: &$crate::wire::codec::RawFrame,
            ) -> Result<Option<Self>, $crate::wire::codec::Malformed> {
                Self::decode(frame)
            }
        }
    };
}

pub(super) use {frame_set, frames};
