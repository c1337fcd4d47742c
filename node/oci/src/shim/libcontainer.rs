//! libcontainer, in this process. It enters namespaces and cgroups; what a program may do is seen to by
//! [`Program`], the last step.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::Deserialize;

use super::low_level::{Maker, Streams};
use super::program::{OneOf, Program};
use super::{chain, pipe};
use crate::layout::{CONTAINER_ID, RunDir, Settings, Started};

pub(super) struct Libcontainer<'a> {
    pub dir: &'a RunDir,
    pub settings: &'a Settings,
}

impl Maker for Libcontainer<'_> {
    fn create(
        &self,
        streams: Streams,
        made: &dyn Fn(i32) -> Result<(), String>,
    ) -> Result<i32, String> {
        let (status, status_end) = pipe().map_err(|e| format!("pipe: {e}"))?;
        let program = Program::new(&self.settings.confinement, status_end.as_raw_fd(), false)?;
        let builder = self.builder(program, streams)?;
        let built = builder.as_init(&self.dir.0).with_systemd(false).with_detach(true).build();
        drop(status_end);
        let mut container = match built {
            Ok(container) => container,
            Err(error) => return Err(nearest(status, chain(&error))),
        };
        let pid = container.pid().ok_or("libcontainer does not know the container's process")?;
        made(pid.as_raw())?;
        container.start().map_err(|e| chain(&e))?;
        executed(status)?;
        Ok(pid.as_raw())
    }

    fn exec(&self, process: &str, streams: Streams) -> Result<i32, String> {
        let text = |e: std::io::Error| e.to_string();
        let terminal = matches!(streams, Streams::Terminal(_));
        let (status, status_end) = pipe().map_err(text)?;
        let users = self.settings.users.as_ref().map(File::open).transpose().map_err(text)?;
        let one_of = match &users {
            Some(users) => Some(one_of(self.dir, process, users.as_raw_fd())?),
            None => None,
        };
        let program = Program::new(&self.settings.confinement, status_end.as_raw_fd(), true)?;
        let builder = self.builder(program.become_one_of(one_of), streams)?;
        let process = self.dir.file(process);
        let built = builder
            .as_tenant()
            .with_process(Some(&process))
            .with_sub_cgroup(below(self.dir))
            .with_detach(terminal)
            .build();
        drop(status_end);
        let pid = match built {
            Ok(pid) => pid.as_raw(),
            Err(error) => return Err(nearest(status, chain(&error))),
        };
        executed(status)?;
        Ok(pid)
    }
}

impl Libcontainer<'_> {
    fn builder(&self, program: Program, streams: Streams) -> Result<ContainerBuilder, String> {
        let builder = ContainerBuilder::new(CONTAINER_ID.into(), SyscallType::default())
            .with_root_path(self.dir.file("lc"))
            .map_err(|e| chain(&e))?
            .with_executor(program);
        Ok(match streams {
            Streams::Terminal(name) => builder.with_console_socket(Some(self.dir.file(&name))),
            Streams::Three([stdin, stdout, stderr]) => {
                builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
            }
        })
    }
}

/// What the program's own start-up said is nearer to the cause than what libcontainer made of it.
fn nearest(status: OwnedFd, otherwise: String) -> String {
    executed(status).err().unwrap_or(otherwise)
}

/// Waits until the program is executed: then the last writer's descriptor was closed by that.
fn executed(status: OwnedFd) -> Result<(), String> {
    let mut said = String::new();
    let _what_is_no_text_says_nothing = File::from(status).read_to_string(&mut said);
    if said.is_empty() { Ok(()) } else { Err(said) }
}

/// Where in the container's cgroup its first process is, if not in itself: a container that hands controllers on
/// in cgroups of its own (a service manager, a container engine) can have no process in there any more (v2).
fn below(dir: &RunDir) -> Option<String> {
    let started: Started = dir.read("started.json").ok()?;
    let config: serde_json::Value = dir.read("config.json").ok()?;
    let own = config.pointer("/linux/cgroupsPath")?.as_str()?;
    let places = std::fs::read_to_string(format!("/proc/{}/cgroup", started.pid)).ok()?;
    let place = places.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = place.strip_prefix(own)?.strip_prefix('/')?;
    (!below.is_empty()).then(|| below.to_owned())
}

/// Whom the command is to run as in the namespace of the pod's own users.
fn one_of(dir: &RunDir, process: &str, users: RawFd) -> Result<OneOf, String> {
    #[derive(Deserialize)]
    struct Process {
        user: User,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct User {
        uid: u32,
        gid: u32,
        additional_gids: Vec<u32>,
    }
    let Process { user } = dir.read(process).map_err(|e| format!("{process}: {e}"))?;
    Ok(OneOf { users, uid: user.uid, gid: user.gid, groups: user.additional_gids })
}
