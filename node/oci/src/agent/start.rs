//! The steps of a start, in the order in which they need each other; and their undoing, which is safe
//! without the doing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rimward_node_pod::outside::ImageForm;
use rimward_node_pod::runtime::{ContainerSpec, RunId, RuntimeEvent, StartError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::rootfs::{self, Root};
use super::sandbox::{self, Users};
use super::{Inner, Run, confinement, mapped, refused};
use crate::config::Swap;
use crate::layout::{Kept, RUNC_STATE, RunDir, Settings, Started};
use crate::shim::Created;
use crate::spec;
use crate::user_ids::IDS_OF_POD;

/// Making a container takes milliseconds; a machine that is out of everything may take a while.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn start(this: &Arc<Inner>, spec: ContainerSpec) -> Result<(), StartError> {
    if this.runs.lock().get(&spec.id).is_some_and(|run| run.exit.is_none()) {
        return Ok(());
    }
    let id = spec.id.clone();
    let dir = RunDir::of(&this.config.data_dir, &id);
    let cgroup = this.cgroups.of_run(&spec);
    let ahead = this.clone();
    let _goes_on_beside_what_follows =
        tokio::task::spawn_blocking(move || ahead.cgroups.wait_ahead());
    let prepared = {
        let (this, dir, spec) = (this.clone(), dir.clone(), spec.clone());
        tokio::task::spawn_blocking(move || prepare(&this, &dir, &spec)).await
    };
    let outcome = match prepared {
        Ok(Ok(())) => create(this, &dir).await,
        Ok(Err(error)) => Err(error),
        Err(panic) => Err(refused("CreateContainerError", panic.to_string())),
    };
    let outcome = match outcome {
        Ok(started) => {
            let at = started.at;
            let run = Run {
                spec: Arc::new(spec),
                dir: dir.clone(),
                cgroup: cgroup.clone(),
                started: Some(started),
                link: None,
                exit: None,
            };
            this.runs.lock().insert(id.clone(), run);
            let _ = this.events.send(RuntimeEvent::Started { id: id.clone(), at });
            if this.follow(&id, &dir).await.is_err() {
                // It has ended already; or its shim has, which ends it.
                this.ended(&id).await;
            }
            return Ok(());
        }
        Err(error) => error,
    };
    let this = this.clone();
    let undo = move || clean_up(&this, &dir, &cgroup);
    let _finished_or_panicked = tokio::task::spawn_blocking(undo).await;
    Err(outcome)
}

