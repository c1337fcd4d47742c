//! Blobs, links and tags on disk. Everything is written beside its place, synced and renamed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use crate::Error;
use crate::path::Digest;

pub(crate) struct Storage {
    dir: PathBuf,
    /// Held shared by whoever links content, alone by whoever removes what nothing links any more.
    links: RwLock<()>,
}

impl Storage {
    pub fn open(dir: &Path) -> Result<Self, Error> {
        for sub in ["blobs/sha256", "repositories"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        let uploads = dir.join("uploads");
        match fs::remove_dir_all(&uploads) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(&uploads, e)),
            _ => fs::create_dir_all(&uploads).map_err(|e| Error::io(&uploads, e))?,
        }
        Ok(Self { dir: dir.to_owned(), links: RwLock::new(()) })
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(&digest.hex)
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.dir.join("repositories").join(name)
    }

    pub fn repository_exists(&self, name: &str) -> bool {
        let dir = self.repository(name);
        dir.join("_blobs").exists() || dir.join("_manifests").exists()
    }

    /// Whether `name` may serve the blob.
    pub fn has_blob(&self, name: &str, digest: &Digest) -> bool {
        self.repository(name).join("_blobs").join(&digest.hex).exists()
            && self.blob_path(digest).exists()
    }

    /// Moves a finished, synced file into place and links it to the repository.
    pub fn adopt_blob(&self, name: &str, digest: &Digest, file: &Path) -> Result<(), Error> {
        let _linking = self.links.read();
        let to = self.blob_path(digest);
        fs::rename(file, &to).map_err(|e| Error::io(&to, e))?;
        sync_dir(&to)?;
        self.link_blob(name, digest)
    }

    /// Lets `name` serve a blob that `from` serves; false when `from` does not.
    pub fn mount_blob(&self, name: &str, from: &str, digest: &Digest) -> Result<bool, Error> {
        let _linking = self.links.read();
        let there = self.has_blob(from, digest);
        if there {
            self.link_blob(name, digest)?;
        }
        Ok(there)
    }

    fn link_blob(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        write_whole(&self.repository(name).join("_blobs").join(&digest.hex), b"")
    }

    /// Takes a blob out of a repository; the content goes when no repository serves it any more.
    pub fn remove_blob(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        let _nobody_links = self.links.write();
        remove(&self.repository(name).join("_blobs").join(&digest.hex))?;
        self.remove_unlinked(digest)
    }

    /// Looks into every repository: deleting is rare, and needs no index that could be wrong.
    fn remove_unlinked(&self, digest: &Digest) -> Result<(), Error> {
        for name in self.repositories()? {
            let dir = self.repository(&name);
            if ["_blobs", "_manifests"].iter().any(|kind| dir.join(kind).join(&digest.hex).exists())
            {
                return Ok(());
            }
        }
        remove(&self.blob_path(digest))
    }

    /// Stores a manifest's content, its media type, the tag if it was pushed by one, and that it
    /// refers to `subject`.
    pub fn put_manifest(
        &self,
        name: &str,
        digest: &Digest,
        media_type: &str,
        content: &[u8],
        (tag, subject): (Option<&str>, Option<&Digest>),
    ) -> Result<(), Error> {
        let _linking = self.links.read();
        write_whole(&self.blob_path(digest), content)?;
        let dir = self.repository(name);
        if let Some(subject) = subject {
            let referrers = dir.join("_referrers").join(&subject.hex);
            write_whole(&referrers.join(&digest.hex), b"")?;
        }
        write_whole(&dir.join("_manifests").join(&digest.hex), media_type.as_bytes())?;
        match tag {
            Some(tag) => write_whole(&dir.join("_tags").join(tag), digest.hex.as_bytes()),
            None => Ok(()),
        }
    }

    /// (media type, content).
    pub fn manifest(
        &self,
        name: &str,
        digest: &Digest,
    ) -> Result<Option<(String, Vec<u8>)>, Error> {
        let link = self.repository(name).join("_manifests").join(&digest.hex);
        let Some(media_type) = read(&link)? else { return Ok(None) };
        let content = read(&self.blob_path(digest))?;
        Ok(content.map(|c| (String::from_utf8_lossy(&media_type).into_owned(), c)))
    }

    pub fn tag(&self, name: &str, tag: &str) -> Result<Option<Digest>, Error> {
        let hex = read(&self.repository(name).join("_tags").join(tag))?;
        Ok(hex.map(|hex| Digest { hex: String::from_utf8_lossy(&hex).into_owned() }))
    }

    pub fn remove_tag(&self, name: &str, tag: &str) -> Result<(), Error> {
        remove(&self.repository(name).join("_tags").join(tag))
    }

    /// Removes a manifest from a repository, and the tags that point at it.
    pub fn remove_manifest(
        &self,
        name: &str,
        digest: &Digest,
        subject: Option<&Digest>,
    ) -> Result<(), Error> {
        let _nobody_links = self.links.write();
        for tag in self.tags(name)? {
            if self.tag(name, &tag)?.as_ref() == Some(digest) {
                self.remove_tag(name, &tag)?;
            }
        }
        let dir = self.repository(name);
        if let Some(subject) = subject {
            remove(&dir.join("_referrers").join(&subject.hex).join(&digest.hex))?;
        }
        remove(&dir.join("_manifests").join(&digest.hex))?;
        self.remove_unlinked(digest)
    }

    /// In lexical order.
    pub fn tags(&self, name: &str) -> Result<Vec<String>, Error> {
        names_in(&self.repository(name).join("_tags"))
    }

    /// The manifests that refer to `subject`.
    pub fn referrers(&self, name: &str, subject: &Digest) -> Result<Vec<Digest>, Error> {
        let names = names_in(&self.repository(name).join("_referrers").join(&subject.hex))?;
        Ok(names.into_iter().map(|hex| Digest { hex }).collect())
    }

    /// All repositories that hold anything, in lexical order.
    pub fn repositories(&self) -> Result<Vec<String>, Error> {
        let root = self.dir.join("repositories");
        let (mut found, mut open) = (Vec::new(), vec![String::new()]);
        while let Some(name) = open.pop() {
            if !name.is_empty() && self.repository_exists(&name) {
                found.push(name.clone());
            }
            for child in names_in(&root.join(&name))?.into_iter().filter(|c| !c.starts_with('_')) {
                open.push(if name.is_empty() { child } else { format!("{name}/{child}") });
            }
        }
        found.sort();
        Ok(found)
    }
}

fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(dir, e))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
        // Names that end in '~' are writes under way.
        names.extend(name.into_string().ok().filter(|n| !n.ends_with('~')));
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    let parent = path.parent().expect("every path here lies in the registry's directory");
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let staged = path.with_file_name(format!(
        "{}.{}~",
        path.file_name().unwrap_or_default().to_string_lossy(),
        uuid::Uuid::new_v4().simple()
    ));
    let write = || {
        let mut file = fs::File::create(&staged)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    write().map_err(|e| {
        let _the_first_error_is_the_one_to_tell = fs::remove_file(&staged);
        Error::io(path, e)
    })?;
    sync_dir(path)
}

/// A rename is durable only once its directory is.
fn sync_dir(path: &Path) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(path);
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, e))
}
