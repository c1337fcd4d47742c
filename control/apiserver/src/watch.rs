//! Watches: the store's log, seen through a selector, as a stream of events.
//!
//! A watcher holds no events of its own: it pulls the next batch when its client has taken the last,
//! so a slow client costs a position in the log and nothing else. What an event looks like in JSON is
//! made once and shared by all who watch.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use rimward_api::Status;
use rimward_control_store::{Batch, Error, Event, Revision, Watch};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::body::{self, BoxError, Response};
use crate::error;
use crate::flow::Watching;
use crate::freshness;
use crate::negotiate::{self, Encoding, Form, Offer, Shape, Shapes};
use crate::options::ListOptions;
use crate::protobuf;
use crate::request::Call;
use crate::rest::list::{PAGE, Reader};
use crate::served::Served;
use crate::server::Inner;
use crate::streams::messages;
use crate::table::{self, Include};
use crate::views::{self, ListMeta, SharedKey, Stored};

/// About how often a bookmark goes out.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without a timeout of its own ends after this, up to twice as long.
const TIMEOUT_MIN: Duration = Duration::from_secs(1800);

/// What an event is longer than the body of its object: kind, revision, and what is around it.
const OBJECT_MORE: usize = 160;
/// Events that are sent together.
const CHUNK_BYTES_MAX: usize = 64 << 10;

const ADDED: &str = "ADDED";
const MODIFIED: &str = "MODIFIED";
const DELETED: &str = "DELETED";

pub async fn watch(
    server: &Arc<Inner>,
    call: &Call,
    served: &Arc<Served>,
    namespace: &str,
) -> Result<Response, Status> {
    let mut options = ListOptions::parse(&call.query, &served.kind, true)?;
    let lists = options.send_initial_events == Some(true) && options.bookmarks;
    let shapes = if lists { Shapes::Metadata } else { Shapes::All };
    let offer = Offer { protobuf: served.protobuf, shapes, stream: true };
    let form = Form { lean: call.lean, ..negotiate::form(&call.headers, offer)? };
    // A watch of one object by its path is a watch of its name.
    if let Some(target) = call.attributes.resource.as_ref().filter(|r| !r.name.is_empty())
        && options.fields.required("metadata.name").is_none()
    {
        options.fields.terms.push(("metadata.name".into(), target.name.clone(), true));
    }
    let from_state = match (options.since, options.send_initial_events) {
        (_, Some(initial)) => initial,
        (None | Some(0), None) => true,
        (Some(_), None) => false,
    };
    let since = options.since.unwrap_or(0);
    let namespace = match (namespace, options.fields.required("metadata.namespace")) {
        ("", Some(selected)) if served.kind.namespaced() => selected.to_owned(),
        (given, _) => given.to_owned(),
    };
    let include = table::include(&call.query)?;
    let timeout =
        options.timeout.unwrap_or_else(|| TIMEOUT_MIN.mul_f64(1.0 + rand::random::<f64>()));
    let mut watcher = Watcher {
        prefix: served.prefix(&namespace),
        timer: Box::pin(tokio::time::sleep_until(Instant::now() + timeout)),
        stops: Box::pin(server.stop.clone().cancelled_owned()),
        gone: served.custom.as_ref().map(|c| Box::pin(c.gone.clone().cancelled_owned())),
        deadline: Instant::now() + timeout,
        bookmark_at: Instant::now() + BOOKMARK_EVERY.mul_f64(0.5 + 0.5 * rand::random::<f64>()),
        server: server.clone(),
        served: served.clone(),
        form,
        include,
        columns_sent: false,
        pending: VecDeque::new(),
        initial: None,
        feed: None,
        revision: 0,
        floor: 0,
        ended: false,
        _counted: server.flow.watching(&call.attributes),
        options,
    };
    if from_state && let Err(status) = freshness::reached(server, since).await {
        watcher.fail(&status);
    } else if from_state {
        // The list's own options: everything that is selected, at the newest revision.
        let mut list = watcher.options.clone();
        (list.limit, list.after, list.at) = (0, None, crate::options::At::Newest);
        let reader = Reader::start(server, served, &namespace, list).await?;
        watcher.begin(reader).await?;
        watcher.open()?;
    } else {
        let newest = server.store.revision();
        watcher.floor = since;
        watcher.revision = if since > 0 { since.min(newest) } else { newest };
        watcher.open()?;
    }
    // Boxed: it moves with every chunk.
    let chunks = futures::stream::unfold(Box::new(watcher), |mut watcher| async move {
        let chunk = watcher.next().await?;
        Some((Ok::<Bytes, BoxError>(chunk), watcher))
    });
    let mut response = http::Response::new(body::stream(chunks));
    let content = http::HeaderValue::from_static(match form.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Encoding::Json | Encoding::Yaml => "application/json",
    });
    response.headers_mut().insert(http::header::CONTENT_TYPE, content);
    match form.encoding {
        // Its frames say themselves where they end.
        Encoding::Protobuf => Ok(response),
        Encoding::Json | Encoding::Yaml => messages::of_lines(call, response),
    }
}