/// Everything up to the shim's own part.
fn prepare(this: &Inner, dir: &RunDir, spec: &ContainerSpec) -> Result<(), StartError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| refused("CreateContainerError", format!("failed to {what}: {e}"))
    };
    let wrong = |why: String| refused("CreateContainerConfigError", why);
    let ImageForm::Linux { layers, user, .. } = &spec.image.form else {
        let why = format!("image {:?} is not a Linux image", spec.image.reference);
        return Err(refused("CreateContainerError", why));
    };
    // Decided before anything is touched.
    let low_level = this.config.low_level_of(&spec.runtime_class);
    let low_level = low_level.map_err(|why| refused("CreateContainerError", why))?;
    let mut confined = confinement::of(&this.config, spec, &low_level)?;
    if spec.argv.is_empty() {
        return Err(refused("CreateContainerError", "no command specified"));
    }
    if !spec.linux.mount_flags.is_empty() {
        let info = std::fs::read_to_string("/proc/self/mountinfo");
        let info = info.map_err(failed("read the machine's mounts"))?;
        let checked = spec::mounts::check_propagation(spec, &info);
        checked.map_err(|why| refused("CreateContainerError", why))?;
    }
    let pid = spec.linux.pid_of.as_ref().map(|target| processes_of(this, target)).transpose();
    let pid = pid.map_err(wrong)?;
    clean_up(this, dir, &this.cgroups.of_run(spec));
    std::fs::create_dir_all(&dir.0).map_err(failed("make the container's directory"))?;
    std::fs::set_permissions(&dir.0, PermissionsExt::from_mode(0o711))
        .map_err(failed("make the container's directory"))?;
    let kept = Kept {
        spec: spec.clone(),
        boot_id: this.boot_id.clone(),
        cgroup: this.cgroups.of_run(spec),
    };
    dir.write("spec.json", &kept).map_err(failed("keep the container's spec"))?;
    let shared = {
        let _one_at_a_time = this.sandboxes.lock();
        sandbox::ensure(this, spec).map_err(failed("make the pod's sandbox"))?
    };
    let users = shared.users.as_ref();
    if let Some(users) = users {
        users.give_alone(&dir.0).map_err(failed("make the container's directory"))?;
    }
    rootfs::mount(dir, layers, users).map_err(failed("mount the root file system"))?;
    let root = Root::open(&dir.rootfs()).map_err(failed("open the root file system"))?;
    let user =
        spec::user::resolve(user, &spec.user, &root.read("etc/passwd"), &root.read("etc/group"))
            .map_err(|why| refused("CreateContainerError", why))?;
    let first = users.map_or(0, |users| users.first);
    if users.is_some() {
        user.within(IDS_OF_POD).map_err(|why| refused("CreateContainerError", why))?;
    }
    if spec.working_dir.starts_with('/') {
        root.ensure_dir(Path::new(&spec.working_dir), first + user.uid, first + user.gid)
            .map_err(failed("make the working directory"))?;
    }
    write_etc(dir, spec, users).map_err(failed("write the container's files"))?;
    let mut seen = spec.clone();
    if let Some(users) = users {
        let mapped = mapped::volumes(dir, &spec.mounts, &users.namespace);
        seen.mounts = mapped.map_err(|why| refused("CreateContainerError", why))?;
    }
    this.cgroups.ensure_pod(spec, this.config.pids).map_err(failed("make the pod's cgroup"))?;
    let processes = match spec.linux.share_processes && !spec.linux.host_pid {
        true => {
            let _one_at_a_time = this.sandboxes.lock();
            let made = sandbox::ensure_processes(this, spec);
            Some(made.map_err(failed("share the pod's processes"))?)
        }
        false => None,
    };
    let cgroup = this.cgroups.of_run(spec);
    let processes = pid.or(processes);
    let cgroup_dirs = match processes {
        Some(_) => this.cgroups.directories(&cgroup).map_err(failed("make the cgroup"))?,
        None => Vec::new(),
    };
    if let (Some(rights), Some(users)) = (&mut confined.by_spec, users) {
        rights.first_user = Some(users.first);
    }
    let disks = spec.linux.disks.iter().map(spec::devices::disk);
    let given = spec::Given {
        dir,
        user: &user,
        cgroup: &cgroup,
        ipc: shared.ipc.as_deref(),
        uts: shared.uts.as_deref(),
        users: users.map(|users| users.file.as_path()),
        net: users.map(|users| users.net.as_path()),
        pid: processes.as_deref(),
        cgroup_dirs,
        flags_at: &flags_at,
        shm: &shared.shm,
        swap: swap_of(this, spec, &cgroup),
        unified: this.cgroups.is_unified(),
        page_sizes: this.cgroups.page_sizes(&cgroup),
        devices: if spec.linux.privileged { spec::devices::of_machine() } else { Vec::new() },
        rights: confined.by_spec,
        disks: disks.collect::<Result<_, _>>().map_err(failed("find the container's disks"))?,
    };
    let config = spec::build(&seen, &given).map_err(wrong)?;
    dir.write("config.json", &config).map_err(failed("write config.json"))?;
    let settings = Settings {
        log_path: spec.log_path.clone(),
        log_bytes_max: this.config.log_bytes_max,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        tty: spec.tty,
        own_cgroups: this.cgroups.of_shims(),
        oom_file: this.cgroups.oom_file(&cgroup),
        oom_score_adj: spec::oom_score_adj(spec, memory_of_machine()),
        private_mounts: spec::mounts::private(spec),
        low_level,
        confinement: confined.by_shim,
        users: users.map(|users| users.file.clone()),
    };
    dir.write("shim.json", &settings).map_err(failed("write shim.json"))
}

/// Of the mount that a path is on; none of one that is not there.
fn flags_at(path: &Path) -> Vec<&'static str> {
    use rustix::fs::StatVfsMountFlags as Flags;
    let Ok(at) = rustix::fs::statvfs(path) else { return Vec::new() };
    let known = [(Flags::NOSUID, "nosuid"), (Flags::NODEV, "nodev"), (Flags::NOEXEC, "noexec")];
    known.into_iter().filter(|(flag, _)| at.f_flag.contains(*flag)).map(|(_, name)| name).collect()
}

/// The process namespace of a run that goes on.
fn processes_of(this: &Inner, target: &RunId) -> Result<PathBuf, String> {
    let runs = this.runs.lock();
    let run = runs.get(target).filter(|run| run.exit.is_none());
    let pid = run.and_then(|run| run.started.as_ref()).map(|started| started.pid);
    let pid = pid.ok_or_else(|| format!("target container {:?} does not run", target.container))?;
    Ok(PathBuf::from(format!("/proc/{pid}/ns/pid")))
}

