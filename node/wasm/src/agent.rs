//! The agent's side: which host runs what, and what became of it.
//!
//! Each run has a record on disk, written before its host is asked, so that the next agent knows of
//! runs whose host died unseen. A host that is lost takes its runs with it; the next start brings a
//! new one.

mod files;
mod link;
mod records;
mod session;
mod terminal;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rimward_node_pod::outside::{Image, ImageForm};
use rimward_node_pod::runtime::{
    ContainerSpec, ExecRequest, Exit, Handler, Known, RunId, Runtime, RuntimeEvent, StartError,
    Streams, Usage,
};
use tokio::sync::mpsc;

use crate::artifact::{Artifact, Cache};
use crate::config::Config;
use crate::host::{HostUser, Settings, privileges};
use crate::protocol::{ARTIFACT_DAMAGED, Reply, Request};
use link::{Link, LinkLost};
use records::{Record, Records};

/// A host's connection, or its place while there is none.
type HostSlot = Arc<tokio::sync::Mutex<Option<Arc<Link>>>>;

/// Containers whose image is WebAssembly, in `wasm-host` processes.
#[derive(Clone)]
pub struct WasmRuntime(Arc<Inner>);

struct Inner {
    config: Config,
    cache: Cache,
    records: Records,
    /// One lock a host: it is started once, whoever wants it.
    hosts: Mutex<HashMap<String, HostSlot>>,
    runs: Mutex<HashMap<RunId, Record>>,
    /// Not bounded by itself: a run has two events, and a notice a minute. It must not block: answers
    /// to requests come by the same socket, and whoever takes the events may be waiting for one.
    events: mpsc::UnboundedSender<RuntimeEvent>,
    /// Taken by `adopt`.
    outbox: Mutex<Option<mpsc::UnboundedReceiver<RuntimeEvent>>>,
    adopted: OnceLock<()>,
}

impl WasmRuntime {
    /// Fails if the data directory cannot be written, or the CA bundle not be used.
    pub fn new(mut config: Config) -> std::io::Result<Self> {
        let run = config.data_dir.join("run");
        std::fs::create_dir_all(&run)?;
        config.ca_bundle = files::trusted(&config)?;
        let (events, outbox) = mpsc::unbounded_channel();
        Ok(Self(Arc::new(Inner {
            cache: Cache::new(&config),
            records: Records::open(run.join("wasm-runs"))?,
            config,
            hosts: Mutex::default(),
            runs: Mutex::default(),
            events,
            outbox: Mutex::new(Some(outbox)),
            adopted: OnceLock::new(),
        })))
    }

    /// What pods may ask for by their RuntimeClass.
    pub fn handlers() -> Vec<Handler> {
        ["wasm", "wasm-isolated"].map(Handler::named).to_vec()
    }

    /// How many images this process had to compile: 0 after a restart with a warm cache.
    pub fn images_compiled(&self) -> u64 {
        self.0.cache.compiled()
    }

    /// Ends every host and with it every guest: for a node that is taken down, not one that restarts.
    pub async fn end_hosts(&self) {
        let hosts: Vec<_> = self.0.hosts.lock().values().cloned().collect();
        for host in hosts {
            let link = host.lock().await.take();
            if let Some(link) = link {
                let _ = link.request(Request::End).await;
                link.gone().await;
            }
        }
    }

    /// The process ids of the hosts that are connected.
    pub async fn host_pids(&self) -> Vec<u32> {
        let hosts: Vec<_> = self.0.hosts.lock().values().cloned().collect();
        let mut pids = Vec::new();
        for host in hosts {
            pids.extend(
                host.lock().await.as_ref().filter(|link| link.alive()).map(|link| link.pid()),
            );
        }
        pids
    }
}

