//! Tells the API server, and the user, what was decided.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use rimward_client::{Client, EventType, Patch, Recorder};
use rimward_control_lean::Pod;
use serde_json::{Value, json};

use crate::Shared;
use crate::filter::POD_REMOVED;
use crate::pod::PodInfo;
use crate::queue::Tried;

pub(crate) struct Binder {
    pub client: Client,
    pub recorder: Recorder,
    pub shared: Arc<Shared>,
}

impl Binder {
    /// Binds a pod that counts on the node already; takes it back if that fails.
    pub async fn bind(&self, tried: Tried, node: &str) {
        let pod = tried.pod.clone();
        let key = &pod.key;
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
        {
            let mut world = self.shared.world.lock();
            // If it is no longer assumed, the watch has the last word.
            if world.assumed.remove(&pod.uid) {
                world.snapshot.remove_pod(&pod.uid);
                // If another bound it, the watch says so before its back-off ends.
                if !e.is_not_found() {
                    world.queue.retry(tried, Instant::now());
                }
                world.queue.happened(POD_REMOVED, Instant::now());
            }
        }
        self.shared.wake.notify_one();
        if !e.is_not_found() && !e.is_conflict() {
            tracing::warn!(pod = %key, node, error = %e, "cannot bind, trying again");
            let text = format!("binding rejected: {e}");
            self.recorder.event(&*pod.pod, EventType::Warning, "FailedScheduling", text);
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
