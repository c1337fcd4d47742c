//! The agent's side: directories, mounts, cgroups and shims of containers, and what became of them.

mod cgroup;
mod confinement;
mod exec;
mod link;
mod log_files;
mod mapped;
mod rootfs;
mod sandbox;
mod self_exe;
mod start;
mod sweep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rimward_node_pod::outside::{Image, ImageForm};
use rimward_node_pod::runtime::{
    ContainerSpec, ExecRequest, Exit, Handler, Identity, Known, PodLimits, Pressure, Resources,
    RunId, Runtime, RuntimeEvent, StartError, Streams, Usage,
};
use tokio::sync::mpsc;

use crate::config::{Config, HANDLER, HANDLER_OF_RUNC, Swap};
use crate::layout::{self, Ended, Kept, RunDir, Started};
use crate::low_level::LowLevel;
use crate::protocol;
use cgroup::Cgroups;
use link::Link;
use self_exe::SelfExe;

/// Containers whose image is a Linux root file system, each below a shim of its own.
#[derive(Clone)]
pub struct OciRuntime(Arc<Inner>);

struct Inner {
    config: Config,
    cgroups: Cgroups,
    exe: SelfExe,
    boot_id: String,
    runs: Mutex<HashMap<RunId, Run>>,
    /// Held while a pod's sandbox is made: containers of a pod start at the same time.
    sandboxes: Mutex<()>,
    /// Not bounded by itself: a run has two events.
    events: mpsc::UnboundedSender<RuntimeEvent>,
    /// Taken by `adopt`.
    outbox: Mutex<Option<mpsc::UnboundedReceiver<RuntimeEvent>>>,
}

/// A run that began.
struct Run {
    spec: Arc<ContainerSpec>,
    dir: RunDir,
    cgroup: PathBuf,
    started: Option<Started>,
    /// While its shim lives.
    link: Option<Link>,
    exit: Option<Exit>,
}

impl Run {
    fn known(&self) -> Known {
        Known {
            id: self.spec.id.clone(),
            spec_hash: self.spec.spec_hash.clone(),
            started_at: self.started.as_ref().map(|started| started.at),
            exit: self.exit.clone(),
        }
    }
}

impl OciRuntime {
    /// # Errors
    /// Names the directory that cannot be written, or says that there are no cgroups.
    pub fn new(config: Config) -> std::io::Result<Self> {
        std::fs::create_dir_all(layout::runs(&config.data_dir))?;
        std::fs::create_dir_all(layout::pods(&config.data_dir))?;
        let cgroups = Cgroups::of_machine(&config.node_key)?;
        let (events, outbox) = mpsc::unbounded_channel();
        Ok(Self(Arc::new(Inner {
            cgroups,
            exe: SelfExe::of(&config.exe),
            boot_id: boot_id(),
            runs: Mutex::default(),
            sandboxes: Mutex::default(),
            events,
            outbox: Mutex::new(Some(outbox)),
            config,
        })))
    }

    /// Ends every container: for a node that is taken down, not one that restarts.
    pub async fn end_all(&self) {
        let ids: Vec<RunId> = self.0.runs.lock().keys().cloned().collect();
        for id in &ids {
            self.stop(id, Duration::ZERO).await;
        }
        for id in &ids {
            if let Some(link) = self.0.link(id) {
                link.gone().await;
            }
            self.remove(id).await;
        }
        for pod in sandbox::pods(&self.0.config.data_dir) {
            self.release(&pod).await;
        }
        self.0.cgroups.remove_tree();
    }
}

fn handler(name: &'static str, low_level: &LowLevel) -> Handler {
    Handler {
        recursive_read_only: is_linux(5, 12) && low_level.makes_all_read_only(),
        // Every file system that the kubelet puts volumes on can be mapped since then.
        user_namespaces: is_linux(6, 3) && has_user_namespaces(),
        ..Handler::named(name)
    }
}

fn has_user_namespaces() -> bool {
    let text = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    text.trim().parse::<u64>().is_ok_and(|most| most > 0)
}

/// Whether the kernel has what came with this version.
fn is_linux(wanted_major: u32, wanted_minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (wanted_major, wanted_minor))
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn refused(reason: &str, message: impl Into<String>) -> StartError {
    StartError { reason: reason.into(), message: message.into() }
}

impl Inner {
    fn link(&self, id: &RunId) -> Option<Link> {
        self.runs.lock().get(id)?.link.clone()
    }

    /// Connects to a run's shim; its end is the run's.
    async fn follow(self: &Arc<Self>, id: &RunId, dir: &RunDir) -> std::io::Result<()> {
        let log_path = self.runs.lock().get(id).map(|run| run.spec.log_path.clone());
        let (this, ended) = (Arc::downgrade(self), id.clone());
        let lost = async move {
            if let Some(this) = this.upgrade() {
                this.ended(&ended).await;
            }
        };
        let files = log_files::LogFiles {
            path: log_path.unwrap_or_default(),
            keep: self.config.log_files_max,
        };
        let link = Link::connect(dir, files, lost).await?;
        if let Some(run) = self.runs.lock().get_mut(id) {
            run.link = Some(link);
        }
        Ok(())
    }

