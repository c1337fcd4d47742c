//! Admission webhooks: real TLS servers in this process, called by the API server.

use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Client, Cluster, PODS, config_map, pod};
use crate::tls::{self, Answer, Ca, Seen, Server};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// The AdmissionReview that answers another.
pub fn reviewed(seen: &Seen, response: Value) -> Value {
    let mut response = response;
    response["uid"] = seen.json()["request"]["uid"].clone();
    json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response })
}

pub fn review(seen: &Seen, response: Value) -> Answer {
    tls::json(&reviewed(seen, response))
}

pub fn patched(seen: &Seen, patch: &Value) -> Answer {
    review(seen, patching(patch))
}

/// A response that patches.
pub fn patching(patch: &Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
    json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch })
}

pub fn hook(
    name: &str,
    server: &Server,
    ca: &Ca,
    operations: &[&str],
    resources: &[&str],
) -> Value {
    json!({
        "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": format!("https://127.0.0.1:{}/{name}", server.addr.port()), "caBundle": ca.bundle() },
        "rules": [{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": operations, "resources": resources }],
    })
}

pub async fn register(c: &Client, kind: &str, name: &str, hooks: Vec<Value>) -> Value {
    let object =
        json!({ "metadata": { "name": name, "labels": { "test": "1" } }, "webhooks": hooks });
    c.post(&format!("{GROUP}/{kind}webhookconfigurations"), &object).await.expect(201)
}

#[tokio::test]
async fn a_validating_webhook_is_asked_and_obeyed() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["127.0.0.1"], |seen| {
        match seen.json()["request"]["object"]["data"]["k"] == "bad" {
            true => review(seen, json!({ "allowed": false, "status": { "code": 403, "reason": "Forbidden", "message": "not this" }, "warnings": ["think again"] })),
            false => review(seen, json!({ "allowed": true, "warnings": ["seen"] })),
        }
    })
    .await;
    let hooks = vec![hook("v.example.com", &server, &ca, &["CREATE", "UPDATE"], &["configmaps"])];
    let made = register(c, "validating", "v", hooks).await;
    assert_eq!(made["webhooks"][0]["timeoutSeconds"], 10);

    let allowed = c.post(CONFIG_MAPS, &config_map("a", "good")).await;
    allowed.expect(201);
    assert_eq!(allowed.warnings(), ["299 - \"seen\""]);
    let asked = server.take();
    assert_eq!((asked.len(), asked[0].path.as_str()), (1, "/v.example.com?timeout=10s"));
    let request = &asked[0].json()["request"];
    assert_eq!(request["kind"], json!({ "group": "", "version": "v1", "kind": "ConfigMap" }));
    assert_eq!(request["requestResource"]["resource"], "configmaps");
    assert_eq!((&request["operation"], &request["name"]), (&json!("CREATE"), &json!("a")));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!((&request["dryRun"], &request["oldObject"]), (&json!(false), &Value::Null));
    // What was not sent is not there.
    let options = json!({ "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" });
    assert_eq!(request["options"], options);
    assert_eq!(
        (&request["object"]["kind"], &request["object"]["apiVersion"]),
        (&json!("ConfigMap"), &json!("v1"))
    );
    assert!(request["object"]["metadata"]["uid"].is_string(), "a validating webhook sees it whole");

    let refused = c.post(CONFIG_MAPS, &config_map("b", "bad")).await;
    let status = refused.expect(403);
    assert_eq!(
        status["message"],
        "admission webhook \"v.example.com\" denied the request: not this"
    );
    assert_eq!(status["reason"], "Forbidden");
    assert_eq!(refused.warnings(), ["299 - \"think again\""]);
    let metrics = c.get("/metrics").await.text();
    for rejected in [false, true] {
        let line = format!(
            r#"apiserver_admission_webhook_admission_duration_seconds_count{{name="v.example.com",operation="CREATE",rejected="{rejected}",type="validating"}} "#
        );
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    c.get(&format!("{CONFIG_MAPS}/b")).await.expect(404);

    server.take();
    let change = json!({ "data": { "k": "bad" } });
    c.merge(&format!("{CONFIG_MAPS}/a"), &change).await.expect(403);
    let request = &server.take()[0].json()["request"];
    assert_eq!(request["oldObject"]["data"]["k"], "good");
    assert_eq!(request["operation"], "UPDATE");

    // Without the configuration, without the webhook.
    c.delete(&format!("{GROUP}/validatingwebhookconfigurations/v"), &Value::Null).await.expect(200);
    c.post(CONFIG_MAPS, &config_map("b", "bad")).await.expect(201);
    assert!(server.take().is_empty());
}

