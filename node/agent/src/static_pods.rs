//! Static pods: files of a directory that this node runs whatever the control plane says, or without one. The API
//! shows each by a mirror, which the hub makes (see `rimward-control-hub`); what is done to a mirror changes
//! nothing of the pod.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>
//!
//! A static pod's UID is a hash of what its file means: the next agent knows it again, and a file that says
//! something else is another pod, which begins when the one before has ended.
//!
//! A file that cannot be understood is named in the log; the pod that it was before goes on.

mod mirrors;
mod read;

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use rimward_api::{ObjectKey, static_pods};
use rimward_node_pod::outside::Reports;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::PodHandler;
use crate::reports::Outgoing;
pub(crate) use mirrors::Mirrored;

/// File systems that tell of no changes are looked at that often, as by the kubelet.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

pub(crate) struct StaticPods {
    node: String,
    /// None: this node has none.
    dir: Option<PathBuf>,
    outgoing: Arc<Outgoing>,
    state: Mutex<State>,
    /// Counts changes of what the hub is to know.
    said: watch::Sender<u64>,
    /// A pod has ended whose place is wanted.
    room: Notify,
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    /// Why the directory cannot be read, as it was logged.
    trouble: String,
    /// Those given to the handler.
    pods: BTreeMap<ObjectKey, Arc<Pod>>,
    /// Names of pods that are still ending.
    ending: BTreeMap<ObjectKey, String>,
    /// In the API, by name: UID and hash.
    mirrors: HashMap<ObjectKey, (String, String)>,
    /// The last of each pod, by UID.
    statuses: HashMap<String, PodStatus>,
}

/// Or why there is none.
type Content = Result<Vec<u8>, String>;

/// A file as it was last looked at.
struct File {
    content: Content,
    /// What it meant when it was last understood.
    pod: Option<Arc<Pod>>,
}

/// What a handler is to do.
#[derive(Default)]
struct Turn {
    remove: Vec<(ObjectKey, String)>,
    set: Vec<Arc<Pod>>,
}

impl StaticPods {
    pub fn new(node: &str, dir: Option<PathBuf>, outgoing: Arc<Outgoing>) -> Self {
        Self {
            node: node.to_owned(),
            dir,
            outgoing,
            state: Mutex::default(),
            said: watch::Sender::new(0),
            room: Notify::new(),
        }
    }

