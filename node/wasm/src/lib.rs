//! Runs WebAssembly for pods: [`rimward_node_pod::runtime::Runtime`] on wasmtime.
//!
//! Guests never run in the agent. The agent starts this same binary again as `wasm-host`
//! ([`host_main`]), a process of its own session and, under root, of an unprivileged user; it is
//! told what to run over a Unix socket. A host outlives its agent, and the next agent finds it by
//! that socket. What a component exports decides what it is: a `wasi:http` handler has no instance
//! until a request comes, a `wasi:cli/run` command or a preview-1 module is a task that lives until
//! it ends.
//!
//! Machine code is made once per image by a third, limited process, `wasm-compile`
//! ([`compile_main`]), and kept in a cache that only the agent writes.
//!
//! What it refuses to do: pull or verify images, give addresses, restart anything, know Kubernetes
//! objects, or run a guest whose imports it cannot satisfy.
//!
//! Reading order: [`Config`], `protocol` (what agent and host say to each other), `agent` (the
//! Runtime), `artifact` and `compile` (machine code and its cache), `engine`, then `host`.

mod address;
mod agent;
mod artifact;
mod compile;
mod config;
mod engine;
mod host;
mod protocol;

pub use address::AddressMap;
pub use agent::WasmRuntime;
pub use compile::compile_main;
pub use config::Config;
pub use host::host_main;

/// Does the work of `wasm-host` or `wasm-compile` when this process was started as one: to be called
/// before any thread is started. None in an ordinary process.
pub fn reexecuted() -> Option<std::process::ExitCode> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("wasm-host") => Some(host_main(args)),
        Some("wasm-compile") => Some(compile_main(args)),
        _ => None,
    }
}
