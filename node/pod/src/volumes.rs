//! A pod's volumes: directories of the node that are made, filled, kept fresh and removed.
//! <https://kubernetes.io/docs/concepts/storage/volumes/>
//!
//! Nothing is mounted but emptyDirs in memory, images and NFS: a runtime is told where a volume lies. What a
//! claim leads to keeps its place, and the pod's directory has a link to it. Secrets and
//! tokens lie in a directory on an existing tmpfs where there is one, so that ten thousand pods do
//! not need ten thousand mounts.

pub(crate) mod atomic;
pub(crate) mod claimed;
pub(crate) mod content;
pub(crate) mod host;
pub(crate) mod in_use;
mod mounted;
pub(crate) mod sub_path;

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Volume};
use serde::{Deserialize, Serialize};

use crate::downward::Facts;
use crate::outside::Objects;
use crate::record::make_dir;
use crate::sources::{self, Name, Sources};
use claimed::{Claimed, Source};
use content::{Content, Tokens};

/// No container can be called this.
pub(crate) const FOLDER: &str = "_volumes";

/// What set-up saw and left: enough to know later whether files are stale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mounted {
    pub versions: Vec<(Name, Option<String>)>,
    /// When the first of the pod's tokens is to be replaced.
    pub tokens_due: Option<Timestamp>,
}

/// Why a pod's volumes are not there: the text of the FailedMount Event, and what would help.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub message: String,
    pub seen: Vec<(Name, Option<String>)>,
    /// What the others of the pod's volumes are now, when they were there before.
    pub mounted: Option<Mounted>,
}

/// Where a pod's files lie.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `DIR/node/pods/<uid>`
    pub pod_dir: PathBuf,
    /// For Secrets and tokens.
    pub secret_dir: PathBuf,
}

impl Places {
    pub fn new(data_dir: &Path, memory_dir: Option<&Path>, uid: &str) -> Self {
        let pod_dir = data_dir.join("pods").join(uid);
        let secret_dir = memory_dir.map_or_else(|| pod_dir.clone(), |m| m.join(uid));
        Self { pod_dir, secret_dir }
    }

    /// The directory or file that a volume is.
    pub fn of(&self, volume: &Volume) -> PathBuf {
        if let Some(host) = &volume.host_path {
            return PathBuf::from(&host.path);
        }
        let base = if holds_secrets(volume) { &self.secret_dir } else { &self.pod_dir };
        base.join(FOLDER).join(&volume.name)
    }

    /// Removes everything of the pod. Safe without set-up.
    pub fn remove(&self) -> std::io::Result<()> {
        self.release()?;
        remove_tree(&self.secret_dir)?;
        remove_tree(&self.pod_dir)
    }

    /// Removes the volumes; logs and the record stay.
    pub fn release(&self) -> std::io::Result<()> {
        sub_path::release(&self.pod_dir)?;
        sub_path::release(&self.secret_dir)?;
        in_use::release(&self.pod_dir)?;
        let folder = self.pod_dir.join(FOLDER);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            host::unmount(&entry.path())?;
        }
        remove_tree(&folder)?;
        remove_tree(&self.secret_dir.join(FOLDER))
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn holds_secrets(volume: &Volume) -> bool {
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    volume.secret.is_some()
        || projected.into_iter().any(|s| s.secret.is_some() || s.service_account_token.is_some())
}

/// What is to be done: all of a pod's volumes made, or those kept fresh that were made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    First,
    /// Only what follows objects; the rest is the containers' own by now, and stays as they left it. Tokens
    /// are replaced when they are due.
    Again {
        tokens_due: Option<Timestamp>,
    },
}

