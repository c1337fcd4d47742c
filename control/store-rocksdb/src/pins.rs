//! Which revisions are being read. Compaction refuses new readers at once, and removes history only
//! once the readers that are still there are done with it.

use std::collections::BTreeMap;

use parking_lot::{Condvar, Mutex};
use rimward_control_store::{Error, Revision};

pub struct Pins {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The oldest revision that may be read.
    oldest: Revision,
    /// How many read at each revision.
    reading: BTreeMap<Revision, usize>,
    closed: bool,
}

/// Keeps the state at a revision, and the log after it, from being removed.
pub struct Pin<'a> {
    pins: &'a Pins,
    revision: Revision,
}

impl Pins {
    pub fn new(oldest: Revision) -> Self {
        let state = State { oldest, reading: BTreeMap::new(), closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn oldest(&self) -> Revision {
        self.state.lock().oldest
    }

    pub fn pin(&self, revision: Revision) -> Result<Pin<'_>, Error> {
        let mut state = self.state.lock();
        if revision < state.oldest {
            return Err(Error::Compacted { asked: revision, oldest: state.oldest });
        }
        *state.reading.entry(revision).or_default() += 1;
        Ok(Pin { pins: self, revision })
    }

    /// Nobody reads before this revision from now on.
    pub fn compact(&self, revision: Revision) {
        let mut state = self.state.lock();
        state.oldest = state.oldest.max(revision);
        self.changed.notify_all();
    }

    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until there is history to remove after `trimmed` that nobody reads any more; answers
    /// up to where. None once closed.
    pub fn wait_for_garbage(&self, trimmed: Revision) -> Option<Revision> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let first_read = state.reading.keys().next().copied().unwrap_or(Revision::MAX);
            let garbage = state.oldest.min(first_read);
            if garbage > trimmed {
                return Some(garbage);
            }
            self.changed.wait(&mut state);
        }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut state = self.pins.state.lock();
        if let Some(count) = state.reading.get_mut(&self.revision) {
            *count -= 1;
            if *count == 0 {
                state.reading.remove(&self.revision);
                // Only a reader of the past can be what the trimmer waits for.
                if self.revision < state.oldest {
                    self.pins.changed.notify_all();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_hold_back_the_trimmer() {
        let pins = Pins::new(0);
        let pin = pins.pin(3).unwrap();
        pins.compact(5);
        assert!(pins.pin(4).is_err());
        let _newer = pins.pin(5).unwrap();
        assert_eq!(pins.wait_for_garbage(0), Some(3));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pins.wait_for_garbage(3));
            drop(pin);
            assert_eq!(waiting.join().unwrap(), Some(5));
        });
        pins.close();
        assert_eq!(pins.wait_for_garbage(5), None);
    }
}
