//! How the API server reaches a node: logs, byte streams, and when it was last heard of.

use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use rimward_control_apiserver::nodes::{
    Duplex, LogOptions, NodeError, Nodes, PodOnNode, Session, SessionOptions,
};
use rimward_tunnel::call::{CallError, call};
use rimward_tunnel::quinn::Connection;
use rimward_tunnel::wire::{
    DialRequest, DialTarget, LogsRequest, PortForwardRequest, SessionRequest,
};

use crate::{Hub, sessions};

impl Hub {
    fn connection(&self, node: &str) -> Result<Connection, NodeError> {
        let connected = self.inner.connected.lock();
        let found = connected.get(node).map(|c| c.connection.clone());
        found.ok_or_else(|| NodeError::NotConnected(node.to_owned()))
    }
}

pub(crate) fn refused(node: &str, error: CallError) -> NodeError {
    match error {
        CallError::Refused { code, message } => NodeError::Refused(code, message),
        CallError::Broken(_) => NodeError::NotConnected(node.to_owned()),
        CallError::Malformed(cause) => NodeError::Refused(502, format!("node {node:?}: {cause}")),
    }
}

#[async_trait]
impl Nodes for Hub {
    async fn logs(
        &self,
        node: &str,
        pod_namespace: &str,
        pod_name: &str,
        pod_uid: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, NodeError>>, NodeError> {
        let request = LogsRequest {
            namespace: pod_namespace.into(),
            pod: pod_name.into(),
            pod_uid: pod_uid.into(),
            container: options.container,
            follow: options.follow,
            previous: options.previous,
            timestamps: options.timestamps,
            since_seconds: options.since_seconds,
            since_time: options.since_time.unwrap_or_default(),
            tail_lines: options.tail_lines,
            limit_bytes: options.limit_bytes,
        };
        let connection = self.connection(node)?;
        let (_, stream) = call(&connection, &request).await.map_err(|e| refused(node, e))?;
        let node = node.to_owned();
        // When the reader drops this, the node is told that no more is wanted.
        let chunks = stream::unfold(Some((stream.into_body(), node)), |state| async {
            let (mut body, node) = state?;
            match body.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some((body, node)))),
                Ok(None) => None,
                Err(e) => Some((Err(refused(&node, e)), None)),
            }
        });
        Ok(chunks.boxed())
    }

    fn last_heard(&self, node: &str) -> Option<jiff::Timestamp> {
        self.inner.connected.lock().get(node).map(|c| c.heard.1)
    }

    async fn dial(
        &self,
        node: &str,
        pod_ip: IpAddr,
        port: u16,
    ) -> Result<Box<dyn Duplex>, NodeError> {
        let connection = self.connection(node)?;
        let request = DialRequest { target: DialTarget::Pod as u8, ip: pod_ip.to_string(), port };
        let (_, stream) = call(&connection, &request).await.map_err(|e| refused(node, e))?;
        Ok(Box::new(stream))
    }

    async fn session(
        &self,
        pod: &PodOnNode,
        options: SessionOptions,
    ) -> Result<Session, NodeError> {
        let request = SessionRequest {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            pod_uid: pod.uid.clone(),
            container: options.container,
            command: options.command,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
            tty: options.tty,
        };
        let connection = self.connection(&pod.node)?;
        let (_, stream) = call(&connection, &request).await.map_err(|e| refused(&pod.node, e))?;
        Ok(sessions::open(pod.node.clone(), stream))
    }

    async fn forward(&self, pod: &PodOnNode, port: u16) -> Result<Box<dyn Duplex>, NodeError> {
        let request = PortForwardRequest {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            pod_uid: pod.uid.clone(),
            port,
        };
        let connection = self.connection(&pod.node)?;
        let (_, stream) = call(&connection, &request).await.map_err(|e| refused(&pod.node, e))?;
        Ok(Box::new(stream))
    }

    async fn api(&self, node: &str) -> Result<Box<dyn Duplex>, NodeError> {
        let connection = self.connection(node)?;
        let request = DialRequest { target: DialTarget::Node as u8, ip: String::new(), port: 0 };
        let (_, stream) = call(&connection, &request).await.map_err(|e| refused(node, e))?;
        Ok(Box::new(stream))
    }
}
