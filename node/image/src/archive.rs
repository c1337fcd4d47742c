//! Images in one file: `oci-archive` (a tar of an OCI layout) and `docker-archive` (what `docker save`
//! writes), as sites without a network get them.
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>
//!
//! The file is read where it lies: an index of where each member begins is made once. A docker-archive has no
//! manifest; one is made of its config and its layers, whose digests are computed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::content::{digest_of, hex_digest};
use crate::entries;
use crate::fetch::{Blob, FetchError, Source};
use crate::layers::decompressed;

/// Members of an archive, at most.
const MEMBERS_MAX: usize = 100_000;
/// What is read into memory: manifests, configs, indexes.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
const CHUNK_BYTES: usize = 128 << 10;

/// An archive that was opened and looked through.
pub struct Archive {
    /// Uncompressed.
    file: PathBuf,
    members: HashMap<String, Span>,
    blobs: HashMap<String, Place>,
    images: Vec<ArchivedImage>,
    /// The uncompressed copy that is removed with this.
    _copy: Option<Copy>,
}

/// An image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedImage {
    /// As the archive says them; perhaps none.
    pub names: Vec<String>,
    /// Of its manifest or index.
    pub digest: String,
}

#[derive(Clone, Copy)]
struct Span {
    offset: u64,
    size: u64,
}

enum Place {
    InFile(Span),
    Made(Bytes),
}

struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        let _the_store_empties_its_staging_anyway = std::fs::remove_file(&self.0);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Looks through a file; one that is compressed is unpacked to `copy`, up to `bytes_max`. Blocks.
    ///
    /// # Errors
    /// A sentence that says what the file is not.
    pub fn open(file: &Path, copy: &Path, bytes_max: u64) -> Result<Self, String> {
        let io = |e: std::io::Error| format!("{}: {e}", file.display());
        let plain = decompressed(File::open(file).map_err(io)?).map_err(io)?;
        let (path, kept) = match is_tar(file).map_err(io)? {
            true => (file.to_owned(), None),
            false => {
                let kept = Copy(copy.to_owned());
                let mut out = File::create(copy).map_err(io)?;
                let written =
                    std::io::copy(&mut plain.take(bytes_max + 1), &mut out).map_err(io)?;
                if written > bytes_max {
                    return Err(format!(
                        "{} unpacks to more than {bytes_max} bytes",
                        file.display()
                    ));
                }
                (copy.to_owned(), Some(kept))
            }
        };
        let members = members(&path).map_err(io)?;
        let mut archive =
            Self { file: path, members, blobs: HashMap::new(), images: Vec::new(), _copy: kept };
        archive.find_blobs();
        let read = match archive.members.contains_key("index.json") {
            true => archive.read_oci(),
            false if archive.members.contains_key("manifest.json") => archive.read_docker(),
            false => Err("it has neither an index.json nor a manifest.json".into()),
        };
        read.map_err(|why| {
            format!("{} is no oci-archive and no docker-archive: {why}", file.display())
        })?;
        Ok(archive)
    }

    /// What is in it.
    pub fn images(&self) -> &[ArchivedImage] {
        &self.images
    }

    /// A whole manifest or config.
    ///
    /// # Errors
    /// When it is not there.
    pub fn document(&self, digest: &str) -> Result<Bytes, String> {
        match self.blobs.get(digest) {
            Some(Place::Made(bytes)) => Ok(bytes.clone()),
            Some(Place::InFile(span)) => self.read(*span),
            None => Err(format!("the archive lacks the blob {digest}")),
        }
    }

    /// A blob's size and its bytes.
    ///
    /// # Errors
    /// When it is not there, or the file cannot be read.
    pub async fn blob(
        &self,
        digest: &str,
    ) -> Result<(u64, futures::stream::BoxStream<'static, Result<Bytes, String>>), String> {
        let span = match self.blobs.get(digest) {
            Some(Place::InFile(span)) => *span,
            Some(Place::Made(bytes)) => {
                let once = futures::stream::iter([Ok(bytes.clone())]).boxed();
                return Ok((bytes.len() as u64, once));
            }
            None => return Err(format!("the archive lacks the blob {digest}")),
        };
        let mut file = tokio::fs::File::open(&self.file).await.map_err(|e| e.to_string())?;
        file.seek(SeekFrom::Start(span.offset)).await.map_err(|e| e.to_string())?;
        let chunks = futures::stream::try_unfold(file.take(span.size), |mut file| async move {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
            match file.read_buf(&mut chunk).await.map_err(|e| e.to_string())? {
                0 => Ok(None),
                _ => Ok(Some((chunk.freeze(), file))),
            }
        });
        Ok((span.size, chunks.boxed()))
    }

    fn read(&self, span: Span) -> Result<Bytes, String> {
        if span.size > DOCUMENT_BYTES_MAX {
            return Err(format!("a document of {} bytes", span.size));
        }
        let mut content = vec![0; span.size as usize];
        let mut file = File::open(&self.file).map_err(|e| e.to_string())?;
        file.seek(SeekFrom::Start(span.offset)).map_err(|e| e.to_string())?;
        file.read_exact(&mut content).map_err(|e| e.to_string())?;
        Ok(content.into())
    }

    fn member(&self, name: &str) -> Result<Bytes, String> {
        let span = self.members.get(name).ok_or_else(|| format!("it lacks {name}"))?;
        self.read(*span)
    }

    fn find_blobs(&mut self) {
        for (name, span) in &self.members {
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                self.blobs.insert(format!("sha256:{hex}"), Place::InFile(*span));
            }
        }
    }

    fn read_oci(&mut self) -> Result<(), String> {
        let index: Value = serde_json::from_slice(&self.member("index.json")?)
            .map_err(|e| format!("index.json: {e}"))?;
        for entry in index["manifests"].as_array().into_iter().flatten() {
            let digest = entry["digest"].as_str().ok_or("index.json: a manifest has no digest")?;
            let note = |key: &str| entry["annotations"][key].as_str().map(str::to_owned);
            // A bare tag is no name: the layout leaves it to whoever puts the image somewhere.
            let full = |name: &String| name.contains('/') || name.contains(':');
            let name = note("io.containerd.image.name")
                .or_else(|| note("org.opencontainers.image.ref.name").filter(full));
            match self.images.iter_mut().find(|image| image.digest == digest) {
                Some(image) => image.names.extend(name),
                None => self.images.push(ArchivedImage {
                    names: name.into_iter().collect(),
                    digest: digest.to_owned(),
                }),
            }
        }
        match self.images.is_empty() {
            true => Err("its index.json names no manifest".into()),
            false => Ok(()),
        }
    }

    fn read_docker(&mut self) -> Result<(), String> {
        let saved: Vec<Saved> = serde_json::from_slice(&self.member("manifest.json")?)
            .map_err(|e| format!("manifest.json: {e}"))?;
        for Saved { config, repo_tags, layers } in saved {
            let config = self.hashed(&config)?;
            let layers = layers.iter().map(|l| self.hashed(l)).collect::<Result<Vec<_>, _>>()?;
            let describe = |kind: &str, (digest, size): &(String, u64)| json!({ "mediaType": kind, "digest": digest, "size": size });
            let layer = "application/vnd.docker.image.rootfs.diff.tar";
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": describe("application/vnd.docker.container.image.v1+json", &config),
                "layers": layers.iter().map(|l| describe(layer, l)).collect::<Vec<Value>>(),
            });
            let manifest = Bytes::from(manifest.to_string());
            let digest = digest_of(&manifest);
            self.blobs.insert(digest.clone(), Place::Made(manifest));
            self.images.push(ArchivedImage { names: repo_tags.unwrap_or_default(), digest });
        }
        match self.images.is_empty() {
            true => Err("its manifest.json names no image".into()),
            false => Ok(()),
        }
    }

    /// Makes a member a blob; answers its digest and size.
    fn hashed(&mut self, name: &str) -> Result<(String, u64), String> {
        let span = *self.members.get(name).ok_or_else(|| format!("it lacks {name}"))?;
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.file)?;
            file.seek(SeekFrom::Start(span.offset))?;
            let (mut hash, mut left) = (Sha256::new(), file.take(span.size));
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                match left.read(&mut chunk)? {
                    0 => return Ok(hex_digest(&hash.finalize())),
                    len => hash.update(&chunk[..len]),
                }
            }
        };
        let digest = read().map_err(|e| format!("{name}: {e}"))?;
        self.blobs.insert(digest.clone(), Place::InFile(span));
        Ok((digest, span.size))
    }
}

/// `ustar` stands in the first header of a tar.
fn is_tar(file: &Path) -> std::io::Result<bool> {
    let mut start = [0; 262];
    let read = File::open(file)?.take(262).read(&mut start)?;
    Ok(read == 262 && &start[257..] == b"ustar")
}

