//! The subcommand of the `rimward` binary that this crate is, alone: for its tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    rimward_node_oci::reexecuted().unwrap_or_else(|| {
        eprintln!("usage: rimward-oci-shim oci-shim create|exec …");
        ExitCode::FAILURE
    })
}