/// Makes the volumes of a pod what they are to be. At first all or none; later each for itself: one whose source
/// is gone keeps no other from being fresh.
pub(crate) async fn set_up(
    pod: &Pod,
    places: &Places,
    objects: &dyn Objects,
    facts: &Facts<'_>,
    turn: Turn,
    now: Timestamp,
) -> Result<Mounted, Failure> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let names = volumes.iter().flat_map(|v| sources::of_volume(pod, v)).collect();
    let world =
        World { pod, sources: Sources::fetch(objects, namespace, names).await, objects, facts };
    let mut mounted = Mounted { versions: world.sources.versions(), tokens_due: None };
    let again = turn != Turn::First;
    let mut first_failure = None;
    let mut plans = Vec::with_capacity(volumes.len());
    // An image is not for the whole pod to wait for: see `image_volumes`.
    let wanted = |volume: &&Volume| match again {
        true => is_followed(volume),
        false => volume.image.is_none(),
    };
    for volume in volumes.iter().filter(wanted) {
        match world.plan(volume, places.of(volume), turn, now).await {
            Ok(plan) => {
                mounted.tokens_due =
                    [mounted.tokens_due, plan.tokens_due].into_iter().flatten().min();
                plans.push(plan);
            }
            Err(message) if again => {
                first_failure.get_or_insert(message);
                if has_token(volume) {
                    mounted.tokens_due = Some(now);
                }
            }
            Err(message) => {
                return Err(Failure { message, seen: mounted.versions, mounted: None });
            }
        }
    }
    // Everything was decided; only now is anything touched.
    if let Err(message) = carry_out(plans, places, Ownership::of(pod), again).await {
        first_failure.get_or_insert(message);
    }
    match first_failure {
        None => Ok(mounted),
        Some(message) => {
            let seen = mounted.versions.clone();
            Err(Failure { message, seen, mounted: again.then_some(mounted) })
        }
    }
}

/// One volume, decided.
struct Plan {
    /// For messages: a claim's volume is called by its own name.
    name: String,
    dir: PathBuf,
    content: Content,
    tokens_due: Option<Timestamp>,
    /// No other pod has it.
    alone: bool,
}

struct World<'a> {
    pod: &'a Pod,
    sources: Sources,
    objects: &'a dyn Objects,
    facts: &'a Facts<'a>,
}

impl World<'_> {
    /// Err is the FailedMount Event's message.
    async fn plan(
        &self,
        volume: &Volume,
        dir: PathBuf,
        turn: Turn,
        now: Timestamp,
    ) -> Result<Plan, String> {
        let Self { pod, objects, .. } = self;
        if let Some(claim) = claimed::claim_of(pod, volume) {
            let claimed = claimed::find(pod, volume, &claim, *objects, self.facts).await?;
            let name = claimed.volume.clone();
            let content = Content::Claimed(claimed);
            return Ok(Plan { name, dir, content, tokens_due: None, alone: true });
        }
        let failed = |why: String| failed_set_up(&volume.name, &why);
        let due = match turn {
            Turn::First => None,
            Turn::Again { tokens_due } => tokens_due,
        };
        let tokens = tokens(pod, volume, &dir, *objects, due, now).await.map_err(failed)?;
        let content =
            content::of(pod, volume, &self.sources, &tokens, self.facts).map_err(failed)?;
        let (name, tokens_due) = (volume.name.clone(), tokens.due);
        Ok(Plan { name, dir, content, tokens_due, alone: true })
    }
}

fn failed_set_up(name: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {name:?} : {why}")
}

