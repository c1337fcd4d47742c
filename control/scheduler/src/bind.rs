//! Tells the API server, and the user, what was decided.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use rimward_client::{Client, Error, EventType, Patch, Recorder};
use rimward_control_lean::Pod;
use rimward_control_volumes as volumes;
use serde_json::{Value, json};

use crate::Shared;
use crate::filter::POD_REMOVED;
use crate::pod::PodInfo;
use crate::queue::Tried;
use crate::volumes::Choice;

/// How long a pod waits for its volumes before another node is looked for, as in Kubernetes.
const VOLUMES_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) struct Binder {
    pub client: Client,
    pub recorder: Recorder,
    pub shared: Arc<Shared>,
}

impl Binder {
    /// Binds a pod that counts on the node already; takes it back if that fails.
    /// Its volumes come first.
    pub async fn bind(&self, tried: Tried, node: &str, choice: Choice) {
        let pod = tried.pod.clone();
        let key = &pod.key;
        if let Err(why) = self.bind_volumes(node, &choice).await {
            self.shared.world.lock().snapshot.volumes.take_back(&choice);
            self.take_back(tried, true);
            let text = format!("running PreBind plugin \"VolumeBinding\": {why}");
            self.recorder.event(&*pod.pod, EventType::Warning, "FailedScheduling", text);
            return;
        }
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                uid: Some(pod.uid.to_string()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                ..Default::default()
            },
        };
        let answer = self
            .client
            .post_subresource::<Pod, Value>(&key.namespace, &key.name, "binding", &binding)
            .await;
        let Err(e) = answer else {
            let text = format!("Successfully assigned {key} to {node}");
            self.recorder.event(&*pod.pod, EventType::Normal, "Scheduled", text);
            return;
        };
        self.take_back(tried, !e.is_not_found());
        if !e.is_not_found() && !e.is_conflict() {
            tracing::warn!(pod = %key, node, error = %e, "cannot bind, trying again");
            let text = format!("binding rejected: {e}");
            self.recorder.event(&*pod.pod, EventType::Warning, "FailedScheduling", text);
        }
    }

    /// The pod no longer counts on its node; it is tried again if it is still there.
    fn take_back(&self, tried: Tried, is_there: bool) {
        {
            let mut world = self.shared.world.lock();
            // If it is no longer assumed, the watch has the last word.
            if world.assumed.remove(&tried.pod.uid) {
                world.snapshot.remove_pod(&tried.pod.uid);
                // If another bound it, the watch says so before its back-off ends.
                if is_there {
                    world.queue.retry(tried, Instant::now());
                }
                world.queue.happened(POD_REMOVED, Instant::now());
            }
        }
        self.shared.wake.notify_one();
    }

    /// Gives the claims what was chosen, and waits until the binder has bound them all.
    async fn bind_volumes(&self, node: &str, choice: &Choice) -> Result<(), String> {
        if choice.is_empty() {
            return Ok(());
        }
        let failed = |e: Error| format!("binding volumes: {e}");
        for (volume, claim) in &choice.bind {
            if let Some(next) = volumes::volume_to(volume, claim) {
                self.client.update(&next).await.map_err(failed)?;
            }
        }
        for claim in &choice.provision {
            if volumes::claim_annotation(claim, volumes::SELECTED_NODE) == Some(node) {
                continue;
            }
            let mut next = (**claim).clone();
            let annotations = next.metadata.annotations.get_or_insert_default();
            annotations.insert(volumes::SELECTED_NODE.into(), node.into());
            self.client.update(&next).await.map_err(failed)?;
        }
        match tokio::time::timeout(VOLUMES_TIMEOUT, self.volumes_bound(choice)).await {
            Ok(done) => done,
            Err(_) => Err("binding volumes: context deadline exceeded".into()),
        }
    }

    async fn volumes_bound(&self, choice: &Choice) -> Result<(), String> {
        loop {
            // Before the look: no change after it goes unheard.
            let changed = self.shared.claims.notified();
            let open = {
                let world = self.shared.world.lock();
                let claims = &world.snapshot.volumes;
                let mut open = false;
                for key in choice.claims() {
                    let Some(claim) = claims.claim(&key) else {
                        return Err(format!(
                            "binding volumes: persistentvolumeclaim {:?} not found",
                            key.name
                        ));
                    };
                    // The phase is what nodes go by, and is written last.
                    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
                    open |= !volumes::is_fully_bound(claim) || phase != Some("Bound");
                }
                open
            };
            if !open {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Says why no node will do: in an Event, and in the pod's PodScheduled condition.
    pub async fn explain(&self, pod: &PodInfo, message: &str) {
        self.recorder.event(&*pod.pod, EventType::Warning, "FailedScheduling", message);
        let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let known = conditions.and_then(|c| c.iter().find(|c| c.type_ == "PodScheduled"));
        let unchanged =
            known.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message));
        if unchanged {
            return;
        }
        let since =
            known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": since.unwrap_or(Time(Timestamp::now())),
            "observedGeneration": pod.pod.metadata.generation,
        });
        let patch = Patch::strategic(json!({
            "metadata": {"uid": &*pod.uid}, "status": {"conditions": [condition]},
        }));
        match self.client.patch::<Pod>(&pod.key.namespace, &pod.key.name, "status", &patch).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => {
                tracing::warn!(pod = %pod.key, error = %e, "cannot write why it is not scheduled");
            }
            _ => {}
        }
    }
}
