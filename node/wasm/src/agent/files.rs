//! A pod's files, made reachable for the unprivileged user of its host.
//!
//! A host works in the data directory and is in the group `host_gid`. Directories on the way to a
//! pod's files get that group and its `x` bit: enough to walk through, not to list. What is at the
//! end of the way keeps the rights that the pod's volumes gave it. The log's directory becomes the
//! host's own.
//!
//! WASI knows directories only. A single mounted file (a `subPath`, say) is hard-linked or mounted into a
//! directory of its own, which is what the guest gets; as in Kubernetes it does not follow updates
//! that replace the file.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::{ContainerSpec, Mount, RunId};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::records::run_key;
use crate::config::Config;
use crate::host::{HostUser, Settings};

/// Makes everything that a start needs reachable, and turns file mounts into directories.
pub(super) fn prepare(
    config: &Config,
    settings: &Settings,
    artifact: &Path,
    spec: &mut ContainerSpec,
) -> Result<(), String> {
    let logs = spec
        .log_path
        .parent()
        .ok_or_else(|| format!("the log path {} has no directory", spec.log_path.display()))?;
    std::fs::create_dir_all(logs)
        .map_err(|error| format!("cannot make {}: {error}", logs.display()))?;
    spec.mounts = directories(&config.data_dir, &spec.id, std::mem::take(&mut spec.mounts))?;
    let Some(user) = &settings.user else { return Ok(()) };
    let data_dir = &config.data_dir;
    let failed = |path: &Path, error: std::io::Error| {
        format!("cannot open {} to the wasm host: {error}", path.display())
    };
    walkable(data_dir, logs, config.host_gid).map_err(|error| failed(logs, error))?;
    own(logs, &spec.log_path, user).map_err(|error| failed(logs, error))?;
    walkable(data_dir, artifact, config.host_gid).map_err(|error| failed(artifact, error))?;
    for mount in &spec.mounts {
        walkable(data_dir, &mount.host_path, config.host_gid)
            .map_err(|error| failed(&mount.host_path, error))?;
    }
    Ok(())
}

/// The node's CA bundle, copied to where hosts can read it: they are another user, and what they read must
/// not change under them.
pub(super) fn trusted(config: &Config) -> std::io::Result<Option<PathBuf>> {
    let Some(bundle) = &config.ca_bundle else { return Ok(None) };
    let unusable = |cause: &dyn std::fmt::Display| {
        std::io::Error::other(format!("the CA bundle {}: {cause}", bundle.display()))
    };
    let pem = std::fs::read(bundle).map_err(|error| unusable(&error))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(&error))?;
    if certificates.is_empty() {
        return Err(unusable(&"it has no certificate in PEM form"));
    }
    let copy = config.data_dir.join("guest-ca.pem");
    let new = copy.with_extension("new");
    std::fs::write(&new, pem)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o644))?;
    std::fs::rename(&new, &copy)?;
    Ok(Some(copy))
}

/// Lets the group `gid` walk from `top` to `path`, which must be below it; others are left alone.
fn walkable(top: &Path, path: &Path, gid: u32) -> std::io::Result<()> {
    let Ok(rest) = path.strip_prefix(top) else { return Ok(()) };
    let mut at = top.to_owned();
    for part in std::iter::once(Path::new(""))
        .chain(rest.parent().into_iter().flat_map(|parent| parent.iter().map(Path::new)))
    {
        if !part.as_os_str().is_empty() {
            at.push(part);
        }
        let meta = std::fs::metadata(&at)?;
        if meta.mode() & 0o001 == 0 && (meta.gid() != gid || meta.mode() & 0o010 == 0) {
            std::os::unix::fs::chown(&at, None, Some(gid))?;
            std::fs::set_permissions(
                &at,
                PermissionsExt::from_mode((meta.mode() & 0o7777 & !0o060) | 0o010),
            )?;
        }
    }
    Ok(())
}