    /// A run's shim is gone: what it left tells how the container ended.
    async fn ended(self: &Arc<Self>, id: &RunId) {
        let found = {
            let runs = self.runs.lock();
            runs.get(id).map(|run| (run.dir.clone(), run.cgroup.clone(), run.started.clone()))
        };
        let Some((dir, cgroup, started)) = found else { return };
        let this = self.clone();
        let work = move || {
            // A program that shares the machine's processes may leave some behind; one whose shim was
            // killed goes on without a parent that would know its end.
            this.cgroups.kill(&cgroup);
            exit_of(&dir, started.as_ref())
        };
        let Ok(exit) = tokio::task::spawn_blocking(work).await else { return };
        if let Some(run) = self.runs.lock().get_mut(id) {
            run.link = None;
            run.exit = Some(exit.clone());
        }
        let _ = self.events.send(RuntimeEvent::Exited { id: id.clone(), exit });
    }
}

/// How a run ended whose shim is gone.
fn exit_of(dir: &RunDir, started: Option<&Started>) -> Exit {
    let now = jiff::Timestamp::now();
    let started_at = started.map_or(now, |started| started.at);
    let Ok(ended) = dir.read::<Ended>("exit.json") else {
        return Exit {
            code: 137,
            signal: Some(9),
            reason: "ContainerStatusUnknown".into(),
            message:
                "The container's shim ended before the container did; the container was ended too"
                    .into(),
            started_at,
            finished_at: now,
        };
    };
    let reason = match (ended.out_of_memory && ended.code != 0, ended.code) {
        (true, _) => "OOMKilled",
        (_, 0) => "Completed",
        _ => "Error",
    };
    Exit {
        code: ended.code,
        signal: ended.signal,
        reason: reason.into(),
        message: last_words(dir),
        started_at,
        finished_at: ended.at,
    }
}

