//! Lists: pages of records at one revision, streamed when they are long.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use rimward_api::{ObjectKey, Status};
use rimward_control_store::{Error, ListRequest, Revision};

use crate::body::{self, BoxError, Response};
use crate::error;
use crate::freshness;
use crate::negotiate::{self, Encoding, Form, Shape};
use crate::options::{At, ListOptions, encode_continue, inconsistent_continue};
use crate::protobuf;
use crate::request::Call;
use crate::rest::{components, usage};
use crate::served::Served;
use crate::server::Inner;
use crate::table;
use crate::views::{self, ListMeta, Stored};

/// What an item is longer than its body, about: kind and revision.
const ITEM_BYTES: usize = 64;
/// Records read from the store at a time.
pub const PAGE: usize = 500;

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. \
You can start a new list without the continue parameter, or use the continue token in this response to retrieve \
the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that \
were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

pub async fn list(
    server: &Arc<Inner>,
    call: &Call,
    served: &Arc<Served>,
    namespace: &str,
) -> Result<Response, Status> {
    let form = Form { lean: call.lean, ..negotiate::accepted(&call.headers, served)? };
    let options = ListOptions::parse(&call.query, &served.kind, false)?;
    if components::are(served) {
        let mut items = components::all(server, served);
        items.retain(|c| options.matches(&c.record, c.name()));
        return answer(server, call, served, form, &items, &ListMeta::none(0));
    }
    if usage::is(served) {
        let items = usage::all(server, served, namespace, options).await?;
        return answer(server, call, served, form, &items, &ListMeta::none(0));
    }
    let mut reader = Reader::start(server, served, namespace, options).await?;
    if form.shape == Shape::Metadata {
        reader = reader.metadata_only();
    }
    let plain = form.encoding == Encoding::Json && form.shape != Shape::Table && !form.beta;
    if plain && reader.options.limit == 0 && reader.only.is_none() {
        return stream(call, form, reader).await;
    }
    let whole = reader.options.limit == 0;
    let (items, meta) = reader.gather().await?;
    if whole {
        let bytes = items.iter().map(|i| i.record.body().len()).sum();
        server.flow.listed(&call.attributes, bytes);
    }
    answer(server, call, served, form, &items, &meta)
}

/// The answer that carries records as a list.
pub fn answer(
    server: &Inner,
    call: &Call,
    served: &Served,
    form: Form,
    items: &[Stored],
    meta: &ListMeta,
) -> Result<Response, Status> {
    if form.shape == Shape::Table {
        let table = server.table(served, items, table::include(&call.query)?, meta, true)?;
        return Ok(views::finished(call, 200, form, table));
    }
    if form.encoding == Encoding::Protobuf {
        let messages = items.iter().map(|item| server.message(served, item, form.shape));
        let messages: Vec<Bytes> = messages.collect::<Result<_, _>>()?;
        let (api_version, kind) = list_type(served, form.shape);
        let body = protobuf::list(&api_version, &kind, &meta.message(server), &messages);
        return Ok(views::finished(call, 200, form, body));
    }
    let mut out = open(served, form.shape, meta);
    push_items(server, served, form, items, true, &mut out)?;
    out.extend_from_slice(b"]}");
    Ok(views::finished(call, 200, form, out))
}

fn list_type(served: &Served, shape: Shape) -> (String, String) {
    match shape {
        Shape::Metadata => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned()),
        _ => (served.kind.api_version(), format!("{}List", served.kind.kind)),
    }
}