/// Whether a volume is filled from objects and follows them.
fn is_followed(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn has_token(volume: &Volume) -> bool {
    let mut sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources.any(|source| source.service_account_token.is_some())
}

/// Err is the message of the first that failed; `on` past it are those of a pod whose volumes were there.
async fn carry_out(
    mut plans: Vec<Plan>,
    places: &Places,
    ownership: Ownership,
    on: bool,
) -> Result<(), String> {
    let (pod_dir, secret_dir) = (places.pod_dir.clone(), places.secret_dir.clone());
    make_mount_points(&pod_dir).map_err(|e| failed_set_up("", &io_text(&pod_dir, &e)))?;
    for Plan { name, dir, content, alone, .. } in &mut plans {
        if let Content::Claimed(claimed) = content {
            let taken = in_use::take(&pod_dir, claimed);
            *alone = taken.map_err(|why| failed_set_up(name, &why))?;
        }
        let mounts = match content {
            Content::Nfs(nfs) | Content::Claimed(Claimed { source: Source::Nfs(nfs), .. }) => {
                mounted::nfs(dir, nfs).await
            }
            Content::Claimed(Claimed { source: Source::Disk(disk), .. }) => {
                mounted::disk(dir, disk).await
            }
            _ => Ok(()),
        };
        mounts.map_err(|why| failed_set_up(name, &why))?;
    }
    let made = tokio::task::spawn_blocking(move || {
        let mut first_failure = Ok(());
        for Plan { name, dir, content, alone, .. } in plans {
            let secret = dir.starts_with(&secret_dir).then(|| make_dir(&secret_dir.join(FOLDER)));
            let made = secret.unwrap_or(Ok(())).map_err(|e| io_text(&dir, &e));
            let made = made.and_then(|()| make(&dir, content, &ownership, alone));
            first_failure = first_failure.and(made.map_err(|why| failed_set_up(&name, &why)));
            if first_failure.is_err() && !on {
                break;
            }
        }
        first_failure
    });
    made.await.unwrap_or_else(|panic| Err(failed_set_up("", &panic.to_string())))
}

/// fsGroup, and how far it reaches.
struct Ownership {
    group: Option<u32>,
    policy: String,
}

impl Ownership {
    fn of(pod: &Pod) -> Self {
        let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let policy = context.and_then(|c| c.fs_group_change_policy.clone());
        Self {
            group: context.and_then(|c| c.fs_group).and_then(|group| u32::try_from(group).ok()),
            policy: policy.unwrap_or_else(|| "Always".into()),
        }
    }
}

fn make_mount_points(pod_dir: &Path) -> std::io::Result<()> {
    make_dir(&pod_dir.join(FOLDER))
}

/// Mounts what an image holds, where it is to lie and as long as the pod lives.
///
/// # Errors
/// A sentence that names the place.
pub(crate) fn mount_image(places: &Places, name: &str, layers: &[PathBuf]) -> Result<(), String> {
    let dir = places.pod_dir.join(FOLDER).join(name);
    make_mount_points(&places.pod_dir)
        .and_then(|()| mounted::image(&dir, layers))
        .map_err(|e| io_text(&dir, &e))
}

/// What another pod has already (not `alone`) keeps its owners: that pod may have changed them.
fn make(dir: &Path, content: Content, ownership: &Ownership, alone: bool) -> Result<(), String> {
    let io = |e: std::io::Error| io_text(dir, &e);
    let group = ownership.group;
    let give = |root: &Path, read_only: bool| match group.filter(|_| alone && !read_only) {
        Some(group) => host::give_to_group(root, group, &ownership.policy).map_err(io),
        None => Ok(()),
    };
    match content {
        Content::Files(files) => atomic::write(dir, &files, group).map_err(io).map(drop),
        Content::EmptyDir(medium) => host::empty_dir(dir, medium, group).map_err(io),
        Content::HostPath { kind } => host::check(dir, &kind),
        Content::Nfs(_) => Ok(()),
        Content::Claimed(Claimed { source, read_only, .. }) => match source {
            Source::Nfs(_) => Ok(()),
            Source::Disk(_) => give(dir, read_only),
            Source::Host { path, kind } => {
                host::check(&path, &kind)?;
                host::link(dir, &path).map_err(io)
            }
            Source::Local { path, ours } => {
                host::local(&path, ours)?;
                give(&path, read_only)?;
                host::link(dir, &path).map_err(io)
            }
            Source::Device { path } => host::link(dir, &path).map_err(io),
        },
    }
}

fn io_text(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The tokens of one volume: those that are there while they are good, else new ones.
async fn tokens(
    pod: &Pod,
    volume: &Volume,
    dir: &Path,
    objects: &dyn Objects,
    due: Option<Timestamp>,
    now: Timestamp,
) -> Result<Tokens, String> {
    let mut tokens = Tokens::default();
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    for source in projected.filter_map(|s| s.service_account_token.as_ref()) {
        if let Some(due) = due.filter(|due| now < *due)
            && let Ok(text) = std::fs::read_to_string(dir.join(&source.path))
        {
            tokens.by_path.insert(source.path.clone(), text);
            tokens.due = [tokens.due, Some(due)].into_iter().flatten().min();
            continue;
        }
        let audiences: Vec<String> =
            source.audience.iter().filter(|a| !a.is_empty()).cloned().collect();
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let token = objects
            .token(pod, &audiences, seconds)
            .await
            .map_err(|e| format!("failed to fetch token: {e}"))?;
        tokens.by_path.insert(source.path.clone(), token.token);
        let due = replace_at(now, token.expires_at);
        tokens.due = Some(tokens.due.map_or(due, |d| d.min(due)));
    }
    Ok(tokens)
}

/// A token is replaced when 80 % of its life is over, and once a day at least.
fn replace_at(now: Timestamp, expires_at: Timestamp) -> Timestamp {
    let life = expires_at.duration_since(now).as_secs().max(0);
    let wait = (life * 4 / 5).clamp(1, 24 * 3600);
    now.saturating_add(SignedDuration::from_secs(wait)).unwrap_or(expires_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_replaced_at_four_fifths() {
        let check = |life: i64, expected: i64| {
            let now = Timestamp::from_second(1_800_000_000).unwrap();
            let at = replace_at(now, now + SignedDuration::from_secs(life));
            assert_eq!(at.duration_since(now).as_secs(), expected);
        };
        check(3600, 2880);
        check(10, 8);
        check(-5, 1);
        check(30 * 24 * 3600, 24 * 3600);
    }
}