/// The termination message, as much of it as Kubernetes keeps.
fn last_words(dir: &RunDir) -> String {
    use std::io::Read;
    const BYTES_MAX: u64 = 4096;
    let mut text = Vec::new();
    let file = std::fs::File::open(dir.termination());
    let _none_is_empty = file.and_then(|file| file.take(BYTES_MAX).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

#[async_trait]
impl Runtime for OciRuntime {
    fn name(&self) -> &'static str {
        "oci"
    }

    /// What this node makes containers with comes last: it is what a pod gets that asks for nothing.
    fn handlers(&self) -> Vec<Handler> {
        let Config { runc, low_level, .. } = &self.0.config;
        let runc = runc.clone().map(|runc| handler(HANDLER_OF_RUNC, &LowLevel::Runc(runc)));
        runc.into_iter().chain([handler(HANDLER, low_level)]).collect()
    }

    fn runs(&self, image: &Image) -> bool {
        matches!(image.form, ImageForm::Linux { .. })
    }

    fn needs_namespace(&self) -> bool {
        true
    }

    async fn adopt(&self, events: mpsc::Sender<RuntimeEvent>) -> Result<Vec<Known>, StartError> {
        let this = &self.0;
        let mut outbox = this
            .outbox
            .lock()
            .take()
            .ok_or_else(|| refused("CreateContainerError", "containers were adopted before"))?;
        let mut alone = Vec::new();
        for (dir, Kept { spec, boot_id, cgroup }) in sweep::find(&this.config.data_dir) {
            let id = spec.id.clone();
            this.cgroups.count_in_class(&spec);
            let started: Option<Started> = dir.read("started.json").ok();
            let may_live =
                boot_id == this.boot_id && started.is_some() && !dir.file("exit.json").exists();
            let run = Run {
                spec: Arc::new(spec),
                dir: dir.clone(),
                cgroup,
                started,
                link: None,
                exit: None,
            };
            this.runs.lock().insert(id.clone(), run);
            if !may_live || this.follow(&id, &dir).await.is_err() {
                alone.push((id, boot_id));
            }
        }
        // Strays go first: one of them may just be making a container.
        sweep::orphans(this).await;
        for (id, boot_id) in alone {
            sweep::lost(this, &id, &boot_id).await;
        }
        let known = this.runs.lock().values().map(Run::known).collect();
        tokio::spawn(async move {
            while let Some(event) = outbox.recv().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(known)
    }

    async fn own_users(&self, pod_uid: &str, hostname: &str) -> Result<PathBuf, String> {
        let (this, uid, hostname) = (self.0.clone(), pod_uid.to_owned(), hostname.to_owned());
        let work = move || {
            let _one_at_a_time = this.sandboxes.lock();
            sandbox::ensure_users(&this, &uid, &hostname).map(|users| users.net)
        };
        let made = tokio::task::spawn_blocking(work).await.map_err(|panic| panic.to_string())?;
        made.map_err(|e| e.to_string())
    }

    async fn prepare(&self, _image: &Image) -> Result<(), StartError> {
        Ok(())
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), StartError> {
        start::start(&self.0, spec).await
    }

    async fn stop(&self, id: &RunId, grace: Duration) {
        let found = self.0.runs.lock().get(id).map(|run| (run.link.clone(), run.spec.clone()));
        let Some((Some(link), spec)) = found else { return };
        let signal = match grace.is_zero() {
            true => libc::SIGKILL,
            false => crate::spec::signal(&spec.linux.stop_signal),
        };
        link.send(protocol::signal(signal, Some(grace))).await;
    }

    async fn remove(&self, id: &RunId) {
        let (dir, cgroup) = {
            let runs = self.0.runs.lock();
            match runs.get(id) {
                // It runs: only its end makes it something to forget.
                Some(run) if run.exit.is_none() && run.link.is_some() => return,
                Some(run) => (run.dir.clone(), run.cgroup.clone()),
                None => return,
            }
        };
        self.0.runs.lock().remove(id);
        let this = self.0.clone();
        let work = move || start::clean_up(&this, &dir, &cgroup);
        let _finished_or_panicked = tokio::task::spawn_blocking(work).await;
    }

    async fn release(&self, pod_uid: &str) {
        let (this, uid) = (self.0.clone(), pod_uid.to_owned());
        let work = move || {
            sandbox::remove(&this.config.data_dir, &uid);
            this.cgroups.remove_pod(&uid);
        };
        let _finished_or_panicked = tokio::task::spawn_blocking(work).await;
    }

    async fn identity(&self, id: &RunId) -> Option<Identity> {
        let dir = self.0.runs.lock().get(id)?.dir.clone();
        let config: serde_json::Value = dir.read("config.json").ok()?;
        let user = config.pointer("/process/user")?;
        let gid = user["gid"].as_i64()?;
        let additional = user["additionalGids"].as_array().into_iter().flatten();
        let mut groups: Vec<i64> = additional.filter_map(serde_json::Value::as_i64).collect();
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        Some(Identity { uid: user["uid"].as_i64()?, gid, groups })
    }

    async fn usage(&self, id: &RunId) -> Option<Usage> {
        let cgroup = self.0.runs.lock().get(id).filter(|r| r.exit.is_none())?.cgroup.clone();
        self.0.cgroups.usage(&cgroup)
    }

    fn usage_of_all(&self) -> Vec<(&'static str, Usage)> {
        let [pods, shims] = self.0.cgroups.usage_of_all();
        let parts = [("pods", pods), ("runtime", shims)];
        parts.into_iter().filter_map(|(name, usage)| Some((name, usage?))).collect()
    }

    async fn pressure(&self, pod_uid: &str) -> Option<Pressure> {
        self.0.cgroups.pressure_of_pod(pod_uid)
    }

    fn has_swap(&self) -> bool {
        self.0.config.swap == Swap::Limited && self.0.cgroups.is_unified()
    }

    fn resizes(&self) -> bool {
        true
    }

    async fn update(
        &self,
        id: &RunId,
        resources: &Resources,
        pod: &PodLimits,
    ) -> Result<(), StartError> {
        let (dir, cgroup, spec) = {
            let runs = self.0.runs.lock();
            let run = runs.get(id).filter(|run| run.exit.is_none());
            let run =
                run.ok_or_else(|| refused("NotFound", format!("container {id} does not run")))?;
            (run.dir.clone(), run.cgroup.clone(), run.spec.clone())
        };
        let mut spec = (*spec).clone();
        spec.resources = resources.clone();
        spec.linux.pod = pod.clone();
        let (this, changed) = (self.0.clone(), spec.clone());
        let work = move || -> std::io::Result<()> {
            this.cgroups.resize(&cgroup, &changed.resources, &changed.linux.pod)?;
            this.cgroups.count_in_class(&changed);
            // The next agent is to know it by what it has.
            let kept = Kept { spec: changed, boot_id: this.boot_id.clone(), cgroup };
            dir.write("spec.json", &kept)
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other);
        done.flatten().map_err(|e| refused("ResizeError", e.to_string()))?;
        if let Some(run) = self.0.runs.lock().get_mut(id) {
            run.spec = Arc::new(spec);
        }
        Ok(())
    }

    fn images(&self) -> Vec<Image> {
        self.0.runs.lock().values().map(|run| run.spec.image.clone()).collect()
    }

    fn written(&self, id: &RunId) -> Option<PathBuf> {
        Some(self.0.runs.lock().get(id)?.dir.file("upper"))
    }

    async fn exec(
        &self,
        id: &RunId,
        request: ExecRequest,
        streams: Streams,
    ) -> Result<Exit, StartError> {
        exec::exec(&self.0, id, request, streams).await
    }

    async fn attach(&self, id: &RunId, streams: Streams) -> Result<(), StartError> {
        let found = self.0.runs.lock().get(id).map(|run| (run.dir.clone(), run.spec.clone()));
        let Some((dir, spec)) = found else {
            return Err(refused("NotFound", format!("container {id} does not run")));
        };
        link::attach(&dir, spec.stdin, streams)
            .await
            .map_err(|e| refused("NotFound", format!("container {id} does not run: {e}")))
    }
}
