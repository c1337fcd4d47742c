//! Which images go when the disk fills up: the kubelet's rules.
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#container-image-lifecycle>

use jiff::{SignedDuration, Timestamp};

/// When images are collected; the names are those of the kubelet's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcPolicy {
    /// `imageGCHighThresholdPercent`: from here on images are removed.
    pub high_percent: u8,
    /// `imageGCLowThresholdPercent`: down to there.
    pub low_percent: u8,
    /// `imageMinimumGCAge`
    pub age_min: SignedDuration,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, age_min: SignedDuration::from_mins(2) }
    }
}

/// A file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub capacity: u64,
    pub available: u64,
}

impl GcPolicy {
    /// What has to go of a disk; None while it is below the high threshold.
    pub fn to_free(&self, room: Room) -> Option<u64> {
        let Room { capacity, available } = room;
        let used = 100 - (u128::from(available) * 100).checked_div(capacity.into())?.min(100);
        if used < u128::from(self.high_percent) {
            return None;
        }
        let wanted = u128::from(capacity) * u128::from(100 - self.low_percent.min(100)) / 100;
        Some(u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(available))
    }

    /// The unused images in the order in which they go: the one that was used longest ago first.
    pub fn order(&self, mut images: Vec<Candidate>, now: Timestamp) -> Vec<Candidate> {
        images.retain(|image| now.duration_since(image.first_seen) >= self.age_min);
        images.sort_by_key(|image| (image.last_used, image.first_seen));
        images
    }
}

/// An image that no container uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// All names of one digest: they go together.
    pub names: Vec<String>,
    pub first_seen: Timestamp,
    pub last_used: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let policy = GcPolicy::default();
        let check = |available: u64, expected: Option<u64>| {
            assert_eq!(policy.to_free(Room { capacity: 1000, available }), expected, "{available}");
        };
        check(1000, None);
        // Whole percents, as the kubelet counts.
        check(160, None);
        check(159, Some(41));
        check(150, Some(50));
        check(0, Some(200));
        assert_eq!(policy.to_free(Room { capacity: 0, available: 0 }), None);
    }

    #[test]
    fn the_longest_unused_goes_first_and_the_young_stay() {
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let image = |name: &str, seen: i64, used: i64| Candidate {
            names: vec![name.into()],
            first_seen: at(seen),
            last_used: at(used),
        };
        let images =
            vec![image("new", 9, 9), image("used", 0, 8), image("old", 1, 1), image("older", 0, 1)];
        let order = GcPolicy::default().order(images, at(10));
        let names: Vec<&str> = order.iter().map(|i| i.names[0].as_str()).collect();
        assert_eq!(names, ["older", "old", "used"]);
    }
}
