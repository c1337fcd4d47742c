//! Objects for pods: from what the node holds, else asked for over the tunnel.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::TokenRequestStatus;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use rimward_node_pod::outside::{ObjectError, Objects, ThisNode, Token};
use rimward_tunnel::call::{CallError, call};
use rimward_tunnel::wire::{FetchRequest, ObjectKind, TokenRequest};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::pressure::Kind;
use crate::{Core, machine};

pub(crate) struct NodeObjects {
    pub core: Arc<Core>,
}

impl NodeObjects {
    /// Reads an object through the control plane: one that a pod names but that has not come down yet.
    async fn fetch<K: DeserializeOwned>(
        &self,
        kind: ObjectKind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<K>, ObjectError> {
        let unavailable = |cause: String| {
            ObjectError::Unavailable(format!(
                "{} {namespace}/{name} is not known on this node: {cause}",
                kind.name()
            ))
        };
        let request = FetchRequest {
            kind: kind.name().into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        let connection = self.core.connection().map_err(|e| unavailable(e.to_string()))?;
        let reply = match call(&connection, &request).await {
            Ok((reply, _)) => reply,
            Err(CallError::Refused { code: 404, .. }) => {
                // In the kubelet's words, which a pod's status shows.
                let word = match kind {
                    ObjectKind::ConfigMap => "configmap",
                    ObjectKind::Secret => "secret",
                    ObjectKind::PersistentVolume => "persistentvolume",
                    ObjectKind::PersistentVolumeClaim => "persistentvolumeclaim",
                    other => other.name(),
                };
                return Err(ObjectError::NotFound(format!("{word} {name:?} not found")));
            }
            Err(cause) => return Err(unavailable(cause.to_string())),
        };
        // Not kept: what changes it later comes down by itself, or never concerned this node.
        serde_json::from_slice(&reply.body).map(Arc::new).map_err(|e| unavailable(e.to_string()))
    }
}

/// This node, as the control plane told it of itself.
pub(crate) struct OwnNode(pub NodeObjects);

#[async_trait]
impl ThisNode for OwnNode {
    fn node(&self) -> Arc<Node> {
        let core = &self.0.core;
        let told = core.desired.own_node.get("", &core.config.name);
        // Before it is told for the first time, it knows what it says of itself.
        told.unwrap_or_else(|| Arc::new(machine::unregistered(&core.config)))
    }

    async fn node_now(&self) -> Arc<Node> {
        let name = &self.0.core.config.name;
        self.0.fetch(ObjectKind::Node, "", name).await.unwrap_or_else(|_| self.node())
    }

    fn pressures(&self) -> Vec<&'static str> {
        let pressure = &self.0.core.pressure;
        let under = Kind::ALL.into_iter().filter(|kind| pressure.is_under(*kind));
        under.map(Kind::condition).collect()
    }
}

#[async_trait]
impl Objects for NodeObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Arc<ConfigMap>, ObjectError> {
        match self.core.desired.config_maps.get(namespace, name) {
            Some(found) => Ok(found),
            None => self.fetch(ObjectKind::ConfigMap, namespace, name).await,
        }
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Secret>, ObjectError> {
        match self.core.desired.secrets.get(namespace, name) {
            Some(found) => Ok(found),
            None => self.fetch(ObjectKind::Secret, namespace, name).await,
        }
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<PersistentVolumeClaim>, ObjectError> {
        match self.core.desired.claims.get(namespace, name) {
            Some(found) => Ok(found),
            None => self.fetch(ObjectKind::PersistentVolumeClaim, namespace, name).await,
        }
    }

    async fn volume(&self, name: &str) -> Result<Arc<PersistentVolume>, ObjectError> {
        match self.core.desired.volumes.get("", name) {
            Some(found) => Ok(found),
            None => self.fetch(ObjectKind::PersistentVolume, "", name).await,
        }
    }

    async fn token(
        &self,
        pod: &Pod,
        audiences: &[String],
        expiration_seconds: i64,
    ) -> Result<Token, ObjectError> {
        let unavailable =
            |cause: String| ObjectError::Unavailable(format!("no ServiceAccount token: {cause}"));
        let request = TokenRequest {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            audiences: audiences.to_vec(),
            expiration_seconds,
        };
        let connection = self.core.connection().map_err(|e| unavailable(e.to_string()))?;
        let reply = match call(&connection, &request).await {
            Ok((reply, _)) => reply,
            Err(CallError::Refused { code: 404, message }) => {
                return Err(ObjectError::NotFound(message));
            }
            Err(cause) => return Err(unavailable(cause.to_string())),
        };
        let status: Option<TokenRequestStatus> =
            serde_json::from_slice(&reply.body).map_err(|e| unavailable(e.to_string()))?;
        let parts = status.and_then(|s| Some((s.token?, s.expiration_timestamp?.0)));
        let (token, expires_at) =
            parts.ok_or_else(|| unavailable("the answer has no token".into()))?;
        Ok(Token { token, expires_at })
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.core
            .desired
            .services
            .list_in(namespace)
            .into_iter()
            .map(|(_, service)| service)
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.core.desired.configuration()
    }
}
