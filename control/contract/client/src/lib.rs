//! The typed client that controllers, the scheduler and the hub use, over a [`Transport`]; the
//! informer and its [`Cache`]; the rate-limited work queue.
//!
//! It knows no kind and opens no socket: a Transport is given to it (in the control plane, one that
//! calls the API server's pipeline in process, under an identity of its own).

pub mod cache;
pub mod transport;

pub use cache::{Cache, Delta, Deltas};
pub use transport::{Body, Transport, TransportError};
