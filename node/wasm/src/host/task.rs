//! `wasi:cli` commands and preview-1 modules: one instance, until it ends.
//!
//! A guest cannot see SIGTERM, so waiting for it to act on one would only take time: stopping a task
//! ends it at once, with 143. A trap ends it with 134, as abort() would end a process.

use std::sync::Arc;

use rimward_node_pod::runtime::Exit;
use tokio_util::sync::CancellationToken;
use wasmtime::{Engine, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::cpu::{Metered, Ticker};
use super::guest::{Container, Io, over_limit};
use super::program::Program;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
const SIGABRT: i32 = 6;
/// Enough to find the place; the log has room for more than a pod's status.
const FRAMES_MAX: usize = 8;
const MESSAGE_BYTES_MAX: usize = 2048;

/// Runs a task to its end, or to `stop`.
pub(crate) async fn run(
    container: Arc<Container>,
    program: Arc<Program>,
    engine: Engine,
    ticker: Arc<Ticker>,
    started_at: jiff::Timestamp,
    stop: CancellationToken,
) -> Exit {
    let guest = call(container.clone(), program, engine, None);
    let guest = Metered::new(guest, container.cpu.clone(), ticker);
    let exit = exit(ended(guest, &stop).await, started_at);
    if exit.code == 128 + SIGABRT {
        container.log.note(&format!("rimward: {}", exit.message));
    }
    container.log.flushed().await;
    exit
}

/// Runs a command beside it, with streams of its own, to its end or to `stop`.
pub(crate) async fn exec(
    container: Arc<Container>,
    program: Arc<Program>,
    engine: Engine,
    ticker: Arc<Ticker>,
    io: Io,
    stop: CancellationToken,
) -> Exit {
    let started_at = jiff::Timestamp::now();
    let (stdout, stderr) = (io.stdout.clone(), io.stderr.clone());
    let guest = call(container.clone(), program, engine, Some(io));
    let guest = Metered::new(guest, container.cpu.clone(), ticker);
    let exit = exit(ended(guest, &stop).await, started_at);
    if exit.code == 128 + SIGABRT {
        stderr.put(format!("rimward: {}\n", exit.message).as_bytes());
    }
    stdout.end();
    stderr.end();
    exit
}

/// None: it was stopped.
async fn ended(
    guest: impl Future<Output = wasmtime::Result<Result<(), ()>>>,
    stop: &CancellationToken,
) -> Option<wasmtime::Result<Result<(), ()>>> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        result = guest => Some(result),
    }
}

/// The guest's own word on how it went: Err(()) is a failure without a code.
async fn call(
    container: Arc<Container>,
    program: Arc<Program>,
    engine: Engine,
    io: Option<Io>,
) -> wasmtime::Result<Result<(), ()>> {
    let io = io.as_ref();
    match &*program {
        Program::Command(program) => {
            let mut store = container.store_with(&engine, io)?;
            let command = program.instantiate_async(&mut store).await?;
            command.wasi_cli_run().call_run(&mut store).await
        }
        Program::CommandP3(program) => {
            let mut store = container.store_with(&engine, io)?;
            let command = program.instantiate_async(&mut store).await?;
            store
                .run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await)
                .await?
        }
        Program::Preview1(program) => {
            let mut store = container.preview1_store(&engine, io)?;
            let instance = program.instantiate_async(&mut store).await?;
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            start.call_async(&mut store, ()).await.map(Ok)
        }
        Program::Handler(_) | Program::HandlerP3(_) => unreachable!("handlers are served, not run"),
    }
}

/// None: it was stopped.
fn exit(ended: Option<wasmtime::Result<Result<(), ()>>>, started_at: jiff::Timestamp) -> Exit {
    let (code, signal, reason, message) = match ended {
        None => (128 + SIGTERM, Some(SIGTERM), "Error", String::new()),
        Some(Ok(Ok(()))) => (0, None, "Completed", String::new()),
        Some(Ok(Err(()))) => (1, None, "Error", String::new()),
        Some(Err(error)) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(0)) => (0, None, "Completed", String::new()),
            // As the kernel has it: the low byte.
            Some(I32Exit(code)) => (code & 0xff, None, "Error", String::new()),
            None => match over_limit(&error) {
                Some(over) => (128 + SIGKILL, Some(SIGKILL), "OOMKilled", over.to_string()),
                None => (128 + SIGABRT, None, "Error", describe(&error)),
            },
        },
    };
    let finished_at = jiff::Timestamp::now();
    Exit { code, signal, reason: reason.into(), message, started_at, finished_at }
}

/// A trap in words: what it was, and where.
pub(crate) fn describe(error: &wasmtime::Error) -> String {
    let mut text = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        for frame in backtrace.frames().iter().take(FRAMES_MAX) {
            text.push_str("\n  at ");
            text.push_str(frame.func_name().unwrap_or("an unnamed function"));
        }
    }
    if text.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::ledger::OverLimit;
    use super::*;

    #[track_caller]
    fn check_exit(
        ended: Option<wasmtime::Result<Result<(), ()>>>,
        code: i32,
        reason: &str,
        message: &str,
    ) {
        let exit = exit(ended, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!((exit.code, exit.reason.as_str()), (code, reason));
        assert!(exit.message.contains(message), "{}", exit.message);
    }

    #[test]
    fn how_a_guest_ends_is_how_a_container_ends() {
        check_exit(None, 143, "Error", "");
        check_exit(Some(Ok(Ok(()))), 0, "Completed", "");
        check_exit(Some(Ok(Err(()))), 1, "Error", "");
        check_exit(Some(Err(I32Exit(0).into())), 0, "Completed", "");
        check_exit(Some(Err(I32Exit(42).into())), 42, "Error", "");
        check_exit(Some(Err(I32Exit(-1).into())), 255, "Error", "");
        check_exit(Some(Err(OverLimit { limit: 7 }.into())), 137, "OOMKilled", "limit of 7 bytes");
        let error = wasmtime::Error::from(OverLimit { limit: 7 }).context("while growing");
        check_exit(Some(Err(error)), 137, "OOMKilled", "");
        check_exit(Some(Err(Trap::UnreachableCodeReached.into())), 134, "Error", "unreachable");
    }
}
