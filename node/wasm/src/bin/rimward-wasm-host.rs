//! The subcommands of the `rimward` binary that this crate is, alone: for its tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("wasm-host") => rimward_node_wasm::host_main(args),
        Some("wasm-compile") => rimward_node_wasm::compile_main(args),
        _ => {
            eprintln!("usage: rimward-wasm-host wasm-host|wasm-compile …");
            ExitCode::FAILURE
        }
    }
}
