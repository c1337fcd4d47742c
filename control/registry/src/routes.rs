//! One request in, one response out.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use futures::TryStreamExt;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LINK, LOCATION, RANGE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Full, Limited, StreamBody};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::path::{Digest, Reference, Target};
use crate::{Error, MANIFEST_BYTES_MAX, Registry, manifests};

pub type ResponseBody = BoxBody<Bytes, io::Error>;

pub fn empty_body() -> ResponseBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(content: impl Into<Bytes>) -> ResponseBody {
    Full::new(content.into()).map_err(|never| match never {}).boxed()
}

impl Registry {
    /// Answers a request whose path starts with `/v2`. Refusals are answers too.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<ResponseBody>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.route(request).await {
            Ok(response) => response,
            Err(error) => {
                if error.code().0.is_server_error() {
                    tracing::error!(%method, path, %error, "registry request failed");
                }
                refusal(&error)
            }
        }
    }

    async fn route<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let unsupported = || Error::Unsupported {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
        };
        let target = Target::parse(request.uri().path())?.ok_or_else(unsupported)?;
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        let query = query_of(request.uri().query());
        match (target, request.method()) {
            (Target::Base, _) if read => Ok(json_response(&serde_json::json!({}))),
            (Target::Catalog, &Method::GET) => self.catalog(&query),
            (Target::Tags { name }, &Method::GET) => self.tags(&name, &query),
            (Target::Manifest { name, reference }, _) if read => {
                self.get_manifest(&name, &reference)
            }
            (Target::Manifest { name, reference }, &Method::PUT) => {
                self.put_manifest(&name, &reference, request).await
            }
            (Target::Manifest { name, reference }, &Method::DELETE) => {
                self.delete_manifest(&name, &reference)
            }
            (Target::Blob { name, digest }, _) if read => {
                let range = request.headers().get(RANGE).cloned();
                self.get_blob(&name, &digest, range, request.method() == Method::HEAD).await
            }
            (Target::Blob { name, digest }, &Method::DELETE) => {
                if !self.inner.storage.has_blob(&name, &digest) {
                    return Err(Error::BlobUnknown(digest.to_string()));
                }
                self.inner.storage.unlink_blob(&name, &digest)?;
                Ok(status(StatusCode::ACCEPTED))
            }
            (Target::Uploads { name }, &Method::POST) => {
                self.start_upload(&name, &query, request).await
            }
            (Target::Upload { name, id }, &Method::GET) => {
                let len = self.inner.uploads.len(&name, &id).await?;
                Ok(upload_response(StatusCode::NO_CONTENT, &name, &id, len))
            }
            (Target::Upload { name, id }, &Method::PATCH) => {
                let start = chunk_start(request.headers().get(CONTENT_RANGE))?;
                let body = chunks(request.into_body());
                let len = self.inner.uploads.append(&name, &id, start, body).await?;
                Ok(upload_response(StatusCode::ACCEPTED, &name, &id, len))
            }
            (Target::Upload { name, id }, &Method::PUT) => {
                let digest = query.get("digest").map_or("", String::as_str);
                self.finish_upload(&name, &id, &Digest::parse(digest)?, request).await
            }
            (Target::Upload { name, id }, &Method::DELETE) => {
                self.inner.uploads.cancel(&name, &id).await?;
                Ok(status(StatusCode::NO_CONTENT))
            }
            (Target::Referrers { name, digest }, &Method::GET) => {
                self.referrers(&name, &digest, query.get("artifactType"))
            }
            _ => Err(unsupported()),
        }
    }

    fn catalog(&self, query: &HashMap<String, String>) -> Result<Response<ResponseBody>, Error> {
        let (repositories, next) = page(self.inner.storage.repositories()?, query);
        let body = serde_json::json!({ "repositories": repositories });
        Ok(with_next(json_response(&body), next.map(|last| format!("/v2/_catalog?{last}"))))
    }

    fn tags(
        &self,
        name: &str,
        query: &HashMap<String, String>,
    ) -> Result<Response<ResponseBody>, Error> {
        if !self.inner.storage.repository_exists(name) {
            return Err(Error::NameUnknown(name.to_owned()));
        }
        let (tags, next) = page(self.inner.storage.tags(name)?, query);
        let body = serde_json::json!({ "name": name, "tags": tags });
        Ok(with_next(json_response(&body), next.map(|last| format!("/v2/{name}/tags/list?{last}"))))
    }

    fn resolve(&self, name: &str, reference: &Reference) -> Result<Digest, Error> {
        let digest = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => self.inner.storage.tag(name, tag)?,
        };
        digest.ok_or_else(|| unknown_manifest(name, reference))
    }

    fn get_manifest(
        &self,
        name: &str,
        reference: &Reference,
    ) -> Result<Response<ResponseBody>, Error> {
        let digest = self.resolve(name, reference)?;
        let found = self.inner.storage.manifest(name, &digest)?;
        let (media_type, content) = found.ok_or_else(|| unknown_manifest(name, reference))?;
        Response::builder()
            .header(CONTENT_TYPE, media_type)
            .header(CONTENT_LENGTH, content.len())
            .header("Docker-Content-Digest", digest.to_string())
            .body(full(content))
            .map_err(|e| Error::ManifestInvalid(e.to_string()))
    }

    async fn put_manifest<B>(
        &self,
        name: &str,
        reference: &Reference,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let media_type = match request.headers().get(CONTENT_TYPE).map(HeaderValue::to_str) {
            Some(Ok(text)) => text.to_owned(),
            _ => return Err(Error::ManifestInvalid("the request has no Content-Type".into())),
        };
        let content = Limited::new(request.into_body(), MANIFEST_BYTES_MAX).collect().await;
        let content = content
            .map_err(|e| match e.downcast_ref::<http_body_util::LengthLimitError>() {
                Some(_) => Error::TooLarge { max: MANIFEST_BYTES_MAX as u64 },
                None => Error::Client(e.to_string()),
            })?
            .to_bytes();
        let digest = Digest::of(&content);
        let tag = match reference {
            Reference::Tag(tag) => Some(tag.as_str()),
            Reference::Digest(claimed) if *claimed != digest => {
                let (claimed, actual) = (claimed.to_string(), digest.to_string());
                return Err(Error::DigestMismatch { claimed, actual });
            }
            Reference::Digest(_) => None,
        };
        let manifest = manifests::check(&self.inner.storage, name, &media_type, &content)?;
        self.inner.storage.put_manifest(name, &digest, &media_type, &content, tag)?;
        tracing::info!(repository = name, %reference, %digest, "image pushed");
        let mut response = status(StatusCode::CREATED);
        put_header(&mut response, LOCATION.as_str(), &format!("/v2/{name}/manifests/{digest}"));
        put_header(&mut response, "Docker-Content-Digest", &digest.to_string());
        if let Some(subject) = manifest.subject {
            put_header(&mut response, "OCI-Subject", &subject.digest);
        }
        Ok(response)
    }

    fn delete_manifest(
        &self,
        name: &str,
        reference: &Reference,
    ) -> Result<Response<ResponseBody>, Error> {
        let digest = self.resolve(name, reference)?;
        if self.inner.storage.manifest(name, &digest)?.is_none() {
            return Err(unknown_manifest(name, reference));
        }
        match reference {
            Reference::Tag(tag) => self.inner.storage.remove_tag(name, tag)?,
            Reference::Digest(digest) => self.inner.storage.remove_manifest(name, digest)?,
        }
        Ok(status(StatusCode::ACCEPTED))
    }

    async fn get_blob(
        &self,
        name: &str,
        digest: &Digest,
        range: Option<HeaderValue>,
        head: bool,
    ) -> Result<Response<ResponseBody>, Error> {
        if !self.inner.storage.has_blob(name, digest) {
            return Err(Error::BlobUnknown(digest.to_string()));
        }
        let path = self.inner.storage.blob_path(digest);
        let io = |e| Error::io(&path, e);
        let mut file = tokio::fs::File::open(&path).await.map_err(io)?;
        let size = file.metadata().await.map_err(io)?.len();
        let builder = Response::builder()
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(ACCEPT_RANGES, "bytes")
            .header("Docker-Content-Digest", digest.to_string());
        let range = range.and_then(|r| parse_range(r.to_str().ok()?, size));
        let (builder, start, len) = match range {
            None => (builder, 0, size),
            Some((start, end)) if start < size => {
                let content_range = format!("bytes {start}-{end}/{size}");
                let builder = builder
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(CONTENT_RANGE, content_range);
                (builder, start, end - start + 1)
            }
            Some((start, _)) => return Err(Error::RangeInvalid { start, at: size }),
        };
        let body = if head {
            empty_body()
        } else {
            file.seek(io::SeekFrom::Start(start)).await.map_err(io)?;
            let chunks = ReaderStream::with_capacity(file.take(len), 64 << 10);
            BodyExt::boxed(StreamBody::new(chunks.map_ok(http_body::Frame::data)))
        };
        Ok(builder
            .header(CONTENT_LENGTH, len)
            .body(body)
            .expect("all headers are digits and known words"))
    }

    /// A session, or the whole blob at once (`?digest=`), or a blob of another repository (`?mount=`).
    async fn start_upload<B>(
        &self,
        name: &str,
        query: &HashMap<String, String>,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from")) {
            let digest = Digest::parse(mount)?;
            if self.inner.storage.has_blob(from, &digest) {
                self.inner.storage.link_blob(name, &digest)?;
                return Ok(blob_created(name, &digest));
            }
        }
        let id = self.inner.uploads.start(name).await?;
        match query.get("digest") {
            Some(digest) => self.finish_upload(name, &id, &Digest::parse(digest)?, request).await,
            None => Ok(upload_response(StatusCode::ACCEPTED, name, &id, 0)),
        }
    }

    async fn finish_upload<B>(
        &self,
        name: &str,
        id: &str,
        digest: &Digest,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let start = chunk_start(request.headers().get(CONTENT_RANGE))?;
        self.inner.uploads.append(name, id, start, chunks(request.into_body())).await?;
        let finished = self.inner.uploads.finish(name, id, digest).await?;
        self.inner.storage.adopt_blob(name, &finished.digest, &finished.path)?;
        Ok(blob_created(name, digest))
    }

    fn referrers(
        &self,
        name: &str,
        digest: &Digest,
        artifact_type: Option<&String>,
    ) -> Result<Response<ResponseBody>, Error> {
        let mut found = manifests::referrers(&self.inner.storage, name, digest)?;
        if let Some(wanted) = artifact_type {
            found.retain(|d| d["artifactType"] == wanted.as_str());
        }
        let body = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": found,
        });
        let mut response = json_response(&body);
        put_header(&mut response, CONTENT_TYPE.as_str(), "application/vnd.oci.image.index.v1+json");
        if artifact_type.is_some() {
            put_header(&mut response, "OCI-Filters-Applied", "artifactType");
        }
        Ok(response)
    }
}