/// `{"kind":"PodList",…,"items":[`
fn open(served: &Served, shape: Shape, meta: &ListMeta) -> Vec<u8> {
    let (meta, (api_version, kind)) = (meta.to_value(), list_type(served, shape));
    format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{meta},"items":["#)
        .into_bytes()
}

fn push_items(
    server: &Inner,
    served: &Served,
    form: Form,
    items: &[Stored],
    first: bool,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let bytes: usize = items.iter().map(|i| i.record.body().len() + ITEM_BYTES).sum();
    out.reserve(bytes);
    // Items leave kind and apiVersion to their list; those of custom resources, which no Go type
    // describes, say it themselves.
    let typed = served.custom.is_some();
    for (i, item) in items.iter().enumerate() {
        if i > 0 || !first {
            out.push(b',');
        }
        server.push_object(served, item, form, typed, out)?;
    }
    Ok(())
}

/// A list without limit: the first page decides whether it is one buffer or a stream of pages.
async fn stream(call: &Call, form: Form, mut reader: Reader) -> Result<Response, Status> {
    let items = reader.page(PAGE).await?;
    let meta = ListMeta::none(reader.revision.expect("a page was read"));
    let mut out = open(&reader.served, form.shape, &meta);
    push_items(&reader.server, &reader.served, form, &items, true, &mut out)?;
    let first = items.is_empty();
    let rest = reader.remaining * out.len() / items.len().max(1);
    reader.server.flow.listed(&call.attributes, out.len() + rest);
    drop(items);
    if reader.done {
        out.extend_from_slice(b"]}");
        return Ok(views::finished(call, 200, form, out));
    }
    let head = Bytes::from(out);
    let pages = read_ahead(reader, form, first);
    let chunks = futures::stream::once(async move { Ok(head) }).chain(pages);
    let mut response = match negotiate::gzip(&call.headers) {
        true => {
            let mut response = http::Response::new(body::stream(body::gzip_stream(chunks)));
            views::mark_gzip(&mut response);
            response
        }
        false => http::Response::new(body::stream(chunks)),
    };
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    Ok(response)
}

/// The pages that follow, each read while the one before it is sent. Whoever no longer listens ends the
/// reading.
fn read_ahead(
    mut reader: Reader,
    form: Form,
    mut first: bool,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let (pages, read) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while !reader.done {
            let mut out = Vec::new();
            let page = match reader.page(PAGE).await {
                Ok(items) => {
                    push_items(&reader.server, &reader.served, form, &items, first, &mut out)
                        .map(|()| first &= items.is_empty())
                }
                Err(e) => Err(e),
            };
            if reader.done {
                out.extend_from_slice(b"]}");
            }
            let page = page.map(|()| (Bytes::from(out), reader.done)).map_err(BoxError::from);
            let failed = page.is_err();
            if pages.send(page).await.is_err() || failed {
                return;
            }
        }
    });
    futures::stream::unfold((read, false), |(mut read, ended)| async move {
        if ended {
            return None;
        }
        // The answer has begun: if no more comes, all that is left is to break it off, so that no
        // client takes the part for the whole.
        let next = read.recv().await.unwrap_or_else(|| Err("the list ended early".into()));
        let ended = next.as_ref().map_or(true, |(_, last)| *last);
        Some((next.map(|(page, _)| page), (read, ended)))
    })
}

/// Reads the selected records of a resource, page by page, at one revision.
pub struct Reader {
    server: Arc<Inner>,
    served: Arc<Served>,
    options: ListOptions,
    prefix: String,
    after: Option<String>,
    at: Option<Revision>,
    /// The one key that can match, when the field selector names it.
    only: Option<String>,
    /// The revision that is read, known after the first page.
    pub revision: Option<Revision>,
    remaining: usize,
    pub done: bool,
    /// Records are only asked for their metadata: then their form does not matter.
    metadata: bool,
}

impl Reader {
    /// Waits a moment if what is asked for has not happened yet.
    pub async fn start(
        server: &Arc<Inner>,
        served: &Arc<Served>,
        namespace: &str,
        options: ListOptions,
    ) -> Result<Self, Status> {
        if let At::NotOlderThan(asked) | At::Exact(asked) = options.at {
            freshness::reached(server, asked).await?;
        }
        let at = match options.at {
            At::Newest | At::NotOlderThan(_) => None,
            At::Exact(revision) => Some(revision),
        };
        let namespace = match (namespace, options.fields.required("metadata.namespace")) {
            ("", Some(selected)) if served.kind.namespaced() => selected,
            (given, _) => given,
        };
        let whole = !served.kind.namespaced() || !namespace.is_empty();
        let only = options
            .fields
            .required("metadata.name")
            .filter(|_| whole)
            .map(|name| served.key(&ObjectKey::new(namespace, name)));
        let prefix = served.prefix(namespace);
        Ok(Self {
            after: options.after.as_ref().map(|key| format!("{}{key}", served.kind.storage)),
            server: server.clone(),
            served: served.clone(),
            options,
            prefix,
            at,
            only,
            revision: None,
            remaining: 0,
            done: false,
            metadata: false,
        })
    }

