//! The node's images: which names are here, and the pull that brings one.

mod import;
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

use crate::content::{Content, ContentError, digest_of};
use crate::fetch::{ClusterRegistry, FetchError, InCluster, Source};
use crate::form::{self, ImageConfig, Manifest, Plan, RunConfig};
use crate::layers::{Layers, Limits};
use crate::name::{self, Name};
use crate::progress::{Counted, Counts};
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

    async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: &[RegistryAuth],
    ) -> Result<Image, ImageError> {
        let name = Name::parse(reference, &self.inner.cluster.hosts())?;
        let present = self.present(reference).await;
        match (policy, present) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => return Ok(image),
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
                Some(stored) if stored.pulled_at >= asked_at => Ok(stored.image),
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

    async fn pull(
        &self,
        reference: &str,
        name: &Name,
        auth: &[RegistryAuth],
    ) -> Result<Image, ImageError> {
        let slots = self.slots(name);
        let _slot = slots.acquire().await.expect("the semaphore is never closed");
        let _nothing_is_swept = self.pulls.read().await;
        let pulled = self.pull_from_anywhere(reference, name, auth).await;
        let (image, size_bytes) = pulled.map_err(|message| ImageError {
            reason: "ErrImagePull".into(),
            message: format!("failed to pull image {reference:?}: {message}"),
        })?;
        let stored =
            StoredImage { image: image.clone(), size_bytes, pulled_at: jiff::Timestamp::now() };
        self.remember(stored).map_err(|e| ImageError {
            reason: "ErrImagePull".into(),
            message: format!(
                "failed to store image {reference:?} under {}: {e}",
                self.dir.display()
            ),
        })?;
        Ok(image)
    }

    async fn pull_from_anywhere(
        &self,
        reference: &str,
        name: &Name,
        auth: &[RegistryAuth],
    ) -> Result<(Image, u64), String> {
        let Some(repository) = &name.in_cluster else {
            return self.pull_from_outside(reference, name, auth).await;
        };
        let in_cluster = InCluster { registry: &*self.cluster, repository };
        match self.pull_from(&in_cluster, reference, name).await {
            Err(FetchError::NotFound(here)) if !name.has_host => {
                // Names without a host mean the default registry everywhere else.
                let outside = self.pull_from_outside(reference, name, auth).await;
                outside.map_err(|e| format!("{here}: not found; {e}"))
            }
            other => other.map_err(|e| e.to_string()),
        }
    }

    /// With each credential that fits, until one is good enough.
    async fn pull_from_outside(
        &self,
        reference: &str,
        name: &Name,
        auth: &[RegistryAuth],
    ) -> Result<(Image, u64), String> {
        let mut denied = None;
        for remote in self.remotes.of(name, auth)? {
            match self.pull_from(&remote, reference, name).await {
                Err(FetchError::Denied(cause)) => denied = Some(cause),
                other => return other.map_err(|e| e.to_string()),
            }
        }
        Err(denied.expect("there is at least the anonymous try"))
    }

    async fn pull_from(
        &self,
        source: &dyn Source,
        reference: &str,
        name: &Name,
    ) -> Result<(Image, u64), FetchError> {
        let counts = Arc::new(Counts::default());
        self.progress.lock().insert(reference.to_owned(), counts.clone());
        let pulled = self.pull_counted(&Counted { source, counts }, reference, name).await;
        self.progress.lock().remove(reference);
        pulled
    }

    async fn pull_counted(
        &self,
        source: &dyn Source,
        reference: &str,
        name: &Name,
    ) -> Result<(Image, u64), FetchError> {
        let (mut manifest, digest) = self.manifest(source, name.version()).await?;
        let failed = FetchError::Failed;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut plan = form::plan(&manifest, architecture).map_err(failed)?;
        if let Plan::Entry { digest } = &plan {
            manifest = self.manifest(source, digest).await?.0;
            plan = form::plan(&manifest, architecture).map_err(failed)?;
        }
        let (form, size_bytes) = match plan {
            Plan::Entry { .. } => {
                return Err(failed("an image index inside an image index is not supported".into()));
            }
            Plan::WasmLayer { digest, config } => {
                let run = self.run_config(source, &manifest, config.as_deref()).await?;
                self.wasm_layer(source, &manifest, digest, run.config).await?
            }
            Plan::ByConfig { config } => {
                let image = self.run_config(source, &manifest, Some(&config)).await?;
                if image.architecture.is_empty() || image.os.is_empty() {
                    return Err(failed(format!(
                        "the image's config {config} is not valid: it names no os and architecture"
                    )));
                }
                if image.architecture == "wasm" || image.os.starts_with("wasi") {
                    self.compat(source, &manifest, image.config).await?
                } else {
                    self.linux(source, &manifest, image, architecture).await?
                }
            }
        };
        let id = name.id(&digest);
        Ok((Image { reference: reference.to_owned(), id, digest, form }, size_bytes))
    }

    /// A manifest, checked against its digest where the version is one.
    async fn manifest(
        &self,
        source: &dyn Source,
        version: &str,
    ) -> Result<(Manifest, String), FetchError> {
        let content = source.manifest(version).await?;
        let digest = digest_of(&content);
        if version.starts_with("sha256:") && version != digest {
            return Err(FetchError::Failed(format!(
                "the manifest has digest {digest}, not {version}: the registry or the network altered it"
            )));
        }
        let manifest = serde_json::from_slice(&content)
            .map_err(|e| FetchError::Failed(format!("the manifest is not valid: {e}")))?;
        Ok((manifest, digest))
    }

    async fn blob(
        &self,
        source: &dyn Source,
        digest: &str,
        size: u64,
        max: u64,
    ) -> Result<PathBuf, FetchError> {
        let failed = |e: ContentError| FetchError::Failed(format!("blob {digest}: {e}"));
        let path = self.content.path(digest).map_err(failed)?;
        let turn = self.content.turn(digest);
        let _one_transfer_at_a_time = turn.lock().await;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(path);
        }
        let mut partial = self.content.partial(digest, max).await.map_err(failed)?;
        let mut tries = Tries::default();
        loop {
            let before = partial.len();
            let broke = match source.blob(digest, size, before).await {
                Ok((from, stream)) => {
                    if from != before {
                        partial.begin_anew().await.map_err(failed)?;
                    }
                    match partial.take(stream).await {
                        Ok(()) => return partial.finish().await.map_err(failed),
                        // All has come: what is wrong is not the transfer.
                        Err(ContentError::Transfer(_)) if size > 0 && partial.len() >= size => {
                            return partial.finish().await.map_err(failed);
                        }
                        Err(ContentError::Transfer(why)) => ContentError::Transfer(why),
                        Err(error) => {
                            partial.discard().await;
                            return Err(failed(error));
                        }
                    }
                }
                // It may be that it has no such rest.
                Err(FetchError::Failed(why)) if before > 0 => {
                    partial.begin_anew().await.map_err(failed)?;
                    ContentError::Transfer(why)
                }
                Err(error) => {
                    if before == 0 {
                        partial.discard().await;
                    }
                    return Err(error);
                }
            };
            if !tries.another(partial.len() > before) {
                return Err(failed(broke));
            }
            tracing::info!(digest, got = partial.len(), error = %broke, "a transfer goes on");
            tokio::time::sleep(Tries::PAUSE).await;
        }
    }

    /// The config blob; empty when there is none or it is not an image config (Wasm artifacts have
    /// configs of their own, whose fields a container does not use).
    async fn run_config(
        &self,
        source: &dyn Source,
        manifest: &Manifest,
        digest: Option<&str>,
    ) -> Result<ImageConfig, FetchError> {
        const CONFIG_BYTES_MAX: u64 = 1 << 20;
        let Some(digest) = digest else { return Ok(ImageConfig::default()) };
        let size = manifest.config.as_ref().map_or(0, |c| c.size);
        let path = self.blob(source, digest, size, CONFIG_BYTES_MAX).await?;
        let content = read(&path).await?;
        Ok(serde_json::from_slice(&content).unwrap_or_default())
    }

    async fn wasm_layer(
        &self,
        source: &dyn Source,
        manifest: &Manifest,
        digest: String,
        run: RunConfig,
    ) -> Result<(ImageForm, u64), FetchError> {
        let size = manifest.layers.iter().find(|l| l.digest == digest).map_or(0, |l| l.size);
        let file = self.blob(source, &digest, size, self.layer_bytes_max).await?;
        let size = tokio::fs::metadata(&file).await.map_or(size, |m| m.len());
        Ok((wasm_form(file, digest, run), size))
    }

    /// A `wasi/wasm` image: the Wasm file lies inside tar layers.
    async fn compat(
        &self,
        source: &dyn Source,
        manifest: &Manifest,
        run: RunConfig,
    ) -> Result<(ImageForm, u64), FetchError> {
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let path = self.blob(source, &layer.digest, layer.size, self.layer_bytes_max).await?;
            layers.push(read(&path).await?);
        }
        let (max, config) = (self.layer_bytes_max, run.clone());
        let unpacked =
            tokio::task::spawn_blocking(move || form::wasm_in_layers(&layers, &config, max));
        let content = unpacked
            .await
            .map_err(|e| FetchError::Failed(e.to_string()))?
            .map_err(FetchError::Failed)?;
        let stored = self.content.store_own(&content).await;
        let (digest, file) = stored.map_err(|e| FetchError::Failed(e.to_string()))?;
        Ok((wasm_form(file, digest, run), content.len() as u64))
    }

    /// A root file system: each layer is unpacked once, whoever uses it. A layer that is there is not even
    /// fetched, so a pull that broke goes on where it was.
    async fn linux(
        &self,
        source: &dyn Source,
        manifest: &Manifest,
        image: ImageConfig,
        architecture: &str,
    ) -> Result<(ImageForm, u64), FetchError> {
        let failed = |why: String| FetchError::Failed(why);
        let kind = format!("{}/{}", image.os, image.architecture);
        let Some(store) = &self.layers else {
            return Err(failed(format!(
                "it is a {kind} container image, which needs a node that runs as root; this one runs WebAssembly images only"
            )));
        };
        if image.os != "linux" || image.architecture != architecture {
            return Err(failed(format!(
                "it is a {kind} container image; this node runs linux/{architecture} and WebAssembly"
            )));
        }
        let diff_ids = &image.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(failed(format!(
                "the manifest has {} layers, the config names {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let (mut layers, mut size_bytes) = (Vec::with_capacity(diff_ids.len()), 0u64);
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            size_bytes += layer.size;
            let dir = match store.present(diff_id).map_err(failed)? {
                Some(dir) => dir,
                None => {
                    let blob =
                        self.blob(source, &layer.digest, layer.size, self.layer_bytes_max).await?;
                    let dir = store.unpack(&blob, diff_id).await;
                    // What was unpacked is not needed packed; what cannot be unpacked even less.
                    let _none_needs_it = tokio::fs::remove_file(&blob).await;
                    dir.map_err(|e| failed(format!("layer {}: {e}", layer.digest)))?
                }
            };
            layers.push(dir);
        }
        let RunConfig { entrypoint, cmd, env, working_dir, user, stop_signal } = image.config;
        let form =
            ImageForm::Linux { layers, entrypoint, cmd, env, working_dir, user, stop_signal };
        Ok((form, size_bytes))
    }

    /// Keeps the record on disk, then in memory.
    fn remember(&self, stored: StoredImage) -> std::io::Result<()> {
        let content = serde_json::to_vec(&stored).expect("the record has no maps with odd keys");
        let path = self.record_path(&stored.image.reference);
        let staged = self.dir.join("staging").join(uuid::Uuid::new_v4().simple().to_string());
        std::fs::write(&staged, content)?;
        std::fs::rename(&staged, path)?;
        self.images.lock().insert(stored.image.reference.clone(), stored);
        self.changed();
        Ok(())
    }
}

/// How often a transfer that breaks is gone on with within one pull. What it has is kept for the next.
#[derive(Default)]
struct Tries {
    all: u32,
    in_vain: u32,
}

impl Tries {
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

    fn another(&mut self, brought_something: bool) -> bool {
        const MAX: u32 = 5;
        const IN_VAIN_MAX: u32 = 2;
        self.all += 1;
        self.in_vain = if brought_something { 0 } else { self.in_vain + 1 };
        self.all < MAX && self.in_vain < IN_VAIN_MAX
    }
}

fn wasm_form(file: PathBuf, digest: String, run: RunConfig) -> ImageForm {
    let RunConfig { entrypoint, cmd, env, working_dir, .. } = run;
    ImageForm::Wasm { file, digest, entrypoint, cmd, env, working_dir }
}

async fn read(path: &Path) -> Result<Vec<u8>, FetchError> {
    tokio::fs::read(path).await.map_err(|e| FetchError::Failed(format!("{}: {e}", path.display())))
}
