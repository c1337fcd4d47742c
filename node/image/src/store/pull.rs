//! The pull of one image: its manifest, its config and its layers, each compared with what refers to it.

use std::path::PathBuf;
use std::sync::Arc;

use rimward_node_pod::outside::{Image, ImageError, ImageForm, RegistryAuth};

use super::{Access, Inner, StoredImage};
use crate::content::{Bounds, ContentError, digest_of};
use crate::fetch::{FetchError, InCluster, Source};
use crate::form::{self, Descriptor, ImageConfig, Manifest, Plan, RunConfig};
use crate::layers;
use crate::name::Name;
use crate::progress::{Counted, Counts};

/// Manifests that indexes lead to, one within the other, before an image is found.
const MANIFESTS_MAX: usize = 16;
/// As many as overlayfs puts over one another, but for one that an image volume needs.
const LAYERS_MAX: usize = 499;
/// Up to this size a blob may have what is kept free of the disk.
const SMALL_BYTES: u64 = 4 << 20;

/// An image, its size in bytes, and whom it is for.
type Pulled = (Image, u64, Access);

impl Inner {
    pub(super) async fn pull(
        &self,
        reference: &str,
        name: &Name,
        auth: &[RegistryAuth],
    ) -> Result<Image, ImageError> {
        let slots = self.slots(name);
        let _slot = slots.acquire().await.expect("the semaphore is never closed");
        let _nothing_is_swept = self.pulls.read().await;
        let failed = |message| ImageError { reason: "ErrImagePull".into(), message };
        let pulled = self.pull_from_anywhere(reference, name, auth).await;
        let (image, size_bytes, access) = pulled.map_err(|why| {
            failed(format!("failed to pull and unpack image {:?}: {why}", name.reference.whole()))
        })?;
        let pulled_at = jiff::Timestamp::now();
        let stored = StoredImage { image: image.clone(), size_bytes, pulled_at, access };
        self.remember(stored).map_err(|e| {
            failed(format!("failed to store image {reference:?} under {}: {e}", self.dir.display()))
        })?;
        Ok(image)
    }

