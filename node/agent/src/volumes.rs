//! The directories that are volumes of this node: where they lie, and how one goes when its PersistentVolume
//! is gone.
//!
//! A directory is set aside before the ledger forgets its volume, and removed afterwards: an agent that dies
//! between the two finishes at its next start, and one that dies before is told again that the volume is gone.

use std::io;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolume;
use rimward_api::local_volumes;

/// Holds what is being removed.
const SET_ASIDE: &str = ".removed";

/// Where volumes of the built-in provisioner lie.
pub fn directory(data_dir: &Path) -> PathBuf {
    std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()).join("volumes")
}

/// Takes the data of a volume that is gone out of its place. Only what the built-in provisioner ordered here and
/// the reclaim policy gives up; everything else is somebody's to keep.
pub(crate) fn set_aside(directory: &Path, volume: &PersistentVolume) -> io::Result<()> {
    let Some(name) = own_folder(directory, volume) else { return Ok(()) };
    let aside = directory.join(SET_ASIDE);
    std::fs::create_dir_all(&aside)?;
    match std::fs::rename(directory.join(&name), aside.join(&name)) {
        // No pod has used it yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes what was set aside. It may be much: not to be waited for.
pub(crate) fn remove_set_aside(directory: &Path) {
    let aside = directory.join(SET_ASIDE);
    match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot remove {}", aside.display());
        }
        _ => {}
    }
}

fn own_folder(directory: &Path, volume: &PersistentVolume) -> Option<PathBuf> {
    let by = volume.metadata.annotations.as_ref()?.get(local_volumes::PROVISIONED_BY)?;
    let spec = volume.spec.as_ref()?;
    if by != local_volumes::PROVISIONER
        || spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete")
    {
        return None;
    }
    let inside = Path::new(&spec.local.as_ref()?.path).strip_prefix(directory).ok()?;
    let mut parts = inside.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if name != SET_ASIDE => Some(PathBuf::from(name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(by: &str, policy: &str, path: &Path) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v", "annotations": {"pv.kubernetes.io/provisioned-by": by}},
            "spec": {"persistentVolumeReclaimPolicy": policy, "local": {"path": path}},
        }))
        .unwrap()
    }

    #[test]
    fn only_what_was_ordered_here_goes() {
        let dir = tempfile::tempdir().unwrap();
        let ours = local_volumes::PROVISIONER;
        let check = |by: &str, policy: &str, path: &str, goes: bool| {
            let place = dir.path().join("volumes/a");
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("file"), "x").unwrap();
            let path = dir.path().join(path);
            set_aside(&dir.path().join("volumes"), &volume(by, policy, &path)).unwrap();
            assert_eq!(!place.exists(), goes, "{by} {policy} {}", path.display());
        };
        check("another", "Delete", "volumes/a", false);
        check(ours, "Retain", "volumes/a", false);
        check(ours, "Delete", "volumes", false);
        check(ours, "Delete", "volumes/../volumes/a", false);
        check(ours, "Delete", "elsewhere/a", false);
        check(ours, "Delete", "volumes/never-made", false);
        check(ours, "Delete", "volumes/a", true);
        remove_set_aside(&dir.path().join("volumes"));
        assert!(!dir.path().join("volumes/.removed").exists());
    }
}
