//! Which pod has which address: a block of the cluster's range, handed out in order, kept on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rimward_api::Block;

/// The addresses of this node's pods, by pod UID. One small file a pod, so that the next agent gives
/// the same pod the same address.
pub struct Addresses {
    dir: PathBuf,
    block: Block,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_pod: BTreeMap<String, Ipv4Addr>,
    used: BTreeSet<u32>,
    /// Where the next search starts: an address is not used again at once, so that late packets for
    /// the old pod do not reach the new one.
    next: u32,
}

impl Addresses {
    /// Reads what was given out before. Addresses outside the block (it changed) are forgotten.
    ///
    /// # Errors
    /// Names the directory.
    pub fn open(dir: &Path, block: Block) -> Result<Self, String> {
        let at = |e: std::io::Error| format!("pod addresses in {}: {e}", dir.display());
        fs::create_dir_all(dir).map_err(at)?;
        let mut state = State::default();
        for entry in fs::read_dir(dir).map_err(at)? {
            let path = entry.map_err(at)?.path();
            let address = fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok());
            let uid =
                path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            match address {
                Some(address) if block.contains(address) && state.used.insert(address.into()) => {
                    state.by_pod.insert(uid, address);
                }
                _ => fs::remove_file(&path).map_err(at)?,
            }
        }
        state.next = state.used.last().map_or(block.pods().start, |last| last + 1);
        Ok(Self { dir: dir.to_owned(), block, state: Mutex::new(state) })
    }

    pub fn block(&self) -> Block {
        self.block
    }

    /// The pod's address, given now if it has none.
    ///
    /// # Errors
    /// When the block is used up, or the file cannot be written.
    pub fn give(&self, pod_uid: &str) -> Result<Ipv4Addr, String> {
        let mut state = self.state.lock();
        if let Some(address) = state.by_pod.get(pod_uid) {
            return Ok(*address);
        }
        let range = self.block.pods();
        let from = if range.contains(&state.next) { state.next } else { range.start };
        let mut candidates = (from..range.end).chain(range.start..from);
        let free = candidates.find(|n| !state.used.contains(n));
        let free = free.ok_or_else(|| {
            format!(
                "all {} pod addresses of this node's block {} are in use",
                range.len(),
                self.block
            )
        })?;
        let address = Ipv4Addr::from(free);
        let path = self.dir.join(pod_uid);
        fs::write(&path, address.to_string()).map_err(|e| format!("{}: {e}", path.display()))?;
        state.used.insert(free);
        state.next = free + 1;
        state.by_pod.insert(pod_uid.to_owned(), address);
        Ok(address)
    }

    /// The pod's address, if it has one.
    pub fn of(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        self.state.lock().by_pod.get(pod_uid).copied()
    }

    /// Every pod that has one.
    pub fn all(&self) -> BTreeMap<String, Ipv4Addr> {
        self.state.lock().by_pod.clone()
    }

    /// Whether a pod has this address.
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        self.state.lock().used.contains(&address.into())
    }

    pub fn take_back(&self, pod_uid: &str) {
        let mut state = self.state.lock();
        if let Some(address) = state.by_pod.remove(pod_uid) {
            state.used.remove(&address.into());
            if let Err(error) = fs::remove_file(self.dir.join(pod_uid)) {
                tracing::warn!(pod_uid, %error, "cannot remove the record of a pod address");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_and_come_back_last() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Addresses::open(dir.path(), "10.42.3.0/29".parse().unwrap()).unwrap();
        let addresses = open();
        let give = |a: &Addresses, uid: &str| a.give(uid).map(|ip| ip.to_string());
        assert_eq!(give(&addresses, "a"), Ok("10.42.3.2".into()));
        assert_eq!(give(&addresses, "b"), Ok("10.42.3.3".into()));
        assert_eq!(give(&addresses, "a"), Ok("10.42.3.2".into()));
        addresses.take_back("a");
        assert_eq!(give(&addresses, "c"), Ok("10.42.3.4".into()));
        let addresses = open();
        assert_eq!(give(&addresses, "b"), Ok("10.42.3.3".into()));
        for uid in ["d", "e", "f"] {
            give(&addresses, uid).unwrap();
        }
        let error = give(&addresses, "g").unwrap_err();
        assert!(error.contains("10.42.3.0/29"), "{error}");
    }
}
