//! One watch: JSON lines in, typed events out.

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::Method;
use rimward_api::Status;
use serde_json::value::RawValue;

use crate::client::{Client, decode, list_path};
use crate::error::Error;
use crate::options::ListOptions;
use crate::resource::{Resource, Watched, push_query};
use crate::transport::{Body, TransportError};

/// The largest single event: an object has at most 1.5 MiB in the store, JSON framing included.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// One change, or the news that nothing changed up to a revision.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent<K> {
    Added(K),
    Modified(K),
    /// The last state; its resourceVersion is that of the deletion.
    Deleted(K),
    Bookmark {
        resource_version: String,
    },
}

#[derive(serde::Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(serde::Deserialize)]
struct BookmarkObject {
    metadata: crate::client::ListMeta,
}

/// Opens a watch. `timeout_seconds` 0 leaves its end to the server.
pub(crate) async fn open<K: Watched>(
    client: &Client,
    resource: &Resource,
    namespace: &str,
    options: &ListOptions,
    accept: &str,
    timeout_seconds: u32,
) -> Result<impl Stream<Item = Result<WatchEvent<K>, Error>> + Send + use<K>, Error> {
    let mut path = list_path(resource, namespace, options);
    let timeout = if timeout_seconds == 0 { String::new() } else { timeout_seconds.to_string() };
    push_query(
        &mut path,
        &[("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", &timeout)],
    );
    let body = client.open(Method::GET, &path, accept, None).await?;
    let what = format!("a watch of {}", resource.name);
    Ok(stream::unfold((Lines::new(body), what, false), |(mut lines, what, ended)| async move {
        if ended {
            return None;
        }
        let event = match lines.next().await? {
            Ok(line) => event(&line, &what),
            Err(e) => Err(e.into()),
        };
        // An object that does not decode is that object's problem; anything else ends the watch.
        let ended = matches!(event, Err(Error::Status(_) | Error::Transport(_)));
        Some((event, (lines, what, ended)))
    }))
}

/// The kind and the object of an event as every Kubernetes server writes it. None for another text
/// that may mean the same.
fn as_written(line: &[u8]) -> Option<(&str, &[u8])> {
    let rest = line.strip_prefix(br#"{"type":""#)?;
    let end = rest.iter().position(|b| *b == b'"')?;
    let object = rest[end + 1..].strip_prefix(br#","object":"#)?.strip_suffix(b"}")?;
    Some((std::str::from_utf8(&rest[..end]).ok()?, object))
}

fn event<K: Watched>(line: &[u8], what: &str) -> Result<WatchEvent<K>, Error> {
    // Taken apart like this an object is read once; what is wrong with it, its decoding tells.
    let (kind, object) = match as_written(line) {
        Some(parts) => parts,
        None => {
            let frame: Frame = serde_json::from_slice(line).map_err(|e| {
                let why = format!("{what} sent a line that is no event: {e}");
                Error::Transport(TransportError(why))
            })?;
            (frame.kind, frame.object.get().as_bytes())
        }
    };
    let typed = || {
        decode(object, what).map(|mut object: K| {
            object.strip();
            object
        })
    };
    match kind {
        "ADDED" => typed().map(WatchEvent::Added),
        "MODIFIED" => typed().map(WatchEvent::Modified),
        "DELETED" => typed().map(WatchEvent::Deleted),
        "BOOKMARK" => {
            let bookmark: BookmarkObject = decode(object, what)?;
            Ok(WatchEvent::Bookmark { resource_version: bookmark.metadata.resource_version })
        }
        "ERROR" => {
            let value = decode(object, what)?;
            let status = Status::from_value(&value).unwrap_or_else(|| Status::internal(&value));
            Err(Error::Status(Box::new(status)))
        }
        other => Err(Error::Decode {
            what: what.to_owned(),
            why: format!("unknown event type {other:?}"),
        }),
    }
}

/// Splits a body at line feeds. A line that came whole is not copied.
struct Lines {
    body: Body,
    /// What came last, from the first line in it that was not taken.
    chunk: Bytes,
    /// The beginning of a line whose end has not come.
    begun: BytesMut,
}

impl Lines {
    fn new(body: Body) -> Self {
        Self { body, chunk: Bytes::new(), begun: BytesMut::new() }
    }

    async fn next(&mut self) -> Option<Result<Bytes, TransportError>> {
        loop {
            while let Some(at) = memchr::memchr(b'\n', &self.chunk) {
                let mut line = self.chunk.split_to(at);
                self.chunk.advance(1);
                if !self.begun.is_empty() {
                    self.begun.extend_from_slice(&line);
                    line = self.begun.split().freeze();
                }
                if !is_blank(&line) {
                    return Some(Ok(line));
                }
            }
            self.begun.extend_from_slice(&std::mem::take(&mut self.chunk));
            if self.begun.len() > EVENT_BYTES_MAX {
                let text = format!("a watch event is larger than {EVENT_BYTES_MAX} bytes");
                return Some(Err(TransportError(text)));
            }
            match self.body.next().await {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(e)) => return Some(Err(e)),
                // Some servers leave the line feed off the last event.
                None => {
                    let line = self.begun.split().freeze();
                    return (!is_blank(&line)).then_some(Ok(line));
                }
            }
        }
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[tokio::test]
    async fn lines_are_joined_across_chunks() {
        #[track_caller]
        fn check(chunks: &[&str], expected: &[&str]) {
            let owned: Vec<_> =
                chunks.iter().map(|c| Ok(Bytes::copy_from_slice(c.as_bytes()))).collect();
            let mut lines = Lines::new(stream::iter(owned).boxed());
            let mut seen = Vec::new();
            while let Some(line) = futures::executor::block_on(lines.next()) {
                seen.push(String::from_utf8(line.expect("no error").to_vec()).expect("utf-8"));
            }
            assert_eq!(seen, expected);
        }
        check(&["a\nb", "c\n", "\n", "d"], &["a", "bc", "d"]);
        check(&["a\nb\nc\n"], &["a", "b", "c"]);
        check(&[], &[]);
    }

    #[test]
    fn events() {
        let read = |text: &str| event::<ConfigMap>(text.as_bytes(), "a test");
        let object = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","managedFields":[{}]}}"#;
        match read(&format!(r#"{{"type":"ADDED","object":{object}}}"#)) {
            Ok(WatchEvent::Added(c)) => assert_eq!(c.metadata.managed_fields, None),
            other => panic!("{other:?}"),
        }
        let bookmark = read(
            r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","metadata":{"resourceVersion":"7"}}}"#,
        );
        assert_eq!(bookmark.ok(), Some(WatchEvent::Bookmark { resource_version: "7".into() }));
        let gone = read(
            r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"old"}}"#,
        );
        assert!(gone.is_err_and(|e| e.is_expired()));
        assert!(matches!(
            read(r#"{"type":"ADDED","object":{"metadata":3}}"#),
            Err(Error::Decode { .. })
        ));
        assert!(matches!(read("garbage"), Err(Error::Transport(_))));
    }
}
