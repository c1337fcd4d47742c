//! One connected node: told what it needs, heard, served, and missed when it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, ObjectReference};
use rimward_api::{Block, ObjectKey};
use rimward_client::EventType;
use rimward_tunnel::CloseCode;
use rimward_tunnel::accept::NodeTunnel;
use rimward_tunnel::close::close;
use rimward_tunnel::control::{Reader, Writer};
use rimward_tunnel::identity::Holder;
use rimward_tunnel::quinn::Connection;
use rimward_tunnel::wire::codec::ReadError;
use rimward_tunnel::wire::{
    Ack, Delta, Digest, EventReport, Hello, ObjectKind, Offer, Synced, Up, Want, Welcome,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::mirrors::{self, Mirrors};
use crate::reports::Reports;
use crate::world::{Entry, Outbox, digest};
use crate::{Connected, Hub, Inner, registration, requests};

/// Keys that are looked up and sent together.
const BATCH: usize = 512;
/// A Delta is ended when its objects have this many bytes.
const DELTA_BYTES: usize = 256 << 10;
/// Entries of an inventory in one frame.
const OFFER_ENTRIES: usize = 100_000;
/// Acknowledgements that may wait to be sent.
const ACKS: usize = 4096;
/// When to read again what could not be read.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What a session's tasks share.
pub(crate) struct Session {
    pub hub: Hub,
    pub holder: Holder,
    pub connection: Connection,
    pub outbox: Arc<Outbox>,
    pub reports: Reports,
    pub mirrors: Mirrors,
    /// Cancelled when the connection is gone or the hub stops.
    pub over: CancellationToken,
}

impl Session {
    pub fn node(&self) -> &str {
        &self.holder.node
    }

    pub fn inner(&self) -> &Inner {
        &self.hub.inner
    }

    /// Ends the connection because the node did what it must not do. Nothing else suffers.
    pub fn expel(&self, cause: &str) {
        tracing::warn!(node = self.node(), cause, "closed a node's connection");
        close(&self.connection, CloseCode::Malformed, cause);
    }
}

/// Serves a node until it goes.
pub(crate) async fn run(hub: &Hub, tunnel: NodeTunnel) {
    let inner = &hub.inner;
    let NodeTunnel { holder, hello, protocol, connection, writer, reader } = tunnel;
    let name = holder.node.clone();
    let ready = async {
        inner.world.synced().await;
        registration::register(inner, &holder, &hello.node).await
    };
    let registered = tokio::select! {
        registered = ready => registered,
        _ = connection.closed() => return,
        () = inner.shutdown.cancelled() => return,
    };
    let (node, block) = match registered {
        Ok(registered) => registered,
        Err(cause) => {
            tracing::warn!(node = name, %cause, "refused a node");
            let code = if cause.permanent() { CloseCode::Denied } else { CloseCode::Unavailable };
            close(&connection, code, &cause.to_string());
            return;
        }
    };
    let number = enter(inner, &name, &connection, block);
    let session = Arc::new(Session {
        hub: hub.clone(),
        holder,
        connection: connection.clone(),
        outbox: inner.world.connect(&name),
        reports: Reports::default(),
        mirrors: Mirrors::default(),
        over: inner.shutdown.child_token(),
    });
    tracing::info!(node = name, version = hello.version, pod_cidr = %block, "a node is connected");
    let welcome = welcome(inner, protocol, block);
    serve(&session, hello, welcome, node.clone(), writer, reader).await;
    session.over.cancel();
    inner.world.disconnect(&name, &session.outbox);
    let heard = leave(inner, &name, number);
    tracing::info!(node = name, cause = ?connection.close_reason(), "a node is gone");
    if let Some(heard) = heard {
        registration::renew_lease(inner, &node, heard).await;
    }
}

/// Takes the node's place, from an earlier connection of it if there is one.
fn enter(inner: &Inner, name: &str, connection: &Connection, block: Block) -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    let session = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let heard = (connection.stats().udp_rx.datagrams, Timestamp::now());
    let connected = Connected { session, connection: connection.clone(), block, heard };
    if let Some(earlier) = inner.connected.lock().insert(name.to_owned(), connected) {
        close(&earlier.connection, CloseCode::Replaced, "the same node connected again");
    }
    inner.entered.notify_waiters();
    session
}

/// Answers with when the node was last heard of, unless a later connection has taken over.
fn leave(inner: &Inner, name: &str, session: u64) -> Option<Timestamp> {
    let mut connected = inner.connected.lock();
    let mine = connected.get(name).is_some_and(|c| c.session == session);
    let mut gone = mine.then(|| connected.remove(name)).flatten()?;
    gone.listen(Timestamp::now());
    Some(gone.heard.1)
}