    /// Wakes when [`StaticPods::mirrors`] is to be said again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.said.subscribe()
    }

    /// The mirrors that the API is to show, as JSON.
    pub fn mirrors(&self) -> Vec<Vec<u8>> {
        let pods: Vec<Arc<Pod>> = self.state.lock().pods.values().cloned().collect();
        let json = |pod: Arc<Pod>| serde_json::to_vec(&read::mirror(&pod));
        pods.into_iter().map(|pod| json(pod).expect("a Pod has only string keys")).collect()
    }

    fn say(&self) {
        self.said.send_modify(|count| *count += 1);
    }

    /// Gives the handler what is there now. Blocks for the disk.
    pub fn begin(self: &Arc<Self>, pods: &Arc<dyn PodHandler>) {
        if let Some(dir) = &self.dir {
            self.look(dir, pods);
        }
    }

    /// Follows the directory until the shutdown.
    pub async fn run(self: Arc<Self>, pods: Arc<dyn PodHandler>, shutdown: CancellationToken) {
        let Some(dir) = self.dir.clone() else { return };
        let mut watch = None;
        loop {
            if watch.is_none() {
                watch = Watch::of(&dir).ok();
            }
            let changed = async {
                match &watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                goes_on = changed => goes_on,
                () = self.room.notified() => true,
                () = tokio::time::sleep(LOOK_AGAIN) => true,
                () = shutdown.cancelled() => return,
            };
            if !goes_on {
                watch = None;
            }
            let (this, dir, pods) = (self.clone(), dir.clone(), pods.clone());
            let looked = tokio::task::spawn_blocking(move || this.look(&dir, &pods)).await;
            if let Err(panic) = looked {
                tracing::error!(%panic, "looking at the static pods failed");
            }
        }
    }

    fn look(self: &Arc<Self>, dir: &Path, pods: &Arc<dyn PodHandler>) {
        let found = files(dir);
        let turn = {
            let mut state = self.state.lock();
            match found {
                Ok(found) => state.take(found, &self.node, Timestamp::now()),
                // It may come back: what it said goes on.
                Err(error) => {
                    let trouble = format!("{}: {error}", dir.display());
                    if state.trouble != trouble {
                        tracing::error!(
                            error = trouble,
                            "cannot read the directory of static pods"
                        );
                    }
                    state.trouble = trouble;
                    Turn::default()
                }
            }
        };
        if turn.remove.is_empty() && turn.set.is_empty() {
            return;
        }
        for (key, uid) in turn.remove {
            tracing::info!(pod = %key, "a static pod is there no more");
            pods.remove(&uid);
            let (this, pods) = (self.clone(), pods.clone());
            tokio::spawn(async move {
                pods.gone(&uid).await;
                let mut state = this.state.lock();
                state.ended(&key, &uid);
                drop(state);
                this.room.notify_one();
            });
        }
        for pod in turn.set {
            tracing::info!(pod = %ObjectKey::of_meta(&pod.metadata), "running a static pod");
            pods.set(pod);
        }
        self.say();
    }

    /// The UID by which this node knows a pod that the control plane knows by another.
    fn real(&self, uid: &str) -> String {
        let state = self.state.lock();
        let mirror = state.mirrors.iter().find(|(_, (mirror, _))| mirror == uid);
        let pod = mirror.and_then(|(key, _)| state.pods.get(key));
        pod.and_then(|pod| pod.metadata.uid.clone()).unwrap_or_else(|| uid.to_owned())
    }

    fn is_static(&self, pod: &Pod) -> bool {
        let state = self.state.lock();
        let key = ObjectKey::of_meta(&pod.metadata);
        let is = |other: &Arc<Pod>| other.metadata.uid == pod.metadata.uid;
        state.pods.get(&key).is_some_and(is) || state.ending.get(&key) == pod.metadata.uid.as_ref()
    }

    /// A mirror of a static pod, as the control plane tells it.
    fn mirror_seen(&self, mirror: &Pod) {
        let key = ObjectKey::of_meta(&mirror.metadata);
        let uid = mirror.metadata.uid.clone().unwrap_or_default();
        let hash = static_pods::annotation(&mirror.metadata, static_pods::MIRROR);
        let hash = hash.unwrap_or_default().to_owned();
        let mut state = self.state.lock();
        let own = state.pods.get(&key).cloned();
        let own = own.filter(|pod| pod.metadata.uid.as_deref() == Some(&hash));
        let status = state.statuses.get(&hash).cloned();
        state.mirrors.insert(key, (uid, hash));
        drop(state);
        if mirror.metadata.deletion_timestamp.is_some() {
            // There is nothing to wait for; another takes its place.
            let status = status.or_else(|| mirror.status.clone()).unwrap_or_default();
            return self.outgoing.pod_terminated(mirror, status);
        }
        match (own, status) {
            (Some(_), Some(status)) => self.outgoing.pod_status(mirror, status),
            (Some(_), None) => {}
            (None, _) => self.say(),
        }
    }

    /// Whether it was one.
    fn mirror_gone(&self, uid: &str) -> bool {
        let mut state = self.state.lock();
        let before = state.mirrors.len();
        state.mirrors.retain(|_, (mirror, _)| mirror != uid);
        let was = state.mirrors.len() < before;
        drop(state);
        if was {
            self.say();
        }
        was
    }

    fn report(&self, pod: &Pod, status: PodStatus) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.state.lock().statuses.insert(uid, status.clone());
        if let Some(mirror) = self.as_mirror(pod) {
            self.outgoing.pod_status(&mirror, status);
        }
    }

    /// The pod under its mirror's UID, if there is one of just this pod.
    fn as_mirror(&self, pod: &Pod) -> Option<Pod> {
        let key = ObjectKey::of_meta(&pod.metadata);
        let state = self.state.lock();
        let (uid, hash) = state.mirrors.get(&key)?;
        if pod.metadata.uid.as_ref() != Some(hash) {
            return None;
        }
        let mut mirror = Pod { metadata: pod.metadata.clone(), ..Pod::default() };
        mirror.metadata.uid = Some(uid.clone());
        Some(mirror)
    }
}