    /// Leaves records of custom kinds in the form that they are stored in, if selection allows.
    pub fn metadata_only(mut self) -> Self {
        let names = |field: &str| matches!(field, "metadata.name" | "metadata.namespace");
        self.metadata = self.options.fields.terms.iter().all(|(field, ..)| names(field));
        self
    }

    async fn present(&self, stored: Vec<Stored>) -> Result<Vec<Stored>, Status> {
        if self.metadata { Ok(stored) } else { self.server.present(&self.served, stored).await }
    }

    /// Everything, or up to the limit with a token that goes on from there.
    pub async fn gather(mut self) -> Result<(Vec<Stored>, ListMeta), Status> {
        let limit = self.options.limit;
        let mut items = Vec::new();
        while !self.done {
            let want = match (limit, self.options.selects()) {
                (0, _) => PAGE,
                (limit, false) => limit - items.len(),
                (limit, true) => PAGE.max(limit),
            };
            items.extend(self.page(want).await?);
            if limit > 0 && items.len() >= limit {
                break;
            }
        }
        let mut meta =
            ListMeta::none(self.revision.unwrap_or_else(|| self.server.store.revision()));
        let cut = limit > 0 && items.len() > limit;
        if limit > 0 && (cut || !self.done) {
            items.truncate(limit);
            if let Some(last) = items.last() {
                let key =
                    last.key.strip_prefix(self.served.kind.storage.as_str()).unwrap_or(&last.key);
                meta.token = Some(encode_continue(meta.revision, key));
            }
            if !self.options.selects() {
                meta.remaining = Some(self.remaining);
            }
        }
        Ok((items, meta))
    }

    /// The selected records among the next `limit`.
    pub async fn page(&mut self, limit: usize) -> Result<Vec<Stored>, Status> {
        let at = self.revision.or(self.at);
        if let Some(key) = &self.only {
            self.done = true;
            self.revision = Some(at.unwrap_or_else(|| self.server.store.revision()));
            let entry = self.server.store.get(key, self.at).await.map_err(|e| self.explain(e))?;
            let Some(entry) = entry else { return Ok(Vec::new()) };
            self.revision = self.revision.max(Some(entry.revision));
            let mut found = self.present(vec![Stored::open(&entry)?]).await?;
            found.retain(|s| self.options.matches(&s.record, self.relative(&s.key)));
            return Ok(found);
        }
        let request =
            ListRequest { prefix: self.prefix.clone(), after: self.after.take(), limit, at };
        let page = self.server.store.list(request).await.map_err(|e| self.explain(e))?;
        // As of one object that is read: what is told is in effect.
        if let Some(newest) = page.entries.iter().map(|e| e.revision).max() {
            self.server.mirrors.caught_up(&self.served.kind.storage, newest).await;
        }
        self.revision = Some(page.revision);
        self.remaining = page.remaining;
        self.done = page.remaining == 0;
        self.after = page.entries.last().map(|e| e.key.to_string());
        let all = !self.options.selects();
        let mut items = Vec::with_capacity(if all { page.entries.len() } else { 0 });
        // What is selected by its own fields must be in its form before.
        let early = self.served.custom.is_some();
        let opened = page.entries.iter().map(Stored::open).collect::<Result<Vec<_>, _>>();
        let opened = if early { self.present(opened?).await? } else { opened? };
        for stored in opened {
            if all || self.options.matches(&stored.record, self.relative(&stored.key)) {
                items.push(stored);
            }
        }
        Ok(items)
    }

    fn relative<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(self.served.kind.storage.as_str()).unwrap_or(key)
    }

    fn explain(&self, e: Error) -> Status {
        match e {
            Error::Compacted { .. } if self.options.after.is_some() => {
                let mut status = Status::expired(CONTINUE_EXPIRED);
                let after = self.options.after.as_deref().unwrap_or_default();
                status.details.get_or_insert_default().list_continue = inconsistent_continue(after);
                status
            }
            other => error::store(other),
        }
    }
}
