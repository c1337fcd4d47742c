//! APIServices: a real extension API server behind a Service, asked through this one.

use std::time::Duration;

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};

use crate::cluster::{Client, Cluster};
use crate::nodes::Dials;
use crate::tls::{self, Answer, Body, Ca, Seen, Server};

const APISERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";

fn flunders(seen: &Seen) -> Answer {
    let path = seen.path.split('?').next().unwrap_or_default();
    match path {
        "/apis/wardle.example.com/v1alpha1" => tls::json(&json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1",
            "resources": [{ "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["create", "get", "list", "watch"] }],
        })),
        "/openapi/v2" => tls::json(
            &json!({ "swagger": "2.0", "paths": { "/apis/wardle.example.com/v1alpha1/": {}, "/apis/other/": {} }, "definitions": { "com.example.wardle.Flunder": { "type": "object" } } }),
        ),
        "/openapi/v3" => tls::json(
            &json!({ "paths": { "apis/wardle.example.com/v1alpha1": { "serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=AB" } } }),
        ),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => tls::json(&json!({ "openapi": "3.0.0" })),
        FLUNDERS if seen.path.contains("watch=") => {
            Answer::Response(http::Response::new(forever()))
        }
        FLUNDERS if seen.method == "POST" => tls::text(201, "application/json", seen.body.clone()),
        FLUNDERS => tls::json(
            &json!({ "kind": "FlunderList", "apiVersion": "wardle.example.com/v1alpha1", "metadata": { "resourceVersion": "1" }, "items": [] }),
        ),
        p if p.ends_with("/moved") => Answer::Response(
            http::Response::builder()
                .status(302)
                .header("location", "https://example.com")
                .body(tls::empty())
                .unwrap(),
        ),
        _ => tls::text(404, "text/plain", "404 page not found\n"),
    }
}

/// One event, then nothing, without an end.
fn forever() -> Body {
    let event =
        json!({ "type": "ADDED", "object": { "kind": "Flunder", "metadata": { "name": "f" } } });
    let first = futures::stream::iter([Ok(http_body::Frame::data(format!("{event}\n").into()))]);
    StreamBody::new(first.chain(futures::stream::pending())).boxed_unsync()
}

/// The condition `Available`, once it has that reason.
async fn condition(c: &Client, name: &str, reason: &str) -> Value {
    let mut events =
        c.watch(&format!("{APISERVICES}?watch=1&fieldSelector=metadata.name%3D{name}")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        let conditions =
            event["object"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(found) =
            conditions.into_iter().find(|c| c["type"] == "Available" && c["reason"] == reason)
        {
            return found;
        }
    }
}

async fn register(c: &Client, ca: &Ca) {
    let object = json!({
        "metadata": { "name": "v1alpha1.wardle.example.com" },
        "spec": {
            "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "service": { "namespace": "default", "name": "wardle", "port": 7443 }, "caBundle": ca.bundle(),
        },
    });
    c.post(APISERVICES, &object).await.expect(201);
}

async fn serve(cluster: &Cluster, server: &Server) {
    let c = &cluster.admin;
    cluster.server.set_nodes(std::sync::Arc::new(Dials { to: server.addr }));
    let service =
        json!({ "metadata": { "name": "wardle" }, "spec": { "ports": [{ "port": 7443 }] } });
    c.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    let slice = json!({
        "metadata": { "name": "wardle-1", "labels": { "kubernetes.io/service-name": "wardle" } }, "addressType": "IPv4",
        "endpoints": [{ "addresses": ["192.0.2.9"], "nodeName": "edge" }], "ports": [{ "name": "", "port": 443 }],
    });
    c.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await.expect(201);
}

#[tokio::test]
async fn an_extension_server_is_found_asked_and_shown() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["wardle.default.svc"], flunders).await;
    register(c, &ca).await;
    let missing = condition(c, "v1alpha1.wardle.example.com", "ServiceNotFound").await;
    assert_eq!(missing["message"], "service/wardle in \"default\" is not present");
    let unavailable = c.get(FLUNDERS).await;
    assert_eq!((unavailable.code, unavailable.text().as_str()), (503, "service unavailable\n"));
    let v2 = [(
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    )];
    let stale = c.send("GET", "/apis", &v2, "").await.expect(200);
    let group = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.iter().find(|g| g["metadata"]["name"] == "wardle.example.com").cloned().unwrap()
    };
    assert_eq!(group(&stale)["versions"][0]["freshness"], "Stale");

    serve(&cluster, &server).await;
    let passed = condition(c, "v1alpha1.wardle.example.com", "Passed").await;
    assert_eq!(
        (&passed["status"], &passed["message"]),
        (&json!("True"), &json!("all checks passed"))
    );
    server.take();

    assert_eq!(c.get(FLUNDERS).await.expect(200)["kind"], "FlunderList");
    let flunder = json!({ "kind": "Flunder", "apiVersion": "wardle.example.com/v1alpha1", "metadata": { "name": "f" } });
    assert_eq!(c.post(&format!("{FLUNDERS}?fieldManager=me"), &flunder).await.expect(201), flunder);
    let asked: Vec<Seen> =
        server.take().into_iter().filter(|s| s.path.starts_with(FLUNDERS)).collect();
    assert_eq!(asked[1].path, format!("{FLUNDERS}?fieldManager=me"));
    assert_eq!(asked[0].headers["x-remote-user"], "admin");
    let groups: Vec<&str> =
        asked[0].headers.get_all("x-remote-group").iter().map(|g| g.to_str().unwrap()).collect();
    assert_eq!(groups, ["system:masters", "system:authenticated"]);
    // Nobody becomes somebody else by sending the headers himself.
    let forged = [("x-remote-user", "root"), ("authorization", "Bearer x")];
    c.send("GET", FLUNDERS, &forged, "").await.expect(200);
    let seen = server.take().into_iter().find(|s| s.path == FLUNDERS).unwrap();
    assert_eq!(seen.headers.get_all("x-remote-user").iter().count(), 1);
    assert!(seen.headers.get("authorization").is_none());
    let moved = c.get(&format!("{FLUNDERS}/moved")).await;
    assert_eq!(moved.code, 502);

    let mut events = c.watch(&format!("{FLUNDERS}?watch=true")).await;
    assert_eq!(events.brief().await, ("ADDED".into(), "f".into()));

    let list = c.send("GET", "/apis", &v2, "").await.expect(200);
    assert_eq!(group(&list)["versions"][0]["resources"][0]["resource"], "flunders");
    let classic = c.get("/apis").await.expect(200);
    let names: Vec<&str> =
        classic["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"wardle.example.com") && names.contains(&"apps"), "{names:?}");
    let one = c.get("/apis/wardle.example.com").await.expect(200);
    assert_eq!(one["preferredVersion"]["groupVersion"], "wardle.example.com/v1alpha1");
    assert_eq!(
        c.get("/apis/wardle.example.com/v1alpha1").await.expect(200)["kind"],
        "APIResourceList"
    );
    let index = c.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(c.get(&url).await.expect(200)["openapi"], "3.0.0");
    assert_eq!(c.get("/openapi/v3/apis/apps/v1").await.expect(200)["openapi"], "3.0.0");
    let v2 = c.get("/openapi/v2").await.expect(200);
    let paths = v2["paths"].as_object().unwrap();
    assert!(paths.contains_key("/apis/wardle.example.com/v1alpha1/"));
    assert!(paths.keys().any(|p| p.starts_with("/apis/apps/v1")));
    assert!(!paths.contains_key("/apis/other/"), "only what is its own");
    assert!(v2["definitions"]["com.example.wardle.Flunder"].is_object());

    // Without endpoints it is told, and comes back with them.
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/wardle-1";
    let before = c.get(slice).await.expect(200);
    c.delete(slice, &Value::Null).await.expect(200);
    condition(c, "v1alpha1.wardle.example.com", "MissingEndpoints").await;
    assert_eq!(c.get(FLUNDERS).await.code, 503);
    let mut again = before.clone();
    again["metadata"] = json!({ "name": "wardle-2", "labels": before["metadata"]["labels"] });
    c.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &again).await.expect(201);
    condition(c, "v1alpha1.wardle.example.com", "Passed").await;

    c.delete(&format!("{APISERVICES}/v1alpha1.wardle.example.com"), &Value::Null).await.expect(200);
    assert_eq!(c.get(FLUNDERS).await.code, 404);
    c.get("/apis/wardle.example.com").await;
}

