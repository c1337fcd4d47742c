//! The node's images: which names are here, and the pull that brings one.

mod access;
mod import;
mod pull;
mod remove;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rimward_node_pod::outside::{
    Image, ImageError, ImageForm, Images, PullPolicy, PullProgress, RegistryAuth,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, Semaphore, watch};

pub use access::Access;

use crate::content::Content;
use crate::fetch::ClusterRegistry;
use crate::layers::{Layers, Limits};
use crate::name::{self, Name};
use crate::progress::Counts;
use crate::remote::{RemoteConfig, Remotes};

pub struct Config {
    pub dir: PathBuf,
    pub remote: RemoteConfig,
    /// The largest layer that is taken, in bytes.
    pub layer_bytes_max: u64,
    /// Pulls at once from one registry; more wait. One that stalls holds up nobody else's.
    pub pulls_max: usize,
    /// Whether this node can unpack and run Linux images: it takes root.
    pub linux: bool,
    /// What one layer may unpack to.
    pub unpack: Limits,
}

impl Config {
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            remote: RemoteConfig::default(),
            layer_bytes_max: 4 << 30,
            pulls_max: 4,
            linux: rustix::process::geteuid().is_root(),
            unpack: Limits::default(),
        }
    }
}

/// An image as `rimward image list` and Node.status.images show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    pub image: Image,
    pub size_bytes: u64,
    pub pulled_at: jiff::Timestamp,
    #[serde(default)]
    pub access: Access,
}

/// A handle on the node's images; clones share them.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    content: Content,
    cluster: Arc<dyn ClusterRegistry>,
    remotes: Remotes,
    layer_bytes_max: u64,
    /// None where Linux images are not for this node.
    layers: Option<Layers>,
    pulls_max: usize,
    /// By the registry's host; the cluster's own has none.
    slots: Mutex<HashMap<String, Arc<Semaphore>>>,
    images: Mutex<HashMap<String, StoredImage>>,
    /// Read by every pull; what is swept away is nobody's only while none is under way.
    pulls: Arc<RwLock<()>>,
    changes: watch::Sender<u64>,
    /// One pull a name at a time; the later ones find the first one's result.
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// How far they are.
    progress: Mutex<HashMap<String, Arc<Counts>>>,
}

impl ImageStore {
    /// Opens the directory and reads which images are there.
    ///
    /// # Errors
    /// A sentence that names the path (or the option) at fault.
    pub fn open(config: Config, cluster: Arc<dyn ClusterRegistry>) -> Result<Self, String> {
        let at = |e: std::io::Error| format!("image store {}: {e}", config.dir.display());
        let content = Content::open(&config.dir).map_err(at)?;
        std::fs::create_dir_all(config.dir.join("names")).map_err(at)?;
        let images = read_names(&config.dir.join("names")).map_err(at)?;
        let layers = match config.linux {
            true => Some(Layers::open(&config.dir, config.unpack).map_err(at)?),
            false => None,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                content,
                cluster,
                remotes: Remotes::new(config.remote)?,
                layer_bytes_max: config.layer_bytes_max,
                layers,
                pulls_max: config.pulls_max,
                slots: Mutex::default(),
                images: Mutex::new(images),
                pulls: Arc::default(),
                changes: watch::Sender::new(0),
                pulling: Mutex::default(),
                progress: Mutex::default(),
                dir: config.dir,
            }),
        })
    }

    /// Where the images lie.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Wakes when an image came or went.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// All images by name.
    pub fn list(&self) -> Vec<StoredImage> {
        let mut all: Vec<_> = self.inner.images.lock().values().cloned().collect();
        all.sort_by(|a, b| a.image.reference.cmp(&b.image.reference));
        all
    }
}

/// Names whose files are gone or damaged are forgotten: the next use pulls them again.
fn read_names(dir: &Path) -> std::io::Result<HashMap<String, StoredImage>> {
    let mut images = HashMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let stored =
            std::fs::read(&path).ok().and_then(|c| serde_json::from_slice::<StoredImage>(&c).ok());
        match stored {
            Some(stored) if files_exist(&stored.image) => {
                images.insert(stored.image.reference.clone(), stored);
            }
            _ => {
                tracing::warn!(path = %path.display(), "forgetting an image whose record or files are damaged")
            }
        }
    }
    Ok(images)
}

