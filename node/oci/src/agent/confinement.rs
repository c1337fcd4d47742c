//! What a container may not do, decided before anything is touched, and said to whoever sees to it: the shim for
//! libcontainer, `config.json` for runc.

use std::path::{Component, Path};

use rimward_node_pod::runtime::{ContainerSpec, Seccomp, StartError};
use serde_json::Value;

use super::refused;
use crate::capabilities;
use crate::config::Config;
use crate::layout::Confinement;
use crate::low_level::LowLevel;
use crate::seccomp_profile::{self, Machine};
use crate::spec::rights::{self, Rights};

pub(super) struct Confined {
    pub by_shim: Confinement,
    pub by_spec: Option<Rights>,
}

/// # Errors
/// Names what is not known, or the profile that cannot be had.
pub(super) fn of(
    config: &Config,
    spec: &ContainerSpec,
    low_level: &LowLevel,
) -> Result<Confined, StartError> {
    let set = capabilities::of(&spec.linux, capabilities::available());
    let capabilities = set.map_err(|why| refused("CreateContainerConfigError", why))?;
    let dir = &config.seccomp_dir;
    let confined = match low_level {
        LowLevel::Libcontainer => by_shim(dir, &spec.linux.seccomp, capabilities)
            .map(|by_shim| Confined { by_shim, by_spec: None }),
        LowLevel::Runc(_) => by_spec(dir, &spec.linux.seccomp, capabilities).map(|seccomp| {
            let rights = Rights { capabilities, seccomp, first_user: None, files: files() };
            Confined { by_shim: Confinement::default(), by_spec: Some(rights) }
        }),
    };
    confined.map_err(|why| refused("CreateContainerError", why))
}

fn by_shim(dir: &Path, seccomp: &Seccomp, capabilities: u64) -> Result<Confinement, String> {
    let profile = match seccomp {
        Seccomp::Localhost(name) => Some(load(dir, name, |text| {
            seccomp_profile::compile(text, &Machine::this(capabilities))
        })?),
        Seccomp::RuntimeDefault | Seccomp::Unconfined => None,
    };
    Ok(Confinement { capabilities, seccomp: *seccomp == Seccomp::RuntimeDefault, profile })
}

fn by_spec(dir: &Path, seccomp: &Seccomp, capabilities: u64) -> Result<Option<Value>, String> {
    Ok(match seccomp {
        Seccomp::Localhost(name) => Some(load(dir, name, |text| {
            seccomp_profile::resolve(text, &Machine::this(capabilities))
        })?),
        Seccomp::RuntimeDefault => Some(rights::runtime_default(capabilities)),
        Seccomp::Unconfined => None,
    })
}

/// Open files that this process may have, and with it what it starts.
fn files() -> (u64, u64) {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    (limits.current.unwrap_or(u64::MAX), limits.maximum.unwrap_or(u64::MAX))
}

/// In the words that other runtimes have for it.
fn load<T>(
    dir: &Path,
    name: &str,
    read: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, String> {
    let path = dir.join(name);
    let failed = |why: String| format!("cannot load seccomp profile {:?}: {why}", path.display());
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !inside {
        return Err(failed("it must be a path below the node's directory of profiles".into()));
    }
    let text = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            failed(format!("open {}: no such file or directory", path.display()))
        }
        _ => failed(e.to_string()),
    })?;
    read(&text).map_err(failed)
}
