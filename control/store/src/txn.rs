//! What can be said about a transaction without looking at the store.

use bytes::Bytes;

use crate::{CommitError, Expect, Op, TXN_BYTES_MAX, TXN_OPS_MAX, Txn};

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => key,
        }
    }

    pub fn expect(&self) -> Expect {
        match self {
            Op::Put { expect, .. } | Op::Delete { expect, .. } | Op::Check { expect, .. } => {
                *expect
            }
        }
    }

    /// Bytes of key and value.
    fn size(&self) -> usize {
        match self {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } | Op::Check { key, .. } => key.len(),
        }
    }
}

impl Expect {
    /// Whether a key in this state may be operated on; `current` is the revision that last wrote
    /// it, None when it is absent.
    pub fn holds(self, current: Option<crate::Revision>) -> bool {
        match self {
            Expect::Anything => true,
            Expect::Absent => current.is_none(),
            Expect::At(revision) => current == Some(revision),
        }
    }
}

impl Txn {
    /// A transaction that writes one key.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>, expect: Expect) -> Self {
        Self { ops: vec![Op::Put { key: key.into(), value: value.into(), expect }] }
    }

    /// A transaction that deletes one key.
    pub fn delete(key: impl Into<String>, expect: Expect) -> Self {
        Self { ops: vec![Op::Delete { key: key.into(), expect }] }
    }

    /// Bytes of keys and values.
    pub fn size(&self) -> usize {
        self.ops.iter().map(Op::size).sum()
    }

    /// What every backend refuses before it looks at its state: too many operations, too many
    /// bytes, a key twice.
    pub fn check(&self) -> Result<(), CommitError> {
        if self.ops.len() > TXN_OPS_MAX {
            let what = format!("{} operations, at most {TXN_OPS_MAX} are allowed", self.ops.len());
            return Err(CommitError::TooLarge { what });
        }
        let size = self.size();
        if size > TXN_BYTES_MAX {
            let what =
                format!("{size} bytes of keys and values, at most {TXN_BYTES_MAX} are allowed");
            return Err(CommitError::TooLarge { what });
        }
        if self.ops.len() > 1 {
            let mut keys: Vec<&str> = self.ops.iter().map(Op::key).collect();
            keys.sort_unstable();
            if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(CommitError::Invalid {
                    what: format!("key {:?} occurs twice", twice[0]),
                });
            }
        }
        Ok(())
    }
}
