//! The typed client that controllers, the scheduler and the hub use, over a [`Transport`]; the
//! informer and its [`Cache`]; the rate-limited work queue; the event recorder.
//!
//! It knows no kind and opens no socket: a Transport is given to it (in the control plane, one that
//! calls the API server's pipeline in process, under an identity of its own).
//!
//! In reading order: [`client`] sends one request, [`watch`] reads one watch, [`reflector`] keeps a
//! [`Cache`] equal to the server over lists, watches and their failures, [`informers`] shares one
//! cache per kind, [`queue`] turns changes into work, [`events`] tells the user what happened.

pub mod cache;
pub mod client;
pub mod discovery;
pub mod error;
pub mod events;
pub mod informers;
pub mod options;
pub mod queue;
pub mod reflector;
pub mod resource;
pub mod transport;
pub mod watch;

pub use cache::{Cache, Change, Delta, Deltas};
pub use client::{Client, List};
pub use error::Error;
pub use events::{EventType, Recorder};
pub use informers::Informers;
pub use options::{DeleteOptions, ListOptions, Patch, PatchFormat, Preconditions, Propagation};
pub use queue::{Queue, Queues};
pub use reflector::{Sink, Source};
pub use resource::{Object, Resource, Watched};
pub use transport::{Body, OmitManagedFields, Transport, TransportError};
pub use watch::WatchEvent;
