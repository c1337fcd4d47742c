//! Volumes that have to be mounted: what an image holds, disks of the node, exports of NFS servers.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::atomic::make_dir;
use super::claimed::Disk;
use super::content::Nfs;
use super::host::is_mount;

/// A large disk takes a while to be formatted, and one with a damaged journal to be mounted.
const DISK_TIMEOUT: Duration = Duration::from_secs(600);
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
    let mut options = nfs.options.clone();
    options.extend(nfs.read_only.then(|| "ro".to_owned()));
    let from = format!("{}:{}", nfs.server, nfs.path);
    let arguments = mount_arguments("nfs", &options, &from, dir);
    if !HELPERS.iter().any(|helper| Path::new(helper).exists()) {
        let output =
            "this node has no mount.nfs: install its NFS client (package nfs-common, nfs-utils)";
        return Err(mount_failed(&arguments, "no helper program", output));
    }
    mount(&arguments, NFS_TIMEOUT).await
}

/// Mounts a disk's file system, which an empty disk gets before. Err is the kubelet's text.
pub(super) async fn disk(dir: &Path, disk: &Disk) -> Result<(), String> {
    make_dir(dir, 0o755).map_err(|e| format!("{}: {e}", dir.display()))?;
    if is_mount(dir) {
        return Ok(());
    }
    let Disk { device, fs_type, options, read_only } = disk;
    let shown = device.display().to_string();
    if !read_only && is_empty(&shown).await? {
        let mut arguments: Vec<&str> = match fs_type.as_str() {
            "ext3" | "ext4" => vec!["-F", "-m0"],
            "xfs" | "btrfs" => vec!["-f"],
            _ => Vec::new(),
        };
        arguments.push(&shown);
        let program = format!("mkfs.{fs_type}");
        tracing::info!(device = shown, fs_type, "an empty disk is formatted");
        run(&program, &arguments, DISK_TIMEOUT).await.map_err(|(status, output)| {
            format!(
                "format of disk {shown:?} failed: type:({fs_type:?}) target:({:?}) options:({:?}) errcode:({status}) output:({output})",
                dir.display().to_string(),
                options.join(","),
            )
        })?;
    }
    let mut options = options.clone();
    options.insert(0, "defaults".to_owned());
    options.extend(read_only.then(|| "ro".to_owned()));
    mount(&mount_arguments(fs_type, &options, &shown, dir), DISK_TIMEOUT).await
}

/// Whether a disk holds nothing that any tool knows.
async fn is_empty(device: &str) -> Result<bool, String> {
    let arguments = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device];
    match run("blkid", &arguments, NFS_TIMEOUT).await {
        Ok(found) => Ok(found.trim().is_empty()),
        // Its word for "nothing found".
        Err((status, _)) if status == "exit status: 2" => Ok(true),
        Err((status, output)) => {
            Err(format!("failed to get the disk format of {device}: blkid: {status}: {output}"))
        }
    }
}

fn mount_arguments(fs_type: &str, options: &[String], from: &str, dir: &Path) -> Vec<String> {
    let mut arguments = vec!["-t".to_owned(), fs_type.to_owned()];
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), options.join(",")]);
    }
    arguments.extend([from.to_owned(), dir.display().to_string()]);
    arguments
}

fn mount_failed(arguments: &[String], status: &str, output: &str) -> String {
    format!(
        "mount failed: {status}\nMounting command: mount\nMounting arguments: {}\nOutput: {}",
        arguments.join(" "),
        output.trim()
    )
}

async fn mount(arguments: &[String], patience: Duration) -> Result<(), String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mounted = run("mount", &words, patience).await;
    mounted.map(drop).map_err(|(status, output)| mount_failed(arguments, &status, &output))
}

/// Runs a program to its end: what it printed, or how it ended and what it complained of.
async fn run(
    program: &str,
    arguments: &[&str],
    patience: Duration,
) -> Result<String, (String, String)> {
    let command = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(patience, command).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            Err((output.status.to_string(), text))
        }
        Ok(Err(error)) => Err(("it cannot be run".into(), format!("{program}: {error}"))),
        Err(_) => Err(("timed out".into(), format!("no answer within {patience:?}"))),
    }
}
