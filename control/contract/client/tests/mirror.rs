//! The reflector and the client against a transport that plays a server's part, line by line.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use parking_lot::Mutex;
use rimward_client::{
    Body, Cache, Client, DeleteOptions, Informers, ListOptions, Patch, Transport, TransportError,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// One request that must come, and the answer that it gets.
struct Exchange {
    /// Must all occur in "METHOD path?query body".
    expect: Vec<&'static str>,
    answer: Answer,
}

enum Answer {
    Json(u16, Value),
    /// A watch that ends after these lines.
    Lines(Vec<Value>),
    /// A watch that stays open after these lines.
    OpenLines(Vec<Value>),
    Broken,
}

#[derive(Default)]
struct Script {
    exchanges: Mutex<VecDeque<Exchange>>,
    wrong: Mutex<Vec<String>>,
    exhausted: tokio::sync::Notify,
}

impl Script {
    fn new(exchanges: Vec<Exchange>) -> Arc<Self> {
        Arc::new(Self { exchanges: Mutex::new(exchanges.into()), ..Self::default() })
    }

    fn assert_played(&self) {
        assert_eq!(*self.wrong.lock(), Vec::<String>::new());
        assert_eq!(self.exchanges.lock().len(), 0, "some requests did not come");
    }
}

#[async_trait]
impl Transport for Script {
    async fn send(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, TransportError> {
        let said = format!(
            "{} {} {}",
            request.method(),
            request.uri(),
            String::from_utf8_lossy(request.body())
        );
        let Some(exchange) = self.exchanges.lock().pop_front() else {
            self.exhausted.notify_one();
            std::future::pending::<()>().await;
            unreachable!()
        };
        for part in exchange.expect {
            if !said.contains(part) {
                self.wrong.lock().push(format!("{part:?} is not in {said:?}"));
            }
        }
        let lines =
            |lines: Vec<Value>| stream::iter(lines).map(|l| Ok(Bytes::from(format!("{l}\n"))));
        let (code, body): (u16, Body) = match exchange.answer {
            Answer::Json(code, value) => {
                (code, stream::iter([Ok(Bytes::from(value.to_string()))]).boxed())
            }
            Answer::Lines(l) => (200, lines(l).boxed()),
            Answer::OpenLines(l) => (200, lines(l).chain(stream::pending()).boxed()),
            Answer::Broken => return Err(TransportError("no route".into())),
        };
        Ok(http::Response::builder().status(code).body(body).expect("a response"))
    }
}

fn config_map(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": revision.to_string(), "managedFields": [{}]}})
}

fn page(revision: u64, next: &str, items: &[Value]) -> Answer {
    let metadata = json!({"resourceVersion": revision.to_string(), "continue": next});
    Answer::Json(
        200,
        json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}),
    )
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn expired() -> Value {
    json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"})
}

fn when(expect: &[&'static str], answer: Answer) -> Exchange {
    Exchange { expect: expect.to_vec(), answer }
}

/// Plays the script to an informer; answers with what its cache holds in the end.
async fn mirrored(exchanges: Vec<Exchange>) -> (Vec<String>, u64) {
    let script = Script::new(exchanges);
    let shutdown = CancellationToken::new();
    let informers = Informers::new(Client::new(script.clone()), shutdown.clone());
    let cache: Cache<ConfigMap> = informers.of();
    tokio::time::timeout(std::time::Duration::from_secs(30), script.exhausted.notified())
        .await
        .expect("it gets there");
    shutdown.cancel();
    script.assert_played();
    let shown = |c: &ConfigMap| {
        assert_eq!(c.metadata.managed_fields, None);
        format!(
            "{}@{}",
            c.metadata.name.as_deref().unwrap_or("?"),
            c.metadata.resource_version.as_deref().unwrap_or("?")
        )
    };
    (cache.list().iter().map(|(_, c)| shown(c)).collect(), cache.revision())
}

#[tokio::test]
async fn lists_by_pages_then_watches_and_resumes() {
    let list = "GET /api/v1/configmaps?limit=500";
    let state = mirrored(vec![
        when(&[list], page(5, "more", &[config_map("a", 1), config_map("b", 2)])),
        when(&[list, "continue=more"], page(5, "", &[config_map("c", 3), json!({"metadata": 7})])),
        when(
            &["watch=true", "resourceVersion=5"],
            Answer::Lines(vec![
                event("MODIFIED", config_map("a", 6)),
                event("DELETED", config_map("b", 7)),
                event("ADDED", json!({"metadata": {"name": 3}})),
                event(
                    "BOOKMARK",
                    json!({"kind": "ConfigMap", "metadata": {"resourceVersion": "9"}}),
                ),
            ]),
        ),
        when(&["watch=true", "resourceVersion=9"], Answer::Broken),
        when(
            &["watch=true", "resourceVersion=9"],
            Answer::Lines(vec![event("ADDED", config_map("d", 11))]),
        ),
    ])
    .await;
    assert_eq!(state, (vec!["a@6".into(), "c@3".into(), "d@11".into()], 11));
}

#[tokio::test]
async fn lists_again_when_the_revision_is_gone() {
    for gone in [Answer::Lines(vec![event("ERROR", expired())]), Answer::Json(410, expired())] {
        let state = mirrored(vec![
            when(&["limit=500"], page(5, "", &[config_map("a", 1), config_map("b", 2)])),
            when(&["watch=true", "resourceVersion=5"], gone),
            when(&["limit=500"], page(20, "", &[config_map("b", 2), config_map("c", 18)])),
            when(&["watch=true", "resourceVersion=20"], Answer::Lines(vec![])),
        ])
        .await;
        assert_eq!(state, (vec!["b@2".into(), "c@18".into()], 20));
    }
}

#[tokio::test]
async fn a_kind_is_listed_once_in_a_process() {
    let script = Script::new(vec![
        when(&["limit=500"], page(5, "", &[config_map("a", 1)])),
        when(&["watch=true"], Answer::OpenLines(vec![event("ADDED", config_map("b", 6))])),
    ]);
    let informers = Informers::new(Client::new(script.clone()), CancellationToken::new());
    let (first, second): (Cache<ConfigMap>, Cache<ConfigMap>) = (informers.of(), informers.of());
    let mut deltas = second.subscribe();
    while second.len() < 2 {
        deltas.next().await;
    }
    assert_eq!(first.len(), 2);
    script.assert_played();
}

#[tokio::test]
async fn requests() {
    let pod =
        || json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "ns"}});
    let script = Script::new(vec![
        when(&["GET /api/v1/namespaces/ns/pods/p "], Answer::Json(200, pod())),
        when(&["POST /api/v1/namespaces/ns/pods "], Answer::Json(201, pod())),
        when(&["PUT /api/v1/namespaces/ns/pods/p/status "], Answer::Json(200, pod())),
        when(
            &["PATCH /api/v1/namespaces/ns/pods/p?fieldManager=me&force=true"],
            Answer::Json(200, pod()),
        ),
        when(
            &[
                "DELETE /api/v1/namespaces/ns/pods/p ",
                r#"{"gracePeriodSeconds":0,"preconditions":{"uid":"u"}}"#,
            ],
            Answer::Json(200, pod()),
        ),
        when(
            &["POST /api/v1/namespaces/ns/pods/p/binding"],
            Answer::Json(
                409,
                json!({"kind": "Status", "code": 409, "reason": "Conflict", "message": "taken"}),
            ),
        ),
        when(&["labelSelector=a%3Db"], page(1, "", &[])),
        when(&["GET"], Answer::Json(502, json!("no Status"))),
    ]);
    let client = Client::new(script.clone());
    let got: Pod = client.get("ns", "p").await.expect("is there");
    client.create(&got).await.expect("creates");
    client.update_status(&got).await.expect("updates");
    client
        .patch::<Pod>("ns", "p", "", &Patch::apply(json!({}), "me", true))
        .await
        .expect("applies");
    client.delete::<Pod>("ns", "p", &DeleteOptions::uid("u").grace(0)).await.expect("deletes");
    let bound = client.post_subresource::<Pod, Value>("ns", "p", "binding", &json!({})).await;
    assert!(bound.is_err_and(|e| e.is_conflict() && e.to_string() == "taken"));
    let options = ListOptions { label_selector: "a=b".into(), ..ListOptions::default() };
    assert_eq!(client.list_all::<ConfigMap>("ns", &options).await.expect("lists").items.len(), 0);
    let broken = client.get::<Pod>("ns", "p").await;
    assert_eq!(broken.err().and_then(|e| e.status().map(|s| s.code)), Some(502));
    assert!(client.update(&Pod::default()).await.is_err(), "an object without a name is not sent");
    script.assert_played();
}
