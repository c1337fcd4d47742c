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
use crate::{Error, MANIFEST_BYTES_MAX, Registry, manifests, path};

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
                self.inner.storage.remove_blob(&name, &digest)?;
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
        let subject = manifest.subject();
        let about = (tag, subject.as_ref());
        self.inner.storage.put_manifest(name, &digest, &media_type, &content, about)?;
        tracing::info!(repository = name, %reference, %digest, "image pushed");
        let mut response = status(StatusCode::CREATED);
        put_header(&mut response, LOCATION.as_str(), &format!("/v2/{name}/manifests/{digest}"));
        put_header(&mut response, "Docker-Content-Digest", &digest.to_string());
        if let Some(subject) = subject {
            put_header(&mut response, "OCI-Subject", &subject.to_string());
        }
        Ok(response)
    }

    fn delete_manifest(
        &self,
        name: &str,
        reference: &Reference,
    ) -> Result<Response<ResponseBody>, Error> {
        let digest = self.resolve(name, reference)?;
        let found = self.inner.storage.manifest(name, &digest)?;
        let (_, content) = found.ok_or_else(|| unknown_manifest(name, reference))?;
        match reference {
            Reference::Tag(tag) => self.inner.storage.remove_tag(name, tag)?,
            Reference::Digest(digest) => {
                let manifest = serde_json::from_slice::<manifests::Manifest>(&content).ok();
                let subject = manifest.and_then(|m| m.subject());
                self.inner.storage.remove_manifest(name, digest, subject.as_ref())?;
            }
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
            path::check_repository(from)?;
            if self.inner.storage.mount_blob(name, from, &digest)? {
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

pub(crate) fn query_of(query: Option<&str>) -> HashMap<String, String> {
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
mod tests;
