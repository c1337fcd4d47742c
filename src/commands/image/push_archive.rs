//! `rimward image import --registry`: the images of an archive go into the cluster's registry as they are.

use std::path::Path;

use anyhow::{Context as _, ensure};
use futures::TryStreamExt as _;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use rimward_node_agent::node::Archive;
use serde_json::Value;

use super::push::{self, full};
use crate::cli::Cluster;
use crate::kubeconfig::Kubeconfig;
use crate::remote::Remote;

/// What a compressed archive may unpack to.
const BYTES_MAX: u64 = 64 << 30;

pub async fn run(file: &Path, name: Option<&str>, cluster: &Cluster) -> anyhow::Result<()> {
    let remote = Remote::new(&Kubeconfig::load(cluster.kubeconfig.as_deref())?)?;
    let copy = std::env::temp_dir().join(format!("rimward-import-{}", std::process::id()));
    let archive = Archive::open(file, &copy, BYTES_MAX).map_err(anyhow::Error::msg)?;
    ensure!(
        name.is_none() || archive.images().len() == 1,
        "{} has {} images; --name is for one",
        file.display(),
        archive.images().len()
    );
    for image in archive.images() {
        let names = name.map_or_else(|| image.names.clone(), |name| vec![name.to_owned()]);
        ensure!(!names.is_empty(), "{} does not name its image: use --name", file.display());
        for name in names {
            let (repository, tag) = place(&name);
            push_manifest(&remote, &archive, &repository, &image.digest, &tag).await?;
            println!("pushed {repository}:{tag} {}", image.digest);
        }
    }
    Ok(())
}

/// Repository and tag in the cluster's registry: what a pod's image is called without its host.
fn place(name: &str) -> (String, String) {
    let (host, rest) = name.split_once('/').unwrap_or(("", name));
    let has_host = host.contains(['.', ':']) || host == "localhost";
    let bare = if has_host { rest } else { name };
    let bare = match host {
        "docker.io" => bare.strip_prefix("library/").unwrap_or(bare),
        _ => bare,
    };
    let (repository, tag) = push::split(bare.split('@').next().unwrap_or(bare));
    (repository.to_owned(), tag.to_owned())
}

/// Pushes what a manifest or an index refers to, then itself.
async fn push_manifest(
    remote: &Remote,
    archive: &Archive,
    repository: &str,
    digest: &str,
    version: &str,
) -> anyhow::Result<()> {
    let content = archive.document(digest).map_err(anyhow::Error::msg)?;
    let manifest: Value = serde_json::from_slice(&content).context("a manifest of the archive")?;
    let digest_of = |descriptor: &Value| descriptor["digest"].as_str().map(str::to_owned);
    for child in manifest["manifests"].as_array().into_iter().flatten().filter_map(digest_of) {
        // Archives often hold one of an index's platforms: the others are not there to be pushed.
        if archive.document(&child).is_ok() {
            Box::pin(push_manifest(remote, archive, repository, &child, &child)).await?;
        }
    }
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for blob in layers.chain([&manifest["config"]]).filter_map(digest_of) {
        let (_, bytes) = archive.blob(&blob).await.map_err(anyhow::Error::msg)?;
        let body = StreamBody::new(bytes.map_ok(Frame::data).map_err(anyhow::Error::msg));
        push::push_blob(remote, repository, &blob, body.boxed_unsync()).await?;
    }
    let kind = manifest["mediaType"].as_str().unwrap_or(push::MANIFEST);
    let request = http::Request::put(format!("/v2/{repository}/manifests/{version}"))
        .header(CONTENT_TYPE, kind)
        .body(full(content))
        .with_context(|| format!("{repository:?} is no name of a repository"))?;
    remote.call(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (name, repository, tag) in [
            ("busybox:1", "busybox", "1"),
            ("docker.io/library/busybox:1", "busybox", "1"),
            ("docker.io/team/app", "team/app", "latest"),
            ("registry.example:5000/team/app:v2", "team/app", "v2"),
            ("team/app:v1", "team/app", "v1"),
        ] {
            assert_eq!(place(name), (repository.to_owned(), tag.to_owned()), "{name}");
        }
    }
}
