//! One request, one answer.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{Method, Request, header};
use rimward_api::{Reason, Status};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use crate::error::Error;
use crate::options::{DeleteOptions, ListOptions, Patch};
use crate::resource::{Object, Resource, push_query};
use crate::transport::{Body, OmitManagedFields, Transport, TransportError};
use crate::watch::WatchEvent;

const JSON: &str = "application/json";
/// The largest answer that is taken into memory; a page of a list is far smaller.
const BODY_BYTES_MAX: usize = 256 << 20;
/// Items a page in [`Client::list_all`].
const PAGE: usize = 500;

/// Requests to an API server as the identity of its transport. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    omit_managed_fields: bool,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct List<K> {
    pub items: Vec<K>,
    pub resource_version: String,
    /// Empty at the last page.
    pub continue_token: String,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, omit_managed_fields: false }
    }

    /// The same client for those who only look: it does without managedFields.
    pub fn omitting_managed_fields(&self) -> Self {
        Self { omit_managed_fields: true, ..self.clone() }
    }

    pub async fn get<K: Object>(&self, namespace: &str, name: &str) -> Result<K, Error> {
        let path = Resource::of::<K>().path(namespace, name, "");
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// One page. An empty namespace lists all of them.
    pub async fn list<K: Object>(
        &self,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List<K>, Error> {
        let path = list_path(&Resource::of::<K>(), namespace, options);
        let page = self.list_raw(&path, JSON).await?;
        let items = page
            .items
            .iter()
            .map(|raw| decode(raw.get().as_bytes(), &path))
            .collect::<Result<_, _>>()?;
        Ok(List {
            items,
            resource_version: page.metadata.resource_version,
            continue_token: page.metadata.continue_token,
        })
    }

    /// Every page, at one revision.
    pub async fn list_all<K: Object>(
        &self,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List<K>, Error> {
        let mut options = ListOptions { limit: PAGE, ..options.clone() };
        let mut all: List<K> = self.list(namespace, &options).await?;
        while !all.continue_token.is_empty() {
            options.continue_token = std::mem::take(&mut all.continue_token);
            // The token carries the revision; naming it again is refused.
            options.resource_version.clear();
            options.resource_version_match.clear();
            let page = self.list(namespace, &options).await?;
            all.items.extend(page.items);
            all.continue_token = page.continue_token;
        }
        Ok(all)
    }

    /// Answers with the object as stored: named, defaulted, with uid and resourceVersion.
    pub async fn create<K: Object>(&self, object: &K) -> Result<K, Error> {
        let namespace = object.metadata().namespace.as_deref().unwrap_or_default();
        self.call(Method::POST, &Resource::of::<K>().path(namespace, "", ""), Some(object)).await
    }

    /// Replaces the object; its resourceVersion, when set, must be the current one.
    pub async fn update<K: Object>(&self, object: &K) -> Result<K, Error> {
        self.update_subresource(object, "").await
    }

    pub async fn update_status<K: Object>(&self, object: &K) -> Result<K, Error> {
        self.update_subresource(object, "status").await
    }

    /// PUT of the object itself to a subresource that speaks the same kind (`finalize`, `status`).
    pub async fn update_subresource<K: Object>(
        &self,
        object: &K,
        subresource: &str,
    ) -> Result<K, Error> {
        let meta = object.metadata();
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref());
        let name = name.filter(|n| !n.is_empty()).ok_or_else(|| Error::Request {
            what: format!("an update of {}", K::URL_PATH_SEGMENT),
            why: "the object has no name".into(),
        })?;
        let path = Resource::of::<K>().path(namespace, name, subresource);
        self.call(Method::PUT, &path, Some(object)).await
    }

    /// Patches the object (`subresource` empty) or a subresource.
    pub async fn patch<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> Result<K, Error> {
        let bytes =
            self.patch_raw(&Resource::of::<K>(), namespace, name, subresource, patch).await?;
        decode(&bytes, K::URL_PATH_SEGMENT)
    }

    /// Patches an object of a resource known by name only.
    pub async fn patch_raw(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> Result<Bytes, Error> {
        let mut path = resource.path(namespace, name, subresource);
        let manager = patch.field_manager.as_deref().unwrap_or_default();
        push_query(
            &mut path,
            &[("fieldManager", manager), ("force", if patch.force { "true" } else { "" })],
        );
        let body = encode(&patch.body, &path)?;
        self.raw(Method::PATCH, &path, JSON, Some((patch.format.content_type(), body))).await
    }

    pub async fn delete<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        self.delete_raw(&Resource::of::<K>(), namespace, name, options).await
    }

    /// Deletes an object of a resource known by name only.
    pub async fn delete_raw(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let path = resource.path(namespace, name, "");
        self.call::<IgnoredAny>(Method::DELETE, &path, Some(options)).await.map(drop)
    }

    /// Deletes every object of a resource in a namespace.
    pub async fn delete_collection(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let path = resource.path(namespace, "", "");
        self.call::<IgnoredAny>(Method::DELETE, &path, Some(options)).await.map(drop)
    }

    /// POST to a subresource: `pods/binding`, `serviceaccounts/token`, `pods/eviction`.
    pub async fn post_subresource<K: Object, R: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<R, Error> {
        let path = Resource::of::<K>().path(namespace, name, subresource);
        self.call(Method::POST, &path, Some(body)).await
    }

    /// One watch, from a revision on, until the server ends it. [`crate::reflector`] is what keeps
    /// going.
    pub async fn watch<K: Object>(
        &self,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<impl futures::Stream<Item = Result<WatchEvent<K>, Error>> + Send + use<K>, Error>
    {
        crate::watch::open(self, &Resource::of::<K>(), namespace, options, JSON, 0).await
    }

    /// A JSON call: the body if there is one, the answer decoded.
    pub async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<R, Error> {
        let body = body.map(|b| encode(b, path)).transpose()?.map(|b| (JSON, b));
        decode(&self.raw(method, path, JSON, body).await?, path)
    }

    /// One page, items undecoded.
    pub(crate) async fn list_raw(&self, path: &str, accept: &str) -> Result<RawList, Error> {
        decode(&self.raw(Method::GET, path, accept, None).await?, path)
    }

    /// Any request; a refusal becomes [`Error::Status`], the rest is the answer's bytes.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Bytes, Error> {
        collect(self.open(method, path, accept, body).await?).await.map_err(Error::from)
    }

    /// Any request, the answer's body as it comes.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Body, Error> {
        let mut request =
            Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        let bytes = match body {
            Some((content_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                bytes
            }
            None => Bytes::new(),
        };
        if self.omit_managed_fields {
            request = request.extension(OmitManagedFields);
        }
        let request = request
            .body(bytes)
            .map_err(|e| Error::Request { what: path.to_owned(), why: e.to_string() })?;
        let response = self.transport.send(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes = collect(response.into_body()).await?;
        let said = serde_json::from_slice(&bytes).ok().and_then(|v| Status::from_value(&v));
        let said = said.unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).into_owned();
            Status::new(status.as_u16(), Reason::Unknown, format!("{path}: {status}: {text}"))
        });
        Err(Error::Status(Box::new(said)))
    }
}

