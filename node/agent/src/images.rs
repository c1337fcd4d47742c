//! This node's images: what its Node says of them, what people do with them, and which go when the disk
//! fills up.
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#container-image-lifecycle>

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerImage;
use parking_lot::Mutex;
use rimward_node_image::{Candidate, GcPolicy, ImageStore, Room, StoredImage};
use rimward_node_pod::ImagesInUse;
use rimward_node_pod::outside::{Image, Images as _, PullPolicy, RegistryAuth};
use serde::Serialize;

use crate::{Core, PodHandler};

/// As often as the kubelet looks.
const COLLECT_EVERY: Duration = Duration::from_secs(5 * 60);
/// `nodeStatusMaxImages`, and how many names of each the kubelet tells.
const SHOWN_MAX: usize = 50;
const NAMES_MAX: usize = 5;

/// The image store, and who uses what of it.
pub(crate) struct NodeImages {
    store: ImageStore,
    policy: GcPolicy,
    /// By digest; what was never seen in use was used when it was pulled.
    last_used: Mutex<HashMap<String, Timestamp>>,
}

/// An image as `rimward image list` shows it: all names of one digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub names: Vec<String>,
    pub digest: String,
    pub size_bytes: u64,
    pub pulled_at: String,
    pub in_use: bool,
}

/// Why somebody's wish is not done: an HTTP status and a sentence.
pub(crate) type Refused = (u16, String);

impl NodeImages {
    pub fn new(store: ImageStore, policy: GcPolicy) -> Self {
        Self { store, policy, last_used: Mutex::default() }
    }

    /// Tells the Node of images that come and go, and makes room when it is time, until the node stops.
    pub async fn run(self: Arc<Self>, core: Arc<Core>, pods: Arc<dyn PodHandler>) {
        let (mut changes, mut failed) = (self.store.changes(), false);
        // Not at once: pods must have come before their images can be told from others.
        let start = tokio::time::Instant::now() + COLLECT_EVERY;
        let mut collections = tokio::time::interval_at(start, COLLECT_EVERY);
        loop {
            changes.borrow_and_update();
            core.show_images(in_status(&self.store.list()));
            tokio::select! {
                () = core.shutdown.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                _ = collections.tick() => {
                    self.note_use(&pods.images());
                    let collected = self.collect(&*pods).await;
                    if let Err((reason, why)) = &collected {
                        core.reports.node_event(true, reason, why);
                        // The kubelet says so only of what failed before too.
                        if failed {
                            core.reports.node_event(true, "ImageGCFailed", why);
                        }
                    }
                    failed = collected.is_err();
                }
            }
        }
    }

