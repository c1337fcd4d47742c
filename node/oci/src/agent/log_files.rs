//! Rotation of a run's log: the agent renames, the shim goes on in a new file.
//!
//! The current file is `<attempt>.log`, older ones `<attempt>.log.<time>`, as readers expect them.

use std::path::PathBuf;

pub(super) struct LogFiles {
    pub path: PathBuf,
    /// Files at most, the current one included.
    pub keep: usize,
}

impl LogFiles {
    /// Puts the current file aside and removes the oldest. True when there is a new one to begin.
    pub fn rotate(&self) -> bool {
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let Some(name) = self.path.file_name().and_then(|name| name.to_str()) else { return false };
        let aside = self.path.with_file_name(format!("{name}.{stamp}"));
        if let Err(error) = std::fs::rename(&self.path, &aside) {
            tracing::warn!(%error, "cannot rotate {}", self.path.display());
            return false;
        }
        let mut old = self.old(name);
        old.sort_unstable();
        for (_, path) in old.iter().rev().skip(self.keep.saturating_sub(1)) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(%error, "cannot remove the old log {}", path.display());
            }
        }
        true
    }

    fn old(&self, name: &str) -> Vec<(u128, PathBuf)> {
        let dir = self.path.parent().and_then(|dir| std::fs::read_dir(dir).ok());
        let entries = dir.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let file = entry.file_name();
                let stamp = file.to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()?;
                Some((stamp, entry.path()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles { path: dir.path().join("0.log"), keep: 3 };
        std::fs::write(dir.path().join("0.log.other"), "").unwrap();
        for n in 0..5 {
            std::fs::write(&files.path, n.to_string()).unwrap();
            assert!(files.rotate());
        }
        let mut texts: Vec<String> = files
            .old("0.log")
            .into_iter()
            .map(|(_, path)| std::fs::read_to_string(path).unwrap())
            .collect();
        texts.sort_unstable();
        assert_eq!(texts, ["3", "4"]);
        assert!(!files.rotate(), "there is nothing to rotate");
    }
}