fn unknown_manifest(name: &str, reference: &Reference) -> Error {
    Error::ManifestUnknown { name: name.to_owned(), reference: reference.to_string() }
}

fn chunks<B>(body: B) -> impl futures::Stream<Item = Result<Bytes, B::Error>>
where
    B: http_body::Body<Data = Bytes>,
{
    BodyStream::new(body).try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok())))
}

/// `Content-Range: <start>-<end>` of a chunk.
fn chunk_start(header: Option<&HeaderValue>) -> Result<Option<u64>, Error> {
    let Some(header) = header else { return Ok(None) };
    let start = header.to_str().ok().and_then(|text| {
        let text = text.strip_prefix("bytes ").unwrap_or(text);
        text.split('-').next()?.parse().ok()
    });
    match start {
        Some(start) => Ok(Some(start)),
        None => Err(Error::Client(format!("Content-Range {header:?} is not <start>-<end>"))),
    }
}

/// `bytes=a-b`, `bytes=a-`, `bytes=-n`; anything else means the whole blob (RFC 9110 section 14.2).
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let end = size.saturating_sub(1);
    match (first.parse::<u64>().ok(), last.parse::<u64>().ok()) {
        (Some(start), Some(last)) if start <= last => Some((start, last.min(end))),
        (Some(start), None) if last.is_empty() => Some((start, end)),
        (None, Some(n)) if first.is_empty() && n > 0 => Some((size.saturating_sub(n), end)),
        _ => None,
    }
}