fn files_exist(image: &Image) -> bool {
    match &image.form {
        ImageForm::Wasm { file, .. } => file.exists(),
        ImageForm::Linux { layers, .. } => layers.iter().all(|l| l.exists()),
    }
}

#[async_trait]
impl Images for ImageStore {
    fn check_name(&self, reference: &str) -> Result<(), ImageError> {
        Name::parse(reference, &self.inner.cluster.hosts()).map(drop)
    }

    async fn present(&self, reference: &str) -> Option<Image> {
        let found = self.inner.find(reference)?.image;
        Some(Image { reference: reference.to_owned(), ..found })
    }

    fn may_use(&self, reference: &str, image: &Image, auth: &[RegistryAuth]) -> bool {
        self.inner.may_use(reference, image, auth)
    }

    async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: &[RegistryAuth],
    ) -> Result<Image, ImageError> {
        let name = Name::parse(reference, &self.inner.cluster.hosts())?;
        let present = self.present(reference).await;
        let present = present.filter(|image| self.may_use(reference, image, auth));
        match (policy, present) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => return Ok(image),
            // Whoever may not use it does not learn that it is here.
            (PullPolicy::Never, None) => {
                return Err(ImageError {
                    reason: "ErrImageNeverPull".into(),
                    message: format!(
                        "Container image {reference:?} is not present with pull policy of Never"
                    ),
                });
            }
            _ => {}
        }
        let turn = self.inner.pulling.lock().entry(reference.to_owned()).or_default().clone();
        let asked_at = jiff::Timestamp::now();
        let result = {
            let _only_one_pull_of_this_name = turn.lock().await;
            let fresh = self.inner.images.lock().get(reference).cloned();
            match fresh {
                Some(stored)
                    if stored.pulled_at >= asked_at
                        && self.may_use(reference, &stored.image, auth) =>
                {
                    Ok(stored.image)
                }
                _ => self.inner.pull(reference, &name, auth).await,
            }
        };
        let mut pulling = self.inner.pulling.lock();
        // Two left: the map's and ours. Nobody waits.
        if pulling.get(reference).is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            pulling.remove(reference);
        }
        result
    }

    fn size_bytes(&self, reference: &str) -> Option<u64> {
        Some(self.inner.find(reference)?.size_bytes)
    }

    fn progress(&self, reference: &str) -> Option<PullProgress> {
        self.inner.progress.lock().get(reference)?.now()
    }
}

impl Inner {
    /// The image of a name: as it is spelt, else as the container world reads it (`busybox` is
    /// `docker.io/library/busybox:latest`), under which archives are imported.
    fn find(&self, reference: &str) -> Option<StoredImage> {
        let images = self.images.lock();
        let exact = images.get(reference);
        exact.or_else(|| images.get(&name::canonical(reference)?)).cloned()
    }

    /// Those of the registry that a name leads to.
    fn slots(&self, name: &Name) -> Arc<Semaphore> {
        let host = match &name.in_cluster {
            Some(_) => "",
            None => name.reference.resolve_registry(),
        };
        let mut slots = self.slots.lock();
        // Of registries from which nothing is pulled now.
        slots.retain(|_, slots| Arc::strong_count(slots) > 1);
        let new = || Arc::new(Semaphore::new(self.pulls_max));
        slots.entry(host.to_owned()).or_insert_with(new).clone()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Keeps the record on disk, then in memory. What is known of the same image's pulls adds up.
    fn remember(&self, mut stored: StoredImage) -> std::io::Result<()> {
        let reference = stored.image.reference.clone();
        let known = self.images.lock().get(&reference).cloned();
        if let Some(known) = known.filter(|known| known.image.digest == stored.image.digest) {
            stored.access = known.access.and(stored.access);
        }
        let content = serde_json::to_vec(&stored).expect("the record has no maps with odd keys");
        let staged = self.content.stage();
        std::fs::write(&staged, content)?;
        std::fs::rename(&staged, self.record_path(&reference))?;
        self.images.lock().insert(reference, stored);
        self.changed();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
