//! What the containers of a pod share besides its network: IPC and UTS namespaces, /dev/shm, and their
//! processes and users where the pod wants that.
//!
//! A namespace lives as long as something names it: a file that it is mounted on, instead of a process
//! that does nothing but wait. One of processes dies with its first process all the same, so a pod that
//! shares it has such a process (see `shim::pause`).

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::ContainerSpec;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::Inner;
use crate::layout::{self, NAMESPACES_OF_USERS, RunDir};
use crate::shim::users::Wanted;

/// As much shared memory as other runtimes give.
const SHM: &str = "mode=1777,size=65536k";

pub(super) struct Sandbox {
    /// None with hostIPC.
    pub ipc: Option<PathBuf>,
    /// None with hostNetwork: such a pod has the machine's name.
    pub uts: Option<PathBuf>,
    pub shm: PathBuf,
    /// With `hostUsers: false`.
    pub users: Option<Users>,
}

/// A pod's own users.
pub(super) struct Users {
    /// The machine's id of their user 0; the others follow.
    pub first: u32,
    /// The namespace, open and by its name.
    pub namespace: OwnedFd,
    pub file: PathBuf,
    /// The network namespace that belongs to them.
    pub net: PathBuf,
}

impl Users {
    /// Makes a file their user 0's.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.first), Some(self.first))
    }

    /// Makes a directory one that nobody else looks into.
    pub fn give_alone(&self, dir: &Path) -> io::Result<()> {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))?;
        self.give(dir)
    }
}

/// Makes what is missing.
pub(super) fn ensure(this: &Inner, spec: &ContainerSpec) -> io::Result<Sandbox> {
    let dir = layout::pods(&this.config.data_dir).join(&spec.id.pod_uid);
    std::fs::create_dir_all(&dir)?;
    let linux = &spec.linux;
    let users = match linux.own_users {
        true => Some(ensure_users(this, &spec.id.pod_uid, &linux.hostname)?),
        false => None,
    };
    let sandbox = Sandbox {
        ipc: (!linux.host_ipc).then(|| dir.join("ipc")),
        uts: (!linux.host_network).then(|| dir.join("uts")),
        shm: if linux.host_ipc { PathBuf::from("/dev/shm") } else { dir.join("shm") },
        users,
    };
    let missing = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| !is_namespace(file));
    if missing(&sandbox.ipc) || missing(&sandbox.uts) {
        make_namespaces(&sandbox, &linux.hostname)?;
    }
    if !linux.host_ipc && !is_mount(&sandbox.shm) {
        std::fs::create_dir_all(&sandbox.shm)?;
        let owner = sandbox.users.as_ref().map_or(0, |users| users.first);
        let options = CString::new(format!("{SHM},uid={owner},gid={owner}"));
        let options = options.expect("options have no NUL");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("shm", &sandbox.shm, "tmpfs", flags, options.as_c_str())?;
    }
    Ok(sandbox)
}

/// The users of a pod with `hostUsers: false`, and what belongs to them. Held back from others by the caller.
pub(super) fn ensure_users(this: &Inner, pod_uid: &str, hostname: &str) -> io::Result<Users> {
    let data_dir = &this.config.data_dir;
    let dir = RunDir(layout::pods(data_dir).join(pod_uid));
    std::fs::create_dir_all(&dir.0)?;
    open_way(data_dir)?;
    let first = match dir.read("users") {
        Ok(first) => first,
        Err(_) => {
            let ids = this.config.user_ids.clone();
            let first = ids.and_then(|ids| ids.free(&taken(data_dir))).map_err(io::Error::other)?;
            dir.write("users", &first)?;
            first
        }
    };
    if !NAMESPACES_OF_USERS.iter().all(|kind| is_namespace(&dir.file(kind))) {
        let wanted = Wanted { first, hostname: hostname.to_owned() };
        let mut command = std::process::Command::new(this.exe.path());
        command.args(["oci-shim", "users"]).arg(&dir.0);
        command.arg(serde_json::to_string(&wanted).expect("it is plain data"));
        let output = command.env_clear().current_dir("/").output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(said.trim().to_owned()));
        }
    }
    let (file, net) = (dir.file("user"), dir.file("net"));
    let namespace = std::fs::File::open(&file)?.into();
    let users = Users { first, namespace, file, net };
    users.give_alone(&dir.0)?;
    Ok(users)
}

/// The first ids of all pods that have users of their own.
fn taken(data_dir: &Path) -> Vec<u32> {
    let dirs = pods(data_dir).into_iter().map(|uid| RunDir(layout::pods(data_dir).join(uid)));
    dirs.filter_map(|dir| dir.read("users").ok()).collect()
}

