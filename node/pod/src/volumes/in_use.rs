//! Which pods of this node have a claim's volume: a mark in the directory of each, so that the next agent knows too.
//! In the mark is the group that the volume wants its users to be in, if it wants one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::claimed::Claimed;

/// Holds the marks; no container or volume can be called this.
const MARKS: &str = "_claims";

/// Marks a volume as a pod's. Answers whether no other pod has it.
///
/// # Errors
/// When another has it and it is for one pod alone, in the kubelet's words.
pub(super) fn take(pod_dir: &Path, claimed: &Claimed) -> Result<bool, String> {
    let marks = pod_dir.join(MARKS);
    let mark = marks.join(&claimed.volume);
    // First: of two pods that begin at once, at least one then sees the other.
    let group = claimed.group.map_or_else(String::new, |group| group.to_string());
    let marked = crate::record::make_dir(&marks).and_then(|()| fs::write(&mark, group));
    marked.map_err(|e| format!("{}: {e}", mark.display()))?;
    let alone = !others(pod_dir, &claimed.volume);
    if !alone && claimed.exclusive {
        let _it_may_be_taken_by_the_other_now = fs::remove_file(&mark);
        return Err(
            "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
                .into(),
        );
    }
    Ok(alone)
}

fn others(pod_dir: &Path, volume: &str) -> bool {
    let pods = pod_dir.parent().and_then(|dir| fs::read_dir(dir).ok());
    let mut others = pods.into_iter().flatten().flatten().filter(|pod| pod.path() != pod_dir);
    others.any(|pod| pod.path().join(MARKS).join(volume).exists())
}

/// The groups that a pod's containers are in for the sake of its claims' volumes.
pub(crate) fn groups(pod_dir: &Path) -> BTreeSet<i64> {
    let marks = fs::read_dir(pod_dir.join(MARKS)).into_iter().flatten().flatten();
    marks.filter_map(|mark| fs::read_to_string(mark.path()).ok()?.parse().ok()).collect()
}

/// Gives all of a pod's back.
pub(super) fn release(pod_dir: &Path) -> io::Result<()> {
    super::remove_tree(&pod_dir.join(MARKS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::claimed::Source;

    #[test]
    fn one_pod_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let claimed = |exclusive| Claimed {
            volume: "pv".into(),
            source: Source::Local { path: "/x".into(), ours: true },
            read_only: false,
            exclusive,
            group: Some(7),
        };
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(take(&a, &claimed(true)), Ok(true));
        assert_eq!(take(&a, &claimed(true)), Ok(true), "its own is no other's");
        assert!(take(&b, &claimed(true)).unwrap_err().contains("ReadWriteOncePod"));
        assert_eq!(take(&b, &claimed(false)), Ok(false));
        assert_eq!(groups(&a), BTreeSet::from([7]));
        release(&a).unwrap();
        assert_eq!(groups(&a), BTreeSet::new());
        assert_eq!(take(&b, &claimed(true)), Ok(true));
    }
}
