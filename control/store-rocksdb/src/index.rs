//! Every key that is there, or was deleted in retained history, without its body: some hundred bytes a
//! key. It answers conditions and counts, and where the body at a revision is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use rimward_control_store::Revision;

use crate::codec::Known;

#[derive(Default)]
pub struct Index {
    keys: BTreeMap<Arc<str>, Known>,
}

/// Where a key's value at some revision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Absent,
    /// It was written at this revision.
    At(Revision),
    /// It was there; its versions must be searched.
    Older,
    /// Its versions must be searched: it may have been there, in an earlier life.
    Maybe,
}

impl Known {
    /// The revision that wrote the value that is there now.
    pub fn present(&self) -> Option<Revision> {
        (!self.deleted).then_some(self.revision)
    }

    /// `at` must be retained.
    pub fn place(&self, at: Revision) -> Place {
        if self.revision <= at {
            return if self.deleted { Place::Absent } else { Place::At(self.revision) };
        }
        if self.created <= at {
            return Place::Older;
        }
        if self.earlier { Place::Maybe } else { Place::Absent }
    }
}

impl Index {
    pub fn get(&self, key: &str) -> Option<(&Arc<str>, &Known)> {
        self.keys.get_key_value(key)
    }

    pub fn insert(&mut self, key: Arc<str>, known: Known) {
        self.keys.insert(key, known);
    }

    /// Forgets a key that was deleted at `revision`, unless it came back since.
    pub fn forget(&mut self, key: &str, revision: Revision) {
        if self.deleted_at(key) == Some(revision) {
            self.keys.remove(key);
        }
    }

    /// The revision that deleted the key, if it is deleted.
    pub fn deleted_at(&self, key: &str) -> Option<Revision> {
        self.keys.get(key).filter(|known| known.deleted).map(|known| known.revision)
    }

    /// The keys that start with `prefix` and come after `after`, in order.
    pub fn under<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Known)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = self.keys.range::<str, _>((start, Bound::Unbounded));
        range.take_while(move |(key, _)| key.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_by_revision() {
        let check = |known: Known, expected: [Place; 6]| {
            let places: Vec<Place> = (1..=6).map(|at| known.place(at)).collect();
            assert_eq!(places, expected, "{known:?}");
        };
        use Place::{Absent, At, Maybe, Older};
        let known =
            |revision, created, deleted, earlier| Known { revision, created, deleted, earlier };
        check(known(3, 3, false, false), [Absent, Absent, At(3), At(3), At(3), At(3)]);
        check(known(5, 3, false, false), [Absent, Absent, Older, Older, At(5), At(5)]);
        check(known(5, 3, false, true), [Maybe, Maybe, Older, Older, At(5), At(5)]);
        check(known(5, 3, true, false), [Absent, Absent, Older, Older, Absent, Absent]);
        check(known(5, 3, true, true), [Maybe, Maybe, Older, Older, Absent, Absent]);
    }
}