/// Users that are none of the machine's must come to what is theirs: each directory on the way lets everybody
/// through. What lies beside is guarded by its own rights.
fn open_way(data_dir: &Path) -> io::Result<()> {
    const SEARCH: u32 = 0o011;
    let mode = |dir: &Path| Ok::<_, io::Error>(std::fs::metadata(dir)?.permissions().mode());
    let ours = [data_dir.join("run"), layout::runs(data_dir), layout::pods(data_dir)];
    for dir in &ours {
        let has = mode(dir)?;
        if has & SEARCH != SEARCH {
            std::fs::set_permissions(dir, PermissionsExt::from_mode(has | SEARCH))?;
        }
    }
    for dir in data_dir.canonicalize()?.ancestors() {
        if mode(dir)? & 0o001 == 0 {
            return Err(io::Error::other(format!(
                "users of a pod's own cannot come through {}: chmod o+x {0}, or give the node another data directory",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// By a thread that enters new ones, names them, and ends.
fn make_namespaces(sandbox: &Sandbox, hostname: &str) -> io::Result<()> {
    let (ipc, uts, hostname) = (sandbox.ipc.clone(), sandbox.uts.clone(), hostname.to_owned());
    let work = move || -> io::Result<()> {
        let mut flags = UnshareFlags::empty();
        if ipc.is_some() {
            flags |= UnshareFlags::NEWIPC;
        }
        if uts.is_some() {
            flags |= UnshareFlags::NEWUTS;
        }
        // SAFETY: neither namespace is about memory or descriptors; only this thread is moved.
        unsafe { rustix::thread::unshare_unsafe(flags) }?;
        if let Some(uts) = uts {
            // 64 bytes is all that the kernel takes.
            rustix::system::sethostname(&hostname.as_bytes()[..hostname.len().min(64)])?;
            pin("uts", &uts)?;
        }
        if let Some(ipc) = ipc {
            pin("ipc", &ipc)?;
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("namespaces".into()).spawn(work)?;
    thread.join().map_err(|_| io::Error::other("the thread that makes namespaces panicked"))?
}

fn pin(kind: &str, file: &Path) -> io::Result<()> {
    pin_of("thread-self", kind, file)
}

fn pin_of(process: &str, kind: &str, file: &Path) -> io::Result<()> {
    let _ = rustix::mount::unmount(file, UnmountFlags::DETACH);
    std::fs::File::create(file)?;
    rustix::mount::mount_bind(format!("/proc/{process}/ns/{kind}"), file).map_err(Into::into)
}

/// The namespace of processes that the pod's containers share. Its cgroup was made.
pub(super) fn ensure_processes(this: &Inner, spec: &ContainerSpec) -> io::Result<PathBuf> {
    let dir = layout::pods(&this.config.data_dir).join(&spec.id.pod_uid);
    let (namespace, number) = (dir.join("pid"), dir.join("pause"));
    let pid = std::fs::read_to_string(&number).unwrap_or_default();
    if is_namespace(&namespace) && same_file(&namespace, format!("/proc/{pid}/ns/pid")) {
        return Ok(namespace);
    }
    let mut command = std::process::Command::new(this.exe.path());
    command.arg0("/pause").args(["oci-shim", "pause"]).env_clear().current_dir("/");
    if spec.linux.own_users {
        command.arg(dir.join("user"));
    }
    // From its first moment on: whatever becomes of this agent, the next one finds it with the pod.
    enter_cgroups(&mut command, &this.cgroups.beside(spec, "pause")?)?;
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("the pod's first process: {}", said.trim())));
    }
    let pid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    std::fs::write(&number, &pid)?;
    // As other runtimes have it. A nested root may lack the right: then it is merely easier to kill.
    let _easier_to_kill = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-998");
    pin_of(&pid, "pid", &namespace)?;
    Ok(namespace)
}

/// The program, once it is started, is in each cgroup that these files are of.
fn enter_cgroups(command: &mut std::process::Command, procs: &[PathBuf]) -> io::Result<()> {
    let names = procs.iter().map(|file| CString::new(file.as_os_str().as_bytes()));
    let names: Vec<CString> = names.collect::<Result<_, _>>()?;
    let enter = move || {
        for name in &names {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
            // 0 is whoever writes it.
            rustix::io::write(&file, b"0")?;
        }
        Ok(())
    };
    // SAFETY: opening and writing are async-signal-safe, and the names were made before.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

fn same_file(one: &Path, other: String) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(one).is_some() && id(one) == id(Path::new(&other))
}

fn is_namespace(file: &Path) -> bool {
    // NSFS_MAGIC
    rustix::fs::statfs(file).is_ok_and(|stat| stat.f_type as u64 == 0x6e73_6673)
}

pub(super) fn is_mount(dir: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    dir.parent().is_some_and(|parent| device(dir).is_some() && device(dir) != device(parent))
}

/// UIDs of pods that have one.
pub(super) fn pods(data_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(layout::pods(data_dir)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Undoes what is there; safe without.
pub(super) fn remove(data_dir: &Path, pod_uid: &str) {
    let dir = layout::pods(data_dir).join(pod_uid);
    for name in ["ipc", "uts", "pid", "net", "user", "shm"] {
        let path = dir.join(name);
        if is_namespace(&path) || is_mount(&path) {
            let _gone_already = rustix::mount::unmount(&path, UnmountFlags::DETACH);
        }
    }
    if let Err(error) = std::fs::remove_dir_all(&dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot remove {}", dir.display());
    }
}