struct Watcher {
    server: Arc<Inner>,
    served: Arc<Served>,
    options: ListOptions,
    form: Form,
    include: Include,
    columns_sent: bool,
    prefix: String,
    /// What was not read yet of the state that the watch starts with.
    initial: Option<Reader>,
    feed: Option<Box<dyn Watch>>,
    pending: VecDeque<Bytes>,
    /// Everything up to here was sent or is pending.
    revision: Revision,
    /// Nothing up to here is told: a watch may begin at a revision that is still to come.
    floor: Revision,
    deadline: Instant,
    bookmark_at: Instant,
    /// Goes off when one of the two is due. Kept, like what follows, from event to event: to begin to
    /// wait costs more than to be woken.
    timer: Pin<Box<Sleep>>,
    stops: Pin<Box<WaitForCancellationFutureOwned>>,
    /// A custom kind is no longer served.
    gone: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ended: bool,
    /// Writes are charged for it.
    _counted: Option<Watching>,
}

impl Watcher {
    fn open(&mut self) -> Result<(), Status> {
        match self.server.store.watch(&self.prefix, self.revision) {
            Ok(feed) => self.feed = Some(feed),
            Err(Error::Compacted { asked, oldest }) => self.expire(asked, oldest),
            Err(e) => return Err(error::store(e)),
        }
        Ok(())
    }

    /// A position that was compacted ends the watch with an event that says so.
    fn expire(&mut self, asked: Revision, oldest: Revision) {
        self.fail(&Status::expired(format!("too old resource version: {asked} ({oldest})")));
    }

    fn fail(&mut self, status: &Status) {
        let frame = self.frame("ERROR", &status.to_value());
        self.pending.push_back(frame);
        self.feed = None;
    }

    /// Puts the next page of the state that the watch starts with among what is to be sent, and what
    /// says that it was the last.
    async fn begin(&mut self, mut reader: Reader) -> Result<(), Status> {
        let items = reader.page(PAGE).await?;
        self.revision = reader.revision.expect("a page was read");
        for stored in &items {
            let event = self.encode(ADDED, stored)?;
            self.pending.push_back(event);
        }
        if !reader.done {
            self.initial = Some(reader);
        } else if self.options.send_initial_events == Some(true) && self.options.bookmarks {
            let end = self.bookmark(true);
            self.pending.push_back(end);
        }
        Ok(())
    }