fn query_of(query: Option<&str>) -> HashMap<String, String> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), percent_decoded(v))).collect()
}

/// Digests come as `sha256%3A…` from some clients.
fn percent_decoded(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(b) = bytes.next() {
        let mut rest = bytes.clone();
        let hex = match (b, rest.next(), rest.next()) {
            (b'%', Some(high), Some(low)) => {
                let digit = |b: u8| char::from(b).to_digit(16);
                digit(high).zip(digit(low)).map(|(h, l)| (h * 16 + l) as u8)
            }
            _ => None,
        };
        if hex.is_some() {
            bytes = rest;
        }
        out.push(hex.unwrap_or(b));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The page that `n` and `last` ask for, and the query of the next one.
fn page(all: Vec<String>, query: &HashMap<String, String>) -> (Vec<String>, Option<String>) {
    let last = query.get("last").map_or("", String::as_str);
    let from = all.partition_point(|item| item.as_str() <= last);
    let rest = if last.is_empty() { &all[..] } else { &all[from..] };
    match query.get("n").and_then(|n| n.parse::<usize>().ok()) {
        Some(n) if n < rest.len() => {
            let next = rest[..n].last().map(|last| format!("n={n}&last={last}"));
            (rest[..n].to_vec(), next)
        }
        _ => (rest.to_vec(), None),
    }
}

fn status(code: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(empty_body());
    *response.status_mut() = code;
    response
}

fn put_header(response: &mut Response<ResponseBody>, name: &str, value: &str) {
    let name = http::HeaderName::from_bytes(name.as_bytes()).expect("header names are ours");
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn with_next(mut response: Response<ResponseBody>, next: Option<String>) -> Response<ResponseBody> {
    if let Some(next) = next {
        put_header(&mut response, LINK.as_str(), &format!("<{next}>; rel=\"next\""));
    }
    response
}

fn json_response(value: &serde_json::Value) -> Response<ResponseBody> {
    let mut response = Response::new(full(value.to_string()));
    put_header(&mut response, CONTENT_TYPE.as_str(), "application/json");
    put_header(&mut response, "Docker-Distribution-API-Version", "registry/2.0");
    response
}

fn upload_response(code: StatusCode, name: &str, id: &str, len: u64) -> Response<ResponseBody> {
    let mut response = status(code);
    put_header(&mut response, LOCATION.as_str(), &format!("/v2/{name}/blobs/uploads/{id}"));
    put_header(&mut response, RANGE.as_str(), &format!("0-{}", len.saturating_sub(1)));
    put_header(&mut response, "Docker-Upload-UUID", id);
    response
}

fn blob_created(name: &str, digest: &Digest) -> Response<ResponseBody> {
    let mut response = status(StatusCode::CREATED);
    put_header(&mut response, LOCATION.as_str(), &format!("/v2/{name}/blobs/{digest}"));
    put_header(&mut response, "Docker-Content-Digest", &digest.to_string());
    response
}

fn refusal(error: &Error) -> Response<ResponseBody> {
    let (code, word) = error.code();
    let body = serde_json::json!({ "errors": [{ "code": word, "message": error.to_string() }] });
    let mut response = json_response(&body);
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    struct Client {
        registry: Registry,
        _dir: tempfile::TempDir,
    }

    impl Client {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let registry = Registry::open(Config::new(dir.path().to_owned())).expect("opens");
            Self { registry, _dir: dir }
        }

        async fn send(
            &self,
            method: &str,
            path: &str,
            headers: &[(&str, &str)],
            body: &[u8],
        ) -> (u16, http::HeaderMap, Bytes) {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let body = Full::new(Bytes::copy_from_slice(body));
            let response = self.registry.handle(request.body(body).unwrap()).await;
            let (parts, body) = response.into_parts();
            (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
        }

        async fn push_blob(&self, name: &str, content: &[u8]) -> String {
            let digest = Digest::of(content).to_string();
            let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
            assert_eq!(self.send("POST", &path, &[], content).await.0, 201);
            digest
        }
    }

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    #[tokio::test]
    async fn push_and_pull() {
        let client = Client::new();
        let layer = client.push_blob("a/b", b"layer").await;
        let config = client.push_blob("a/b", b"{}").await;
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "x", "digest": config, "size": 2 },
            "layers": [{ "mediaType": "y", "digest": layer, "size": 5 }],
        })
        .to_string();
        let put = client
            .send("PUT", "/v2/a/b/manifests/v1", &[("content-type", MANIFEST)], manifest.as_bytes())
            .await;
        assert_eq!(put.0, 201);
        let (code, headers, body) = client.send("GET", "/v2/a/b/manifests/v1", &[], b"").await;
        assert_eq!((code, &body[..]), (200, manifest.as_bytes()));
        assert_eq!(headers["content-type"], MANIFEST);
        let path = format!("/v2/a/b/blobs/{layer}");
        assert_eq!(&client.send("GET", &path, &[], b"").await.2[..], b"layer");
        let part = client.send("GET", &path, &[("range", "bytes=1-2")], b"").await;
        assert_eq!((part.0, &part.2[..]), (206, &b"ay"[..]));
        let elsewhere = format!("/v2/c/blobs/{layer}");
        assert_eq!(client.send("GET", &elsewhere, &[], b"").await.0, 404, "not linked there");
        let mount = format!("/v2/c/blobs/uploads/?mount={layer}&from=a/b");
        assert_eq!(client.send("POST", &mount, &[], b"").await.0, 201);
        let tags = client.send("GET", "/v2/a/b/tags/list", &[], b"").await.2;
        assert_eq!(&tags[..], br#"{"name":"a/b","tags":["v1"]}"#);
        let all = client.send("GET", "/v2/_catalog?n=1", &[], b"").await;
        assert_eq!(&all.2[..], br#"{"repositories":["a/b"]}"#);
        assert_eq!(all.1["link"], "</v2/_catalog?n=1&last=a/b>; rel=\"next\"");
        assert_eq!(client.send("DELETE", "/v2/a/b/manifests/v1", &[], b"").await.0, 202);
        assert_eq!(client.send("GET", "/v2/a/b/manifests/v1", &[], b"").await.0, 404);
    }

    #[tokio::test]
    async fn chunks_in_order_and_the_right_digest() {
        let client = Client::new();
        let (code, headers, _) = client.send("POST", "/v2/a/blobs/uploads/", &[], b"").await;
        assert_eq!(code, 202);
        let at = headers["location"].to_str().unwrap().to_owned();
        let chunk = |range: &'static str| [("content-range", range)];
        assert_eq!(client.send("PATCH", &at, &chunk("0-2"), b"abc").await.0, 202);
        assert_eq!(client.send("PATCH", &at, &chunk("9-10"), b"xx").await.0, 416);
        assert_eq!(client.send("GET", &at, &[], b"").await.1["range"], "0-2");
        let wrong = format!("{at}?digest={}", Digest::of(b"other"));
        let (code, _, body) = client.send("PUT", &wrong, &[], b"d").await;
        assert_eq!(code, 400);
        assert!(String::from_utf8_lossy(&body).contains("DIGEST_INVALID"));
        assert_eq!(client.send("GET", &at, &[], b"").await.0, 404, "a failed upload is over");
    }

    #[tokio::test]
    async fn refusals() {
        let client = Client::new();
        let missing = serde_json::json!({
            "schemaVersion": 2,
            "config": { "mediaType": "x", "digest": Digest::of(b"none").to_string(), "size": 4 },
        })
        .to_string();
        for (method, path, body, expected) in [
            ("PUT", "/v2/a/manifests/v1", missing.as_bytes(), "MANIFEST_BLOB_UNKNOWN"),
            ("PUT", "/v2/a/manifests/v1", &b"{"[..], "MANIFEST_INVALID"),
            ("PUT", "/v2/A/manifests/v1", b"", "NAME_INVALID"),
            ("GET", "/v2/a/tags/list", b"", "NAME_UNKNOWN"),
            ("GET", "/v2/a/blobs/md5:1", b"", "DIGEST_INVALID"),
            ("POST", "/v2/", b"", "UNSUPPORTED"),
        ] {
            let answer = client.send(method, path, &[("content-type", MANIFEST)], body).await;
            let text = String::from_utf8_lossy(&answer.2).into_owned();
            assert!(text.contains(expected), "{method} {path}: {text}");
        }
    }
}
