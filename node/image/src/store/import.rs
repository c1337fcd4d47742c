//! Images from archives: the same way in as a pull, with the archive in the place of a registry.

use std::path::Path;

use super::{Access, ImageStore, StoredImage};
use crate::archive::{Archive, Archived};
use crate::name::{self, Name};

impl ImageStore {
    /// Stores the images of an `oci-archive` or a `docker-archive`. `name` is for an archive of one image, and
    /// stands in the place of what the archive calls it.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the archive.
    pub async fn import(
        &self,
        file: &Path,
        name: Option<&str>,
    ) -> Result<Vec<StoredImage>, String> {
        let inner = &self.inner;
        let copy = inner.dir.join("staging").join(uuid::Uuid::new_v4().simple().to_string());
        let (file, bytes_max) = (file.to_owned(), inner.layer_bytes_max);
        let opened = tokio::task::spawn_blocking(move || Archive::open(&file, &copy, bytes_max));
        let archive = opened.await.map_err(|e| e.to_string())??;
        if name.is_some() && archive.images().len() > 1 {
            return Err(format!(
                "the archive has {} images; a name can be given to one",
                archive.images().len()
            ));
        }
        let _nothing_is_swept = inner.pulls.clone().read_owned().await;
        let mut imported = Vec::new();
        for image in archive.images() {
            let names = match name {
                Some(name) => vec![name.to_owned()],
                None => image.names.clone(),
            };
            if names.is_empty() {
                return Err(format!(
                    "the archive does not name the image {}: give it a name",
                    image.digest
                ));
            }
            for reference in names {
                // As every container tool has it: a name without a host is of the default registry.
                let reference = name::canonical(&reference)
                    .ok_or_else(|| format!("{reference:?} is no name of an image"))?;
                let parsed = Name::parse(&reference, &[]).map_err(|e| e.message)?;
                let source = Archived { archive: &archive, digest: &image.digest };
                let pulled = inner.pull_from(&source, &reference, &parsed).await;
                let (image, size_bytes) = pulled.map_err(|e| format!("{reference}: {e}"))?;
                let pulled_at = jiff::Timestamp::now();
                let access = Access::Preloaded;
                let stored = StoredImage { image, size_bytes, pulled_at, access };
                inner.remember(stored.clone()).map_err(|e| {
                    format!("cannot store {reference} under {}: {e}", inner.dir.display())
                })?;
                imported.push(stored);
            }
        }
        Ok(imported)
    }
}
