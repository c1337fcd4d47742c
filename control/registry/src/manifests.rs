//! What a manifest must be to be stored, and what it refers to.

use serde::Deserialize;

use crate::Error;
use crate::path::Digest;
use crate::storage::Storage;

/// The parts of image manifests and indexes that the registry looks at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub schema_version: u64,
    pub media_type: Option<String>,
    pub artifact_type: Option<String>,
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    pub subject: Option<Descriptor>,
    pub annotations: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub urls: Vec<String>,
}

/// Parses a pushed manifest and checks that everything it needs was pushed before it.
///
/// `content_type` and the body's own mediaType must agree where both speak.
pub(crate) fn check(
    storage: &Storage,
    name: &str,
    content_type: &str,
    content: &[u8],
) -> Result<Manifest, Error> {
    let manifest: Manifest =
        serde_json::from_slice(content).map_err(|e| Error::ManifestInvalid(e.to_string()))?;
    if manifest.schema_version != 2 {
        let got = manifest.schema_version;
        return Err(Error::ManifestInvalid(format!("schemaVersion is {got}, 2 is expected")));
    }
    if let Some(own) = manifest.media_type.as_deref().filter(|own| *own != content_type) {
        let text = format!("mediaType is {own:?}, but Content-Type says {content_type:?}");
        return Err(Error::ManifestInvalid(text));
    }
    // Layers with urls (foreign layers) live elsewhere by design.
    let blobs = manifest.config.iter().chain(&manifest.layers).filter(|d| d.urls.is_empty());
    for descriptor in blobs {
        let digest = Digest::parse(&descriptor.digest)?;
        if !storage.has_blob(name, &digest) {
            return Err(Error::ManifestBlobUnknown(digest.to_string()));
        }
    }
    for descriptor in &manifest.manifests {
        let digest = Digest::parse(&descriptor.digest)?;
        if storage.manifest(name, &digest)?.is_none() {
            return Err(Error::ManifestBlobUnknown(digest.to_string()));
        }
    }
    if let Some(subject) = &manifest.subject {
        // It may come later, or never: signatures of images that are elsewhere are fine.
        Digest::parse(&subject.digest)?;
    }
    Ok(manifest)
}

impl Manifest {
    /// What the manifest is about, where it says so.
    pub fn subject(&self) -> Option<Digest> {
        self.subject.as_ref().and_then(|subject| Digest::parse(&subject.digest).ok())
    }
}

/// The descriptors of all manifests of a repository whose subject is `digest`.
pub(crate) fn referrers(
    storage: &Storage,
    name: &str,
    digest: &Digest,
) -> Result<Vec<serde_json::Value>, Error> {
    let mut found = Vec::new();
    for referrer in storage.referrers(name, digest)? {
        let Some((media_type, content)) = storage.manifest(name, &referrer)? else { continue };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&content) else { continue };
        let artifact_type =
            manifest.artifact_type.or(manifest.config.map(|config| config.media_type));
        let mut descriptor = serde_json::json!({
            "mediaType": media_type, "digest": referrer.to_string(), "size": content.len(),
        });
        if let Some(artifact_type) = artifact_type {
            descriptor["artifactType"] = artifact_type.into();
        }
        if let Some(annotations) = manifest.annotations {
            descriptor["annotations"] = annotations.into();
        }
        found.push(descriptor);
    }
    Ok(found)
}
