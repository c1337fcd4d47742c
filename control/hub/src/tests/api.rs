//! An API server small enough to read: objects by path, optimistic concurrency, watches. It knows no
//! kinds and no rules; the real one is `rimward-control-apiserver`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Response};
use parking_lot::Mutex;
use rimward_client::{Body, Transport, TransportError};
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Clone)]
pub struct TestApi {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// By URL path without query: `/api/v1/namespaces/a/pods/b`.
    objects: BTreeMap<String, Value>,
}

impl TestApi {
    pub fn new() -> Self {
        let inner = Inner { state: Mutex::default(), events: broadcast::channel(1024).0 };
        Self { inner: Arc::new(inner) }
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.inner.state.lock().objects.get(path).cloned()
    }

    /// Creates or replaces, as anyone might.
    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut state = self.inner.state.lock();
        state.revision += 1;
        let existing = state.objects.get(path).cloned();
        let meta = object["metadata"].as_object_mut().unwrap();
        meta.insert("resourceVersion".into(), json!(state.revision.to_string()));
        meta.entry("uid").or_insert_with(|| match &existing {
            Some(old) => old["metadata"]["uid"].clone(),
            None => json!(format!("uid-{}", state.revision)),
        });
        let name = path.rsplit('/').next().unwrap();
        meta.insert("name".into(), json!(name));
        if let Some((_, rest)) =
            path.split_once("/namespaces/").filter(|(_, rest)| rest.contains('/'))
        {
            meta.insert("namespace".into(), json!(rest.split('/').next().unwrap()));
        }
        state.objects.insert(path.into(), object.clone());
        let kind = if existing.is_some() { "MODIFIED" } else { "ADDED" };
        let _nobody =
            self.inner.events.send((path.into(), json!({"type": kind, "object": object})));
        object
    }

    pub fn delete(&self, path: &str) -> bool {
        let mut state = self.inner.state.lock();
        let Some(mut object) = state.objects.remove(path) else { return false };
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let _nobody =
            self.inner.events.send((path.into(), json!({"type": "DELETED", "object": object})));
        true
    }

    /// Waits until the object satisfies a condition.
    pub async fn until(&self, path: &str, condition: impl Fn(Option<&Value>) -> bool) {
        let mut events = self.inner.events.subscribe();
        let wait = async {
            while !condition(self.get(path).as_ref()) {
                let _changed_or_lagged = events.recv().await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{path}: {:?}", self.get(path));
    }

    fn answer(&self, request: &http::Request<Bytes>) -> (u16, Value) {
        let path = request.uri().path();
        let failure = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": format!("{path} {reason}")}),
            )
        };
        let body = || serde_json::from_slice::<Value>(request.body()).unwrap();
        match *request.method() {
            Method::GET => match self.get(path) {
                Some(object) => (200, object),
                None if is_collection(path) => (200, self.list(path)),
                None => failure(404, "NotFound"),
            },
            Method::POST if path.ends_with("/token") => {
                let status = json!({"token": format!("token for {path}"), "expirationTimestamp": "2100-01-01T00:00:00Z"});
                (
                    201,
                    json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": body()["spec"], "status": status}),
                )
            }
            Method::POST => {
                let object = body();
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                match self.get(&path) {
                    Some(_) => failure(409, "AlreadyExists"),
                    None => (201, self.put(&path, object)),
                }
            }
            Method::PUT => {
                let (path, status) = match path.strip_suffix("/status") {
                    Some(path) => (path, true),
                    None => (path, false),
                };
                let Some(old) = self.get(path) else { return failure(404, "NotFound") };
                let new = body();
                let version = &new["metadata"]["resourceVersion"];
                if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict");
                }
                let mut next = if status { old.clone() } else { new.clone() };
                next["status"] = if status { new["status"].clone() } else { old["status"].clone() };
                next["metadata"]["uid"] = old["metadata"]["uid"].clone();
                (200, self.put(path, next))
            }
            Method::DELETE => {
                let Some(old) = self.get(path) else { return failure(404, "NotFound") };
                let uid = &body()["preconditions"]["uid"];
                if !uid.is_null() && *uid != old["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                self.delete(path);
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn list(&self, collection: &str) -> Value {
        let state = self.inner.state.lock();
        let items: Vec<Value> = state
            .objects
            .iter()
            .filter(|(path, _)| is_in(path, collection))
            .map(|(_, o)| o.clone())
            .collect();
        json!({"kind": "List", "metadata": {"resourceVersion": state.revision.to_string()}, "items": items})
    }

    fn watch(&self, collection: &str, after: u64) -> Body {
        let version = |event: &Value| {
            event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
        };
        let receiver = self.inner.events.subscribe();
        // What happened between the list and this subscription.
        let missed: Vec<Value> = {
            let state = self.inner.state.lock();
            let changed = state.objects.iter().filter(|(path, _)| is_in(path, collection));
            let events = changed.map(|(_, o)| json!({"type": "MODIFIED", "object": o}));
            events.filter(|event| version(event) > after).collect()
        };
        let collection = collection.to_owned();
        let line = |event: Value| Ok(Bytes::from(format!("{event}\n")));
        let live = futures::stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await.ok()?, receiver))
        });
        let live = live.filter_map(move |(path, event)| {
            let wanted = is_in(&path, &collection) && version(&event) > after;
            async move { wanted.then_some(event) }
        });
        futures::stream::iter(missed).chain(live).map(line).boxed()
    }
}

fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap();
    [
        "pods",
        "nodes",
        "configmaps",
        "secrets",
        "services",
        "endpointslices",
        "ingresses",
        "namespaces",
        "persistentvolumeclaims",
        "persistentvolumes",
        "runtimeclasses",
    ]
    .contains(&last)
}

/// Whether an object's path belongs to a collection over all namespaces: `/api/v1/pods`.
fn is_in(path: &str, collection: &str) -> bool {
    let (prefix, resource) = collection.rsplit_once('/').unwrap();
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["namespaces", _, found, _] => *found == resource,
        [found, _] => *found == resource,
        _ => false,
    }
}

#[async_trait]
impl Transport for TestApi {
    async fn send(&self, request: http::Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=") {
            let after = query.split('&').find_map(|p| p.strip_prefix("resourceVersion="));
            let body = self.watch(request.uri().path(), after.unwrap_or("0").parse().unwrap());
            return Ok(Response::new(body));
        }
        let (code, value) = self.answer(&request);
        let body = futures::stream::iter([Ok(Bytes::from(value.to_string()))]).boxed();
        Ok(Response::builder().status(code).body(body).unwrap())
    }
}
