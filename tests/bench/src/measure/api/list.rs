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
    let mut wires = server.door.wires(1).await?;
    let wire = &mut wires[0];
    let mut rows = Vec::new();
    for (form, headers) in forms {
        let (mut times, mut size) = (Vec::new(), 0);
        let cpu = cpu_seconds(server.pid())?;
        for _ in 0..TIMES {
            let begun = Instant::now();
            let (first, read) = wire.drain(PODS, headers).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            size = read;
            ensure!(
                size > setup.objects * 20,
                "a list of {} pods has only {size} bytes",
                setup.objects
            );
            ensure!(
                (form == "gzip") == first.starts_with(&[0x1f, 0x8b]),
                "the list was not answered as {form}"
            );
        }
        let cpu = (cpu_seconds(server.pid())? - cpu) / TIMES as f64 * 1e3;
        let how =
            format!("median of {TIMES}; {:.1} MB, {cpu:.0} ms of server CPU", size as f64 / 1e6);
        let what = format!("API list of {} pods, {form}", setup.objects);
        // The peer takes 1.0 s for 31,700 pods as JSON, and up to 2.6 s in other forms.
        let peer = if form == "JSON" { 1.0 } else { 2.6 } * 1e3 / 31_700.0;
        let target = Target::AtMost((peer * setup.objects as f64 / 10.0).round());
        rows.push(Row::new(what, percentile(&mut times, 0.5), "ms", target, how));
    }
    Ok(rows)
}
