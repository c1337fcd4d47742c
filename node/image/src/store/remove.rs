//! What leaves the store: names, and the files that no name and no container needs any more.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rimward_node_pod::DiskUsage;
use rimward_node_pod::outside::{Image, ImageForm};

use super::{ImageStore, Inner};
use crate::content::digest_of;

impl ImageStore {
    /// Forgets a name; its files go with the next [`ImageStore::sweep`]. Answers whether it was known.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn remove(&self, name: &str) -> Result<bool, String> {
        let inner = &self.inner;
        let Some(stored) = inner.find(name) else { return Ok(false) };
        let reference = &stored.image.reference;
        let path = inner.record_path(reference);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}: {e}", path.display()));
            }
            _ => {}
        }
        inner.images.lock().remove(reference);
        inner.changed();
        Ok(true)
    }

    /// Whether anything of an image is mounted: it is in use, whoever uses it.
    pub fn is_mounted(&self, image: &Image) -> bool {
        match &image.form {
            ImageForm::Wasm { .. } => false,
            ImageForm::Linux { layers, .. } => {
                let mounts = mounts();
                layers.iter().any(|layer| is_mounted(&mounts, layer))
            }
        }
    }

    /// Removes the layers and blobs that belong to no name and are not `in_use`; answers the bytes that this
    /// freed. While anything is pulled nothing is removed: what a pull has brought so far has no name yet.
    pub async fn sweep(&self, in_use: HashSet<PathBuf>) -> u64 {
        let inner = self.inner.clone();
        let Ok(alone) = inner.clone().pulls.clone().try_write_owned() else { return 0 };
        let work = move || {
            let _no_pull_meanwhile = alone;
            sweep(&inner, in_use)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(0)
    }
}

impl Inner {
    pub(super) fn record_path(&self, reference: &str) -> PathBuf {
        let key = digest_of(reference.as_bytes());
        self.dir.join("names").join(key.trim_start_matches("sha256:"))
    }
}

/// What is mounted here, as the kernel tells it.
fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// Whether something is mounted over a layer, of a container or of an image volume, whoever mounted it. A
/// layer is called by its digest, which stands in the options of an overlay.
fn is_mounted(mounts: &str, layer: &Path) -> bool {
    layer.file_name().and_then(|name| name.to_str()).is_some_and(|name| mounts.contains(name))
}

fn sweep(inner: &Inner, mut keep: HashSet<PathBuf>) -> u64 {
    let mounts = mounts();
    for stored in inner.images.lock().values() {
        match &stored.image.form {
            ImageForm::Wasm { file, .. } => drop(keep.insert(file.clone())),
            ImageForm::Linux { layers, .. } => keep.extend(layers.iter().cloned()),
        }
    }
    let mut freed = 0;
    // What broken transfers left may be left again, from its beginning.
    for folder in ["layers", "blobs", "partial"] {
        for entry in std::fs::read_dir(inner.dir.join(folder)).into_iter().flatten().flatten() {
            let path = entry.path();
            if keep.contains(&path) || is_mounted(&mounts, &path) {
                continue;
            }
            let bytes = DiskUsage::of(&path).bytes;
            match discard(&inner.dir, &path) {
                Ok(()) => freed += bytes,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a part of an image");
                }
            }
        }
    }
    freed
}

/// Half of a layer must never be taken for one: it leaves its place whole.
fn discard(store: &Path, path: &Path) -> std::io::Result<()> {
    let gone = store.join("staging").join(uuid::Uuid::new_v4().simple().to_string());
    std::fs::rename(path, &gone)?;
    match gone.is_dir() {
        true => std::fs::remove_dir_all(&gone),
        false => std::fs::remove_file(&gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_mounted() {
        let mounts = "41 30 0:40 / /p/_volumes/v ro - overlay overlay ro,lowerdir+=/d/layers/abc,lowerdir+=/d/layers/def\n";
        let mounted = |name: &str| is_mounted(mounts, &Path::new("/d/layers").join(name));
        assert_eq!((mounted("abc"), mounted("def"), mounted("123")), (true, true, false));
    }
}
