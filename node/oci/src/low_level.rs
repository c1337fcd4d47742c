//! What makes containers of what the OCI runtime specification says: libcontainer, which is in this program, or
//! runc, which the machine has.
//!
//! It is chosen once for each container, and kept with it: commands are run in it by what made it. All else is
//! the shim's either way.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

/// What makes a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LowLevel {
    #[default]
    Libcontainer,
    Runc(Runc),
}

/// A runc program that was asked what it can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runc {
    program: PathBuf,
    recursive_read_only: bool,
}

/// Why there is no runc to be used.
#[derive(Debug, thiserror::Error)]
pub enum NoRunc {
    #[error("there is no program `runc` in {path:?}")]
    NotInPath { path: String },
    #[error("cannot run {}: {cause}", program.display())]
    NotThere { program: PathBuf, cause: std::io::Error },
    #[error("{} does not say what it can do ({said}): runc 1.1 or newer is needed", program.display())]
    TooOld { program: PathBuf, said: String },
    #[error("{} was built without seccomp: containers could not be confined", program.display())]
    NoSeccomp { program: PathBuf },
}

/// Where system programs are, also for a service that was given no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A part of what `runc features` says.
/// <https://github.com/opencontainers/runtime-spec/blob/main/features.md>
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Features {
    mount_options: Vec<String>,
    linux: OfLinux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OfLinux {
    seccomp: OfSeccomp,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OfSeccomp {
    enabled: bool,
}

impl Runc {
    /// The program at `path`; without one that which PATH names, or which is where system programs are.
    ///
    /// # Errors
    /// When there is none, or one that cannot do what containers here need.
    pub fn find(path: Option<&Path>) -> Result<Self, NoRunc> {
        let program = match path {
            // The shim looks from elsewhere.
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            None => in_path()?,
        };
        let output = Command::new(&program).arg("features").output();
        let output = match output {
            Ok(output) => output,
            Err(cause) => return Err(NoRunc::NotThere { program, cause }),
        };
        let Ok(features) = serde_json::from_slice::<Features>(&output.stdout) else {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("nothing").to_owned();
            return Err(NoRunc::TooOld { program, said });
        };
        if !features.linux.seccomp.enabled {
            return Err(NoRunc::NoSeccomp { program });
        }
        let recursive_read_only = features.mount_options.iter().any(|option| option == "rro");
        Ok(Self { program, recursive_read_only })
    }

    /// Absolute.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

fn in_path() -> Result<PathBuf, NoRunc> {
    let own = std::env::var("PATH").unwrap_or_default();
    let path = if own.is_empty() { PATH.to_owned() } else { format!("{own}:{PATH}") };
    let found = std::env::split_paths(&path).map(|dir| dir.join("runc")).find(|file| {
        file.is_absolute() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
    });
    found.ok_or(NoRunc::NotInPath { path })
}

impl LowLevel {
    /// Whether it can make what is mounted below a read-only mount read-only too (`rro`), where the kernel can.
    pub(crate) fn makes_all_read_only(&self) -> bool {
        match self {
            Self::Libcontainer => true,
            Self::Runc(runc) => runc.recursive_read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[track_caller]
    fn check(script: &str, expected: Result<bool, &str>) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runc");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        match (Runc::find(Some(&program)), expected) {
            (Ok(found), Ok(recursive)) => {
                assert_eq!(found, Runc { program, recursive_read_only: recursive });
            }
            (Err(error), Err(part)) => {
                let text = error.to_string();
                assert!(text.contains(part) && text.contains(program.to_str().unwrap()), "{text}");
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn it_says_what_it_can_do() {
        let said = |options: &str, seccomp: bool| {
            format!(
                "echo '{{\"ociVersionMin\": \"1.0.0\", \"mountOptions\": {options}, \"linux\": {{\"seccomp\": {{\"enabled\": {seccomp}}}}}}}'"
            )
        };
        check(&said("[\"ro\", \"rro\"]", true), Ok(true));
        check(&said("[\"ro\"]", true), Ok(false));
        check(&said("[]", false), Err("built without seccomp"));
        check(
            "echo 'No help topic for features' >&2; exit 3",
            Err("(No help topic for features): runc 1.1"),
        );
        let none = Runc::find(Some(Path::new("/nosuch/runc"))).unwrap_err().to_string();
        assert_eq!(none, "cannot run /nosuch/runc: No such file or directory (os error 2)");
    }
}