/// Where each file of a tar begins. Links lead to what they name: old docker-archives share layers so.
fn members(path: &Path) -> std::io::Result<HashMap<String, Span>> {
    let clean = |path: &Path| {
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                std::path::Component::Normal(part) => parts.push(part.to_string_lossy()),
                std::path::Component::ParentDir => drop(parts.pop()),
                _ => {}
            }
        }
        parts.join("/")
    };
    let (mut files, mut links) = (HashMap::new(), Vec::new());
    entries::each_head(File::open(path)?, |entry| {
        let name = entry.path()?.into_owned();
        if files.len() + links.len() >= MEMBERS_MAX {
            return Err(std::io::Error::other(format!("it has more than {MEMBERS_MAX} members")));
        }
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let span = Span { offset: entry.raw_file_position(), size: entry.size() };
            files.insert(clean(&name), span);
        } else if let (true, Some(to)) =
            (kind.is_symlink() || kind.is_hard_link(), entry.link_name()?)
        {
            let from = name.parent().unwrap_or(Path::new(""));
            let to = if kind.is_symlink() { from.join(to) } else { to.into_owned() };
            links.push((clean(&name), clean(&to)));
        }
        Ok::<_, std::io::Error>(())
    })?;
    for (name, to) in links {
        if let Some(span) = files.get(&to).copied() {
            files.insert(name, span);
        }
    }
    Ok(files)
}

/// One image of an archive, as a place that it is fetched from.
pub(crate) struct Archived<'a> {
    pub archive: &'a Archive,
    pub digest: &'a str,
}

#[async_trait]
impl Source for Archived<'_> {
    fn place(&self) -> &str {
        "an archive"
    }

    async fn manifest(&self, version: &str) -> Result<Bytes, FetchError> {
        let digest = if version.starts_with("sha256:") { version } else { self.digest };
        self.archive.document(digest).map_err(FetchError::Failed)
    }

    async fn blob(&self, digest: &str, _from: u64) -> Result<(u64, Blob), FetchError> {
        let (_, bytes) = self.archive.blob(digest).await.map_err(FetchError::Failed)?;
        Ok((0, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn open(content: &[u8]) -> Result<(tempfile::TempDir, Archive), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar");
        std::fs::write(&file, content).unwrap();
        let opened = Archive::open(&file, &dir.path().join("copy"), 1 << 20);
        opened.map(|archive| (dir, archive)).map_err(|e| e.replace(file.to_str().unwrap(), "F"))
    }

    #[tokio::test]
    async fn both_forms_and_compressed() {
        let layer = digest_of(b"layer");
        let manifest = json!({ "layers": [{ "digest": layer }] }).to_string();
        let digest = digest_of(manifest.as_bytes());
        let entry = |name: &str| json!({ "digest": digest, "annotations": { "org.opencontainers.image.ref.name": name } });
        let index = json!({ "manifests": [entry("a/b:1"), entry("a/b:2"), entry("v1")] });
        let place = |digest: &str| format!("./blobs/sha256/{}", &digest[7..]);
        let oci = tar_of(&[
            ("index.json", index.to_string().as_bytes()),
            (&place(&digest), manifest.as_bytes()),
            (&place(&layer), b"layer"),
        ]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &oci).unwrap();
        for content in [oci, gzip.finish().unwrap()] {
            let (_dir, archive) = open(&content).unwrap();
            let names = vec!["a/b:1".to_owned(), "a/b:2".to_owned()];
            assert_eq!(archive.images(), [ArchivedImage { names, digest: digest.clone() }]);
            let (size, bytes) = archive.blob(&layer).await.unwrap();
            let bytes: Vec<_> = bytes.map(|chunk| chunk.unwrap()).collect().await;
            assert_eq!((size, bytes.concat().as_slice()), (5, b"layer".as_slice()));
        }

        let saved = json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l/layer.tar"] }]);
        let docker = tar_of(&[
            ("manifest.json", saved.to_string().as_bytes()),
            ("c.json", b"{}"),
            ("l/layer.tar", b"layer"),
        ]);
        let (_dir, archive) = open(&docker).unwrap();
        let [image] = archive.images() else { panic!("one image") };
        assert_eq!(image.names, ["x:1"]);
        let made: Value =
            serde_json::from_slice(&archive.document(&image.digest).unwrap()).unwrap();
        assert_eq!(made["layers"][0]["digest"], layer);
        assert_eq!(archive.document(&digest_of(b"{}")).unwrap().as_ref(), b"{}");
    }

    #[test]
    fn what_is_no_archive_says_so() {
        let lacking = json!([{ "Config": "none", "RepoTags": null, "Layers": [] }]).to_string();
        for (content, why) in [
            (tar_of(&[("x", b"")]), "neither an index.json nor a manifest.json"),
            (tar_of(&[("index.json", b"{}")]), "names no manifest"),
            (tar_of(&[("manifest.json", lacking.as_bytes())]), "it lacks none"),
            (b"nonsense".to_vec(), "F"),
        ] {
            let error = open(&content).err().unwrap();
            assert!(error.contains(why), "{error}");
        }
    }
}
