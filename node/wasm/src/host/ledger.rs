//! A container's memory, counted over all its instances as a cgroup would count it.
//!
//! Growth beyond the limit ends the instance: a cgroup kills too, and a guest that is told "no" and
//! goes on would answer requests with half its state. What an instance took is given back when its
//! store drops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wasmtime::ResourceLimiter;

/// Bytes in use and allowed.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: Option<u64>,
    used: AtomicU64,
}

/// The cause of a trap: the container's limit was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory limit of {limit} bytes exceeded")]
pub(crate) struct OverLimit {
    pub limit: u64,
}

impl Ledger {
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0) })
    }

    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn charge(&self, bytes: u64) -> Result<(), OverLimit> {
        let Some(limit) = self.limit else {
            self.used.fetch_add(bytes, Relaxed);
            return Ok(());
        };
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).map(drop).map_err(|_| OverLimit { limit })
    }

    fn refund(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// What one store took.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    taken: u64,
    /// The last growth, in case the engine cannot do what was allowed.
    last: u64,
}

impl Account {
    /// Tables hold pointers.
    const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

    /// Opens an account with what every store costs the host: its tables, buffers and stack.
    pub fn open(ledger: &Arc<Ledger>, host_bytes: u64) -> Result<Self, OverLimit> {
        ledger.charge(host_bytes)?;
        Ok(Self { ledger: ledger.clone(), taken: host_bytes, last: 0 })
    }

    fn take(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        self.ledger.charge(bytes)?;
        self.taken += bytes;
        self.last = bytes;
        Ok(true)
    }

    fn undo(&mut self) {
        self.ledger.refund(self.last);
        self.taken -= self.last;
        self.last = 0;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.ledger.refund(self.taken);
    }
}

impl ResourceLimiter for Account {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(false);
        }
        self.take(desired.saturating_sub(current) as u64)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.last = 0;
            return Ok(false);
        }
        self.take(desired.saturating_sub(current) as u64 * Self::TABLE_ELEMENT_BYTES)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_share_one_limit_and_give_back() {
        let ledger = Ledger::new(Some(1000));
        let mut one = Account::open(&ledger, 100).unwrap();
        let mut two = Account::open(&ledger, 100).unwrap();
        assert!(one.memory_growing(0, 500, None).unwrap());
        let error = two.memory_growing(0, 301, None).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&OverLimit { limit: 1000 }));
        drop(one);
        assert_eq!(ledger.used(), 100);
        assert!(two.memory_growing(0, 900, None).unwrap());
        two.memory_grow_failed(wasmtime::Error::msg("no pages")).unwrap();
        assert!(two.table_growing(0, 100, None).unwrap());
        assert!(!two.memory_growing(0, 10, Some(5)).unwrap());
        assert_eq!(ledger.used(), 900);
        drop(two);
        assert_eq!(ledger.used(), 0);
        assert!(Account::open(&ledger, 1001).is_err());
    }
}
