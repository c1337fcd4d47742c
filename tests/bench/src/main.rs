//! The numbers that the design must reach, measured on the real release binary: `scripts/bench`.
//!
//! It refuses to look inside: every measurement starts processes as an operator does and sees what a
//! client sees, or what the kernel says about the processes. One measurement runs at a time.
//!
//! Reading order: the list below, `row` (what comes out), `cluster` (what is started), `api` (the client),
//! `process` (memory and CPU as the kernel counts them), then `measure/`, one file a measurement.

mod api;
mod cluster;
mod measure;
mod process;
mod row;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use futures::future::BoxFuture;

use crate::row::{Report, Row};

/// What can be measured, in the order in which it is.
const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "start", run: |setup| Box::pin(measure::start::rows(setup)) },
    Measurement { name: "memory", run: |setup| Box::pin(measure::memory::rows(setup)) },
    Measurement { name: "pod-start", run: |setup| Box::pin(measure::pod_start::rows(setup)) },
    Measurement { name: "containers", run: |setup| Box::pin(measure::containers::rows(setup)) },
    Measurement { name: "http", run: |setup| Box::pin(measure::http::rows(setup)) },
    Measurement { name: "idle-pods", run: |setup| Box::pin(measure::idle_pods::rows(setup)) },
    Measurement { name: "api", run: |setup| Box::pin(measure::api::rows(setup)) },
    Measurement { name: "schedule", run: |setup| Box::pin(measure::schedule::rows(setup)) },
    Measurement { name: "fleet", run: |setup| Box::pin(measure::fleet::rows(setup)) },
];

struct Measurement {
    name: &'static str,
    run: for<'a> fn(&'a Setup) -> BoxFuture<'a, anyhow::Result<Vec<Row>>>,
}

/// Measures Rimward and prints one table: row, measured, target, verdict, how.
#[derive(Parser)]
struct Setup {
    /// What to measure: start, memory, pod-start, containers, http, idle-pods, api, schedule, fleet. [default: all]
    only: Vec<String>,
    /// The release binary with everything in it.
    #[arg(long)]
    rimward: PathBuf,
    /// The slim node's release binary. Without it the full one is measured, and its row says so.
    #[arg(long)]
    node: Option<PathBuf>,
    /// `wasmtime`, for `wasmtime serve`. Without it the peer's column stays empty.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// The HTTP component that is served.
    #[arg(long)]
    guest: PathBuf,
    /// Where the same numbers go as JSON.
    #[arg(long)]
    json: PathBuf,
    /// Pods that are started one after another, for the percentiles.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Containers, and commands in one, that are started one after another, for the percentiles.
    #[arg(long, default_value_t = 100)]
    container_starts: usize,
    /// Containers that run at once.
    #[arg(long, default_value_t = 200)]
    containers: usize,
    /// Pods that idle on one node.
    #[arg(long, default_value_t = 10_000)]
    idle_pods: usize,
    /// Objects in the store for the API's rows.
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
    /// Seconds that each HTTP load and each rate lasts.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let setup = Setup::parse();
    if let Some(unknown) =
        setup.only.iter().find(|name| !MEASUREMENTS.iter().any(|m| m.name == **name))
    {
        let names: Vec<&str> = MEASUREMENTS.iter().map(|m| m.name).collect();
        eprintln!("there is no measurement {unknown:?}; there are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut report = Report::default();
    for measurement in MEASUREMENTS {
        if !setup.only.is_empty() && !setup.only.iter().any(|name| name == measurement.name) {
            continue;
        }
        eprintln!("measuring {} …", measurement.name);
        match (measurement.run)(&setup).await {
            Ok(rows) => report.rows.extend(rows),
            Err(error) => report.failures.push((measurement.name, format!("{error:#}"))),
        }
        // What was measured is kept when a later measurement ends the process.
        if let Err(error) = report.write(&setup.json) {
            report.failures.push(("json", format!("{error:#}")));
        }
    }
    print!("{report}");
    // A missed target is a finding, printed; a measurement that could not be made is a failure.
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
