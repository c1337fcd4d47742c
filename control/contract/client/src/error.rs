//! Why a request did not give what was asked for.

use rimward_api::{Reason, Status};

use crate::transport::TransportError;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The API server said no.
    #[error("{}", .0.message)]
    Status(Box<Status>),
    /// The request may or may not have been carried out.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The answer is not what this kind looks like.
    #[error("cannot read the API server's answer to {what}: {why}")]
    Decode { what: String, why: String },
    /// The object cannot be sent; a mistake of the caller.
    #[error("cannot send {what}: {why}")]
    Request { what: String, why: String },
}

impl Error {
    /// The server's refusal, if it is one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Status(status) => Some(status),
            _ => None,
        }
    }

    fn is(&self, reason: Reason) -> bool {
        self.status().is_some_and(|s| s.reason == reason)
    }

    pub fn is_not_found(&self) -> bool {
        self.is(Reason::NotFound)
    }

    pub fn is_conflict(&self) -> bool {
        self.is(Reason::Conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.is(Reason::AlreadyExists)
    }

    /// The revision or continue token asked for was compacted away: list again.
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(|s| s.code == 410)
    }

    /// The namespace is going away, so creating in it never succeeds.
    pub fn is_namespace_terminating(&self) -> bool {
        self.is(Reason::Forbidden)
            && self.status().is_some_and(|s| s.message.contains("because it is being terminated"))
    }
}
