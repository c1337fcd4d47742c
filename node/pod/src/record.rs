//! What of a pod must survive the agent, as one small JSON file, replaced atomically before it is
//! acted upon.
//!
//! The pod itself is not in it (the agent's ledger has that), nor is anything that the runtime knows
//! better: whether a run still runs is the runtime's to say.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::{Deserialize, Serialize};

use crate::outside::Attachment;
use crate::restart::Backoff;
use crate::runtime::{Exit, Identity};
use crate::volumes::Mounted;

/// No container or volume can be called this: their names have no underscore.
pub(crate) const FILE: &str = "_state.json";
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub version: u32,
    /// Which boot of the machine it was: what lived in memory is gone after the next.
    pub boot_id: String,
    pub namespace: String,
    pub name: String,
    pub grace_seconds: i64,
    /// `status.startTime`
    pub started_at: Timestamp,
    pub attachment: Option<Attachment>,
    pub volumes: Option<Mounted>,
    pub containers: BTreeMap<String, RunRecord>,
    /// The pod is over: nothing of it runs again.
    pub ended: Option<Ended>,
    /// It ended so because this node did not take it.
    #[serde(default)]
    pub rejected: bool,
    /// Since when it is being stopped.
    pub ending_since: Option<Timestamp>,
    pub released: bool,
}

/// The newest run of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub attempt: u32,
    pub spec_hash: String,
    #[serde(default)]
    pub stop_signal: String,
    #[serde(default)]
    pub identity: Option<Identity>,
    #[serde(default)]
    pub image_name: String,
    pub image_id: String,
    pub runtime: String,
    /// None while it runs, as far as the agent knew.
    pub exit: Option<Exit>,
    /// How the run before this one ended.
    pub last: Option<Exit>,
    /// The next run is to begin, whatever the restart policy says.
    #[serde(default)]
    pub anew: bool,
    pub backoff: Option<Backoff>,
    /// The resources that this node granted it.
    #[serde(default)]
    pub granted: Option<ResourceRequirements>,
    /// Those that it really had, if others.
    #[serde(default)]
    pub has: Option<ResourceRequirements>,
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub succeeded: bool,
    /// `DeadlineExceeded`, `Evicted`, or empty when its containers just ended.
    pub reason: String,
    pub message: String,
    /// The node ended it for want of room: it has the condition DisruptionTarget.
    #[serde(default)]
    pub disrupted: bool,
}

impl Record {
    pub fn new(boot_id: &str, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id.into(),
            namespace: String::new(),
            name: String::new(),
            grace_seconds: 30,
            started_at: now,
            attachment: None,
            volumes: None,
            containers: BTreeMap::new(),
            ended: None,
            rejected: false,
            ending_since: None,
            released: false,
        }
    }

    /// The record in a pod's directory; None when there is none that can be used. A record that was
    /// torn by a power cut is as good as none: nothing runs any more then.
    pub fn read(pod_dir: &Path) -> Option<Self> {
        let path = pod_dir.join(FILE);
        let bytes = std::fs::read(&path).ok()?;
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(record) if record.version == VERSION => Some(record),
            Ok(record) => {
                tracing::warn!(path = %path.display(), version = record.version, "pod record of another version: the pod starts anew");
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "damaged pod record: the pod starts anew");
                None
            }
        }
    }
}

/// Replaces the record of a pod. With `durable` it survives a power cut too.
pub(crate) fn write(pod_dir: &Path, bytes: &[u8], durable: bool) -> std::io::Result<()> {
    make_dir(pod_dir)?;
    let temporary = pod_dir.join("_state.json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_data()?;
    }
    std::fs::rename(&temporary, pod_dir.join(FILE))
}

/// A directory that others may pass through but not list: a container's user must reach its volumes.
pub(crate) fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)
}

/// This boot of the machine.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