impl Inner {
    /// The host that a container belongs in.
    fn place(&self, spec: &ContainerSpec, artifact: &Artifact) -> Settings {
        let config = &self.config;
        let own_netns = spec.netns.is_some() && spec.netns != config.netns;
        let isolated = own_netns
            || spec.runtime_class == "wasm-isolated"
            || (artifact.sockets && !artifact.kind.is_handler());
        let user = rustix::process::geteuid().is_root().then(|| self.user_of(spec));
        let name = match (&user, isolated) {
            (_, true) => format!("pod-{}", files::safe_name(&spec.id.pod_uid)),
            (None, false) => "shared".to_owned(),
            (Some(user), false) => {
                let groups: String =
                    user.groups.iter().skip(1).map(|gid| format!("-{gid}")).collect();
                files::safe_name(&format!("shared-{}-{}{groups}", user.uid, user.gid))
            }
        };
        Settings {
            name,
            data_dir: config.data_dir.clone(),
            netns: spec.netns.clone().or_else(|| config.netns.clone()),
            own_netns,
            isolated,
            user,
            user_mode: config.user_mode,
            ca_bundle: config.ca_bundle.clone(),
            allow_p3: config.allow_p3,
            address_map: config.address_map.clone(),
            // A pod of its own does not serve a crowd.
            slots: if isolated { config.slots.min(256) } else { config.slots },
        }
    }

    /// Pods that ask for root get the node's unprivileged user: a host is never root.
    fn user_of(&self, spec: &ContainerSpec) -> HostUser {
        let config = &self.config;
        let id = |wanted: Option<i64>, default: u32| {
            wanted.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != 0).unwrap_or(default)
        };
        let mut groups = vec![config.host_gid];
        let mut more: Vec<u32> =
            spec.user.supplemental_gids.iter().filter_map(|gid| u32::try_from(*gid).ok()).collect();
        more.sort_unstable();
        more.dedup();
        groups.extend(more.into_iter().filter(|gid| *gid != 0 && *gid != config.host_gid));
        HostUser {
            uid: id(spec.user.uid, config.host_uid),
            gid: id(spec.user.gid, config.host_gid),
            groups,
        }
    }

    /// A connection to the host named in `settings`, which is started if it is not there.
    async fn host(self: &Arc<Self>, settings: &Settings) -> Result<Arc<Link>, StartError> {
        let slot = self.hosts.lock().entry(settings.name.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| link.alive()) {
            return Ok(link.clone());
        }
        let child = link::spawn(&self.config, settings)
            .await
            .map_err(|cause| error(&format!("cannot start a wasm host: {cause}")))?;
        let connected = self.connect(&settings.name, Some(child)).await;
        let link = connected.map_err(|cause| {
            error(&format!("cannot reach the wasm host {}: {cause}", settings.name))
        })?;
        *slot = Some(link.clone());
        Ok(link)
    }

    async fn connect(
        self: &Arc<Self>,
        name: &str,
        child: Option<tokio::process::Child>,
    ) -> std::io::Result<Arc<Link>> {
        let this = Arc::downgrade(self);
        let name_of = name.to_owned();
        let lost = move |how: String, code: i32| {
            let (this, name) = (this.clone(), name_of.clone());
            async move {
                if let Some(this) = this.upgrade() {
                    this.host_lost(&name, &how, code).await;
                }
            }
        };
        Link::connect(&self.config.data_dir, name, child, self.events.clone(), lost).await
    }

    /// A host is gone: so are its runs.
    async fn host_lost(&self, name: &str, how: &str, code: i32) {
        let exits: Vec<(RunId, Exit)> = {
            let mut runs = self.runs.lock();
            let lost =
                runs.values_mut().filter(|record| record.host == name && record.exit.is_none());
            lost.map(|record| {
                let exit = lost_exit(record, how, code);
                record.exit = Some(exit.clone());
                (record.id.clone(), exit)
            })
            .collect()
        };
        privileges::remove_cgroup(name);
        for (id, exit) in exits {
            self.records.ended(&id, &exit);
            let _ = self.events.send(RuntimeEvent::Exited { id, exit });
        }
    }

    async fn try_start(
        self: &Arc<Self>,
        spec: &ContainerSpec,
        artifact: &Artifact,
    ) -> Result<Reply, StartError> {
        let settings = self.place(spec, artifact);
        let mut spec = spec.clone();
        files::prepare(&self.config, &settings, &self.cache.path(&artifact.key), &mut spec)
            .map_err(|cause| error(&cause))?;
        let record = Record {
            id: spec.id.clone(),
            spec_hash: spec.spec_hash.clone(),
            host: settings.name.clone(),
            artifact: artifact.key.clone(),
            started_at: jiff::Timestamp::now(),
            exit: None,
        };
        self.records
            .put(&record)
            .map_err(|cause| error(&format!("cannot keep a record of {}: {cause}", spec.id)))?;
        self.cache.hold(&artifact.key);
        self.runs.lock().insert(spec.id.clone(), record);
        let request =
            || Request::Start { spec: Box::new(spec.clone()), artifact: artifact.clone() };
        // A host may be on its way out, having had nothing to do: the second is new.
        for _ in 0..2 {
            let link = self.host(&settings).await?;
            match link.request(request()).await {
                Ok(Reply::Refused { reason, .. }) if reason == "HostClosing" => link.gone().await,
                Err(LinkLost) => link.gone().await,
                Ok(reply) => return Ok(reply),
            }
        }
        Err(error(&format!("the wasm host {} ended while it started {}", settings.name, spec.id)))
    }

    fn forget(&self, id: &RunId) {
        if let Some(record) = self.runs.lock().remove(id) {
            self.cache.release(&record.artifact);
        }
        self.records.remove(id);
        files::forget(&self.config.data_dir, id);
    }

    /// The host that has a run which goes on.
    fn host_name(&self, id: &RunId) -> Result<String, StartError> {
        let runs = self.runs.lock();
        let record = runs.get(id).filter(|record| record.exit.is_none());
        record.map(|record| record.host.clone()).ok_or_else(|| StartError {
            reason: "NotFound".into(),
            message: format!("{id} does not run"),
        })
    }

    /// The connection to the host that has a run, if there is one.
    async fn host_of(&self, id: &RunId) -> Option<Arc<Link>> {
        let name = self.runs.lock().get(id)?.host.clone();
        let slot = self.hosts.lock().get(&name)?.clone();
        let link = slot.lock().await.clone();
        link.filter(|link| link.alive())
    }
}