#[tokio::test]
async fn mutating_webhooks_run_in_order_and_again_when_they_want() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["127.0.0.1"], |seen| {
        let data = &seen.json()["request"]["object"]["data"];
        let has = |key: &str| data.get(key).is_some();
        match (seen.path.starts_with("/b."), has("k"), has("one"), has("two")) {
            // Adds `two` once the other has added `one`; called again, it can.
            (false, true, true, false) => {
                patched(seen, &json!([{ "op": "add", "path": "/data/two", "value": "2" }]))
            }
            (true, true, false, _) => {
                patched(seen, &json!([{ "op": "add", "path": "/data/one", "value": "1" }]))
            }
            _ => review(seen, json!({ "allowed": true })),
        }
    })
    .await;
    let mut first = hook("a.example.com", &server, &ca, &["CREATE"], &["configmaps"]);
    first["reinvocationPolicy"] = "IfNeeded".into();
    let second = hook("b.example.com", &server, &ca, &["CREATE"], &["configmaps"]);
    // The order is that of the configurations' names, not of their creation.
    register(c, "mutating", "m2", vec![second]).await;
    register(c, "mutating", "m1", vec![first]).await;

    let made = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    assert_eq!(made["data"], json!({ "k": "1", "one": "1", "two": "2" }));
    let paths: Vec<String> = server.take().into_iter().map(|s| s.path).collect();
    assert_eq!(
        paths,
        ["/a.example.com?timeout=10s", "/b.example.com?timeout=10s", "/a.example.com?timeout=10s"]
    );
    let stored = c.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!(stored["data"], made["data"]);

    let all = format!("{GROUP}/mutatingwebhookconfigurations?labelSelector=test%3D1");
    assert_eq!(c.get(&all).await.expect(200)["items"].as_array().unwrap().len(), 2);
    c.delete(&all, &Value::Null).await.expect(200);
    let plain = c.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    assert_eq!(plain["data"], json!({ "k": "1" }));
}

#[tokio::test]
async fn what_a_webhook_makes_of_a_pod_gets_defaults_and_is_validated() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["127.0.0.1"], |seen| {
        let object = &seen.json()["request"]["object"];
        let name = if object["metadata"]["name"] == "bad" { "Not A Name" } else { "side" };
        let side = json!({ "name": name, "image": "side", "ports": [{ "containerPort": 80 }] });
        match object["metadata"].get("uid").is_none() {
            true => patched(
                seen,
                &json!([
                    { "op": "add", "path": "/spec/containers/-", "value": side },
                    { "op": "add", "path": "/status", "value": { "phase": "Running" } },
                    { "op": "add", "path": "/spec/unheardOf", "value": 1 },
                ]),
            ),
            false => review(
                seen,
                json!({ "allowed": false, "status": { "message": "the uid is not known yet" } }),
            ),
        }
    })
    .await;
    register(c, "mutating", "m", vec![hook("m.example.com", &server, &ca, &["CREATE"], &["pods"])])
        .await;
    let made = c.post(PODS, &pod("a")).await.expect(201);
    let side = &made["spec"]["containers"][1];
    assert_eq!(
        (&side["terminationMessagePath"], &side["ports"][0]["protocol"]),
        (&json!("/dev/termination-log"), &json!("TCP"))
    );
    assert_eq!(
        side["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount",
        "plugins see the new container"
    );
    assert_eq!(made["status"]["phase"], "Pending");
    assert!(made["spec"].get("unheardOf").is_none());
    let refused = c.post(PODS, &pod("bad")).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.containers[1].name");
}