#[tokio::test]
async fn who_may_not_is_not_let_through() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let server = Server::simple(&ca, &["wardle.default.svc"], flunders).await;
    register(&cluster.admin, &ca).await;
    serve(&cluster, &server).await;
    condition(&cluster.admin, "v1alpha1.wardle.example.com", "Passed").await;
    server.take();
    let nobody = cluster.client(rimward_api::UserInfo::authenticated("ann", &[]));
    nobody.get(FLUNDERS).await.expect(403);
    assert!(server.take().iter().all(|s| s.path != FLUNDERS));
}

#[tokio::test]
async fn a_wrong_certificate_is_not_believed() {
    let (cluster, ca, other) = (Cluster::start().await, Ca::new(), Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["wardle.default.svc"], flunders).await;
    register(c, &other).await;
    serve(&cluster, &server).await;
    let failed = condition(c, "v1alpha1.wardle.example.com", "FailedDiscoveryCheck").await;
    let message = failed["message"].as_str().unwrap();
    assert!(message.starts_with("failing or missing response from https://wardle.default.svc:7443/apis/wardle.example.com/v1alpha1: Get "), "{message}");
    assert!(message.ends_with("x509: certificate signed by unknown authority"), "{message}");
    let path = format!("{APISERVICES}/v1alpha1.wardle.example.com");
    c.merge(&path, &json!({ "spec": { "caBundle": null, "insecureSkipTLSVerify": true } }))
        .await
        .expect(200);
    condition(c, "v1alpha1.wardle.example.com", "Passed").await;
}

#[tokio::test]
async fn our_own_groups_are_registered() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let apps = c.get(&format!("{APISERVICES}/v1.apps")).await.expect(200);
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    assert_eq!(
        (&apps["spec"]["groupPriorityMinimum"], &apps["spec"]["versionPriority"]),
        (&json!(17800), &json!(15))
    );
    c.get(&format!("{APISERVICES}/v1.")).await.expect(200);

    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "plural": "widgets", "kind": "Widget" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } } }],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    c.post(definitions, &definition).await.expect(201);
    condition(c, "v1.example.com", "Local").await;
    c.delete(&format!("{definitions}/widgets.example.com"), &Value::Null).await.expect(200);
    let mut events = c
        .watch(&format!("{APISERVICES}?watch=1&fieldSelector=metadata.name%3Dv1.example.com"))
        .await;
    let gone = async {
        while c.get(&format!("{APISERVICES}/v1.example.com")).await.code != 404 {
            events.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it goes with its definition");

    let known = c
        .get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
        .await
        .expect(200);
    assert_eq!(known["data"]["client-ca-file"], "CA");
}
