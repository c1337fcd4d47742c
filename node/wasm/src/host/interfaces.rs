//! Interfaces whose host side is ours, one file each; the rest of WASI is wasmtime-wasi's.

pub(crate) mod names;
pub(crate) mod outgoing;
pub(crate) mod sockets;
