//! A server for one test, and short words to talk to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, Request};
use rimward_api::UserInfo;
use rimward_client::{Body, Transport};
use rimward_control_apiserver::ApiServer;
use rimward_control_apiserver::config::Config;
use rimward_control_store::MemoryStore;
use serde_json::{Value, json};

pub struct Cluster {
    pub server: ApiServer,
    pub store: Arc<MemoryStore>,
    pub admin: Client,
}

/// A client under one identity.
#[derive(Clone)]
pub struct Client(pub Arc<dyn Transport>);

pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The body, when the code is this one.
    #[track_caller]
    pub fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()
    }

    pub fn content_type(&self) -> &str {
        self.headers.get("content-type").map_or("", |v| v.to_str().unwrap())
    }

    pub fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect()
    }
}

impl Client {
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.send(request.body(body.into()).unwrap()).await.unwrap()
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (parts, mut body) = self.open(method, path, headers, body).await.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes: bytes.freeze() }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.send(
            "PATCH",
            path,
            &[("content-type", "application/merge-patch+json")],
            body.to_string(),
        )
        .await
    }

    pub async fn delete(&self, path: &str, options: &Value) -> Answer {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        self.send("DELETE", path, &[("content-type", "application/json")], body).await
    }

    pub async fn watch(&self, path: &str) -> Events {
        self.watch_as(path, "application/json").await
    }

    pub async fn watch_as(&self, path: &str, accept: &str) -> Events {
        let response = self.open("GET", path, &[("accept", accept)], Bytes::new()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), rest: Vec::new() }
    }
}

/// A watch as it is read.
pub struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; None when the watch ended.
    pub async fn next(&mut self) -> Option<Value> {
        let wait = Duration::from_secs(20);
        tokio::time::timeout(wait, self.read()).await.expect("an event comes in time")
    }

    async fn read(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.rest.extend_from_slice(&self.body.next().await?.unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        (event["type"].as_str().unwrap().to_owned(), name.to_owned())
    }
}

pub fn token_key() -> String {
    rcgen::KeyPair::generate().unwrap().serialize_pem()
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_on(MemoryStore::new(), |_| {}).await
    }

    pub async fn start_on(store: Arc<MemoryStore>, change: impl FnOnce(&mut Config)) -> Self {
        let advertise = "192.0.2.7:6443".parse().unwrap();
        let mut config = Config::new(store.clone(), token_key(), "CA".into(), advertise);
        change(&mut config);
        let server = ApiServer::start(config).await.unwrap();
        let admin =
            Client(server.client(UserInfo::authenticated("admin", &["system:masters"]), "tests/1"));
        let cluster = Self { server, store, admin };
        // What controllers make in a whole cluster.
        let account = json!({ "metadata": { "name": "default" } });
        cluster.admin.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        let ca = json!({ "metadata": { "name": "kube-root-ca.crt" }, "data": { "ca.crt": "CA" } });
        cluster.admin.post("/api/v1/namespaces/default/configmaps", &ca).await;
        cluster
    }

    pub fn client(&self, user: UserInfo) -> Client {
        Client(self.server.client(user, "tests/1"))
    }
}

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "img" }] } })
}

pub fn config_map(name: &str, value: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": value } })
}