    /// Makes room if the disk is fuller than it may be.
    ///
    /// # Errors
    /// An Event's reason and message, in the kubelet's words.
    async fn collect(&self, pods: &dyn PodHandler) -> Result<(), (&'static str, String)> {
        let room = room(self.store.dir()).filter(|room| room.capacity > 0);
        let room = room.ok_or_else(|| {
            ("InvalidDiskCapacity", "invalid capacity 0 on image filesystem".to_owned())
        })?;
        let Some(wanted) = self.policy.to_free(room) else { return Ok(()) };
        tracing::info!(wanted, "the disk is over the high threshold; unused images go");
        let freed = self.free(pods, wanted).await;
        if freed >= wanted {
            return Ok(());
        }
        Err((
            "FreeDiskSpaceFailed",
            format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
            ),
        ))
    }

    /// Removes unused images, the longest unused first, until that many bytes are free; answers how many are.
    pub async fn free(&self, pods: &dyn PodHandler, wanted: u64) -> u64 {
        let now = Timestamp::now();
        let candidates = self.candidates(&pods.images());
        let mut freed = self.store.sweep(pods.images().paths).await;
        for image in self.policy.order(candidates, now) {
            if freed >= wanted {
                break;
            }
            // A pod may have come for it meanwhile.
            let in_use = pods.images();
            if image.names.iter().any(|name| self.uses(&in_use, name)) {
                continue;
            }
            for name in &image.names {
                match self.store.remove(name) {
                    Ok(_) => tracing::info!(image = name, "an unused image was removed"),
                    Err(error) => tracing::warn!(image = name, error, "an image stays"),
                }
            }
            freed += self.store.sweep(in_use.paths).await;
        }
        freed
    }

    fn uses(&self, in_use: &ImagesInUse, name: &str) -> bool {
        let list = self.store.list();
        list.iter().any(|i| i.image.reference == name && self.is_used(in_use, &i.image))
    }

    /// By a container, or by a volume.
    fn is_used(&self, in_use: &ImagesInUse, image: &Image) -> bool {
        in_use.digests.contains(&image.digest) || self.store.is_mounted(image)
    }

    fn note_use(&self, in_use: &ImagesInUse) {
        let (now, mut used) = (Timestamp::now(), self.last_used.lock());
        let there: Vec<String> = self.store.list().into_iter().map(|i| i.image.digest).collect();
        used.retain(|digest, _| there.contains(digest));
        used.extend(in_use.digests.iter().map(|digest| (digest.clone(), now)));
    }

    fn candidates(&self, in_use: &ImagesInUse) -> Vec<Candidate> {
        let used = self.last_used.lock();
        let by_digest = by_digest(self.store.list()).into_iter();
        let unused = by_digest.filter(|(_, i)| !i.iter().any(|i| self.is_used(in_use, &i.image)));
        let candidate = |(digest, images): (String, Vec<StoredImage>)| {
            let first_seen = images.iter().map(|i| i.pulled_at).max().unwrap_or_default();
            Candidate {
                names: images.into_iter().map(|i| i.image.reference).collect(),
                first_seen,
                last_used: used.get(&digest).copied().unwrap_or(first_seen),
            }
        };
        unused.map(candidate).collect()
    }

    pub fn list(&self, in_use: &ImagesInUse) -> Vec<Shown> {
        let shown = |(digest, images): (String, Vec<StoredImage>)| Shown {
            in_use: images.iter().any(|i| self.is_used(in_use, &i.image)),
            size_bytes: images.iter().map(|i| i.size_bytes).max().unwrap_or(0),
            pulled_at: images.iter().map(|i| i.pulled_at).max().unwrap_or_default().to_string(),
            names: images.into_iter().map(|i| i.image.reference).collect(),
            digest,
        };
        let mut all: Vec<Shown> = by_digest(self.store.list()).into_iter().map(shown).collect();
        all.sort_by(|a, b| a.names.cmp(&b.names));
        all
    }

    /// Pulls an image anew, with the first of these credentials that does.
    pub async fn pull(&self, name: &str, auth: &[RegistryAuth]) -> Result<String, Refused> {
        let pulled = self.store.ensure(name, PullPolicy::Always, auth).await;
        pulled.map(|image| image.id).map_err(|e| (502, e.to_string()))
    }

    /// Stores the images of an archive; answers their names.
    pub async fn import(&self, file: &Path, name: Option<&str>) -> Result<Vec<String>, Refused> {
        let imported = self.store.import(file, name).await.map_err(|why| (400, why))?;
        Ok(imported.into_iter().map(|stored| stored.image.reference).collect())
    }

    pub async fn remove(&self, pods: &dyn PodHandler, name: &str) -> Result<(), Refused> {
        let in_use = pods.images();
        let image = self.store.present(name).await;
        let image = image.ok_or_else(|| (404, format!("image {name:?} is not on this node")))?;
        if self.is_used(&in_use, &image) {
            return Err((409, format!("image {name:?} is used by a pod")));
        }
        self.store.remove(name).map_err(|why| (500, why))?;
        self.store.sweep(in_use.paths).await;
        Ok(())
    }

    /// Where an archive may be put while it comes in.
    pub fn staged(&self) -> std::path::PathBuf {
        self.store.dir().join("staging").join(format!("archive-{:032x}", rand::random::<u128>()))
    }
}

fn room(dir: &Path) -> Option<Room> {
    let fs = rustix::fs::statvfs(dir).ok()?;
    Some(Room { capacity: fs.f_blocks * fs.f_frsize, available: fs.f_bavail * fs.f_frsize })
}

fn by_digest(images: Vec<StoredImage>) -> HashMap<String, Vec<StoredImage>> {
    let mut all: HashMap<String, Vec<StoredImage>> = HashMap::new();
    for stored in images {
        all.entry(stored.image.digest.clone()).or_default().push(stored);
    }
    all
}

/// `status.images`: the largest first, each by its digest and its names.
fn in_status(images: &[StoredImage]) -> Vec<ContainerImage> {
    let mut all: Vec<ContainerImage> = by_digest(images.to_vec())
        .into_values()
        .map(|images| {
            let ids = images.iter().map(|i| i.image.id.clone());
            let mut names: Vec<String> = ids.collect();
            names.sort();
            names.dedup();
            names.extend(images.iter().map(|i| i.image.reference.clone()));
            names.truncate(NAMES_MAX);
            let size = images.iter().map(|i| i.size_bytes).max().unwrap_or(0);
            ContainerImage { names: Some(names), size_bytes: i64::try_from(size).ok() }
        })
        .collect();
    all.sort_by(|a, b| (b.size_bytes, &a.names).cmp(&(a.size_bytes, &b.names)));
    all.truncate(SHOWN_MAX);
    all
}

#[cfg(test)]
mod tests {
    use rimward_node_image::Access;
    use rimward_node_pod::outside::ImageForm;

    use super::*;

    #[test]
    fn images_in_the_status() {
        let image = |name: &str, digest: &str, size_bytes: u64| StoredImage {
            image: Image {
                reference: name.into(),
                id: format!("{}@{digest}", name.split(':').next().unwrap()),
                digest: digest.into(),
                form: ImageForm::Wasm {
                    file: "/f".into(),
                    digest: digest.into(),
                    entrypoint: vec![],
                    cmd: vec![],
                    env: vec![],
                    working_dir: String::new(),
                },
            },
            size_bytes,
            pulled_at: Timestamp::UNIX_EPOCH,
            access: Access::default(),
        };
        let list =
            [image("a:1", "sha256:1", 5), image("b:1", "sha256:2", 7), image("a:2", "sha256:1", 5)];
        let shown: Vec<String> =
            in_status(&list).iter().map(|i| i.names.clone().unwrap().join(" ")).collect();
        assert_eq!(shown, ["b@sha256:2 b:1", "a@sha256:1 a:1 a:2"]);
    }
}
