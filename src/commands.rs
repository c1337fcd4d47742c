//! One file a command.

#[cfg(feature = "control")]
pub mod control;
pub mod image;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "control")]
pub mod token;
#[cfg(all(feature = "control", feature = "node"))]
pub mod up;
