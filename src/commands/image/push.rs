//! `rimward image push`: a Wasm file becomes an image of the CNCF Wasm OCI artifact layout.
//! <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>

use std::path::Path;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http_body_util::{BodyExt, Full};
use sha2::{Digest, Sha256};

use crate::cli::Cluster;
use crate::kubeconfig::Kubeconfig;
use crate::remote::{BoxBody, Remote};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";

pub async fn run(file: &Path, name: &str, cluster: &Cluster) -> anyhow::Result<()> {
    let (repository, tag) = split(name);
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let os = wasm_kind(&wasm).with_context(|| format!("{} is not Wasm", file.display()))?;
    let remote = Remote::new(&Kubeconfig::load(cluster.kubeconfig.as_deref())?)?;

    let layer = digest(&wasm);
    let config = serde_json::json!({
        "created": created(file), "architecture": "wasm", "os": os, "layerDigests": [layer],
    })
    .to_string();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": digest(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": "application/wasm", "digest": layer, "size": wasm.len() }],
    })
    .to_string();
    push_blob(&remote, repository, &layer, full(wasm)).await?;
    push_blob(&remote, repository, &digest(config.as_bytes()), full(config)).await?;
    let request = http::Request::put(format!("/v2/{repository}/manifests/{tag}"))
        .header(CONTENT_TYPE, MANIFEST)
        .body(full(manifest.clone()))
        .with_context(|| format!("{name:?} is not an image name"))?;
    remote.call(request).await?;
    println!("pushed {repository}:{tag} {}", digest(manifest.as_bytes()));
    Ok(())
}

/// `wasip2` for a component, `wasip1` for a core module: the preamble's layer field.
fn wasm_kind(wasm: &[u8]) -> anyhow::Result<&'static str> {
    ensure!(wasm.starts_with(b"\0asm"), "it does not start with the bytes of a Wasm binary");
    match wasm.get(4..8) {
        Some([1, 0, 0, 0]) => Ok("wasip1"),
        Some([_, _, 1, 0]) => Ok("wasip2"),
        Some(version) => bail!("its version bytes {version:?} are not known"),
        None => bail!("it ends after the magic bytes"),
    }
}

/// The file's own time, so that pushing the same file again makes the same image.
fn created(file: &std::path::Path) -> String {
    let modified = std::fs::metadata(file).and_then(|m| m.modified()).ok();
    let time = modified
        .and_then(|t| jiff::Timestamp::try_from(t).ok())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn digest(content: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(content).iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

/// Repository and tag.
pub fn split(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    }
}

pub fn full(content: impl Into<Bytes>) -> BoxBody {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

pub async fn push_blob(
    remote: &Remote,
    repository: &str,
    digest: &str,
    content: BoxBody,
) -> anyhow::Result<()> {
    let known = http::Request::head(format!("/v2/{repository}/blobs/{digest}")).body(full(""));
    if remote.call(known.context("the image's name is not valid in a URL")?).await.is_ok() {
        return Ok(());
    }
    let start = http::Request::post(format!("/v2/{repository}/blobs/uploads/")).body(full(""))?;
    let started = remote.call(start).await?;
    let location = started.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let location = location.context("the registry did not say where to upload")?;
    let upload = http::Request::put(format!("{location}?digest={digest}"))
        .header(CONTENT_TYPE, "application/octet-stream")
        .body(content)?;
    remote.call(upload).await?;
    Ok(())
}
