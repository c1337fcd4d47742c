//! The transport of clients inside this process: no socket, no encoding of HTTP, the same pipeline.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyDataStream, BodyExt as _};
use rimward_api::UserInfo;
use rimward_client::{Body, Transport, TransportError};

use crate::authn::Peer;
use crate::body;
use crate::pipeline;
use crate::server::Inner;

pub struct InProcess {
    server: Arc<Inner>,
    peer: Peer,
    user_agent: HeaderValue,
}

impl InProcess {
    pub fn new(server: Arc<Inner>, user: UserInfo, user_agent: &str) -> Self {
        let user_agent = HeaderValue::from_str(user_agent)
            .unwrap_or_else(|_| HeaderValue::from_static("rimward"));
        Self { server, peer: Peer::InProcess(user), user_agent }
    }
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let mut request = request.map(body::full);
        request
            .headers_mut()
            .entry(http::header::USER_AGENT)
            .or_insert_with(|| self.user_agent.clone());
        let response = pipeline::handle(&self.server, request, &self.peer).await;
        Ok(response.map(|body| {
            let chunks = BodyDataStream::new(body.map_err(|e| TransportError(e.to_string())));
            chunks.boxed()
        }))
    }
}
