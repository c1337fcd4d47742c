//! A list of every pod: as JSON, compressed, and as kubectl's Table.

use std::time::Instant;

use anyhow::ensure;

use super::PODS;
use crate::Setup;
use crate::cluster::Server;
use crate::process::cpu_seconds;
use crate::row::{Row, Target, percentile};

const TIMES: usize = 5;
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub async fn rows(setup: &Setup, server: &Server) -> anyhow::Result<Vec<Row>> {
    let forms: [(&str, &[(&str, &str)]); 3] =
        [("JSON", &[]), ("gzip", &[("accept-encoding", "gzip")]), ("Table", &[("accept", TABLE)])];
    let api = server.door.connect().await?;
    let mut rows = Vec::new();
    for (form, headers) in forms {
        let (mut times, mut size) = (Vec::new(), 0);
        let cpu = cpu_seconds(server.pid())?;
        for _ in 0..TIMES {
            let begun = Instant::now();
            let answer = api.read(PODS, headers).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            size = answer.len();
            ensure!(
                size > setup.objects * 20,
                "a list of {} pods has only {size} bytes",
                setup.objects
            );
            ensure!(
                (form == "gzip") == answer.starts_with(&[0x1f, 0x8b]),
                "the list was not answered as {form}"
            );
        }
        let cpu = (cpu_seconds(server.pid())? - cpu) / TIMES as f64 * 1e3;
        let how =
            format!("median of {TIMES}; {:.1} MB, {cpu:.0} ms of server CPU", size as f64 / 1e6);
        let what = format!("API list of {} pods, {form}", setup.objects);
        rows.push(Row::new(what, percentile(&mut times, 0.5), "ms", Target::None, how));
    }
    Ok(rows)
}