/// A list whose items are still JSON: one that does not decode must not hide the others.
#[derive(serde::Deserialize)]
pub(crate) struct RawList {
    #[serde(default)]
    pub metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub items: Vec<Box<RawValue>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListMeta {
    #[serde(default)]
    pub resource_version: String,
    #[serde(default, rename = "continue")]
    pub continue_token: String,
}

pub(crate) fn list_path(resource: &Resource, namespace: &str, options: &ListOptions) -> String {
    let mut path = resource.path(namespace, "", "");
    let limit = if options.limit == 0 { String::new() } else { options.limit.to_string() };
    push_query(
        &mut path,
        &[
            ("labelSelector", &options.label_selector),
            ("fieldSelector", &options.field_selector),
            ("limit", &limit),
            ("continue", &options.continue_token),
            ("resourceVersion", &options.resource_version),
            ("resourceVersionMatch", &options.resource_version_match),
        ],
    );
    path
}

pub(crate) fn decode<R: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<R, Error> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Decode { what: what.to_owned(), why: e.to_string() })
}

fn encode(body: &impl Serialize, what: &str) -> Result<Bytes, Error> {
    let encoded = serde_json::to_vec(body);
    encoded
        .map(Bytes::from)
        .map_err(|e| Error::Request { what: what.to_owned(), why: e.to_string() })
}

async fn collect(mut body: Body) -> Result<Bytes, TransportError> {
    let first = match body.next().await {
        Some(chunk) => chunk?,
        None => return Ok(Bytes::new()),
    };
    // Nearly every answer is one chunk, which then is not copied.
    let Some(second) = body.next().await.transpose()? else { return Ok(first) };
    let mut all = BytesMut::with_capacity(first.len() + second.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(&second);
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        if all.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(TransportError(format!(
                "the answer is larger than {BODY_BYTES_MAX} bytes"
            )));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
