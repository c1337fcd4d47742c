//! A container's log files, as the API's `pods/log` wants them.

use std::time::Duration;

/// `v1.PodLogOptions`, as the node needs them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Empty: the pod's only container.
    pub container: String,
    /// Goes on until the container ends.
    pub follow: bool,
    /// The run before the current one.
    pub previous: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    pub since: Option<Duration>,
    pub since_time: Option<jiff::Timestamp>,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
}

/// Why there is no log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The pod or container is not on this node.
    #[error("{0}")]
    NotFound(String),
    /// The container has not started, or has no previous run.
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Io(String),
}
