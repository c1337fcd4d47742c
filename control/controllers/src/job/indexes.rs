//! Completion indexes, as ranges: what is done of a Job may be a hundred thousand of them.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode>

use std::collections::BTreeSet;
use std::fmt;

use rimward_control_lean::Pod;

/// On a pod, as annotation and label: its index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Ranges in order that neither meet nor touch; both ends belong to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads `1,3-5,7` as far as it is below `completions`; what cannot be read is left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut all = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else {
                continue;
            };
            let last = last.min(completions - 1);
            if first >= 0 && first <= last {
                all.add(first, last);
            }
        }
        all
    }

    /// Adds a range.
    fn add(&mut self, mut first: i32, mut last: i32) {
        let from = self.0.partition_point(|(_, l)| l.saturating_add(1) < first);
        let to = self.0.partition_point(|(f, _)| *f <= last.saturating_add(1));
        if from < to {
            first = first.min(self.0[from].0);
            last = last.max(self.0[to - 1].1);
        }
        self.0.splice(from..to, [(first, last)]);
    }

    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        let mut all = self.clone();
        more.into_iter().for_each(|i| all.add(i, i));
        all
    }

    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let mut all = self.clone();
        other.0.iter().for_each(|(first, last)| all.add(*first, *last));
        all
    }

    pub fn has(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many are in both.
    pub fn common(&self, other: &Self) -> i32 {
        let (mut i, mut j, mut count) = (0, 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            count += (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
            if a.1 <= b.1 {
                i += 1;
            } else {
                j += 1;
            }
        }
        count
    }

    /// The first `count` below `completions` that are not among them.
    pub fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let (mut found, mut candidate) = (Vec::new(), 0);
        for (first, last) in self.0.iter().chain([&(completions, completions)]) {
            let end = (*first).min(completions);
            let room = (count - found.len()).min((end - candidate).max(0) as usize);
            found.extend(candidate..candidate + room as i32);
            candidate = candidate.max(last + 1);
        }
        found
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The index that a pod says; None where it says none.
pub fn index_of(pod: &Pod) -> Option<i32> {
    let said = pod.metadata.annotations.as_ref()?.get(INDEX)?;
    said.parse().ok().filter(|i| *i >= 0)
}

/// The indexes of some pods.
pub fn of<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeSet<i32> {
    pods.into_iter().filter_map(index_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        #[track_caller]
        fn check(text: &str, more: &[i32], shown: &str, total: i32) {
            let all = Indexes::parse(text, 10).with(more.iter().copied());
            assert_eq!((all.to_string().as_str(), all.total()), (shown, total));
        }
        check("", &[], "", 0);
        check("1,3-5,7", &[], "1,3-5,7", 5);
        check("0-3,5", &[4], "0-5", 6);
        check("1", &[0], "0,1", 2);
        check("2", &[0, 8, 5], "0,2,5,8", 4);
        check("0-3", &[1, 2], "0-3", 4);
        check("8-20,30", &[], "8,9", 2);
        check("x,4,-1,3-2", &[], "4", 1);
        let all = Indexes::parse("1,3-5", 10);
        let has: Vec<i32> = (0..8).filter(|i| all.has(*i)).collect();
        assert_eq!(has, [1, 3, 4, 5]);
        assert_eq!((all.missing(3, 10), all.missing(9, 7)), (vec![0, 2, 6], vec![0, 2, 6]));
        assert_eq!((all.missing(0, 10), Indexes::default().missing(2, 1)), (vec![], vec![0]));
        assert_eq!(all.common(&Indexes::parse("0-3,5-9", 10)), 3);
        assert_eq!(all.merged(&Indexes::parse("2,6", 10)).to_string(), "1-6");
    }
}