fn welcome(inner: &Inner, protocol: u16, block: Block) -> Welcome {
    Welcome {
        protocol,
        version: inner.version.clone(),
        pod_cidr: block.to_string(),
        pod_network: inner.network.pod_network.to_string(),
        service_network: inner.network.service_network.clone(),
        cluster_dns: inner.network.cluster_dns.clone(),
        cluster_domain: inner.network.cluster_domain.clone(),
        api_service: inner.network.api_service.clone(),
    }
}

async fn serve(
    session: &Arc<Session>,
    hello: Hello,
    welcome: Welcome,
    node: Node,
    mut writer: Writer,
    reader: Reader<Up>,
) {
    writer.push(&welcome);
    if writer.flush().await.is_err() {
        return;
    }
    let (acks, acked) = mpsc::channel(ACKS);
    let tasks = TaskTracker::new();
    tasks.spawn(until_over(session, tell(session.clone(), hello, writer, acked)));
    tasks.spawn(until_over(session, requests::serve(session.clone())));
    let keeper = session.clone();
    let own = node.clone();
    tasks.spawn(until_over(session, async move { mirrors::keep(&keeper, &own).await }));
    tasks.spawn(until_over(session, keep_lease(session.clone(), node)));
    tasks.spawn(until_over(session, crate::reports::write(session.clone(), acks)));
    let heard = hear(session, reader);
    tokio::select! {
        outcome = heard => if let Err(cause) = outcome { session.expel(&cause) },
        () = session.over.cancelled() => {}
    }
    session.over.cancel();
    tasks.close();
    tasks.wait().await;
    if session.inner().shutdown.is_cancelled() {
        close(&session.connection, CloseCode::Stopping, "the control plane stops");
    }
}

/// Runs one of a session's tasks; the session is over when it ends by itself.
async fn over_after(session: Arc<Session>, task: impl Future<Output = ()>) {
    if session.over.clone().run_until_cancelled(task).await.is_some() {
        session.over.cancel();
    }
}

fn until_over<F: Future<Output = ()>>(
    session: &Arc<Session>,
    task: F,
) -> impl Future<Output = ()> + use<F> {
    over_after(session.clone(), task)
}

/// The way down: first what the node lacks, then every change.
async fn tell(
    session: Arc<Session>,
    hello: Hello,
    mut writer: Writer,
    mut acked: mpsc::Receiver<u64>,
) {
    let mut revision = 0;
    for kind in ObjectKind::ALL {
        introduce(&session, kind, &hello, &mut revision, &mut writer);
    }
    while push_changes(&session, &mut revision, &mut writer).await {
        if writer.flush().await.is_err() {
            return;
        }
    }
    revision += 1;
    writer.push(&Synced { revision });
    loop {
        if writer.flush().await.is_err() {
            return;
        }
        tokio::select! {
            () = session.outbox.ready() => {
                push_changes(&session, &mut revision, &mut writer).await;
            }
            seq = acked.recv() => match seq {
                Some(seq) => push_acks(seq, &mut acked, &mut writer),
                None => return,
            },
        }
    }
}

/// Compares what the node holds of a kind with what it should: equal is nothing to say, an empty
/// node is told everything, another is offered an inventory to pick from.
fn introduce(
    session: &Session,
    kind: ObjectKind,
    hello: &Hello,
    revision: &mut u64,
    writer: &mut Writer,
) {
    let share = session.inner().world.share(session.node(), kind);
    let held = hello.held.iter().find(|(name, ..)| name == kind.name());
    let held =
        held.map_or(Digest::default(), |(_, count, sum)| Digest { count: *count, sum: *sum });
    if held == digest(&share) {
        return;
    }
    if held.count == 0 || share.len() > OFFER_ENTRIES {
        share.into_iter().for_each(|e| session.outbox.mark(kind, e.key));
        return;
    }
    *revision += 1;
    let entry = |e: Entry| (e.key.namespace, e.key.name, e.uid, e.resource_version);
    let entries = share.into_iter().map(entry).collect();
    writer.push(&Offer { revision: *revision, kind: kind.name().into(), entries });
}

