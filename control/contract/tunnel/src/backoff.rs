//! How long to wait before dialling again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const MAX: Duration = Duration::from_secs(60);

/// The wait after `failures` failures in a row (1 is the first), between half and all of a span
/// that doubles up to 60 s. `random` is in 0..1: nodes that lost their control plane together must
/// not come back together.
pub fn wait(failures: u32, random: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(MAX).mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_minute() {
        let at = |n| (wait(n, 0.0).as_millis(), wait(n, 1.0).as_millis());
        assert_eq!(at(1), (125, 250));
        assert_eq!(at(2), (250, 500));
        assert_eq!(at(9), (30_000, 60_000));
        assert_eq!(at(u32::MAX), (30_000, 60_000));
    }
}
