//! What travels on the streams: frames of bincode, JSON objects inside them as bytes.

pub mod codec;
pub mod frames;
pub mod kinds;

pub use codec::{Frame, FrameReader, Malformed, RawFrame, encode};
pub use frames::*;
pub use kinds::ObjectKind;
