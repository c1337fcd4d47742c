//! The connection to the control plane: joined once, dialled again whenever it is lost.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rimward_tunnel::backoff;
use rimward_tunnel::call::{self, CallError};
use rimward_tunnel::close::{CloseCode, close};
use rimward_tunnel::control::{Reader, Writer};
use rimward_tunnel::dial::{self, Tunnel};
use rimward_tunnel::identity::Identity;
use rimward_tunnel::quinn::Connection;
use rimward_tunnel::wire::codec::ReadError;
use rimward_tunnel::wire::{Applied, Down, EventReport, Hello, NodeReport, StaticPods, Want};
use tokio::sync::mpsc;

use crate::desired::{Batch, Progress};
use crate::{Core, Error, TunnelError, machine, serving};

/// A connection that held this long was a good one: the next failure is the first.
const GOOD: Duration = Duration::from_secs(10);
/// Frames that are applied, and made durable, together.
const BATCH: usize = 256;
/// How long an agent that starts again may take to bring up what runs pods before it says so.
const STARTING_MAX: Duration = Duration::from_secs(10);
/// How long to wait after a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(3600);

/// Runs until the shutdown, or until something is wrong that only a person can put right.
pub(crate) async fn run(core: Arc<Core>) {
    let outcome = core.shutdown.run_until_cancelled(keep_connected(&core)).await;
    core.connection.send_replace(None);
    core.dialer.close().await;
    let outcome = match outcome {
        Some(Err(cause)) => Err(Arc::new(cause)),
        Some(Ok(())) | None => Ok(()),
    };
    core.ended.send_replace(Some(outcome));
}

async fn keep_connected(core: &Arc<Core>) -> Result<(), Error> {
    let mut trouble = Trouble::default();
    let mut identity = None;
    loop {
        let started = tokio::time::Instant::now();
        let cause = match once(core, &mut identity).await {
            Ok(gone) => {
                if started.elapsed() >= GOOD {
                    trouble = Trouble::default();
                }
                gone
            }
            Err(Error::Tunnel(cause)) if !cause.permanent() => cause.to_string(),
            Err(cause) => return Err(cause),
        };
        tokio::time::sleep(trouble.note(&cause)).await;
    }
}

/// Failures in a row. The same one again is not worth another line.
#[derive(Default)]
struct Trouble {
    failures: u32,
    last: String,
}

impl Trouble {
    fn note(&mut self, cause: &str) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if cause != self.last {
            tracing::warn!(cause, "not connected to the control plane; trying again");
            cause.clone_into(&mut self.last);
        }
        backoff::wait(self.failures, rand::random())
    }
}

/// One connection from its beginning to its end; answers why it ended.
async fn once(core: &Arc<Core>, identity: &mut Option<Identity>) -> Result<String, Error> {
    let current = match identity.take() {
        Some(identity) => identity,
        None => joined(core).await?,
    };
    started(core).await;
    let hello = {
        // What the connection before was still applying is part of what is held.
        let _quiet = core.applying.lock().await;
        hello(core)
    };
    let tunnel = match core.dialer.open(&current, &hello).await {
        // The token that let the node in at first may do so again: the name is this key's.
        Err(TunnelError::Expired(cause)) if core.config.token.is_some() => {
            tracing::warn!(cause, "joining anew with the token");
            *identity = Some(join(core).await?);
            return Ok("the certificate was replaced".into());
        }
        other => other.inspect_err(|_| *identity = Some(current.clone()))?,
    };
    tracing::info!(
        server = core.dialer.server(),
        pod_cidr = tunnel.welcome.pod_cidr,
        "connected to the control plane"
    );
    let connection = tunnel.connection.clone();
    core.connection.send_replace(Some(connection.clone()));
    let (ended, renewed) = session(core, current, tunnel, hello.node).await;
    core.connection.send_replace(None);
    *identity = Some(renewed);
    if let Err(cause) = ended {
        close(&connection, CloseCode::Malformed, &cause);
        return Ok(cause);
    }
    let Some(reason) = connection.close_reason() else {
        let cause = "the control plane ended the session";
        close(&connection, CloseCode::Stopping, cause);
        return Ok(cause.into());
    };
    match core.dialer.explain(&reason, false) {
        cause if cause.permanent() => Err(cause.into()),
        cause => Ok(cause.to_string()),
    }
}

