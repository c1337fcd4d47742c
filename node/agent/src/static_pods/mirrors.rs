//! Between what the control plane says of pods and what the node runs: mirrors are not run, and what is said of a
//! static pod goes up as its mirror's.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use rimward_api::static_pods;
use rimward_node_pod::outside::{Attachment, Reports};
use rimward_node_pod::runtime::Usage;
use rimward_node_pod::{
    ClaimUsage, ImagesInUse, LogError, LogRequest, NoSession, PodDisk, PodUsage, RunningContainer,
};

use super::StaticPods;
use crate::PodHandler;

/// The node's pods, of which the control plane knows some by their mirrors.
pub(crate) struct Mirrored {
    pub pods: Arc<dyn PodHandler>,
    pub statics: Arc<StaticPods>,
}

#[async_trait]
impl PodHandler for Mirrored {
    fn set(&self, pod: Arc<Pod>) {
        match static_pods::annotation(&pod.metadata, static_pods::MIRROR) {
            Some(_) => self.statics.mirror_seen(&pod),
            None => self.pods.set(pod),
        }
    }

    fn remove(&self, uid: &str) {
        if !self.statics.mirror_gone(uid) {
            self.pods.remove(uid);
        }
    }

    fn synced(&self) {
        self.pods.synced();
    }

    async fn gone(&self, uid: &str) {
        self.pods.gone(uid).await;
    }

    async fn logs(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, LogError>>, LogError> {
        self.pods.logs(namespace, name, &self.statics.real(uid), request).await
    }

    fn running(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
    ) -> Result<RunningContainer, NoSession> {
        self.pods.running(namespace, name, &self.statics.real(uid), container)
    }

    fn attachment(&self, namespace: &str, name: &str, uid: &str) -> Result<Attachment, NoSession> {
        self.pods.attachment(namespace, name, &self.statics.real(uid))
    }

    async fn usage(&self) -> Vec<PodUsage> {
        self.pods.usage().await
    }

    fn usage_of_all(&self) -> Vec<(&'static str, Usage)> {
        self.pods.usage_of_all()
    }

    async fn disk(&self, only: Option<HashSet<String>>) -> Vec<PodDisk> {
        self.pods.disk(only).await
    }

    async fn claims(&self) -> Vec<ClaimUsage> {
        self.pods.claims().await
    }

    fn active(&self) -> Vec<String> {
        self.pods.active()
    }

    fn object(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.object(uid)
    }

    fn evict(&self, uid: &str, message: String, disrupted: bool, grace_seconds: i64) -> bool {
        self.pods.evict(uid, message, disrupted, grace_seconds)
    }

    fn images(&self) -> ImagesInUse {
        self.pods.images()
    }
}

impl Reports for StaticPods {
    fn pod_status(&self, pod: &Pod, status: PodStatus) {
        match self.is_static(pod) {
            true => self.report(pod, status),
            false => self.outgoing.pod_status(pod, status),
        }
    }

    fn pod_terminated(&self, pod: &Pod, status: PodStatus) {
        match self.is_static(pod) {
            // The mirror is there as long as the file is.
            true => self.report(pod, status),
            false => self.outgoing.pod_terminated(pod, status),
        }
    }

    fn event(&self, pod: &Pod, field_path: &str, warning: bool, reason: &str, message: &str) {
        if !self.is_static(pod) {
            return self.outgoing.event(pod, field_path, warning, reason, message);
        }
        // There is nobody yet to whom it could be told.
        let Some(shown) = self.as_mirror(pod) else { return };
        self.outgoing.event(&shown, field_path, warning, reason, message);
    }
}
