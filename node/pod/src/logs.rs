//! A container's log files, as the API's `pods/log` wants them.
//!
//! A runtime appends to `<attempt>.log` in the CRI format (`<time> <stream> <P|F> <text>`). When it
//! rotates, it renames that file to `<attempt>.log.<anything>` and begins a new one; rotated files
//! are read in the order of their modification.

mod line;
mod read;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::container_spec;
use crate::runtime::RunId;
use crate::state::PodState;
use crate::status::State;
use crate::task::Handle;

pub(crate) use watch::LogWatch;

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

/// Finds the run that is meant, then reads.
pub(crate) async fn open(
    handle: Arc<Handle>,
    request: LogRequest,
) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
    let now = handle.node.config.clock.now();
    let id = handle.look(|state| choose(state, &request, now))?;
    let since =
        request.since.and_then(|d| now.checked_sub(jiff::SignedDuration::try_from(d).ok()?).ok());
    let since = since.max(request.since_time);
    let path = container_spec::log_path(&handle.pod_dir(), &id);
    let follow = request.follow && !request.previous;
    let changes = match follow {
        false => None,
        true => {
            let dir = path.parent().expect("a log lies in a directory");
            Some(handle.node.logs.subscribe(dir).map_err(|e| LogError::Io(e.to_string()))?)
        }
    };
    // The handle is not kept: a follower must not keep a pod alive.
    let weak = Arc::downgrade(&handle);
    let is_over = move || {
        weak.upgrade().is_none_or(|handle| {
            handle.look(|state| !state.find(&id).is_some_and(|i| state.containers[i].is_alive()))
        })
    };
    let wanted = read::Wanted {
        timestamps: request.timestamps,
        since,
        tail_lines: request.tail_lines,
        limit_bytes: request.limit_bytes,
    };
    Ok(read::stream(path, wanted, changes, Box::new(is_over)))
}

fn choose(state: &PodState, request: &LogRequest, now: jiff::Timestamp) -> Result<RunId, LogError> {
    let pod = state.pod.metadata.name.clone().unwrap_or_default();
    let names = || state.containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(" ");
    let name = &request.container;
    let index = match (name.is_empty(), state.spec().containers.len()) {
        (true, 1) => state.containers.iter().position(|c| c.kind == crate::status::Kind::Main),
        (true, _) => {
            let message = format!(
                "a container name must be specified for pod {pod}, choose one of: [{}]",
                names()
            );
            return Err(LogError::BadRequest(message));
        }
        (false, _) => state.containers.iter().position(|c| c.name == *name),
    };
    let Some(index) = index.filter(|_| state.loaded) else {
        return Err(LogError::BadRequest(format!("container {name} is not valid for pod {pod}")));
    };
    let name = state.containers[index].name.clone();
    let (current, previous) = state.log_attempts(index, now);
    let attempt = match (request.previous, current, previous) {
        (false, Some(attempt), _) | (true, _, Some(attempt)) => attempt,
        (true, _, None) => {
            let message =
                format!("previous terminated container {name:?} in pod {pod:?} not found");
            return Err(LogError::BadRequest(message));
        }
        (false, None, _) => {
            let facts = state.facts(std::net::Ipv4Addr::UNSPECIFIED.into(), now);
            let why = match &facts.containers[index].state {
                State::Waiting { reason, .. } => reason.clone(),
                _ => "ContainerCreating".into(),
            };
            let message = format!("container {name:?} in pod {pod:?} is waiting to start: {why}");
            return Err(LogError::BadRequest(message));
        }
    };
    Ok(RunId { pod_uid: state.uid.to_string(), container: name, attempt })
}

/// The end of a run's log, for terminationMessagePolicy FallbackToLogsOnError: at most 80 lines and
/// 2 KiB.
pub(crate) async fn tail(pod_dir: PathBuf, id: RunId) -> String {
    let path = container_spec::log_path(&pod_dir, &id);
    let text = tokio::task::spawn_blocking(move || read::last_text(&path, 80, 2048)).await;
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests;
