//! What time it is: the system's, or that of tokio's timers so that tests and the simulator can
//! run hours in a moment.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Tells the time. Deadlines are kept as timestamps, since they outlive the agent; waiting is done
/// by tokio's timers, on what remains.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// When it was what time on tokio's clock; None follows the system, its corrections included.
    anchor: Option<(Timestamp, Instant)>,
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that goes as tokio's timers go, paused or not, from `start`.
    pub fn virtual_from(start: Timestamp) -> Self {
        Self { anchor: Some((start, Instant::now())) }
    }

    pub fn now(&self) -> Timestamp {
        match self.anchor {
            None => Timestamp::now(),
            Some((start, instant)) => {
                let passed = SignedDuration::try_from(instant.elapsed()).unwrap_or_default();
                start.checked_add(passed).unwrap_or(Timestamp::MAX)
            }
        }
    }
}
