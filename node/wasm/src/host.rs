//! `wasm-host`: the process that guests run in.
//!
//! The agent starts it, tells it what to run over a Unix socket, and may go away and come back:
//! nothing here ends when a connection does. It is its own session, under root it becomes another
//! user, and it works in the node's directory, whose parents it cannot read. What it knows of runs
//! it knows in memory only; if it crashes its pods' containers are gone, and the agent says so.
//!
//! Handlers run on one pool of threads, tasks on another: a task that burns its core competes with
//! handlers by the kernel's scheduler, not for a place in their queue.

mod cpu;
mod guest;
mod handler;
mod interfaces;
mod ledger;
mod log;
mod pipe;
pub(crate) mod privileges;
mod program;
mod resolver;
mod runs;
pub(crate) mod seccomp;
mod serve;
mod session;
mod slots;
mod task;
pub(crate) mod version;

use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::address::AddressMap;

/// What the agent tells a host at its start. No secrets: it is an argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Names the socket, the cgroup and the log: `shared-65532`, `pod-<uid>`.
    pub name: String,
    pub data_dir: PathBuf,
    pub netns: Option<PathBuf>,
    /// The pod's own namespace: nobody else is in it.
    pub own_netns: bool,
    /// For one pod: it ends soon after its pod.
    pub isolated: bool,
    /// None: stay who we are.
    pub user: Option<HostUser>,
    pub user_mode: bool,
    pub ca_bundle: Option<PathBuf>,
    pub allow_p3: bool,
    pub address_map: Vec<AddressMap>,
    pub slots: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct HostUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Settings {
    /// Below the data directory, which the host works in.
    pub fn socket(name: &str) -> PathBuf {
        PathBuf::from("run").join(format!("{name}.sock"))
    }
}

/// The `wasm-host` subcommand; `args` come after its name. Call it before any thread exists. It
/// prints `ready` when its socket listens, or one line to stderr and fails.
pub fn host_main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let settings = args.into_iter().next().ok_or_else(|| "usage: wasm-host SETTINGS".to_owned());
    let settings = settings.and_then(|text| {
        serde_json::from_str(&text).map_err(|error| format!("wasm-host's settings: {error}"))
    });
    match settings.and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings) -> Result<(), String> {
    let settings = Arc::new(settings);
    let listener = confine(&settings)?;
    // The pool is made while /proc/self is still ours to read: it looks for PAGEMAP_SCAN there.
    let (engine, slots) = crate::engine::host(settings.slots)
        .map_err(|error| format!("cannot set wasmtime up: {error:#}"))?;
    if let Some(user) = &settings.user {
        privileges::become_user(user.uid, user.gid, &user.groups)
            .map_err(|error| format!("cannot become user {}: {error}", user.uid))?;
    }
    privileges::no_new_privileges();
    // A host that cannot be confined does not run guests.
    seccomp::confine(seccomp::Work::Host)?;

    // From here on there are threads.
    let no_threads = |error: std::io::Error| format!("cannot start threads: {error}");
    let handlers = runtime("handlers").map_err(no_threads)?;
    let tasks = runtime("tasks").map_err(no_threads)?;
    let host = runs::Host::new(settings, engine, slots, tasks.handle().clone())?;
    println!("ready");
    handlers.block_on(serve::serve(host, listener));
    handlers.shutdown_background();
    tasks.shutdown_background();
    Ok(())
}

/// Everything that needs root or a single thread, but for the user change itself.
fn confine(settings: &Settings) -> Result<UnixListener, String> {
    std::env::set_current_dir(&settings.data_dir)
        .map_err(|error| format!("cannot work in {}: {error}", settings.data_dir.display()))?;
    let path = Settings::socket(&settings.name);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(|error| {
        format!("cannot listen on {}: {error}", settings.data_dir.join(&path).display())
    })?;
    let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, only_us)
        .map_err(|error| format!("cannot close {} to others: {error}", path.display()))?;
    privileges::raise_open_files();
    privileges::own_cgroup(&settings.name);
    if let Some(netns) = &settings.netns {
        privileges::enter_netns(netns).map_err(|error| {
            format!("cannot enter the network namespace {}: {error}", netns.display())
        })?;
    }
    Ok(listener)
}

fn runtime(name: &str) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(name)
        // Guests are polled for up to a millisecond: look at sockets often between polls.
        .event_interval(7)
        .global_queue_interval(7)
        .build()
}

/// Addresses as this host sees them, for a pod at `bind_ip`.
fn addresses(
    settings: &Settings,
    bind_ip: IpAddr,
    first_free_port: u16,
) -> crate::address::Addresses {
    crate::address::Addresses {
        bind_ip,
        own_netns: settings.own_netns,
        user_mode: settings.user_mode,
        maps: settings.address_map.clone(),
        first_free_port,
    }
}