fn lost_exit(record: &Record, how: &str, code: i32) -> Exit {
    Exit {
        code,
        signal: (code > 128).then_some(code - 128),
        reason: "Error".into(),
        message: format!("the wasm host process that ran it {how}"),
        started_at: record.started_at,
        finished_at: jiff::Timestamp::now(),
    }
}

fn error(message: &str) -> StartError {
    StartError { reason: "CreateContainerError".into(), message: message.into() }
}

fn wasm_of(image: &Image) -> Result<(&PathBuf, &str), StartError> {
    match &image.form {
        ImageForm::Wasm { file, digest, .. } => Ok((file, digest)),
        ImageForm::Linux { .. } => {
            Err(error(&format!("{} is a Linux image, not WebAssembly", image.reference)))
        }
    }
}

#[async_trait]
impl Runtime for WasmRuntime {
    fn name(&self) -> &'static str {
        "wasm"
    }

    fn handlers(&self) -> Vec<Handler> {
        Self::handlers()
    }

    fn isolates(&self, handler: &str) -> bool {
        handler == "wasm-isolated" && !self.0.config.user_mode
    }

    fn runs(&self, image: &Image) -> bool {
        matches!(image.form, ImageForm::Wasm { .. })
    }

    async fn adopt(&self, events: mpsc::Sender<RuntimeEvent>) -> Result<Vec<Known>, StartError> {
        let this = &self.0;
        if this.adopted.set(()).is_err() {
            return Err(error("the wasm runtime was adopted before"));
        }
        let mut known: HashMap<RunId, Known> = HashMap::new();
        let mut records = this.records.all();
        for name in files::sockets(&this.config.data_dir) {
            let link = match this.connect(&name, None).await {
                Ok(link) => link,
                // Left by a host that is no more.
                Err(_) => {
                    let _ =
                        std::fs::remove_file(this.config.data_dir.join(Settings::socket(&name)));
                    privileges::remove_cgroup(&name);
                    continue;
                }
            };
            for run in link.runs() {
                if let Some(record) =
                    records.iter_mut().find(|record| record.id == run.id && record.host == name)
                {
                    record.started_at = run.started_at;
                    record.exit = run.exit.clone();
                    known.insert(run.id.clone(), run.into());
                } else {
                    // Its record is gone: it was removed, and the host has not heard of it.
                    let _ = link.request(Request::Remove { id: run.id }).await;
                }
            }
            this.hosts.lock().insert(name, Arc::new(tokio::sync::Mutex::new(Some(link))));
        }
        for mut record in records {
            if !known.contains_key(&record.id) {
                let exit = record
                    .exit
                    .clone()
                    .unwrap_or_else(|| lost_exit(&record, "ended while no agent ran", 137));
                this.records.ended(&record.id, &exit);
                record.exit = Some(exit);
                known.insert(record.id.clone(), record.known());
            }
            this.cache.hold(&record.artifact);
            this.runs.lock().insert(record.id.clone(), record);
        }
        let mut outbox = this.outbox.lock().take().expect("adopt gets here once");
        let this = Arc::downgrade(this);
        tokio::spawn(async move {
            while let Some(event) = outbox.recv().await {
                if let (RuntimeEvent::Exited { id, exit }, Some(this)) = (&event, this.upgrade())
                    && let Some(record) = this.runs.lock().get_mut(id)
                {
                    record.exit = Some(exit.clone());
                }
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(known.into_values().collect())
    }

    async fn prepare(&self, image: &Image) -> Result<(), StartError> {
        let (file, digest) = wasm_of(image)?;
        self.0.cache.ensure(file, digest).await.map(drop)
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), StartError> {
        let this = &self.0;
        let (file, digest) = wasm_of(&spec.image)?;
        if let Some(disk) = spec.linux.disks.first() {
            return Err(error(&format!(
                "a WebAssembly container has no devices: {} cannot be one (volumeDevices)",
                disk.container_path
            )));
        }
        if this.runs.lock().get(&spec.id).is_some_and(|record| record.exit.is_none()) {
            return Ok(());
        }
        let mut artifact = this.cache.ensure(file, digest).await?;
        let mut reply = this.try_start(&spec, &artifact).await;
        if matches!(&reply, Ok(Reply::Refused { reason, .. }) if reason == ARTIFACT_DAMAGED) {
            tracing::warn!(
                "{}: its machine code is damaged and compiled again",
                spec.image.reference
            );
            this.forget(&spec.id);
            this.cache.discard(&artifact.key);
            artifact = this.cache.ensure(file, digest).await?;
            reply = this.try_start(&spec, &artifact).await;
        }
        let refused = match reply {
            Ok(Reply::Done) => return Ok(()),
            Ok(Reply::Refused { reason, message }) => StartError { reason, message },
            Ok(other) => error(&format!("the wasm host answered {other:?}")),
            Err(refused) => refused,
        };
        this.forget(&spec.id);
        Err(refused)
    }

    async fn stop(&self, id: &RunId, grace: Duration) {
        if let Some(link) = self.0.host_of(id).await {
            let grace_ms = grace.as_millis().try_into().unwrap_or(u64::MAX);
            let _ = link.request(Request::Stop { id: id.clone(), grace_ms }).await;
        }
    }

    async fn remove(&self, id: &RunId) {
        let link = self.0.host_of(id).await;
        self.0.forget(id);
        if let Some(link) = link {
            let _ = link.request(Request::Remove { id: id.clone() }).await;
        }
    }

    async fn usage(&self, id: &RunId) -> Option<Usage> {
        match self.0.host_of(id).await?.request(Request::Usage { id: id.clone() }).await {
            // A guest's memory has no cache that could be dropped.
            Ok(Reply::Usage { cpu_nanos, memory_bytes }) => Some(Usage {
                cpu_nanos,
                memory_bytes,
                memory_usage_bytes: memory_bytes,
                memory_rss_bytes: memory_bytes,
                // A guest is part of its host, which many share: it has no process of its own.
                ..Usage::default()
            }),
            _ => None,
        }
    }

    async fn exec(
        &self,
        id: &RunId,
        request: ExecRequest,
        streams: Streams,
    ) -> Result<Exit, StartError> {
        let this = &self.0;
        let host = this.host_name(id)?;
        let ExecRequest { argv, tty } = request;
        session::exec(&this.config.data_dir, &host, id, argv, tty, streams).await
    }

    async fn attach(&self, id: &RunId, streams: Streams) -> Result<(), StartError> {
        let this = &self.0;
        let host = this.host_name(id)?;
        session::attach(&this.config.data_dir, &host, id, streams).await
    }
}
