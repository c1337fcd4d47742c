//! How the server's seats are divided among priority levels: by their shares, and by what levels
//! lend and borrow while some are idle. Pure.

/// What one level may have and asks for, in seats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// What it keeps however little it asks for.
    pub min: usize,
    /// What it may have at most, borrowed seats included.
    pub max: usize,
    pub wants: f64,
}

/// The seats of a level by its shares alone.
pub fn nominal(total: usize, shares: u64, sum: u64) -> usize {
    if sum == 0 {
        return 0;
    }
    (total as u128 * u128::from(shares)).div_ceil(u128::from(sum)) as usize
}

/// Divides the seats so that every level gets the same fraction of what it wants, within its bounds.
/// <https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/1040-priority-and-fairness>
pub fn divide(total: usize, claims: &[Claim]) -> Vec<usize> {
    let given = |claim: &Claim, fraction: f64| {
        (claim.wants.max(0.001) * fraction).clamp(claim.min as f64, claim.max.max(claim.min) as f64)
    };
    let sum = |fraction: f64| claims.iter().map(|c| given(c, fraction)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    // At most what all may have together.
    while sum(high) < total as f64 && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if sum(middle) < total as f64 { low = middle } else { high = middle }
    }
    claims.iter().map(|c| given(c, high).round() as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(total: usize, claims: &[(usize, usize, f64)], expected: &[usize]) {
        let claims: Vec<Claim> = claims
            .iter()
            .map(|(min, max, wants)| Claim { min: *min, max: *max, wants: *wants })
            .collect();
        assert_eq!(divide(total, &claims), expected);
    }

    #[test]
    fn seats_follow_demand_within_bounds() {
        assert_eq!(nominal(600, 40, 245), 98);
        assert_eq!(nominal(600, 0, 0), 0);
        // Everybody asks for the same.
        check(100, &[(10, 100, 50.0), (10, 100, 50.0)], &[50, 50]);
        // One idles and lends all but what it keeps.
        check(100, &[(10, 100, 0.0), (10, 100, 50.0)], &[10, 90]);
        // What cannot be borrowed stays unused.
        check(100, &[(10, 20, 0.0), (10, 60, 500.0)], &[20, 60]);
        // Minima come first.
        check(30, &[(20, 100, 100.0), (10, 100, 0.0)], &[20, 10]);
        check(0, &[(0, 10, 5.0)], &[0]);
        check(10, &[], &[]);
    }
}
