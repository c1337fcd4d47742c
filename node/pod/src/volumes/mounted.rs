//! Volumes that have to be mounted: what an image holds, and exports of NFS servers.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::atomic::make_dir;
use super::content::Nfs;
use super::host::is_mount;

/// A server that does not answer must not hold a pod's set-up for ever; it is tried again.
const NFS_TIMEOUT: Duration = Duration::from_secs(120);
/// Where distributions keep `mount.nfs`.
const HELPERS: [&str; 4] =
    ["/sbin/mount.nfs", "/usr/sbin/mount.nfs", "/bin/mount.nfs", "/usr/bin/mount.nfs"];

/// The files of an image's layers (lowest first), read-only.
pub(super) fn image(dir: &Path, layers: &[PathBuf]) -> io::Result<()> {
    make_dir(dir, 0o755)?;
    if is_mount(dir) {
        return Ok(());
    }
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = std::os::fd::AsFd::as_fd(&overlay);
    // Without a layer to write to, overlayfs wants two at least.
    let empty = dir.with_extension("empty");
    make_dir(&empty, 0o755)?;
    for layer in layers.iter().rev().chain([&empty]) {
        rustix::mount::fsconfig_set_string(fs, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_flag(fs, "ro")?;
    rustix::mount::fsconfig_create(fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", rustix::fs::CWD, dir, flags).map_err(Into::into)
}

/// Runs `mount -t nfs`. Err is the kubelet's text.
pub(super) async fn nfs(dir: &Path, nfs: &Nfs) -> Result<(), String> {
    make_dir(dir, 0o755).map_err(|e| format!("{}: {e}", dir.display()))?;
    if is_mount(dir) {
        return Ok(());
    }
    let from = format!("{}:{}", nfs.server, nfs.path);
    let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
    let mut options = nfs.options.clone();
    options.extend(nfs.read_only.then(|| "ro".to_owned()));
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), options.join(",")]);
    }
    arguments.extend([from, dir.display().to_string()]);
    let failed = |status: &str, output: &str| {
        format!(
            "mount failed: {status}\nMounting command: mount\nMounting arguments: {}\nOutput: {}",
            arguments.join(" "),
            output.trim()
        )
    };
    if !HELPERS.iter().any(|helper| Path::new(helper).exists()) {
        let output =
            "this node has no mount.nfs: install its NFS client (package nfs-common, nfs-utils)";
        return Err(failed("no helper program", output));
    }
    let run = tokio::process::Command::new("mount")
        .args(&arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(NFS_TIMEOUT, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(failed(&output.status.to_string(), &text))
        }
        Ok(Err(error)) => Err(failed("it cannot be run", &error.to_string())),
        Err(_) => Err(failed("timed out", &format!("no answer within {NFS_TIMEOUT:?}"))),
    }
}
