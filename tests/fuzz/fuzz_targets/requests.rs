//! Any request to a whole API server on the memory store: the answer comes in time, and what is refused is a
//! Status. Protobuf, patches, selectors, continue tokens, definitions with rules: all come through here.

#![no_main]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rimward_api::UserInfo;
use rimward_client::Transport;
use rimward_control_apiserver::ApiServer;
use rimward_control_apiserver::config::Config;
use rimward_control_store::MemoryStore;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    method: u8,
    path: u8,
    /// Goes behind the path: a name, a subresource, a query, or nonsense.
    rest: &'a str,
    content: u8,
    accept: u8,
    body: &'a [u8],
}

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
const PATHS: [&str; 14] = [
    "/",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/pods/x",
    "/api/v1/namespaces/default/pods?",
    "/api/v1/namespaces/default/configmaps",
    "/api/v1/namespaces/default/configmaps/x",
    "/api/v1/namespaces/default/configmaps/x?fieldManager=",
    "/apis/apps/v1/namespaces/default/deployments",
    "/apis/apps/v1/namespaces/default/deployments/x",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/xs.example.com",
    "/apis/example.com/v1/namespaces/default/xs",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
];
const CONTENT: [&str; 8] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/strategic-merge-patch+json",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/cbor",
];
const ACCEPT: [&str; 5] = [
    "application/json",
    "application/vnd.kubernetes.protobuf",
    "application/json;as=Table;g=meta.k8s.io;v=v1",
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    "application/yaml",
];

/// A server is thrown away after so many requests, so that what they stored does not pile up.
const REQUESTS_MAX: u32 = 20_000;
const ANSWER_MAX: Duration = Duration::from_secs(10);

struct Served {
    runtime: tokio::runtime::Runtime,
    server: ApiServer,
    client: Arc<dyn Transport>,
    requests: u32,
}

impl Served {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        let advertise = "192.0.2.7:6443".parse().expect("an address");
        let config = Config::new(MemoryStore::new(), key, "CA".into(), advertise);
        let server = runtime.block_on(ApiServer::start(config)).expect("an empty store");
        let client = server.client(UserInfo::authenticated("fuzz", &["system:masters"]), "fuzz");
        Self { runtime, server, client, requests: 0 }
    }
}

thread_local!(static SERVED: RefCell<Option<Served>> = const { RefCell::new(None) });

fn pick<'a>(from: &[&'a str], by: u8) -> &'a str {
    from[usize::from(by) % from.len()]
}

fuzz_target!(|input: Input| {
    let path = format!("{}{}", pick(&PATHS, input.path), input.rest);
    let accept = pick(&ACCEPT, input.accept);
    let request = http::Request::builder()
        .method(pick(&METHODS, input.method))
        .uri(&path)
        .header("content-type", pick(&CONTENT, input.content))
        .header("accept", accept)
        .body(Bytes::copy_from_slice(input.body));
    // Not every text is a URI.
    let Ok(request) = request else { return };
    SERVED.with_borrow_mut(|served| {
        if served.as_ref().is_some_and(|s| s.requests >= REQUESTS_MAX) {
            let old = served.take().expect("just seen");
            old.server.stop();
        }
        let served = served.get_or_insert_with(Served::new);
        served.requests += 1;
        let began = Instant::now();
        served.runtime.block_on(async {
            let response = served.client.send(request).await.expect("there is always an answer");
            let (parts, mut body) = response.into_parts();
            let mut bytes = BytesMut::new();
            // A watch goes on: its first words are enough.
            let patience = Duration::from_millis(20);
            while let Ok(Some(Ok(chunk))) = tokio::time::timeout(patience, body.next()).await {
                bytes.extend_from_slice(&chunk);
            }
            assert!(began.elapsed() < ANSWER_MAX, "{path} took {:?}", began.elapsed());
            assert_ne!(parts.status.as_u16(), 500, "{path}: {}", String::from_utf8_lossy(&bytes));
            // A path that nothing serves is answered in plain text.
            let told = parts.headers.get("content-type").and_then(|c| c.to_str().ok());
            let json = told == Some("application/json") && parts.status.is_client_error();
            if json && !bytes.is_empty() {
                let status: serde_json::Value = serde_json::from_slice(&bytes)
                    .unwrap_or_else(|e| panic!("{path}: {e}: {}", String::from_utf8_lossy(&bytes)));
                assert_eq!(status["kind"], "Status", "{path}: {status}");
            }
        });
    });
});
