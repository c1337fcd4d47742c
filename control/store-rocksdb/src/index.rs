//! Every key that is there, or was deleted in retained history, without its body: some hundred
//! bytes a key. It answers conditions and counts, and where the body at a revision is.
//!
//! The keys lie sorted in leaves of a few hundred, each of which knows how many of its keys are
//! there and when one last changed. So counting what follows a page of a list, which every page of
//! it asks for, looks at leaves and not at keys. (A BTreeMap has to walk over them all.)

use std::ops::Range;
use std::sync::Arc;

use rimward_control_store::Revision;

use crate::codec::Known;

/// A leaf that grows beyond this is split in two.
const LEAF_MAX: usize = 256;

#[derive(Default)]
pub struct Index {
    /// None is empty; their keys ascend.
    leaves: Vec<Leaf>,
}

#[derive(Default)]
struct Leaf {
    keys: Vec<(Arc<str>, Known)>,
    /// How many of the keys are not deleted.
    present: usize,
    /// Nothing in it changed after this revision.
    newest: Revision,
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

/// How many keys were there, and those of which only their versions tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub certain: usize,
    pub maybe: Vec<Arc<str>>,
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
        let leaf = self.leaves.get(self.leaf_of(key)?)?;
        let place = leaf.search(key).ok()?;
        let (key, known) = &leaf.keys[place];
        Some((key, known))
    }

    pub fn insert(&mut self, key: Arc<str>, known: Known) {
        let number = match self.leaf_of(&key) {
            Some(number) => number,
            None => {
                self.leaves.insert(0, Leaf::default());
                0
            }
        };
        let leaf = &mut self.leaves[number];
        leaf.insert(key, known);
        if leaf.keys.len() > LEAF_MAX {
            let upper = leaf.split();
            self.leaves.insert(number + 1, upper);
        }
    }

    /// Forgets a key that was deleted at `revision`, unless it came back since.
    pub fn forget(&mut self, key: &str, revision: Revision) {
        let Some(number) = self.leaf_of(key) else { return };
        let leaf = &mut self.leaves[number];
        let Ok(place) = leaf.search(key) else { return };
        let known = leaf.keys[place].1;
        if known.deleted && known.revision == revision {
            leaf.keys.remove(place);
            if leaf.keys.is_empty() {
                self.leaves.remove(number);
            }
        }
    }

    /// The revision that deleted the key, if it is deleted.
    pub fn deleted_at(&self, key: &str) -> Option<Revision> {
        self.get(key).filter(|(_, known)| known.deleted).map(|(_, known)| known.revision)
    }

    /// The keys that start with `prefix` and come after `after`, in order.
    pub fn under<'a>(
        &'a self,
        prefix: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Known)> {
        self.parts(prefix, after)
            .flat_map(|(leaf, range)| leaf.keys[range].iter().map(|(key, known)| (key, known)))
    }

    /// How many keys that start with `prefix` and come after `after` were there at `at`.
    pub fn count(&self, prefix: &str, after: Option<&str>, at: Revision) -> Count {
        let mut count = Count::default();
        for (leaf, range) in self.parts(prefix, after) {
            if range.len() == leaf.keys.len() && leaf.newest <= at {
                count.certain += leaf.present;
                continue;
            }
            for (key, known) in &leaf.keys[range] {
                match known.place(at) {
                    Place::Absent => {}
                    Place::At(_) | Place::Older => count.certain += 1,
                    Place::Maybe => count.maybe.push(key.clone()),
                }
            }
        }
        count
    }

    /// The leaves, and which part of each, that hold the keys under `prefix` after `after`.
    fn parts<'a>(
        &'a self,
        prefix: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Leaf, Range<usize>)> {
        let after = after.filter(|after| *after >= prefix);
        let before = |key: &str| after.map_or(key < prefix, |after| key <= after);
        let within = |key: &str| before(key) || key.starts_with(prefix);
        let (first, start) = self.position(before);
        let (last, end) = self.position(within);
        (first..=last).filter_map(move |number| {
            let leaf = self.leaves.get(number)?;
            let from = if number == first { start } else { 0 };
            let to = if number == last { end } else { leaf.keys.len() };
            Some((leaf, from..to))
        })
    }

    /// Where the first key is for which `before`, true for keys up to some point, is false.
    fn position(&self, before: impl Fn(&str) -> bool) -> (usize, usize) {
        let leaf = self.leaves.partition_point(|leaf| before(leaf.first())).saturating_sub(1);
        let place = self
            .leaves
            .get(leaf)
            .map_or(0, |leaf| leaf.keys.partition_point(|(key, _)| before(key)));
        (leaf, place)
    }

    /// The leaf that holds the key, or would; None when there is no leaf.
    fn leaf_of(&self, key: &str) -> Option<usize> {
        let after = self.leaves.partition_point(|leaf| leaf.first() <= key);
        if self.leaves.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }
}

