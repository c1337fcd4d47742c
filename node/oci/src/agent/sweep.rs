//! What an earlier agent left: runs to adopt, and things that belong to nothing any more.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rimward_node_pod::runtime::{Exit, RunId};

use super::{Inner, exit_of, sandbox};
use crate::layout::{Kept, RunDir};

/// Every run that has a directory. One whose spec was not written whole never got a shim, and goes.
pub(super) fn find(data_dir: &Path) -> Vec<(RunDir, Kept)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(crate::layout::runs(data_dir)).into_iter().flatten().flatten() {
        let dir = RunDir(entry.path());
        match dir.read::<Kept>("spec.json") {
            Ok(kept) => found.push((dir, kept)),
            Err(error) => {
                tracing::info!(%error, "{} is of no run and is removed", dir.0.display());
                super::start::remove_dir(&dir);
            }
        }
    }
    found
}

/// A run that nobody tends is over, and what is left of it is ended.
pub(super) async fn lost(this: &Arc<Inner>, id: &RunId, boot_id: &str) {
    let found = {
        let runs = this.runs.lock();
        runs.get(id).map(|run| (run.dir.clone(), run.cgroup.clone(), run.started.clone()))
    };
    let Some((dir, cgroup, started)) = found else { return };
    let rebooted = boot_id != this.boot_id && !dir.file("exit.json").exists();
    let cgroups = this.clone();
    let work = move || {
        cgroups.cgroups.kill(&cgroup);
        exit_of(&dir, started.as_ref())
    };
    let Ok(mut exit) = tokio::task::spawn_blocking(work).await else { return };
    if rebooted {
        exit = Exit {
            code: 255,
            signal: None,
            reason: "Unknown".into(),
            message: "the machine was started anew".into(),
            ..exit
        };
    }
    if let Some(run) = this.runs.lock().get_mut(id) {
        run.exit = Some(exit);
    }
}

/// Removes shims, cgroups and sandboxes that no run and no pod of this node has.
pub(super) async fn orphans(this: &Arc<Inner>) {
    let this = this.clone();
    let work = move || {
        let (tending, with_runs): (BTreeSet<i32>, BTreeSet<String>) = {
            let runs = this.runs.lock();
            let shims = runs.values().filter_map(|run| run.link.as_ref()?.pid()).collect();
            (shims, runs.keys().map(|id| id.pod_uid.clone()).collect())
        };
        for pid in this.cgroups.shims() {
            if !tending.contains(&pid) {
                tracing::info!(pid, "ending a shim that tends no container of this node");
                // SAFETY: kill has no memory effects; the cgroup holds shims of this node only.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        // A pod between two runs has a directory, and may need what it had.
        let pods = this.config.data_dir.join("pods");
        let gone = |uid: &String| !with_runs.contains(uid) && !pods.join(uid).exists();
        for uid in this.cgroups.pods().into_iter().filter(gone) {
            this.cgroups.remove_pod(&uid);
        }
        for uid in sandbox::pods(&this.config.data_dir).into_iter().filter(gone) {
            sandbox::remove(&this.config.data_dir, &uid);
        }
    };
    let _finished_or_panicked = tokio::task::spawn_blocking(work).await;
}
