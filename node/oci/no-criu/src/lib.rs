//! Stands in for the crate `rust-criu`, which libcontainer needs for checkpoints of containers.
//!
//! Rimward takes no checkpoints. The real crate would bring a compiler of protocol buffers into the build, an
//! older rustix and a dozen crates more, and change the features of crates that everything else shares. Here
//! is what libcontainer names of it, of a type that has no values: [`Criu::new`] always refuses, so that
//! nothing else can be called.

use std::convert::Infallible;
use std::os::fd::RawFd;

#[derive(Clone)]
#[allow(clippy::upper_case_acronyms, reason = "the names are the real crate's")]
pub enum CgMode {
    IGNORE = 0,
    NONE = 1,
    PROPS = 2,
    SOFT = 3,
    FULL = 4,
    STRICT = 5,
    DEFAULT = 6,
}

#[derive(Debug)]
pub struct CriuError;

impl std::fmt::Display for CriuError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("checkpoints of containers are not offered")
    }
}

impl std::error::Error for CriuError {}

pub struct Criu(Infallible);

macro_rules! never_called {
    ($($name:ident($value:ty)),* $(,)?) => {
        impl Criu {
            $(pub fn $name(&mut self, _: $value) { match self.0 {} })*
        }
    };
}

never_called!(
    add_external(String),
    cgroups_mode(CgMode),
    set_ext_unix_sk(bool),
    set_file_locks(bool),
    set_images_dir_fd(RawFd),
    set_leave_running(bool),
    set_link_remap(bool),
    set_log_file(String),
    set_log_level(i32),
    set_manage_cgroups(bool),
    set_orphan_pts_master(bool),
    set_pid(i32),
    set_root(String),
    set_shell_job(bool),
    set_tcp_established(bool),
    set_work_dir_fd(RawFd),
);

impl Criu {
    pub fn new() -> Result<Self, CriuError> {
        Err(CriuError)
    }

    pub fn get_criu_version(&mut self) -> Result<u32, CriuError> {
        match self.0 {}
    }

    pub fn set_external_mount(&mut self, _: String, _: String) {
        match self.0 {}
    }

    pub fn dump(&mut self) -> Result<(), CriuError> {
        match self.0 {}
    }
}

pub fn criu_ns_to_key(name: &str) -> String {
    name.to_owned()
}