fn swap_of(this: &Inner, spec: &ContainerSpec, cgroup: &Path) -> spec::SwapLimit {
    let counted = this.cgroups.counts_swap(cgroup);
    match (counted, this.config.swap) {
        (spec::SwapLimit::Bytes(_), Swap::Limited) => {
            let (memory, swap) = (memory_of_machine(), of_machine("SwapTotal:"));
            spec::SwapLimit::Bytes(spec::limited_swap(spec, memory, swap))
        }
        _ => counted,
    }
}

fn memory_of_machine() -> u64 {
    of_machine("MemTotal:")
}

fn of_machine(row: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(row));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn write_etc(dir: &RunDir, spec: &ContainerSpec, users: Option<&Users>) -> std::io::Result<()> {
    std::fs::create_dir_all(dir.file("etc"))?;
    let give = |file: &Path| users.map_or(Ok(()), |users| users.give(file));
    // On the machine's network a pod has the machine's name.
    let hostname = match spec.linux.host_network {
        true => std::fs::read_to_string("/proc/sys/kernel/hostname")?,
        false => format!("{}\n", spec.linux.hostname),
    };
    let machine = spec.linux.host_network.then(|| std::fs::read_to_string("/etc/hosts"));
    let machine = machine.map(Result::unwrap_or_default);
    for (name, text) in [
        ("etc/hosts", spec::files::hosts(spec, machine.as_deref())),
        ("etc/hostname", hostname),
        ("etc/resolv.conf", spec::files::resolv_conf(&spec.dns)),
    ] {
        std::fs::write(dir.file(name), text)?;
        std::fs::set_permissions(dir.file(name), PermissionsExt::from_mode(0o644))?;
        give(&dir.file(name))?;
    }
    // Any user may leave last words.
    std::fs::write(dir.termination(), "")?;
    give(&dir.termination())?;
    std::fs::set_permissions(dir.termination(), PermissionsExt::from_mode(0o666))
}

/// Has a shim make the container and start its program.
async fn create(this: &Arc<Inner>, dir: &RunDir) -> Result<Started, StartError> {
    let failed = |why: String| refused("RunContainerError", why);
    let mut shim = spawn(this, dir).map_err(|e| failed(format!("cannot start a shim: {e}")))?;
    let mut line = String::new();
    let mut stdout = BufReader::new(shim.stdout.take().expect("it is piped"));
    let answer = tokio::time::timeout(CREATE_TIMEOUT, stdout.read_line(&mut line)).await;
    match (answer, serde_json::from_str(line.trim())) {
        (Ok(Ok(_)), Ok(Created::Started { pid, at })) => {
            // Reaped when it ends, by whoever is its parent then.
            tokio::spawn(async move { shim.wait().await });
            return Ok(Started { pid, at });
        }
        (Ok(Ok(_)), Ok(Created::Failed { message })) => {
            let _ = shim.wait().await;
            return Err(failed(message));
        }
        _ => {}
    }
    let _ = shim.start_kill();
    let _ = shim.wait().await;
    let said = std::fs::read_to_string(dir.file("shim.log")).unwrap_or_default();
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    let said = last.into_iter().rev().collect::<Vec<_>>().join(" ");
    Err(failed(format!("the shim said nothing and ended: {said}")))
}

fn spawn(this: &Inner, dir: &RunDir) -> std::io::Result<Child> {
    let log = std::fs::File::create(dir.file("shim.log"))?;
    let mut command = Command::new(this.exe.path());
    command.arg("oci-shim").arg("create").arg(&dir.0);
    // No environment: nothing of the agent's is the container's business.
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    // Nothing is to be done between fork and exec: so it need not be a copy of the agent that executes the shim.
    crate::shim::pages::fix_addresses();
    let shim = command.spawn();
    crate::shim::pages::any_addresses();
    shim
}

/// Nothing of a run is left after it.
pub(super) fn clean_up(this: &Inner, dir: &RunDir, cgroup: &Path) {
    this.cgroups.kill(cgroup);
    this.cgroups.remove(cgroup);
    remove_dir(dir);
}

pub(super) fn remove_dir(dir: &RunDir) {
    rootfs::unmount(dir);
    unmount_runc(dir);
    // What is mounted below is not the run's: it must be known to be gone.
    let done = mapped::unmount(dir).and_then(|()| std::fs::remove_dir_all(&dir.0));
    if let Err(error) = done
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot remove {}", dir.0.display());
    }
}

/// Older versions of runc execute themselves through a mount in their state, which stays if they are killed right
/// then.
fn unmount_runc(dir: &RunDir) {
    let below = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for container in below(dir.file(RUNC_STATE)) {
        for file in below(container.path()) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _hardly_ever_a_mount = rustix::mount::unmount(file.path(), flags);
        }
    }
}