#[tokio::test]
async fn deletes_collections_subresources_and_connects_are_reviewed() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["127.0.0.1"], |seen| {
        review(seen, json!({ "allowed": false, "status": { "message": seen.json()["request"]["operation"] } }))
    })
    .await;
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    c.post(PODS, &pod("p")).await.expect(201);
    let hooks = vec![
        hook("d.example.com", &server, &ca, &["DELETE"], &["configmaps"]),
        hook("c.example.com", &server, &ca, &["CONNECT"], &["pods/attach"]),
        hook("s.example.com", &server, &ca, &["UPDATE"], &["pods/status"]),
        hook("e.example.com", &server, &ca, &["CREATE"], &["pods/eviction"]),
    ];
    register(c, "validating", "v", hooks).await;
    let by = |name: &str, operation: &str| {
        format!("admission webhook \"{name}.example.com\" denied the request: {operation}")
    };
    let refused = c.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(400);
    assert_eq!(refused["message"], by("d", "DELETE"));
    let request = &server.take()[0].json()["request"];
    assert_eq!(
        (&request["object"], &request["oldObject"]["data"]["k"]),
        (&Value::Null, &json!("1"))
    );
    c.delete(CONFIG_MAPS, &Value::Null).await.expect(400);
    c.get(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    server.take();

    let refused = c.get(&format!("{PODS}/p/attach?container=c&stdin=true")).await;
    assert_eq!(refused.expect(400)["message"], by("c", "CONNECT"));
    let request = &server.take()[0].json()["request"];
    assert_eq!(
        request["kind"],
        json!({ "group": "", "version": "v1", "kind": "PodAttachOptions" })
    );
    assert_eq!(
        request["object"],
        json!({ "kind": "PodAttachOptions", "apiVersion": "v1", "container": "c", "stdin": true })
    );
    assert_eq!((&request["subResource"], &request["name"]), (&json!("attach"), &json!("p")));

    c.merge(&format!("{PODS}/p"), &json!({ "metadata": { "labels": { "a": "1" } } }))
        .await
        .expect(200);
    let status = json!({ "status": { "message": "x" } });
    assert_eq!(
        c.merge(&format!("{PODS}/p/status"), &status).await.expect(400)["message"],
        by("s", "UPDATE")
    );
    let eviction =
        json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "p" } });
    assert_eq!(
        c.post(&format!("{PODS}/p/eviction"), &eviction).await.expect(400)["message"],
        by("e", "CREATE")
    );
    c.get(&format!("{PODS}/p")).await.expect(200);
}

#[tokio::test]
async fn configurations_themselves_are_never_reviewed() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server =
        Server::simple(&ca, &["127.0.0.1"], |seen| review(seen, json!({ "allowed": false }))).await;
    register(c, "validating", "v", vec![hook("v.example.com", &server, &ca, &["*"], &["*/*"])])
        .await;
    let refused = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(400);
    assert_eq!(
        refused["message"],
        "admission webhook \"v.example.com\" denied the request without explanation"
    );
    register(c, "mutating", "m", Vec::new()).await;
    c.delete(&format!("{GROUP}/mutatingwebhookconfigurations/m"), &Value::Null).await.expect(200);
    c.delete(&format!("{GROUP}/validatingwebhookconfigurations/v"), &Value::Null).await.expect(200);
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
}

#[tokio::test]
async fn selectors_scope_and_equivalent_versions() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server =
        Server::simple(&ca, &["127.0.0.1"], |seen| review(seen, json!({ "allowed": false }))).await;
    let mut by_object = hook("o.example.com", &server, &ca, &["CREATE"], &["configmaps"]);
    by_object["objectSelector"] = json!({ "matchLabels": { "watched": "yes" } });
    let mut by_namespace = hook("n.example.com", &server, &ca, &["CREATE"], &["secrets"]);
    by_namespace["namespaceSelector"] = json!({ "matchLabels": { "watched": "yes" } });
    let mut by_version =
        hook("e.example.com", &server, &ca, &["CREATE"], &["horizontalpodautoscalers"]);
    by_version["rules"][0]["apiVersions"] = json!(["v1"]);
    let mut exact = by_version.clone();
    (exact["name"], exact["matchPolicy"]) = ("x.example.com".into(), "Exact".into());
    let mut cluster_wide = hook("c.example.com", &server, &ca, &["CREATE"], &["*"]);
    cluster_wide["rules"][0]["apiGroups"] = json!(["rbac.authorization.k8s.io"]);
    cluster_wide["rules"][0]["scope"] = "Cluster".into();
    register(c, "validating", "v", vec![by_object, by_namespace, by_version, exact, cluster_wide])
        .await;
    let asked = || -> Vec<String> {
        server.take().iter().map(|s| s.path.split('.').next().unwrap().to_owned()).collect()
    };

    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let mut watched = config_map("b", "1");
    watched["metadata"]["labels"] = json!({ "watched": "yes" });
    c.post(CONFIG_MAPS, &watched).await.expect(400);
    assert_eq!(asked(), ["/o"]);

    let secret = json!({ "metadata": { "name": "s" } });
    c.post("/api/v1/namespaces/default/secrets", &secret).await.expect(201);
    c.merge(
        "/api/v1/namespaces/default",
        &json!({ "metadata": { "labels": { "watched": "yes" } } }),
    )
    .await
    .expect(200);
    c.post("/api/v1/namespaces/default/secrets", &json!({ "metadata": { "name": "t" } }))
        .await
        .expect(400);
    assert_eq!(asked(), ["/n"]);

    let scaler = json!({ "metadata": { "name": "h" }, "spec": { "maxReplicas": 3, "scaleTargetRef": { "kind": "Deployment", "name": "d", "apiVersion": "apps/v1" } } });
    c.post("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", &scaler)
        .await
        .expect(400);
    let seen = server.take();
    assert_eq!(seen.len(), 1, "the exact one is of another version");
    let request = &seen[0].json()["request"];
    assert_eq!(request["kind"]["version"], "v1");
    assert_eq!(request["requestKind"]["version"], "v2");
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");

    let role = json!({ "metadata": { "name": "r" }, "rules": [] });
    c.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", &role).await.expect(201);
    c.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await.expect(400);
    assert_eq!(asked(), ["/c"]);
}

