//! What an agent must know of runs when nobody else does: one small file each.

use std::path::PathBuf;

use rimward_node_pod::runtime::{Exit, Known, RunId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// No environment, no arguments: secrets are in those.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: RunId,
    pub spec_hash: String,
    pub host: String,
    pub artifact: String,
    pub started_at: jiff::Timestamp,
    pub exit: Option<Exit>,
}

impl Record {
    pub fn known(&self) -> Known {
        Known {
            id: self.id.clone(),
            spec_hash: self.spec_hash.clone(),
            started_at: Some(self.started_at),
            exit: self.exit.clone(),
        }
    }
}

pub(super) struct Records(PathBuf);

impl Records {
    pub fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// Unreadable ones are dropped: their runs are found in a host, or were never begun.
    pub fn all(&self) -> Vec<Record> {
        let files = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        files
            .filter_map(|file| {
                let record = std::fs::read(file.path())
                    .ok()
                    .and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if record.is_none() {
                    let _ = std::fs::remove_file(file.path());
                }
                record
            })
            .collect()
    }

    pub fn put(&self, record: &Record) -> std::io::Result<()> {
        let path = self.path(&record.id);
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(record)?)?;
        std::fs::rename(new, path)
    }

    /// Keeps how a run ended that no host can tell of any more.
    pub fn ended(&self, id: &RunId, exit: &Exit) {
        let path = self.path(id);
        let record = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        if let Some(mut record) = record {
            record.exit = Some(exit.clone());
            if let Err(error) = self.put(&record) {
                tracing::warn!("cannot write {}: {error}", path.display());
            }
        }
    }

    pub fn remove(&self, id: &RunId) {
        let _ = std::fs::remove_file(self.path(id));
    }

    fn path(&self, id: &RunId) -> PathBuf {
        self.0.join(run_key(id))
    }
}

/// A file name for a run, whatever its names have in them.
pub(super) fn run_key(id: &RunId) -> String {
    let text = format!("{}\n{}\n{}", id.pod_uid, id.container, id.attempt);
    crate::artifact::hex(&Sha256::digest(text))[..32].to_owned()
}
