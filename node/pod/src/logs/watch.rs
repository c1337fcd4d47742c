//! Tells followers that something happened in a log's directory: one inotify instance for the node,
//! since a user may have only 128.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub(crate) struct LogWatch {
    inner: Arc<Inner>,
}

struct Inner {
    /// None when the kernel gave none; following then ends in an error that says so.
    inotify: Option<AsyncFd<OwnedFd>>,
    dirs: Mutex<Dirs>,
}

#[derive(Default)]
struct Dirs {
    by_path: HashMap<PathBuf, i32>,
    by_watch: HashMap<i32, Dir>,
}

struct Dir {
    path: PathBuf,
    changed: watch::Sender<u64>,
    followers: usize,
}

/// One follower's view of a directory.
pub(crate) struct Subscription {
    inner: Arc<Inner>,
    id: i32,
    changed: watch::Receiver<u64>,
}

impl LogWatch {
    pub fn start(shutdown: CancellationToken) -> Self {
        let fd =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(io::Error::from);
        // SAFETY: an OwnedFd keeps its descriptor open and the same for as long as it lives, and
        // AsyncFd owns it.
        let inotify = fd.and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(io::Error::from));
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no inotify instance: following logs is not possible (see fs.inotify.max_user_instances)");
        }
        let inner = Arc::new(Inner { inotify: inotify.ok(), dirs: Mutex::default() });
        tokio::spawn(read_events(inner.clone(), shutdown));
        Self { inner }
    }

    /// Changes in the directory from now on. The directory is made if it is not there yet.
    pub fn subscribe(&self, dir: &Path) -> io::Result<Subscription> {
        let inotify = self.inner.inotify.as_ref().ok_or_else(|| {
            io::Error::other("cannot follow logs: no inotify instance left (raise fs.inotify.max_user_instances)")
        })?;
        crate::record::make_dir(dir)?;
        let mut dirs = self.inner.dirs.lock();
        let flags =
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE_SELF;
        let id =
            inotify::add_watch(inotify, dir, flags | WatchFlags::ONLYDIR).map_err(|error| {
                io::Error::other(format!(
                    "cannot follow {}: {error} (see fs.inotify.max_user_watches)",
                    dir.display()
                ))
            })?;
        dirs.by_path.insert(dir.to_owned(), id);
        let fresh = || Dir { path: dir.to_owned(), changed: watch::Sender::new(0), followers: 0 };
        let entry = dirs.by_watch.entry(id).or_insert_with(fresh);
        entry.followers += 1;
        Ok(Subscription { inner: self.inner.clone(), id, changed: entry.changed.subscribe() })
    }

    /// Wakes the followers of a directory: the run that they follow may be over.
    pub fn poke(&self, dir: &Path) {
        let dirs = self.inner.dirs.lock();
        if let Some(dir) = dirs.by_path.get(dir).and_then(|id| dirs.by_watch.get(id)) {
            dir.changed.send_modify(|n| *n = n.wrapping_add(1));
        }
    }
}

impl Subscription {
    /// Waits for a change since the last call; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut dirs = self.inner.dirs.lock();
        let Some(dir) = dirs.by_watch.get_mut(&self.id) else { return };
        dir.followers -= 1;
        if dir.followers == 0 {
            let path = dir.path.clone();
            dirs.by_watch.remove(&self.id);
            dirs.by_path.remove(&path);
            if let Some(inotify) = &self.inner.inotify {
                let _dir_may_be_gone = inotify::remove_watch(inotify, self.id);
            }
        }
    }
}

async fn read_events(inner: Arc<Inner>, shutdown: CancellationToken) {
    let Some(inotify) = &inner.inotify else { return };
    loop {
        let ready = tokio::select! {
            ready = inotify.readable() => ready,
            () = shutdown.cancelled() => break,
        };
        let Ok(mut ready) = ready else { break };
        let _would_block_is_fine = ready.try_io(|inotify| {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(inotify.get_ref(), &mut buffer);
            loop {
                let event = reader.next().map_err(io::Error::from)?;
                let (id, gone) = (event.wd(), event.events().contains(ReadFlags::IGNORED));
                inner.tell(id, gone, event.events().contains(ReadFlags::QUEUE_OVERFLOW));
            }
            #[allow(unreachable_code, reason = "the loop ends by an error: nothing left to read")]
            Ok::<(), io::Error>(())
        });
    }
    // Followers end with the agent.
    inner.dirs.lock().by_watch.clear();
}

impl Inner {
    fn tell(&self, id: i32, gone: bool, everyone: bool) {
        let mut dirs = self.dirs.lock();
        let bump = |dir: &Dir| dir.changed.send_modify(|n| *n = n.wrapping_add(1));
        if everyone {
            dirs.by_watch.values().for_each(bump);
        } else if gone {
            // The directory was removed: its senders go, so its followers end.
            if let Some(dir) = dirs.by_watch.remove(&id) {
                dirs.by_path.remove(&dir.path);
            }
        } else if let Some(dir) = dirs.by_watch.get(&id) {
            bump(dir);
        }
    }
}
