//! The proxy subresources of pods, Services and nodes.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, PODS, pod};
use crate::kubectl::{Authority, connect, tls};
use crate::shell::Shell;

const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.server.set_nodes(Arc::new(Shell::default()));
    let c = &cluster.admin;
    for (name, node, ip) in
        [("p", "n1", "10.42.0.5"), ("far", "n2", "10.42.1.5"), ("local", "n1", "127.0.0.1")]
    {
        let mut p = pod(name);
        p["spec"]["nodeName"] = node.into();
        p["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8080 }]);
        c.post(PODS, &p).await.expect(201);
        let status = json!({ "status": { "phase": "Running", "podIPs": [{ "ip": ip }] } });
        c.merge(&format!("{PODS}/{name}/status"), &status).await.expect(200);
    }
    let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [
        { "name": "web", "port": 80, "targetPort": 8080 }, { "name": "admin", "port": 81 }] } });
    c.post(SERVICES, &service).await.expect(201);
    let slice = json!({ "metadata": { "name": "s-1", "labels": { "kubernetes.io/service-name": "s" } },
        "addressType": "IPv4", "ports": [{ "name": "web", "port": 8080 }],
        "endpoints": [{ "addresses": ["10.42.0.5"], "nodeName": "n1" }, { "addresses": ["192.0.2.1"] }] });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    c.post(slices, &slice).await.expect(201);
    c.post("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await.expect(201);
    cluster
}

#[tokio::test]
async fn requests_reach_pods_services_and_nodes() {
    let cluster = cluster().await;
    let c = &cluster.admin;
    let check = async |method: &str, path: &str, expected: &str| {
        let headers = [("authorization", "Bearer secret"), ("host", "api.example")];
        let answer = c.send(method, path, &headers, "sent").await;
        assert_eq!((answer.code, answer.text().as_str()), (200, expected), "{path}");
    };
    let said = |who: &str, method: &str, to: &str, uri: &str| {
        format!("{who} {method} {to} auth=- host=api.example uri={uri} body=sent")
    };
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let path = format!("{PODS}/p/proxy/a%20b/?q=%2f&q=2");
        let uri = format!("{PODS}/p/proxy/a%20b/");
        check(method, &path, &said("10.42.0.5:8080", method, "/a%20b/?q=%2f&q=2", &uri)).await;
    }
    let uri = |path: &str| path.to_owned();
    let pod = format!("{PODS}/http:p:81x/proxy/");
    c.get(&pod).await.expect(503);
    let pod = format!("{PODS}/p:9000/proxy/");
    check("GET", &pod, &said("10.42.0.5:9000", "GET", "/", &uri(&pod))).await;
    for id in ["s:web", "s:80", "http:s:web"] {
        let path = format!("{SERVICES}/{id}/proxy/x");
        check("GET", &path, &said("10.42.0.5:8080", "GET", "/x", &uri(&path))).await;
    }
    for id in ["n1", "n1:10250"] {
        let path = format!("/api/v1/nodes/{id}/proxy/healthz");
        check("GET", &path, &said("the node", "GET", "/healthz", &uri(&path))).await;
    }
    let head = c.send("HEAD", &format!("{PODS}/p/proxy/"), &[], "").await;
    assert_eq!((head.code, head.text().as_str()), (200, ""));
}

#[tokio::test]
async fn what_refers_to_the_root_refers_to_the_proxy() {
    let cluster = cluster().await;
    let c = &cluster.admin;
    let proxy = format!("{PODS}/p/proxy");
    let root = c.get(&format!("{proxy}?x=1")).await;
    assert_eq!(
        (root.code, root.headers["location"].to_str().unwrap()),
        (301, format!("{proxy}/?x=1").as_str())
    );
    let moved = c.get(&format!("{proxy}/redirect")).await;
    let location = format!("{proxy}/login?from=here");
    assert_eq!((moved.code, moved.headers["location"].to_str().unwrap()), (302, location.as_str()));
    let page = c.get(&format!("{proxy}/page")).await;
    assert_eq!(page.text(), format!(r#"<a href="{proxy}/next">next</a><a href="near">near</a>"#));
    assert!(!page.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn what_cannot_be_reached() {
    let cluster = cluster().await;
    let c = &cluster.admin;
    let check = async |path: &str, code: u16, text: &str| {
        let status = c.get(path).await.expect(code);
        assert!(status["message"].as_str().unwrap().contains(text), "{path}: {status}");
    };
    check(
        &format!("{PODS}/p:81/proxy/"),
        503,
        "error trying to reach service: dial tcp 10.42.0.5:81: connect: connection refused",
    )
    .await;
    check(&format!("{PODS}/far/proxy/"), 503, "node \"n2\" is not connected").await;
    check(&format!("{PODS}/none/proxy/"), 404, "pods \"none\" not found").await;
    check(&format!("{PODS}/ftp:p:21/proxy/"), 400, "invalid pod request \"ftp:p:21\"").await;
    check(&format!("{PODS}/local/proxy/"), 400, "address not allowed").await;
    check(&format!("{SERVICES}/s/proxy/"), 503, "no endpoints available for service \"s\"").await;
    check(
        &format!("{SERVICES}/s:admin/proxy/"),
        503,
        "no endpoints available for service \"s:admin\"",
    )
    .await;
    check(&format!("{SERVICES}/s:99/proxy/"), 503, "no service port 99 found for service \"s\"")
        .await;
    check(&format!("{SERVICES}/none:80/proxy/"), 404, "services \"none\" not found").await;
    check("/api/v1/nodes/n9/proxy/", 404, "nodes \"n9\" not found").await;
    check("/api/v1/nodes/n1:22/proxy/", 400, "at port 10250 only").await;
    let ann = cluster.client(rimward_api::UserInfo::authenticated("ann", &[]));
    ann.get(&format!("{PODS}/p/proxy/")).await.expect(403);
}

#[tokio::test]
async fn a_connection_that_the_pod_upgrades() {
    let cluster = cluster().await;
    let token = {
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let token = cluster.admin.post(path, &json!({ "spec": {} })).await.expect(201);
        let binding = json!({ "metadata": { "name": "all" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": "default" }] });
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        cluster.admin.post(bindings, &binding).await.expect(201);
        token["status"]["token"].as_str().unwrap().to_owned()
    };
    let ca = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (server, tls, stop) = (cluster.server.clone(), tls(&ca), CancellationToken::new());
    let stopping = stop.clone();
    tokio::spawn(async move { server.serve(listener, tls, None, stopping).await });
    let mut stream = connect(&ca, port).await;
    let head = format!(
        "GET {PODS}/p/proxy/upgrade HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("upgrade: echo"), "{answer}");
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");
    stop.cancel();
}