/// Queues one batch of changed objects; false when there was none.
async fn push_changes(session: &Session, revision: &mut u64, writer: &mut Writer) -> bool {
    let batch = session.outbox.take(BATCH);
    let any = !batch.is_empty();
    let mut delta = Delta::default();
    let mut bytes = 0;
    let mut failed = Vec::new();
    let mut flush = |delta: &mut Delta, writer: &mut Writer| {
        if !delta.upserts.is_empty() || !delta.removes.is_empty() {
            *revision += 1;
            delta.revision = *revision;
            writer.push(&std::mem::take(delta));
        }
    };
    for (kind, key) in batch {
        if delta.kind != kind.name() || bytes > DELTA_BYTES {
            flush(&mut delta, writer);
            delta.kind = kind.name().into();
            bytes = 0;
        }
        let inner = session.inner();
        if kind == ObjectKind::Node
            && let Err(cause) = registration::allocate(inner, session.node()).await
        {
            tracing::warn!(node = session.node(), %cause, "cannot make its extended resources allocatable");
        }
        match inner.world.look_up(&inner.looking, session.node(), kind, &key).await {
            Ok(Some(json)) => {
                bytes += json.len();
                delta.upserts.push(json.to_vec());
            }
            Ok(None) => delta.removes.push((key.namespace, key.name)),
            Err(cause) => {
                tracing::warn!(node = session.node(), %key, %cause, "cannot read what a node is to be told, trying again");
                failed.push((kind, key));
            }
        }
    }
    flush(&mut delta, writer);
    if !failed.is_empty() {
        failed.into_iter().for_each(|(kind, key)| session.outbox.mark(kind, key));
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    any
}

fn push_acks(first: u64, acked: &mut mpsc::Receiver<u64>, writer: &mut Writer) {
    let mut seqs = vec![first];
    while seqs.len() < ACKS
        && let Ok(seq) = acked.try_recv()
    {
        seqs.push(seq);
    }
    writer.push(&Ack { seqs });
}

/// The way up. An error is what the node did wrong.
async fn hear(session: &Arc<Session>, mut reader: Reader<Up>) -> Result<(), String> {
    loop {
        let message = match reader.next().await {
            Ok(Some(message)) => message,
            // The connection went, or the node is done with it.
            Ok(None) | Err(ReadError::Io(_)) => return Ok(()),
            Err(ReadError::Malformed(cause)) => return Err(cause.to_string()),
        };
        match message {
            Up::Hello(_) => return Err("it said hello twice".into()),
            Up::Want(want) => wanted(session, want),
            Up::Applied(applied) => {
                tracing::trace!(node = session.node(), revision = applied.revision, "applied");
            }
            Up::PodReport(report) => session.reports.take(session, report)?,
            Up::EventReport(event) => record(session, &event)?,
            Up::StaticPods(said) => session.mirrors.take(session.node(), said)?,
            Up::NodeReport(report) => {
                if let Err(cause) =
                    registration::update(session.inner(), session.node(), &report.node).await
                {
                    if let registration::RegistrationError::Malformed(cause) = cause {
                        return Err(cause);
                    }
                    tracing::warn!(node = session.node(), %cause, "cannot write the node's status");
                }
            }
        }
    }
}

fn wanted(session: &Session, want: Want) {
    let Some(kind) = ObjectKind::from_name(&want.kind) else { return };
    for (namespace, name) in want.keys {
        let key = ObjectKey { namespace, name };
        // What the node may not see would be answered by a remove; not worth remembering.
        if session.inner().world.shows(session.node(), kind, &key) {
            session.outbox.mark(kind, key);
        }
    }
}

/// An Event about one of the node's pods, or about the node.
fn record(session: &Session, report: &EventReport) -> Result<(), String> {
    let event: Event = serde_json::from_slice(&report.event)
        .map_err(|e| format!("an Event cannot be read: {e}"))?;
    let about = event.involved_object;
    let name = about.name.as_deref().unwrap_or_default();
    let uid = about.uid.clone().unwrap_or_default();
    match about.kind.as_deref() {
        Some("Node") if name == session.node() => {}
        Some("Pod") => {
            let namespace = about.namespace.as_deref().unwrap_or_default();
            let Some(pod) = session.inner().world.pods.get(namespace, name) else { return Ok(()) };
            // The pod that the Event is about is gone, and another has its name.
            if pod.metadata.uid.as_deref() != Some(uid.as_str()) {
                return Ok(());
            }
            if crate::world::node_of(&pod) != Some(session.node()) {
                return Err(format!(
                    "it sent an Event about pod {namespace}/{name}, which is not its own"
                ));
            }
        }
        other => {
            return Err(format!("it sent an Event about {} {name:?}", other.unwrap_or("nothing")));
        }
    }
    let kind = if event.type_.as_deref() == Some("Warning") {
        EventType::Warning
    } else {
        EventType::Normal
    };
    let about = ObjectReference { api_version: Some("v1".into()), ..about };
    let reason = event.reason.unwrap_or_default();
    let message = event.message.unwrap_or_default();
    session.inner().recorder.event_from(session.node(), about, kind, &reason, message);
    Ok(())
}

/// Writes the Lease now and every ten minutes.
async fn keep_lease(session: Arc<Session>, node: Node) {
    loop {
        registration::renew_lease(session.inner(), &node, Timestamp::now()).await;
        tokio::time::sleep(registration::lease_interval()).await;
    }
}