impl Leaf {
    fn first(&self) -> &str {
        &self.keys[0].0
    }

    fn search(&self, key: &str) -> Result<usize, usize> {
        self.keys.binary_search_by(|(there, _)| (**there).cmp(key))
    }

    fn insert(&mut self, key: Arc<str>, known: Known) {
        self.newest = self.newest.max(known.revision);
        self.present += usize::from(!known.deleted);
        match self.search(&key) {
            Ok(place) => {
                let old = std::mem::replace(&mut self.keys[place].1, known);
                self.present -= usize::from(!old.deleted);
            }
            Err(place) => self.keys.insert(place, (key, known)),
        }
    }

    /// Cuts off the upper half.
    fn split(&mut self) -> Leaf {
        // Keys often come in ascending order: then the lower leaf stays as full as it is.
        let at = self.keys.len() * 3 / 4;
        let mut keys = Vec::with_capacity(LEAF_MAX + 1);
        keys.extend(self.keys.drain(at..));
        let present = keys.iter().filter(|(_, known)| !known.deleted).count();
        self.present -= present;
        Leaf { keys, present, newest: self.newest }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn known(revision: Revision, created: Revision, deleted: bool, earlier: bool) -> Known {
        Known { revision, created, deleted, earlier }
    }

    #[test]
    fn places_by_revision() {
        let check = |known: Known, expected: [Place; 6]| {
            let places: Vec<Place> = (1..=6).map(|at| known.place(at)).collect();
            assert_eq!(places, expected, "{known:?}");
        };
        use Place::{Absent, At, Maybe, Older};
        check(known(3, 3, false, false), [Absent, Absent, At(3), At(3), At(3), At(3)]);
        check(known(5, 3, false, false), [Absent, Absent, Older, Older, At(5), At(5)]);
        check(known(5, 3, false, true), [Maybe, Maybe, Older, Older, At(5), At(5)]);
        check(known(5, 3, true, false), [Absent, Absent, Older, Older, Absent, Absent]);
        check(known(5, 3, true, true), [Maybe, Maybe, Older, Older, Absent, Absent]);
    }

    /// Numbers as keys of different lengths, so that some are prefixes of others.
    fn name(number: u16) -> String {
        format!("/{number:o}")
    }

    proptest! {
        /// Thousands of random changes, then questions, against a plain sorted map.
        #[test]
        fn agrees_with_a_map(
            changes in prop::collection::vec((0..4000_u16, 0..5_u8), 0..4000),
            questions in prop::collection::vec(
                (0..4000_u16, prop::option::of(0..4000_u16), 1..4000_u64), 40),
        ) {
            let mut index = Index::default();
            let mut map: BTreeMap<Arc<str>, Known> = BTreeMap::new();
            for (revision, (number, kind)) in (1..).zip(changes) {
                let key: Arc<str> = name(number).into();
                if kind == 0 {
                    let there = map.get(&key).filter(|known| known.deleted);
                    let deleted = there.map(|known| known.revision);
                    prop_assert_eq!(index.deleted_at(&key), deleted);
                    index.forget(&key, deleted.unwrap_or(1));
                    if deleted.is_some() {
                        map.remove(&key);
                    }
                } else {
                    let known = known(revision, revision - revision % 7, kind == 1, kind == 2);
                    index.insert(key.clone(), known);
                    map.insert(key, known);
                }
            }
            prop_assert!(index.leaves.iter().all(|leaf| !leaf.keys.is_empty()));
            for (prefix, after, at) in questions {
                let (prefix, after) = (name(prefix % 64), after.map(name));
                let expected: Vec<_> = map
                    .iter()
                    .filter(|(key, _)| key.starts_with(&prefix))
                    .filter(|(key, _)| after.as_deref().is_none_or(|after| &***key > after))
                    .collect();
                let found: Vec<_> = index.under(&prefix, after.as_deref()).collect();
                prop_assert_eq!(&found, &expected);
                let mut count = Count::default();
                for (key, known) in expected {
                    match known.place(at) {
                        Place::Absent => {}
                        Place::Maybe => count.maybe.push(key.clone()),
                        _ => count.certain += 1,
                    }
                }
                prop_assert_eq!(index.count(&prefix, after.as_deref(), at), count);
                prop_assert_eq!(index.get(&prefix), map.get_key_value(&*prefix));
            }
        }
    }
}
