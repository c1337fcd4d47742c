//! A program that prints 100 MB: how long that takes it, and whether a client that follows gets all of it.
//!
//! Its lines are numbered, so that one that is missing shows. Beside a container of runc that prints into a pipe
//! which somebody reads and throws away: that is as little as can be done with what a program prints.

use std::io::Read;

use anyhow::{Context, ensure};
use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

use super::{Bed, PODS, runc};
use crate::cluster::within;
use crate::row::{Row, Target, percentile};

const LINES: usize = 1_000_000;
/// With its end. 100 MB in all.
const LINE_BYTES: usize = 100;
const TURNS: usize = 5;

/// Prints the lines and writes down when it began and ended, in seconds.
fn program(took: &str) -> String {
    let rest = "x".repeat(LINE_BYTES - 10);
    format!(
        "read begun _ </proc/uptime; \
         awk 'BEGIN {{ for (i = 0; i < {LINES}; i++) printf \"%08d %s\\n\", i, \"{rest}\" }}'; \
         read ended _ </proc/uptime; echo $begun $ended >{took}"
    )
}

pub async fn rows(bed: &Bed<'_>, peer: &runc::Peer) -> anyhow::Result<Vec<Row>> {
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        ours.push(printed(bed, &format!("prints-{turn}"), false).await?.0);
        peers.push(printed_by_peer(peer, &format!("prints-{turn}"))?);
    }
    let (followed, read) = printed(bed, "prints-followed", true).await?;
    let (our, peer) = (percentile(&mut ours, 0.5), percentile(&mut peers, 0.5));
    Ok(vec![
        Row::new(
            "100 MB printed by a container, against a pipe that is read",
            our / peer,
            "x",
            Target::AtMost(1.1),
            format!("the program's own time: {our:.2} s, {peer:.2} s with runc; {TURNS} in turn"),
        ),
        Row::new(
            "… lines of it that a client got who followed",
            read as f64,
            "",
            Target::AtLeast(LINES as f64),
            format!("each by its number, through rotated files; the program took {followed:.2} s"),
        ),
    ])
}

/// Seconds that it took the program; and how many lines were read, in order and whole, by a follower.
async fn printed(bed: &Bed<'_>, name: &str, follow: bool) -> anyhow::Result<(f64, usize)> {
    let program = program("/dev/termination-log");
    // It begins when somebody reads, so that nothing is gone before.
    let program = format!("read _ && {{ {program}; }}");
    let container = json!({
        "command": ["/bin/sh", "-c", if follow { program } else { self::program("/dev/termination-log") }],
        "stdin": follow,
        "resources": { "requests": { "cpu": "0", "memory": "0" }, "limits": { "memory": "64Mi" } },
    });
    let mut watch = bed.watch(name).await?;
    let mut lines = 0;
    if follow {
        bed.start(name, container).await?;
        let path = format!("{PODS}/{name}/log?follow=true");
        let mut body = bed.api.send(Method::GET, &path, &[], "".into()).await?.into_body();
        let attach = format!("{PODS}/{name}/attach?stdin=true");
        let _attached = bed.server.door.attach(&attach, b"begin\n").await?;
        let mut rest = Vec::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    rest.extend_from_slice(&data);
                    let whole = rest.len() / LINE_BYTES * LINE_BYTES;
                    for line in rest[..whole].chunks(LINE_BYTES) {
                        let number = std::str::from_utf8(&line[..8]).ok();
                        let number = number.and_then(|number| number.parse::<usize>().ok());
                        ensure!(
                            number == Some(lines),
                            "line {lines} is missing in {name}'s log: {number:?} is there"
                        );
                        lines += 1;
                    }
                    rest.drain(..whole);
                }
            }
            anyhow::Ok(())
        };
        within("the end of a followed log", reading, || bed.server.process.log()).await?;
    } else {
        bed.api.create(PODS, super::pod(name, container)).await?;
    }
    let message = async {
        loop {
            let event = watch.event().await?;
            let state = &event["object"]["status"]["containerStatuses"][0]["state"];
            if let Some(message) = state["terminated"]["message"].as_str() {
                return Ok(message.to_owned());
            }
        }
    };
    let message = within("the program's end", message, || bed.server.process.log()).await?;
    bed.end(name).await?;
    Ok((seconds(&message)?, lines))
}

fn printed_by_peer(peer: &runc::Peer, name: &str) -> anyhow::Result<f64> {
    let bundle = peer.bundle(name, &["/bin/sh", "-c", &program("/tmp/took")])?;
    let (mut reader, writer) = std::io::pipe()?;
    let container = peer.run(name, &bundle, writer.into())?;
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            len => bytes += len,
        }
    }
    ensure!(bytes == LINES * LINE_BYTES, "{bytes} bytes came through the pipe");
    drop(container);
    seconds(&std::fs::read_to_string(peer.rootfs().join("tmp/took"))?)
}

fn seconds(begun_and_ended: &str) -> anyhow::Result<f64> {
    let mut times = begun_and_ended.split_whitespace().map(str::parse::<f64>);
    let mut next = || times.next().and_then(Result::ok).context("the program wrote no times");
    let (begun, ended) = (next()?, next()?);
    Ok(ended - begun)
}