/// An agent that starts again knows from its ledger what it needs to run pods, and has its say when it does: a
/// node that called itself not ready for the moment of a restart would be tainted, and lose pods that do not
/// tolerate that.
async fn started(core: &Core) {
    if core.welcome.borrow().is_some() && core.desired.is_synced() {
        let mut parts = core.parts.subscribe();
        let _it_says_that_it_is_starting =
            tokio::time::timeout(STARTING_MAX, parts.wait_for(Option::is_some)).await;
    }
}

/// This node's identity: from its directory, or by joining.
async fn joined(core: &Core) -> Result<Identity, Error> {
    let Some(identity) = core.identity.load().map_err(TunnelError::from)? else {
        return join(core).await;
    };
    if identity.holder.node != core.config.name {
        return Err(Error::OtherName {
            held: identity.holder.node,
            asked: core.config.name.clone(),
            path: core.config.data_dir.join("pki"),
        });
    }
    Ok(identity)
}

async fn join(core: &Core) -> Result<Identity, Error> {
    let token = core.config.token.as_ref().ok_or(Error::NotJoined)?;
    let identity =
        core.dialer.join(token, &core.config.name, &core.config.version, &core.identity).await?;
    tracing::info!(node = core.config.name, not_after = %identity.holder.not_after, "joined the cluster");
    Ok(identity)
}

fn hello(core: &Core) -> Hello {
    Hello {
        protocol_min: rimward_tunnel::PROTOCOL_MIN,
        protocol_max: rimward_tunnel::PROTOCOL,
        version: core.config.version.clone(),
        node: describe(core),
        held: core.desired.digests(),
    }
}

/// This node's view of itself, JSON.
fn describe(core: &Core) -> Vec<u8> {
    let ready = core.parts.borrow().is_some() && core.desired.is_synced();
    let images = core.images.borrow().clone();
    let node = machine::describe(&core.config, core.dialer.server(), ready, &core.pressure, images);
    serde_json::to_vec(&node).expect("a Node has only string keys")
}

/// Serves a connection until it ends. An error is what the other end did wrong. The identity comes
/// back, perhaps renewed.
async fn session(
    core: &Arc<Core>,
    mut identity: Identity,
    tunnel: Tunnel,
    described: Vec<u8>,
) -> (Result<(), String>, Identity) {
    let Tunnel { connection, welcome, writer, reader } = tunnel;
    let told = welcome.clone();
    let ledger = core.desired.ledger().clone();
    match tokio::task::spawn_blocking(move || ledger.set_welcome(&told)).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => tracing::error!(%cause, "the ledger cannot be written"),
        Err(cause) => tracing::error!(%cause, "the ledger's task failed"),
    }
    core.welcome.send_replace(Some(welcome));
    core.reports.resend();
    let (frames, queued) = mpsc::channel(64);
    let outcome = tokio::select! {
        outcome = hear(core, reader, frames) => outcome,
        () = tell(core, writer, queued, described) => Ok(()),
        () = serve(core, &connection) => Ok(()),
        () = renew(core, &connection, &mut identity) => Ok(()),
    };
    (outcome, identity)
}

/// Frames that `hear` wants sent.
enum Answer {
    Want(Want),
    Applied(u64),
}

/// The way down.
async fn hear(
    core: &Arc<Core>,
    mut reader: Reader<Down>,
    answers: mpsc::Sender<Answer>,
) -> Result<(), String> {
    let mut progress = Progress::default();
    loop {
        let mut next = match reader.next().await {
            Ok(Some(frame)) => Some(frame),
            Ok(None) | Err(ReadError::Io(_)) => return Ok(()),
            Err(ReadError::Malformed(cause)) => return Err(cause.to_string()),
        };
        let mut batch = Batch::default();
        let mut revision = None;
        let mut frames = 0;
        while let Some(frame) = next.take() {
            match frame {
                Down::Welcome(_) => return Err("it said welcome twice".into()),
                Down::Ack(ack) => core.reports.acknowledged(&ack.seqs),
                Down::Delta(delta) => {
                    revision = Some(delta.revision);
                    batch.add(delta);
                }
                Down::Offer(offer) => {
                    revision = Some(offer.revision);
                    for want in core.desired.compare(offer, &mut batch, &mut progress) {
                        let _the_session_ends_then = answers.send(Answer::Want(want)).await;
                    }
                }
                Down::Synced(synced) => {
                    revision = Some(synced.revision);
                    progress.told();
                }
            }
            frames += 1;
            if frames < BATCH {
                next = reader.buffered().map_err(|e| e.to_string())?;
            }
        }
        let Some(revision) = revision else { continue };
        progress = apply(core, batch, progress).await?;
        let _the_session_ends_then = answers.send(Answer::Applied(revision)).await;
    }
}

