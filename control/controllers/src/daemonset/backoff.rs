//! How long a failed pod is left alone: a second for the first on its node, twice as long for each further.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// One that did not fail for this long starts anew.
const FORGOTTEN: Duration = LONGEST.saturating_mul(2);

/// By whatever a failure is counted for.
#[derive(Default)]
pub struct Backoff(Mutex<HashMap<String, (Duration, Instant)>>);

impl Backoff {
    /// Zero when the wait is over.
    pub fn left(&self, key: &str, now: Instant) -> Duration {
        let failures = self.0.lock();
        let left = failures.get(key).map(|(wait, at)| wait.saturating_sub(now.duration_since(*at)));
        left.unwrap_or_default()
    }

    /// It failed again.
    pub fn failed(&self, key: &str, now: Instant) {
        let mut failures = self.0.lock();
        failures.retain(|_, (_, at)| now.duration_since(*at) < FORGOTTEN);
        let wait = failures.get(key).map_or(FIRST, |(wait, _)| (*wait * 2).min(LONGEST));
        failures.insert(key.to_owned(), (wait, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_waits_longer() {
        let (backoff, start) = (Backoff::default(), Instant::now());
        let mut now = start;
        assert_eq!(backoff.left("n", now), Duration::ZERO);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            backoff.failed("n", now);
            assert_eq!(backoff.left("n", now), Duration::from_secs(seconds));
            assert_eq!(backoff.left("other", now), Duration::ZERO);
            now += Duration::from_secs(seconds);
            assert_eq!(backoff.left("n", now), Duration::ZERO);
        }
        now += FORGOTTEN;
        backoff.failed("n", now);
        assert_eq!(backoff.left("n", now), FIRST);
    }
}