#[tokio::test]
async fn dry_runs_are_for_webhooks_without_side_effects() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server =
        Server::simple(&ca, &["127.0.0.1"], |seen| review(seen, json!({ "allowed": true }))).await;
    register(
        c,
        "validating",
        "v",
        vec![hook("v.example.com", &server, &ca, &["*"], &["configmaps"])],
    )
    .await;
    c.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "1")).await.expect(201);
    let request = &server.take()[0].json()["request"];
    assert_eq!(request["dryRun"], true);
    assert_eq!(request["options"]["dryRun"], json!(["All"]));
    c.get(&format!("{CONFIG_MAPS}/a")).await.expect(404);
}

/// How a webhook that does not answer as it should is told, and that nothing waits for it longer than
/// it may.
#[tokio::test]
async fn bad_webhooks_end_in_kubernetes_errors() {
    let (cluster, ca, other) = (Cluster::start().await, Ca::new(), Ca::new());
    let c = &cluster.admin;
    let server = Server::start(&ca, &["127.0.0.1"], |seen| {
        Box::pin(async move {
            match seen.path.split('.').next().unwrap_or_default() {
                "/hang" => std::future::pending().await,
                "/garbage" => tls::text(200, "application/json", "not json at all"),
                "/large" => tls::text(200, "application/json", vec![b' '; 10 << 20]),
                "/close" => Answer::Close,
                "/redirect" => tls::text(302, "text/plain", ""),
                "/missing" => tls::text(404, "text/plain", "404 page not found\n"),
                "/broken" => tls::text(500, "text/plain", "boom"),
                "/uid" => tls::json(&json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": { "uid": "other", "allowed": true } })),
                "/version" => tls::json(&json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1", "response": { "uid": seen.json()["request"]["uid"], "allowed": true } })),
                _ => review(&seen, json!({ "allowed": true })),
            }
        })
    })
    .await;
    let port = server.addr.port();
    let cases = [
        ("hang", format!("failed to call webhook: Post \"https://127.0.0.1:{port}/hang.example.com?timeout=1s\": context deadline exceeded")),
        ("garbage", "failed to call webhook: couldn't get version/kind; json parse error: expected ident at line 1 column 2".into()),
        ("large", "failed to call webhook: the response is larger than 6291456 bytes".into()),
        ("redirect", "failed to call webhook: the server responded with the status code 302 but did not return more information".into()),
        ("missing", "failed to call webhook: the server could not find the requested resource".into()),
        ("broken", "failed to call webhook: an error on the server (\"boom\") has prevented the request from succeeding".into()),
        ("version", "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1, Kind=AdmissionReview".into()),
    ];
    for (name, expected) in cases {
        let name = format!("{name}.example.com");
        let mut bad = hook(&name, &server, &ca, &["CREATE"], &["configmaps"]);
        bad["timeoutSeconds"] = 1.into();
        register(c, "validating", "v", vec![bad]).await;
        let began = Instant::now();
        let refused = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(500);
        assert!(began.elapsed() < Duration::from_secs(5), "{name}");
        let expected = format!("failed calling webhook {name:?}: {expected}");
        assert_eq!(refused["message"], format!("Internal error occurred: {expected}"));
        assert_eq!(refused["reason"], "InternalError");
        assert_eq!(refused["details"]["causes"][0]["message"], expected);
        c.delete(&format!("{GROUP}/validatingwebhookconfigurations/v"), &Value::Null)
            .await
            .expect(200);
    }
    for (name, bundle, expected) in [
        ("uid", &ca, "expected response.uid="),
        ("close", &ca, "failed to call webhook: Post "),
        (
            "ok",
            &other,
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
    ] {
        let name = format!("{name}.example.com");
        let bad = hook(&name, &server, bundle, &["CREATE"], &["configmaps"]);
        register(c, "validating", "v", vec![bad.clone()]).await;
        let refused = c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(500);
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
        // With `Ignore`, the request goes on without it.
        let path = format!("{GROUP}/validatingwebhookconfigurations/v");
        c.merge(&path, &json!({ "webhooks": [{ "failurePolicy": "Ignore", "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": bad["clientConfig"], "rules": bad["rules"] }] })).await.expect(200);
        c.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "1")).await.expect(201);
        c.delete(&path, &Value::Null).await.expect(200);
    }
}

#[tokio::test]
async fn services_are_resolved_to_their_endpoints() {
    let (cluster, ca) = (Cluster::start().await, Ca::new());
    let c = &cluster.admin;
    let server = Server::simple(&ca, &["hooks.default.svc"], |seen| {
        review(seen, json!({ "allowed": true }))
    })
    .await;
    let mut by_service = hook("v.example.com", &server, &ca, &["CREATE"], &["secrets"]);
    by_service["clientConfig"] = json!({ "service": { "namespace": "default", "name": "hooks", "path": "/check" }, "caBundle": ca.bundle() });
    register(c, "validating", "v", vec![by_service]).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({ "metadata": { "name": "s" } });
    let failing = |why: &str| {
        format!(
            "Internal error occurred: failed calling webhook \"v.example.com\": failed to call webhook: Post \"https://hooks.default.svc:443/check?timeout=10s\": {why}"
        )
    };
    let refused = c.post(secrets, &secret).await.expect(500);
    assert_eq!(refused["message"], failing("service \"hooks\" not found"));

    let service = json!({ "metadata": { "name": "hooks" }, "spec": { "ports": [{ "port": 443, "name": "https" }] } });
    c.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    let refused = c.post(secrets, &secret).await.expect(500);
    assert_eq!(refused["message"], failing("no endpoints available for service \"hooks\""));

    let endpoints = json!({ "metadata": { "name": "hooks" }, "subsets": [{ "addresses": [{ "ip": "192.0.2.9", "nodeName": "edge" }], "ports": [{ "name": "https", "port": 8443 }] }] });
    c.post("/api/v1/namespaces/default/endpoints", &endpoints).await.expect(201);
    cluster.server.set_nodes(std::sync::Arc::new(crate::nodes::Dials { to: server.addr }));
    c.post(secrets, &secret).await.expect(201);
    assert_eq!(server.take()[0].path, "/check?timeout=10s");
}

#[tokio::test]
async fn configurations_are_validated() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let path = format!("{GROUP}/validatingwebhookconfigurations");
    let hook = json!({
        "name": "v.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": { "url": "https://example.com/x" },
        "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }],
    });
    for (at, value, field, text) in [
        (
            "/clientConfig/url",
            json!("http://example.com"),
            "webhooks[0].clientConfig.url",
            "'https' is the only allowed URL scheme",
        ),
        (
            "/clientConfig/url",
            json!("https://u@example.com"),
            "webhooks[0].clientConfig.url",
            "user information is not permitted",
        ),
        (
            "/rules/0/resources",
            json!(["*/*", "pods"]),
            "webhooks[0].rules[0].resources",
            "if '*/*' is present",
        ),
        (
            "/rules/0/operations",
            json!(["*", "CREATE"]),
            "webhooks[0].rules[0].operations",
            "must not specify other operations",
        ),
        (
            "/admissionReviewVersions",
            json!(["v9"]),
            "webhooks[0].admissionReviewVersions",
            "must include at least one of v1, v1beta1",
        ),
        (
            "/timeoutSeconds",
            json!(31),
            "webhooks[0].timeoutSeconds",
            "must be between 1 and 30 seconds",
        ),
    ] {
        let mut wrong = hook.clone();
        match wrong.pointer_mut(at) {
            Some(place) => *place = value,
            None => wrong[at.trim_start_matches('/')] = value,
        }
        let refused = c
            .post(&path, &json!({ "metadata": { "name": "v" }, "webhooks": [wrong] }))
            .await
            .expect(422);
        let cause = &refused["details"]["causes"][0];
        assert_eq!(cause["field"], field);
        assert!(cause["message"].as_str().unwrap().contains(text), "{cause}");
    }
    c.post(&path, &json!({ "metadata": { "name": "v" }, "webhooks": [hook] })).await.expect(201);
}