/// Applies off the runtime's threads: the ledger waits for the disk.
async fn apply(core: &Core, batch: Batch, mut progress: Progress) -> Result<Progress, String> {
    let desired = core.desired.clone();
    // Held until the work is done, also when nobody waits for it any more.
    let applying = core.applying.clone().lock_owned().await;
    let applied = tokio::task::spawn_blocking(move || {
        let _applying = applying;
        desired.apply(batch, &mut progress)?;
        if progress.complete() {
            desired.complete()?;
        }
        Ok::<_, crate::LedgerError>(progress)
    });
    match applied.await {
        Ok(Ok(progress)) => Ok(progress),
        Ok(Err(cause)) => {
            tracing::error!(%cause, "the ledger cannot be written; nothing new is started");
            Err("the node's ledger cannot be written".into())
        }
        Err(cause) => Err(format!("the node could not apply a change: {cause}")),
    }
}

/// The way up. `described` is what the hello said of the node.
async fn tell(
    core: &Arc<Core>,
    mut writer: Writer,
    mut answers: mpsc::Receiver<Answer>,
    mut described: Vec<u8>,
) {
    let mut images = core.images.subscribe();
    let mut parts = core.parts.subscribe();
    let mut synced = core.desired.watch_synced();
    // What changed since the hello wakes nobody: the node may have become ready in between.
    tell_node(core, &mut writer, &mut described);
    if writer.flush().await.is_err() {
        return;
    }
    let mut pressure = core.pressure.changes();
    let mut statics = core.statics.changes();
    // What is not ready to say which pods it has says so later, and nothing that would take them away.
    statics.mark_changed();
    loop {
        tokio::select! {
            answer = answers.recv() => match answer {
                Some(answer) => push_answer(&mut writer, &answer),
                None => return,
            },
            () = core.reports.ready() => {
                let reports = core.reports.take().await;
                reports.statuses.iter().for_each(|report| writer.push(report));
                reports.events.into_iter().for_each(|event| writer.push(&EventReport { event }));
            }
            Ok(()) = statics.changed(), if parts.borrow().is_some() => {
                writer.push(&StaticPods { pods: core.statics.mirrors() });
            }
            Ok(()) = pressure.changed() => tell_node(core, &mut writer, &mut described),
            Ok(()) = images.changed() => tell_node(core, &mut writer, &mut described),
            Ok(()) = parts.changed() => tell_node(core, &mut writer, &mut described),
            Ok(()) = synced.changed() => tell_node(core, &mut writer, &mut described),
        }
        while let Ok(answer) = answers.try_recv() {
            push_answer(&mut writer, &answer);
        }
        if writer.flush().await.is_err() {
            return;
        }
    }
}

fn push_answer(writer: &mut Writer, answer: &Answer) {
    match answer {
        Answer::Want(want) => writer.push(want),
        Answer::Applied(revision) => writer.push(&Applied { revision: *revision }),
    }
}

fn tell_node(core: &Core, writer: &mut Writer, described: &mut Vec<u8>) {
    let now = describe(core);
    if now != *described {
        writer.push(&NodeReport { node: now.clone() });
        *described = now;
    }
}

/// What the control plane asks for, each in a task of its own.
async fn serve(core: &Arc<Core>, connection: &Connection) {
    while let Ok(opened) = call::accept(connection).await {
        tokio::spawn(serving::one(core.clone(), opened));
    }
}

/// Asks for the next certificate when it is time.
async fn renew(core: &Core, connection: &Connection, identity: &mut Identity) {
    loop {
        let wait = identity.holder.renew_at().duration_since(Timestamp::now());
        tokio::time::sleep(Duration::try_from(wait).unwrap_or(Duration::ZERO)).await;
        match dial::renew(connection, &core.config.name, &core.identity).await {
            Ok(next) => {
                tracing::info!(not_after = %next.holder.not_after, "renewed this node's certificate");
                *identity = next;
            }
            Err(CallError::Broken(cause)) if connection.close_reason().is_some() => {
                return tracing::debug!(cause, "the connection went during a renewal");
            }
            Err(cause) => {
                tracing::warn!(%cause, not_after = %identity.holder.not_after, "cannot renew this node's certificate");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}