impl State {
    /// Decides by what the files say now.
    fn take(&mut self, found: BTreeMap<PathBuf, Content>, node: &str, now: Timestamp) -> Turn {
        self.trouble.clear();
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        let mut changed = self.files.len() < before;
        for (path, content) in found {
            let known = self.files.get(&path);
            if known.is_some_and(|file| file.content == content) {
                continue;
            }
            changed = true;
            let before = known.and_then(|file| file.pod.clone());
            let pod = content.as_deref().map_err(String::clone);
            let pod = match pod.and_then(|content| read::pod(content, node, now)) {
                Ok(pod) if before.as_ref().is_some_and(|b| b.metadata.uid == pod.metadata.uid) => {
                    before
                }
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    let file = path.display();
                    tracing::error!(%file, error, "a static pod's file cannot be understood");
                    before
                }
            };
            self.files.insert(path, File { content, pod });
        }
        self.turn(changed)
    }

    /// What is wrong with names is said only when a file has `changed`.
    fn turn(&mut self, changed: bool) -> Turn {
        let mut wanted: BTreeMap<ObjectKey, (&Path, Arc<Pod>)> = BTreeMap::new();
        for (path, file) in &self.files {
            let Some(pod) = &file.pod else { continue };
            let key = ObjectKey::of_meta(&pod.metadata);
            match wanted.get(&key) {
                Some((other, _)) if changed => {
                    let (first, second) = (other.display(), path.display());
                    tracing::error!(%first, %second, "two files are of pod {key}: the first one is run");
                }
                Some(_) => {}
                None => drop(wanted.insert(key, (path, pod.clone()))),
            }
        }
        let mut turn = Turn::default();
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        let same =
            |key: &ObjectKey, pod: &Pod| wanted.get(key).is_some_and(|(_, w)| uid(w) == uid(pod));
        for (key, pod) in &self.pods {
            if !same(key, pod) {
                turn.remove.push((key.clone(), uid(pod)));
            }
        }
        for (key, uid) in &turn.remove {
            self.pods.remove(key);
            self.ending.insert(key.clone(), uid.clone());
        }
        for (key, (_, pod)) in wanted {
            // Of the same name, one after the other.
            if !self.pods.contains_key(&key) && !self.ending.contains_key(&key) {
                self.pods.insert(key, pod.clone());
                // What ran until a moment ago begins anew, and counts that.
                let status = self.statuses.remove(&uid(&pod));
                turn.set.push(match status {
                    Some(status) => Arc::new(Pod { status: Some(status), ..(*pod).clone() }),
                    None => pod,
                });
            }
        }
        turn
    }

    /// A pod that was removed has ended. What was said of it last is of use if its file is there again.
    fn ended(&mut self, key: &ObjectKey, uid: &str) {
        self.ending.remove(key);
        let is = |file: &File| {
            file.pod.as_ref().is_some_and(|pod| pod.metadata.uid.as_deref() == Some(uid))
        };
        if !self.files.values().any(is) {
            self.statuses.remove(uid);
        }
    }
}

/// Every file of the directory with its content, or why that cannot be read. Hidden files are editors' and
/// those that are not whole yet.
fn files(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, Content>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || !std::fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        found.insert(path.clone(), content(&path));
    }
    Ok(found)
}

fn content(path: &Path) -> Content {
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(read::BYTES_MAX + 1).read_to_end(&mut content).map_err(|e| e.to_string())?;
    match content.len() as u64 > read::BYTES_MAX {
        true => Err(format!("it has more than {} bytes", read::BYTES_MAX)),
        false => Ok(content),
    }
}