    async fn pull_from_anywhere(
        &self,
        reference: &str,
        name: &Name,
        auth: &[RegistryAuth],
    ) -> Result<Pulled, String> {
        let Some(repository) = &name.in_cluster else {
            return self.pull_from_outside(reference, name, auth).await;
        };
        let in_cluster = InCluster { registry: &*self.cluster, repository };
        match self.pull_from(&in_cluster, reference, name).await {
            Ok((image, size)) => Ok((image, size, Access::Everybody)),
            Err(FetchError::NotFound(here)) if !name.has_host => {
                // Names without a host mean the default registry everywhere else.
                let outside = self.pull_from_outside(reference, name, auth).await;
                outside.map_err(|e| format!("{here}: not found; {e}"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// With each credential that fits, until one is good enough. Registries have many ways to hide what is not
    /// for somebody; only what no credential can help is final.
    async fn pull_from_outside(
        &self,
        reference: &str,
        name: &Name,
        auth: &[RegistryAuth],
    ) -> Result<Pulled, String> {
        let mut causes: Vec<String> = Vec::new();
        for remote in self.remotes.of(name, auth)? {
            match self.pull_from(&remote, reference, name).await {
                Ok((image, size)) => {
                    return Ok((image, size, Access::with(remote.opened_by())));
                }
                Err(FetchError::Failed(cause)) => {
                    causes.push(cause);
                    break;
                }
                Err(error) => causes.push(error.to_string()),
            }
        }
        causes.dedup();
        Err(match <[String; 1]>::try_from(causes) {
            Ok([cause]) => cause,
            Err(causes) => format!("[{}]", causes.join(", ")),
        })
    }

    pub(super) async fn pull_from(
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
        let resolved = self.manifest(source, name.version(), 0).await;
        let (manifest, digest) = resolved.map_err(|error| {
            error.within(&format!("failed to resolve reference {:?}", name.reference.whole()))
        })?;
        let (form, size_bytes) = self.of_index(source, manifest).await?;
        let id = name.id(&digest);
        Ok((Image { reference: reference.to_owned(), id, digest, form }, size_bytes))
    }

    /// The image that a manifest is, or that the best entry of an index leads to. An entry that does not say whom
    /// it is for is looked at.
    async fn of_index(
        &self,
        source: &dyn Source,
        manifest: Manifest,
    ) -> Result<(ImageForm, u64), FetchError> {
        let mut open: Vec<Descriptor> = Vec::new();
        let (mut manifest, mut seen) = (manifest, 1);
        loop {
            let unfit = match form::plan(&manifest, architecture()) {
                Ok(Plan::Entries(entries)) => {
                    open.extend(entries.into_iter().rev());
                    String::new()
                }
                Ok(Plan::WasmLayer { layer, config }) => {
                    let run = match &config {
                        Some(config) => self.wasm_config(source, config).await?,
                        None => RunConfig::default(),
                    };
                    return self.wasm_layer(source, &layer, run).await;
                }
                Ok(Plan::ByConfig { config }) => {
                    let image = self.image_config(source, &config).await?;
                    if image.architecture == "wasm" || image.os.starts_with("wasi") {
                        return self.compat(source, &manifest, image.config).await;
                    }
                    match self.runs(&image) {
                        Ok(()) => return self.linux(source, &manifest, image).await,
                        Err(why) => why,
                    }
                }
                Err(why) => why,
            };
            let Some(next) = open.pop() else { return Err(FetchError::Failed(unfit)) };
            seen += 1;
            if seen > MANIFESTS_MAX {
                return Err(FetchError::Failed(format!(
                    "its indexes lead to more than {MANIFESTS_MAX} manifests"
                )));
            }
            // By its digest, and by nothing that may be another manifest tomorrow.
            self.content.path(&next.digest).map_err(|e| FetchError::Failed(e.to_string()))?;
            manifest = self.manifest(source, &next.digest, next.size).await?.0;
        }
    }

    /// A manifest, checked against its digest where the version is one, and its size where that is known.
    async fn manifest(
        &self,
        source: &dyn Source,
        version: &str,
        size: u64,
    ) -> Result<(Manifest, String), FetchError> {
        let content = source.manifest(version).await?;
        let digest = digest_of(&content);
        if version.contains(':') && version != digest {
            return Err(FetchError::Failed(format!(
                "the manifest has digest {digest}, not {version}: the registry or the network altered it"
            )));
        }
        bounds(size, u64::MAX)
            .check(content.len() as u64)
            .map_err(|e| FetchError::Failed(format!("manifest {digest}: {e}")))?;
        let manifest = serde_json::from_slice(&content)
            .map_err(|e| FetchError::Failed(format!("the manifest is not valid: {e}")))?;
        Ok((manifest, digest))
    }

    async fn blob(
        &self,
        source: &dyn Source,
        part: &Descriptor,
        max: u64,
    ) -> Result<PathBuf, FetchError> {
        let digest = &part.digest;
        let failed = |e: ContentError| FetchError::Failed(format!("blob {digest}: {e}"));
        if part.size > max {
            return Err(failed(ContentError::TooLarge(max)));
        }
        let bytes = bounds(part.size, max);
        let path = self.content.path(digest).map_err(failed)?;
        let turn = self.content.turn(source.place(), digest);
        let _one_transfer_at_a_time = turn.lock().await;
        if let Ok(there) = tokio::fs::metadata(&path).await {
            return bytes.check(there.len()).map(|()| path).map_err(failed);
        }
        let mut partial =
            self.content.partial(source.place(), digest, bytes).await.map_err(failed)?;
        let room = layers::room(&self.dir).unwrap_or(u64::MAX).saturating_add(partial.len());
        if part.size > room.max(SMALL_BYTES) {
            let (path, wanted) = (self.dir.clone(), part.size);
            return Err(failed(ContentError::NoRoom { path, wanted, room }));
        }
        let mut tries = Tries::default();
        loop {
            let before = partial.len();
            let broke = match source.blob(digest, before).await {
                Ok((from, stream)) => {
                    if from != before {
                        partial.begin_anew().await.map_err(failed)?;
                    }
                    // What begins elsewhere is not gone on with: it is another try, from the beginning.
                    let taken = match from == before || from == 0 {
                        true => partial.take(stream).await,
                        false => Err(ContentError::Transfer("it began elsewhere".into())),
                    };
                    match taken {
                        // An end like any other, of those registries that do not say how much is to come.
                        Ok(()) if partial.len() < part.size && !partial.is_whole() => {
                            let (got, all) = (partial.len(), part.size);
                            ContentError::Transfer(format!("it ended after {got} of {all} bytes"))
                        }
                        Ok(()) => return partial.finish().await.map_err(failed),
                        // All has come: what is wrong is not the transfer.
                        Err(ContentError::Transfer(_))
                            if part.size > 0 && partial.len() >= part.size =>
                        {
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
                Err(FetchError::Failed(why) | FetchError::Refused(why)) if before > 0 => {
                    partial.begin_anew().await.map_err(failed)?;
                    ContentError::Transfer(why)
                }
                Err(error) => {
                    if before == 0 {
                        partial.discard().await;
                    }
                    return Err(error.within(&format!("blob {digest}")));
                }
            };
            if !tries.another(partial.len() > before) {
                return Err(failed(broke));
            }
            tracing::info!(digest, got = partial.len(), error = %broke, "a transfer goes on");
            tokio::time::sleep(Tries::PAUSE).await;
        }
    }

    async fn config(
        &self,
        source: &dyn Source,
        config: &Descriptor,
    ) -> Result<Vec<u8>, FetchError> {
        const CONFIG_BYTES_MAX: u64 = 1 << 20;
        let path = self.blob(source, config, CONFIG_BYTES_MAX).await?;
        let read = tokio::fs::read(&path).await;
        read.map_err(|e| FetchError::Failed(format!("{}: {e}", path.display())))
    }

    /// Of a Wasm artifact, which has a config of its own: what it says as an image's is taken.
    async fn wasm_config(
        &self,
        source: &dyn Source,
        config: &Descriptor,
    ) -> Result<RunConfig, FetchError> {
        let content = self.config(source, config).await?;
        Ok(serde_json::from_slice::<ImageConfig>(&content).unwrap_or_default().config)
    }

    async fn image_config(
        &self,
        source: &dyn Source,
        config: &Descriptor,
    ) -> Result<ImageConfig, FetchError> {
        let digest = &config.digest;
        let invalid = |why: String| {
            FetchError::Failed(format!("the image's config {digest} is not valid: {why}"))
        };
        let content = self.config(source, config).await?;
        let image: ImageConfig =
            serde_json::from_slice(&content).map_err(|e| invalid(e.to_string()))?;
        match image.architecture.is_empty() || image.os.is_empty() {
            true => Err(invalid("it names no os and architecture".into())),
            false => Ok(image),
        }
    }

    async fn wasm_layer(
        &self,
        source: &dyn Source,
        layer: &Descriptor,
        run: RunConfig,
    ) -> Result<(ImageForm, u64), FetchError> {
        let file = self.blob(source, layer, self.layer_bytes_max).await?;
        let size = tokio::fs::metadata(&file).await.map_or(layer.size, |m| m.len());
        Ok((wasm_form(file, layer.digest.clone(), run), size))
    }

    /// A `wasi/wasm` image: the Wasm file lies inside tar layers.
    async fn compat(
        &self,
        source: &dyn Source,
        manifest: &Manifest,
        run: RunConfig,
    ) -> Result<(ImageForm, u64), FetchError> {
        few_enough(manifest)?;
        let mut packed = Vec::new();
        for layer in &manifest.layers {
            packed.push(self.blob(source, layer, self.layer_bytes_max).await?);
        }
        let room = layers::room(&self.dir).unwrap_or(u64::MAX).max(SMALL_BYTES);
        let (max, config, staged) =
            (self.layer_bytes_max.min(room), run.clone(), self.content.stage());
        let unpack = {
            let staged = staged.clone();
            move || form::wasm_in_layers(&packed, &config, &staged, max)
        };
        let unpacked = tokio::task::spawn_blocking(unpack).await;
        let unpacked = unpacked.unwrap_or_else(|panic| Err(panic.to_string()));
        let adopted = unpacked.and_then(|size| {
            let adopted = self.content.adopt(&staged);
            adopted.map(|(digest, file)| (digest, file, size)).map_err(|e| e.to_string())
        });
        if adopted.is_err() {
            let _there_may_be_none = tokio::fs::remove_file(&staged).await;
        }
        let (digest, file, size) = adopted.map_err(FetchError::Failed)?;
        Ok((wasm_form(file, digest, run), size))
    }

    /// Whether this node runs an image, by what its config says.
    fn runs(&self, image: &ImageConfig) -> Result<(), String> {
        let kind = format!("{}/{}", image.os, image.architecture);
        if self.layers.is_none() {
            return Err(format!(
                "it is a {kind} container image, which needs a node that runs as root; this one runs WebAssembly images only"
            ));
        }
        let own = architecture();
        match image.os == "linux" && image.architecture == own {
            true => Ok(()),
            false => Err(format!(
                "it is a {kind} container image; this node runs linux/{own} and WebAssembly"
            )),
        }
    }

    /// A root file system: each layer is unpacked once, whoever uses it. A layer that is there is not even
    /// fetched, so a pull that broke goes on where it was.
    async fn linux(
        &self,
        source: &dyn Source,
        manifest: &Manifest,
        image: ImageConfig,
    ) -> Result<(ImageForm, u64), FetchError> {
        let failed = |why: String| FetchError::Failed(why);
        let store = self.layers.as_ref().expect("only a node that has them runs such images");
        few_enough(manifest)?;
        let diff_ids = &image.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(failed(format!(
                "mismatched image rootfs and manifest layers: the manifest has {} layers, the config names {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let (mut layers, mut size_bytes) = (Vec::with_capacity(diff_ids.len()), 0u64);
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            size_bytes = size_bytes.saturating_add(layer.size);
            let dir = match store.present(diff_id).map_err(failed)? {
                Some(dir) => dir,
                None => {
                    let blob = self.blob(source, layer, self.layer_bytes_max).await?;
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
}

/// Of the machine, as images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn few_enough(manifest: &Manifest) -> Result<(), FetchError> {
    match manifest.layers.len() {
        0..=LAYERS_MAX => Ok(()),
        many => Err(FetchError::Failed(format!(
            "the image has {many} layers; {LAYERS_MAX} at most can lie over one another"
        ))),
    }
}

fn bounds(size: u64, max: u64) -> Bounds {
    match size {
        0 => Bounds::UpTo(max),
        size => Bounds::Exactly(size),
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
