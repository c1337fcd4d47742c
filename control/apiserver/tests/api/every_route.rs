//! Who may do what without anybody's leave: every route with every verb, as nobody, as a ServiceAccount
//! without roles and as a node (whose rights are the hub's to use), against `testdata/access.json`.

use std::collections::{BTreeMap, BTreeSet};

use rimward_api::UserInfo;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::{Client, Cluster};

#[derive(Deserialize)]
struct Expected {
    paths: BTreeSet<String>,
    /// `verb group/resource`, of any namespace and object.
    resources: BTreeSet<String>,
}

const VERBS: [&str; 8] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

const PATHS: [&str; 22] = [
    "/",
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/apis/apps",
    "/apis/apps/v1",
    "/configz",
    "/debug/pprof/",
    "/healthz",
    "/healthz/ping",
    "/livez",
    "/livez/ping",
    "/logs",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/api/v1",
    "/openid/v1/jwks",
    "/readyz",
    "/readyz/ping",
    "/version",
];

/// A resource or subresource as discovery tells of it.
struct Route {
    group: String,
    /// `/apis/apps/v1/`
    prefix: String,
    resource: String,
    namespaced: bool,
}

async fn routes(admin: &Client) -> Vec<Route> {
    let mut prefixes = vec![("".to_owned(), "/api/v1/".to_owned())];
    let groups = admin.get("/apis").await.expect(200);
    for group in groups["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let version = version["groupVersion"].as_str().unwrap();
            prefixes.push((group["name"].as_str().unwrap().into(), format!("/apis/{version}/")));
        }
    }
    let mut routes = Vec::new();
    for (group, prefix) in prefixes {
        let list = admin.get(prefix.trim_end_matches('/')).await.expect(200);
        for resource in list["resources"].as_array().unwrap() {
            routes.push(Route {
                group: group.clone(),
                prefix: prefix.clone(),
                resource: resource["name"].as_str().unwrap().into(),
                namespaced: resource["namespaced"] == true,
            });
        }
    }
    routes
}

/// The request that is that verb on that route.
fn request(route: &Route, verb: &str) -> (&'static str, String) {
    let place = if route.namespaced { "namespaces/default/" } else { "" };
    let (resource, sub) = match route.resource.split_once('/') {
        Some((resource, sub)) => (resource, format!("/x/{sub}")),
        None => (route.resource.as_str(), String::new()),
    };
    let collection = format!("{}{place}{resource}", route.prefix);
    let object =
        if sub.is_empty() { format!("{collection}/x") } else { format!("{collection}{sub}") };
    match verb {
        "get" => ("GET", object),
        "list" => ("GET", collection),
        "watch" => ("GET", format!("{collection}?watch=true&timeoutSeconds=1")),
        "create" if sub.is_empty() => ("POST", collection),
        "create" => ("POST", object),
        "update" => ("PUT", object),
        "patch" => ("PATCH", object),
        "delete" => ("DELETE", object),
        _ => ("DELETE", collection),
    }
}

#[tokio::test]
async fn every_route_and_verb() {
    let cluster = Cluster::start().await;
    let table: BTreeMap<String, Expected> =
        serde_json::from_str(include_str!("../../testdata/access.json")).unwrap();
    let routes = routes(&cluster.admin).await;
    assert!(routes.len() > 110, "{} routes", routes.len());
    let users = [
        ("anonymous", UserInfo::anonymous()),
        ("service account", UserInfo::service_account("default", "plain")),
        ("node", UserInfo::authenticated("system:node:n", &["system:nodes"])),
    ];
    for (who, user) in users {
        let (client, expected) = (cluster.client(user), &table[who]);
        let mut paths = BTreeSet::new();
        for path in PATHS {
            let answer = client.get(path).await;
            if answer.code != 403 {
                paths.insert(path.to_owned());
            }
            for method in ["POST", "PUT", "DELETE"] {
                let probe = matches!(path, "/healthz" | "/livez" | "/readyz");
                let code = client.send(method, path, &[], "").await.code;
                assert!(code == 403 || probe, "{who} {method} {path}: {code}");
            }
        }
        assert_eq!(paths, expected.paths, "{who}");
        let mut allowed = BTreeSet::new();
        for route in &routes {
            for verb in VERBS {
                let sub = route.resource.contains('/');
                if sub && matches!(verb, "list" | "watch" | "delete" | "deletecollection") {
                    continue;
                }
                let (method, path) = request(route, verb);
                let answer =
                    client.send(method, &path, &[("content-type", "application/json")], "").await;
                if answer.code == 403 {
                    let status: Value = answer.json();
                    assert_eq!(status["reason"], "Forbidden", "{method} {path}: {status}");
                } else {
                    allowed.insert(format!("{verb} {}/{}", route.group, route.resource));
                }
            }
        }
        assert_eq!(allowed, expected.resources, "{who}");
    }
}
