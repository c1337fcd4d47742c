//! The node's images: what `rimward image` asks of a node.

use futures::TryStreamExt as _;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming as Body;
use rimward_node_pod::of_docker_config;
use tokio::io::AsyncWriteExt as _;

use super::{Answer, json, text};
use crate::images::{NodeImages, Refused};
use crate::{Core, Parts};

pub(super) const PREFIX: &str = "/rimward/images";

pub(super) async fn answer(core: &Core, parts: &Parts, request: Request<Body>) -> Answer {
    let Some(images) = core.image_store.get().cloned() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this node has no images yet");
    };
    let name = request.uri().query().unwrap_or_default().split('&');
    let name = name.filter_map(|pair| pair.strip_prefix("name=")).find(|name| !name.is_empty());
    let name = name.map(|name| name.replace("%2F", "/").replace("%3A", ":").replace("%40", "@"));
    let path = request.uri().path()[PREFIX.len()..].to_owned();
    let done = match (request.method(), path.as_str(), name) {
        (&Method::GET, "", _) => return json(&images.list(&parts.pods.images())),
        (&Method::POST, "/pull", Some(name)) => pull(&images, &name, request.into_body()).await,
        (&Method::POST, "/import", name) => import(&images, request.into_body(), name).await,
        (&Method::DELETE, "", Some(name)) => {
            images.remove(&*parts.pods, &name).await.map(|()| vec![name])
        }
        (_, "/pull", None) | (&Method::DELETE, "", None) => Err((400, "which? name=…".to_owned())),
        _ => Err((404, "404 page not found".to_owned())),
    };
    match done {
        Ok(names) => json(&names),
        Err((code, why)) => {
            text(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &why)
        }
    }
}

/// Credentials come as docker's `config.json`; without any the body is empty.
async fn pull(images: &NodeImages, name: &str, body: Body) -> Result<Vec<String>, Refused> {
    const BYTES_MAX: usize = 1 << 20;
    let body = Limited::new(body, BYTES_MAX).collect().await;
    let body = body.map_err(|e| (400, format!("cannot read the credentials: {e}")))?.to_bytes();
    let auth = match body.is_empty() {
        true => Vec::new(),
        false => of_docker_config(&body)
            .ok_or((400, "the credentials are not laid out as docker's config.json".to_owned()))?,
    };
    images.pull(name, &auth).await.map(|id| vec![id])
}

/// An archive is read from a file: it is kept in one while it comes in.
async fn import(
    images: &NodeImages,
    body: Body,
    name: Option<String>,
) -> Result<Vec<String>, Refused> {
    let file = images.staged();
    let received = receive(body, &file).await;
    let imported = match received {
        Ok(()) => images.import(&file, name.as_deref()).await,
        Err(why) => Err((500, format!("cannot keep the archive: {why}"))),
    };
    let _staging_is_emptied_anyway = tokio::fs::remove_file(&file).await;
    imported
}

async fn receive(body: Body, file: &std::path::Path) -> std::io::Result<()> {
    let mut out = tokio::fs::File::create(file).await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.try_next().await.map_err(std::io::Error::other)? {
        out.write_all(&chunk).await?;
    }
    out.flush().await
}