/// Gives the log's directory, and a log that is there already, to the host's user.
fn own(dir: &Path, log: &Path, user: &HostUser) -> std::io::Result<()> {
    let meta = std::fs::metadata(dir)?;
    if (meta.uid(), meta.gid()) != (user.uid, user.gid) {
        std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid))?;
    }
    if log.exists() {
        std::os::unix::fs::chown(log, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// Directories as they are; files in directories of their own, one for each place and right.
fn directories(data_dir: &Path, id: &RunId, mounts: Vec<Mount>) -> Result<Vec<Mount>, String> {
    let mut result: Vec<Mount> = Vec::new();
    for mount in mounts {
        let meta = std::fs::metadata(&mount.host_path).map_err(|error| {
            format!(
                "cannot mount {} at {}: {error}",
                mount.host_path.display(),
                mount.container_path
            )
        })?;
        if meta.is_dir() {
            result.push(mount);
            continue;
        }
        let place = Path::new(&mount.container_path);
        let (Some(parent), Some(name)) = (place.parent().and_then(Path::to_str), place.file_name())
        else {
            return Err(format!("cannot mount a file at {}", mount.container_path));
        };
        let right = if mount.read_only { "ro" } else { "rw" };
        let dir = links(data_dir, id).join(right).join(safe_name(parent));
        let link = dir.join(name);
        let linked = std::fs::create_dir_all(&dir).and_then(|()| {
            let _ = std::fs::remove_file(&link);
            // The file itself, not a link to it: projected volumes are made of symbolic links.
            link_file(&std::fs::canonicalize(&mount.host_path)?, &link)
        });
        linked.map_err(|error| {
            format!(
                "cannot mount the file {} at {}: {error}; a Wasm guest sees directories, and a file only from the node's own file system",
                mount.host_path.display(),
                mount.container_path
            )
        })?;
        if !result.iter().any(|other| other.host_path == dir) {
            result.push(Mount {
                host_path: dir,
                container_path: parent.to_owned(),
                read_only: mount.read_only,
            });
        }
    }
    Ok(result)
}

/// One more name for a file; on another file system it is mounted, which takes root.
fn link_file(file: &Path, link: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(file, link) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            std::fs::File::create(link)?;
            rustix::mount::mount_bind(file, link).map_err(Into::into)
        }
        linked => linked,
    }
}

fn links(data_dir: &Path, id: &RunId) -> PathBuf {
    data_dir.join("run").join("wasm-files").join(run_key(id))
}

/// Removes what [`prepare`] made for a run.
pub(super) fn forget(data_dir: &Path, id: &RunId) {
    use rustix::mount::UnmountFlags;
    let dir = links(data_dir, id);
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    // DIR/RIGHT/PLACE/FILE. What is still mounted cannot be removed, so nobody's file goes with it.
    for right in entries(dir.clone()) {
        for file in entries(right.path()).flat_map(|place| entries(place.path())) {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _most_are_no_mounts = rustix::mount::unmount(file.path(), flags);
        }
    }
    if dir.exists() {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// The names of hosts that have, or had, a socket.
pub(super) fn sockets(data_dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(data_dir.join("run")).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
        .collect()
}

/// Letters, digits, `-` and `.`; short enough for a socket's path. What does not fit is hashed.
pub(super) fn safe_name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if !text.is_empty() && text.len() <= 48 && text.chars().all(plain) && !text.starts_with('.') {
        return text.to_owned();
    }
    use sha2::Digest;
    crate::artifact::hex(&sha2::Sha256::digest(text))[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_directories() {
        let top = tempfile::tempdir().unwrap();
        let (volume, file) = (top.path().join("volume"), top.path().join("volume/app.conf"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(&file, "x = 1").unwrap();
        let id = RunId { pod_uid: "u".into(), container: "c".into(), attempt: 0 };
        let mount = |host_path: &Path, container_path: &str| Mount {
            host_path: host_path.into(),
            container_path: container_path.into(),
            read_only: true,
        };
        let mounts = vec![
            mount(&volume, "/data"),
            mount(&file, "/etc/app/one.conf"),
            mount(&file, "/etc/app/two.conf"),
        ];
        let result = directories(top.path(), &id, mounts).unwrap();
        let places: Vec<_> = result.iter().map(|mount| mount.container_path.as_str()).collect();
        assert_eq!(places, ["/data", "/etc/app"]);
        assert_eq!(std::fs::read_to_string(result[1].host_path.join("two.conf")).unwrap(), "x = 1");
        forget(top.path(), &id);
        assert!(!result[1].host_path.exists() && file.exists());
        let error =
            directories(top.path(), &id, vec![mount(Path::new("/no/such"), "/x")]).unwrap_err();
        assert!(error.contains("/no/such at /x"), "{error}");
    }

    #[test]
    fn a_way_is_walkable_and_no_more() {
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("pods/u");
        std::fs::create_dir_all(&deep).unwrap();
        for dir in [top.path(), &top.path().join("pods"), &deep] {
            std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
        }
        let gid = rustix::process::getegid().as_raw();
        walkable(top.path(), &deep.join("log"), gid).unwrap();
        for dir in [top.path(), &top.path().join("pods"), &deep] {
            assert_eq!(std::fs::metadata(dir).unwrap().mode() & 0o777, 0o710, "{}", dir.display());
        }
    }

    #[test]
    fn names_are_safe() {
        assert_eq!(safe_name("shared-65532-65532"), "shared-65532-65532");
        for text in ["../x", "", "a/b", &"x".repeat(99), ".hidden"] {
            let name = safe_name(text);
            assert!(
                name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{name}"
            );
        }
    }
}
