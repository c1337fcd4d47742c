//! `rimward`: one binary, a page. What each command does lives in the crates; this file says which runs.

mod cli;
mod commands;
mod kubeconfig;
mod memory;
mod remote;
mod shutdown;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // Wasm hosts, compilers and containers' shims are this binary again: they must start before any thread
    // does.
    #[cfg(feature = "node")]
    if let Some(code) = rimward_node_wasm::reexecuted().or_else(rimward_node_oci::reexecuted) {
        return code;
    }
    memory::give_back_what_is_free();
    let cli = Cli::parse();
    cli.start_log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return cli::fail(&anyhow::Error::from(error).context("cannot start threads"));
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            #[cfg(all(feature = "control", feature = "node"))]
            Command::Up(args) => commands::up::run(*args).await,
            #[cfg(feature = "control")]
            Command::Control(args) => commands::control::run(args).await,
            #[cfg(feature = "node")]
            Command::Node(args) => commands::node::run(args).await,
            #[cfg(feature = "control")]
            Command::Token(args) => commands::token::run(args).await,
            Command::Image(args) => commands::image::run(args).await,
            Command::Version => {
                println!("rimward {} (serves Kubernetes v1.36)", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
        }
    });
    // Reads of a terminal or a stuck file system must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}