/// Tells of changes in a directory.
struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn of(dir: &Path) -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, dir, flags)?;
        // SAFETY: an OwnedFd keeps its descriptor open and the same for as long as it lives, and AsyncFd owns it.
        unsafe { AsyncFd::register(fd) }.map(Self).map_err(Into::into)
    }

    /// Waits for a change; false when the directory is another by now, or gone.
    async fn changed(&self) -> bool {
        let Ok(mut ready) = self.0.readable().await else { return false };
        let mut same = true;
        let _nothing_left_to_read = ready.try_io(|fd| {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(fd.get_ref(), &mut buffer);
            loop {
                let events = reader.next().map_err(std::io::Error::from)?.events();
                let gone = inotify::ReadFlags::IGNORED | inotify::ReadFlags::MOVE_SELF;
                same &= !events.intersects(gone);
            }
            #[allow(unreachable_code, reason = "the loop ends by an error: nothing left to read")]
            Ok::<(), std::io::Error>(())
        });
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, image: &str) -> Content {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: {image}}}]}}}}"
        );
        Ok(pod.into_bytes())
    }

    /// Takes files; answers the names of what is to be removed, and of what is to be run with its image.
    fn take(state: &mut State, files: &[(&str, Content)]) -> (Vec<String>, Vec<(String, String)>) {
        let found = files.iter().map(|(path, content)| (PathBuf::from(path), content.clone()));
        let turn = state.take(found.collect(), "n", Timestamp::UNIX_EPOCH);
        let run = |pod: &Arc<Pod>| {
            let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            (pod.metadata.name.clone().unwrap(), image)
        };
        let gone = turn.remove.iter().map(|(key, _)| key.name.clone()).collect();
        (gone, turn.set.iter().map(run).collect())
    }

    fn none<T>() -> Vec<T> {
        Vec::new()
    }

    #[test]
    fn pods_follow_their_files() {
        let mut state = State::default();
        let run = |name: &str, image: &str| (name.to_owned(), image.to_owned());
        let first = [("a", file("web", "v1")), ("b", file("db", "v1"))];
        assert_eq!(take(&mut state, &first), (none(), vec![run("db-n", "v1"), run("web-n", "v1")]));
        assert_eq!(take(&mut state, &first), (none(), none()));
        // What is broken goes on as it was, until it is understood again.
        let broken = [("a", Ok(b"{{".to_vec())), ("b", Err("Permission denied".into()))];
        assert_eq!(take(&mut state, &broken), (none(), none()));
        assert_eq!(take(&mut state, &first), (none(), none()));
        // Another version waits for the one before; one that is gone only goes.
        let second = [("a", file("web", "v2"))];
        assert_eq!(take(&mut state, &second), (vec!["db-n".into(), "web-n".into()], none()));
        assert_eq!(take(&mut state, &second), (none(), none()));
        state.ending.clear();
        assert_eq!(take(&mut state, &second), (none(), vec![run("web-n", "v2")]));
        // One pod of a name.
        let twice = [("a", file("web", "v2")), ("z", file("web", "v3"))];
        assert_eq!(take(&mut state, &twice), (none(), none()));
        assert_eq!(take(&mut state, &[]), (vec!["web-n".into()], none()));
    }

    #[test]
    fn a_file_that_comes_back_at_once_is_the_same_pod_again() {
        let mut state = State::default();
        let found = |there: bool| {
            let files = [(PathBuf::from("a"), file("web", "v1"))];
            files.into_iter().filter(|_| there).collect::<BTreeMap<_, _>>()
        };
        let take =
            |there: bool, state: &mut State| state.take(found(there), "n", Timestamp::UNIX_EPOCH);
        let first = take(true, &mut state).set.remove(0);
        let (key, uid) = (ObjectKey::of_meta(&first.metadata), first.metadata.uid.clone().unwrap());
        let status = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
        state.statuses.insert(uid.clone(), status.clone());
        assert_eq!(take(false, &mut state).remove.len(), 1);
        assert!(take(true, &mut state).set.is_empty(), "it is still ending");
        state.ended(&key, &uid);
        let again = take(true, &mut state).set.remove(0);
        assert_eq!(
            (again.metadata.uid.as_ref(), again.status.as_ref()),
            (Some(&uid), Some(&status))
        );
        state.statuses.insert(uid.clone(), status);
        take(false, &mut state);
        state.ended(&key, &uid);
        assert_eq!(take(true, &mut state).set[0].status, None, "that was another life");
    }
}