    /// What goes out next: one event as it is shared, or several that are small.
    fn chunk(&mut self) -> Option<Bytes> {
        let first = self.pending.pop_front()?;
        let fits = |pending: &VecDeque<Bytes>, len: usize| {
            pending.front().is_some_and(|next| len + next.len() <= CHUNK_BYTES_MAX)
        };
        if !fits(&self.pending, first.len()) {
            return Some(first);
        }
        let mut out = Vec::from(first);
        while fits(&self.pending, out.len()) {
            out.extend_from_slice(&self.pending.pop_front().expect("it was just seen"));
        }
        Some(out.into())
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.chunk() {
                return Some(chunk);
            }
            if let Some(reader) = self.initial.take() {
                if let Err(e) = self.begin(reader).await {
                    self.fail(&e);
                }
                continue;
            }
            if self.ended {
                return None;
            }
            let feed = self.feed.as_mut()?;
            let wake = self.deadline.min(if self.options.bookmarks {
                self.bookmark_at
            } else {
                self.deadline
            });
            if self.timer.deadline() != wake {
                self.timer.as_mut().reset(wake);
            }
            tokio::select! {
                // In this order: no flood of events keeps a watch from its end, and the end of a kind
                // does not hide what happened before.
                biased;
                () = self.stops.as_mut() => return None,
                () = self.timer.as_mut() => {
                    self.ended = Instant::now() >= self.deadline;
                    self.bookmark_at = Instant::now() + BOOKMARK_EVERY;
                    if self.options.bookmarks {
                        self.catch_up().await;
                        if self.revision >= self.floor {
                            let line = self.bookmark(false);
                            self.pending.push_back(line);
                        }
                    }
                }
                batch = feed.next() => match batch {
                    Ok(batch) => self.take(&batch).await,
                    Err(Error::Compacted { asked, oldest }) => self.expire(asked, oldest),
                    Err(Error::Closed) => return None,
                    Err(e) => self.fail(&error::store(e)),
                },
                // The kind is no longer served.
                () = async { match &mut self.gone { Some(gone) => gone.await, None => pending().await } } => {
                    return None;
                }
            }
        }
    }

    /// Lets the feed say how far it is although nothing of ours happened. Asked for only now: a feed
    /// that always said so would wake every watcher at every commit.
    async fn catch_up(&mut self) {
        let Some(feed) = self.feed.as_mut() else { return };
        feed.progress(true);
        let batch = feed.next().now_or_never();
        feed.progress(false);
        if let Some(Ok(batch)) = batch {
            self.take(&batch).await;
        }
    }

    async fn take(&mut self, batch: &Batch) {
        self.follow_definition();
        // What is told is in effect: a kind that is said to be established is served.
        if let Some(last) = batch.events.last() {
            self.server.mirrors.caught_up(&self.served.kind.storage, last.revision).await;
        }
        let floor = self.floor;
        for event in batch.events.iter().filter(|e| e.revision > floor) {
            match self.line(event).await {
                Ok(Some(line)) => self.pending.push_back(line),
                Ok(None) => {}
                Err(e) => return self.fail(&e),
            }
        }
        self.revision = self.revision.max(batch.revision);
    }

    /// A custom kind may have changed since the watch began: it goes on in the form of today.
    fn follow_definition(&mut self) {
        if self.served.custom.is_some()
            && let Some(served) = self.server.registry().get(&self.served.resource())
        {
            self.served = served.clone();
        }
    }

    async fn present(&mut self, stored: Option<Stored>) -> Result<Option<Stored>, Status> {
        match stored {
            Some(stored) if self.served.custom.is_some() && !self.metadata_only() => {
                self.server.present_one(&self.served, stored).await.map(Some)
            }
            other => Ok(other),
        }
    }

    fn metadata_only(&self) -> bool {
        self.form.shape == Shape::Metadata && self.options.fields.terms.is_empty()
    }

    /// What an event is to this watcher. An object that leaves the selection is seen as deleted, in
    /// its last selected form.
    async fn line(&mut self, event: &Event) -> Result<Option<Bytes>, Status> {
        let selects = self.options.selects();
        let new = event.entry.as_ref().map(Stored::open).transpose()?;
        // Without a selector, the form before matters only when nothing came after.
        let old = match &event.previous {
            Some(previous) if selects || new.is_none() => Some(Stored::open(previous)?),
            _ => None,
        };
        let (new, old) = (self.present(new).await?, self.present(old).await?);
        let matches = |stored: &Option<Stored>| match stored {
            Some(s) if selects => {
                let key = s.key.strip_prefix(self.served.kind.storage.as_str()).unwrap_or(&s.key);
                self.options.matches(&s.record, key)
            }
            other => other.is_some(),
        };
        let is_new = event.entry.as_ref().is_some_and(|e| e.created == e.revision);
        let (is, was) = (matches(&new), if selects { matches(&old) } else { !is_new });
        let (kind, stored) = match (is, was, new, old) {
            (true, false, Some(new), _) => (ADDED, new),
            (true, true, Some(new), _) => (MODIFIED, new),
            (false, true, _, Some(mut old)) => {
                (old.revision, old.kept) = (event.revision, false);
                (DELETED, old)
            }
            _ => return Ok(None),
        };
        self.encode(kind, &stored).map(Some)
    }

    fn encode(&mut self, kind: &'static str, stored: &Stored) -> Result<Bytes, Status> {
        if self.form.shape == Shape::Table {
            let columns = !std::mem::replace(&mut self.columns_sent, true);
            let meta = ListMeta::none(stored.revision);
            let rows = std::slice::from_ref(stored);
            let table = self.server.table(&self.served, rows, self.include, &meta, columns)?;
            return Ok(line(kind, &self.named(table)));
        }
        let key = SharedKey {
            key: stored.key.clone(),
            revision: stored.revision,
            served: self.served.index,
            form: self.form,
            event: kind,
        };
        if let Some(shared) = self.server.shared.get(&key) {
            return Ok(shared);
        }
        let made = match self.form.encoding {
            Encoding::Protobuf => {
                let body = self.server.body(&self.served, stored, self.form.shape)?;
                Bytes::from(protobuf::event(kind, &self.named(body)))
            }
            Encoding::Json | Encoding::Yaml if self.form.beta => {
                let mut out = Vec::new();
                self.server.push_object(&self.served, stored, self.form, true, &mut out)?;
                line(kind, &self.named(out))
            }
            Encoding::Json | Encoding::Yaml => {
                let object = match self.form.shape {
                    Shape::Metadata => stored.record.metadata(),
                    _ => stored.record.body(),
                };
                let mut out = Vec::with_capacity(object.len() + OBJECT_MORE);
                open_line(kind, &mut out);
                self.server.push_object(&self.served, stored, self.form, true, &mut out)?;
                close_line(out)
            }
        };
        self.server.shared.insert(key, made.clone());
        Ok(made)
    }

    /// An event whose object is not a stored one: a Status, a bookmark.
    fn frame(&self, kind: &str, object: &Value) -> Bytes {
        match self.form.encoding {
            Encoding::Protobuf => {
                protobuf::event(kind, &self.named(views::protobuf_body(object))).into()
            }
            Encoding::Json | Encoding::Yaml => {
                line(kind, &self.named(object.to_string().into_bytes()))
            }
        }
    }

    /// The object of an event in the version of the form that was asked for.
    fn named(&self, object: Vec<u8>) -> Vec<u8> {
        if self.form.beta { views::as_beta(object, self.form) } else { object }
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let mut meta = json!({ "resourceVersion": self.revision.to_string() });
        if initial_events_end {
            meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.form.shape {
            Shape::Object => {
                json!({ "kind": self.served.kind.kind, "apiVersion": self.served.kind.api_version(), "metadata": meta })
            }
            Shape::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta })
            }
            Shape::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": self.revision.to_string() },
                "columnDefinitions": null,
                "rows": [{ "cells": null, "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta } }],
            }),
        };
        self.frame("BOOKMARK", &object)
    }
}

/// One event in JSON.
fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 32);
    open_line(kind, &mut out);
    out.extend_from_slice(object);
    close_line(out)
}

fn open_line(kind: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(br#"","object":"#);
}

/// It may be kept for a while, so it gives back the room of what was left out.
fn close_line(mut out: Vec<u8>) -> Bytes {
    out.extend_from_slice(b"}\n");
    if out.capacity() > out.len() / 4 * 5 {
        out.shrink_to_fit();
    }
    out.into()
}
