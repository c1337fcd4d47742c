//! Who somebody is: ServiceAccounts and their tokens, certificates, acting as another.

use rimward_api::{ObjectKey, UserInfo};
use rimward_control_apiserver::oidc::parse;
use rimward_control_store::MemoryStore;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::{CONFIG_MAPS, Client, Cluster, PODS, pod};
use crate::kubectl::{Authority, check_http, tls};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn review(c: &Client, token: &str, audiences: Value) -> Value {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token, "audiences": audiences } });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    c.post(path, &review).await.expect(201)["status"].clone()
}

/// The second part of a token, unverified.
fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn the_life_of_a_service_account() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let account = json!({ "metadata": { "name": "test", "labels": { "static": "true" } } });
    c.post(ACCOUNTS, &account).await.expect(201);
    let mut watch = c.watch(&format!("{ACCOUNTS}?watch=true&labelSelector=static%3Dtrue")).await;
    assert_eq!(watch.brief().await, ("ADDED".into(), "test".into()));
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let patch =
        json!({ "metadata": { "creationTimestamp": null }, "automountServiceAccountToken": false });
    c.send("PATCH", &format!("{ACCOUNTS}/test"), &strategic, patch.to_string()).await.expect(200);
    assert_eq!(watch.brief().await, ("MODIFIED".into(), "test".into()));
    let all = c.get("/api/v1/serviceaccounts?labelSelector=static%3Dtrue").await.expect(200);
    assert_eq!(all["items"][0]["automountServiceAccountToken"], false);
    let mut found = c.get(&format!("{ACCOUNTS}/test")).await.expect(200);
    found["automountServiceAccountToken"] = true.into();
    let updated = c.put(&format!("{ACCOUNTS}/test"), &found).await.expect(200);
    assert_eq!(updated["automountServiceAccountToken"], true);
    assert_eq!(watch.brief().await, ("MODIFIED".into(), "test".into()));
    c.delete(&format!("{ACCOUNTS}?labelSelector=static%3Dtrue"), &Value::Null).await.expect(200);
    assert_eq!(watch.brief().await, ("DELETED".into(), "test".into()));
}

#[tokio::test]
async fn pods_that_want_no_token() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for (name, automount) in [("mount", true), ("nomount", false)] {
        let account =
            json!({ "metadata": { "name": name }, "automountServiceAccountToken": automount });
        c.post(ACCOUNTS, &account).await.expect(201);
    }
    for (account, of_pod, expected) in [
        ("default", Value::Null, true),
        ("mount", Value::Null, true),
        ("nomount", Value::Null, false),
        ("default", json!(true), true),
        ("mount", json!(true), true),
        ("nomount", json!(true), true),
        ("default", json!(false), false),
        ("mount", json!(false), false),
        ("nomount", json!(false), false),
    ] {
        let mut pod = pod("unnamed");
        pod["metadata"] = json!({ "generateName": "p-" });
        pod["spec"]["serviceAccountName"] = account.into();
        pod["spec"]["automountServiceAccountToken"] = of_pod.clone();
        let made = c.post(PODS, &pod).await.expect(201);
        let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array();
        let mounted = mounts.into_iter().flatten().any(|m| {
            m["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
                && m["readOnly"] == true
        });
        assert_eq!(mounted, expected, "{account} {of_pod}");
    }
}

#[tokio::test]
async fn tokens_of_pods_outlive_their_word() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = c.post(PODS, &pod("p")).await.expect(201);
    let token = async |spec: Value| {
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let path = format!("{ACCOUNTS}/default/token");
        c.post(&path, &request).await.expect(201)["status"]["token"].as_str().unwrap().to_owned()
    };
    let bound =
        json!({ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"] });
    let lives = |claims: &Value| claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    let mounted =
        claims(&token(json!({ "expirationSeconds": 3607, "boundObjectRef": bound })).await);
    assert_eq!(lives(&mounted), 365 * 86_400);
    let says = mounted["kubernetes.io"]["warnafter"].as_i64().unwrap();
    assert_eq!(says - mounted["iat"].as_i64().unwrap(), 3607);
    for spec in [
        json!({ "expirationSeconds": 3607 }),
        json!({ "expirationSeconds": 3607, "boundObjectRef": bound, "audiences": ["vault"] }),
        json!({ "expirationSeconds": 3600, "boundObjectRef": bound }),
    ] {
        let plain = claims(&token(spec.clone()).await);
        assert_eq!(Some(lives(&plain)), spec["expirationSeconds"].as_i64(), "{spec}");
        assert!(plain["kubernetes.io"].get("warnafter").is_none());
    }
}

#[tokio::test]
async fn tokens_that_secrets_hold() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let account = c.post(ACCOUNTS, &json!({ "metadata": { "name": "robot" } })).await.expect(201);
    let uid = account["metadata"]["uid"].as_str().unwrap();
    let key = ObjectKey::new("default", "robot");
    let token = cluster.server.legacy_token(&key, uid, "robot-token").unwrap();
    let said = claims(&token);
    assert_eq!(
        said,
        json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": "default",
            "kubernetes.io/serviceaccount/secret.name": "robot-token",
            "kubernetes.io/serviceaccount/service-account.name": "robot",
            "kubernetes.io/serviceaccount/service-account.uid": uid,
            "sub": "system:serviceaccount:default:robot",
        })
    );
    let refused = async |why: &str| {
        let status = review(c, &token, json!([])).await;
        assert_ne!(status["authenticated"], true, "{status}");
        assert!(status["error"].as_str().unwrap().contains(why), "{status}");
    };
    refused("Secret default/robot-token is gone").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({
        "type": "kubernetes.io/service-account-token", "stringData": { "token": "another" },
        "metadata": { "name": "robot-token", "annotations": { "kubernetes.io/service-account.name": "robot" } },
    });
    c.post(secrets, &secret).await.expect(201);
    refused("not the one that Secret").await;
    let path = format!("{secrets}/robot-token");
    c.merge(&path, &json!({ "stringData": { "token": token } })).await.expect(200);
    let good = review(c, &token, json!([])).await;
    assert_eq!(good["authenticated"], true, "{good}");
    assert_eq!(good["user"]["username"], "system:serviceaccount:default:robot");
    assert_eq!(good["user"]["uid"], uid);
    let groups =
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(good["user"]["groups"], groups);
    assert_eq!(good["audiences"], json!(["https://kubernetes.default.svc.cluster.local"]));
    // It is seen that it is used, and by whom it is not to be any more.
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let noted = c.get(&path).await.expect(200);
    assert_eq!(noted["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"], today);
    assert_ne!(review(c, &token, json!(["vault"])).await["authenticated"], true);
    let label = |value: Value| json!({ "metadata": { "labels": { "kubernetes.io/legacy-token-invalid-since": value } } });
    c.merge(&path, &label(json!("2026-01-01"))).await.expect(200);
    refused("marked invalid").await;
    c.merge(&path, &label(Value::Null)).await.expect(200);
    assert_eq!(review(c, &token, json!([])).await["authenticated"], true);
    // An account of the same name is another account.
    c.delete(&format!("{ACCOUNTS}/robot"), &Value::Null).await.expect(200);
    c.post(ACCOUNTS, &json!({ "metadata": { "name": "robot" } })).await.expect(201);
    refused("ServiceAccount robot is gone or another one").await;
}

#[tokio::test]
async fn this_server_as_an_issuer() {
    let cluster = Cluster::start().await;
    let account = cluster.client(UserInfo::service_account("default", "default"));
    let document = account.get("/.well-known/openid-configuration").await;
    assert_eq!(document.headers["content-type"], "application/json");
    assert_eq!(document.headers["cache-control"], "public, max-age=3600");
    let document = document.expect(200);
    assert_eq!(document["issuer"], "https://kubernetes.default.svc.cluster.local");
    let place = document["jwks_uri"].as_str().unwrap();
    let keys = account
        .get(place.strip_prefix("https://kubernetes.default.svc.cluster.local").unwrap())
        .await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&keys.bytes).unwrap();
    let request = json!({ "spec": { "audiences": ["oidc-discovery-test"] } });
    let made = cluster.admin.post(&format!("{ACCOUNTS}/default/token"), &request).await.expect(201);
    let token = made["status"]["token"].as_str().unwrap();
    let id = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(keys.find(&id).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&["oidc-discovery-test"]);
    validation.set_issuer(&[document["issuer"].as_str().unwrap()]);
    let checked = jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap();
    assert_eq!(checked.claims["sub"], "system:serviceaccount:default:default");
    // Without a binding to the role, nobody else reads them.
    cluster.client(UserInfo::anonymous()).get("/openid/v1/jwks").await.expect(403);
}

fn request(name: &str, signer: &str, usages: &[&str]) -> Value {
    use base64::Engine as _;
    let mut params = rcgen::CertificateParams::new(vec!["e2e.example.com".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "e2e.example.com");
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let pem = base64::engine::general_purpose::STANDARD.encode(pem);
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": { "generateName": name },
        "spec": { "request": pem, "signerName": signer, "expirationSeconds": 3600, "usages": usages },
    })
}

#[tokio::test]
async fn every_verb_of_signing_requests() {
    use base64::Engine as _;
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let usages = ["digital signature", "key encipherment", "server auth"];
    let template = request("e2e-csr-", "example.com/e2e", &usages);
    for _ in 0..2 {
        c.post(REQUESTS, &template).await.expect(201);
    }
    let made = c.post(REQUESTS, &template).await.expect(201);
    let path = format!("{REQUESTS}/{}", made["metadata"]["name"].as_str().unwrap());
    assert_eq!(c.get(&path).await.expect(200)["spec"]["expirationSeconds"], 3600);
    let selected = format!("{REQUESTS}?fieldSelector=spec.signerName%3Dexample.com%2Fe2e");
    let listed = c.get(&selected).await.expect(200);
    let count = |list: &Value| list["items"].as_array().unwrap().len();
    assert_eq!(count(&listed), 3);
    let annotate = |key: &str| json!({ "metadata": { "annotations": { key: "true" } } });
    let patched = c.merge(&path, &annotate("patched")).await.expect(200);
    assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
    let mut updated = patched;
    updated["metadata"]["annotations"]["updated"] = "true".into();
    c.put(&path, &updated).await.expect(200);
    // /approval: conditions of any type, and nothing else of the status.
    let approval = format!("{path}/approval");
    let got = c.get(&approval).await.expect(200);
    assert_eq!(
        (&got["kind"], &got["metadata"]["uid"]),
        (&json!("CertificateSigningRequest"), &made["metadata"]["uid"])
    );
    let mut patch = annotate("patchedapproval");
    patch["status"] = json!({
        "conditions": [{ "type": "ApprovalPatch", "status": "True", "reason": "e2e" }], "certificate": "bm9uZQ==",
    });
    let patched = c.merge(&approval, &patch).await.expect(200);
    let conditions = patched["status"]["conditions"].as_array().unwrap();
    assert_eq!((conditions.len(), &conditions[0]["type"]), (1, &json!("ApprovalPatch")));
    assert!(patched["status"].get("certificate").is_none(), "{patched}");
    assert_eq!(patched["metadata"]["annotations"]["patchedapproval"], "true");
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": "E2E", "message": "Set from a test" });
    let mut approved = patched;
    approved["status"]["conditions"].as_array_mut().unwrap().push(condition("Approved"));
    let approved = c.put(&approval, &approved).await.expect(200);
    assert_eq!(approved["status"]["conditions"][1]["type"], "Approved");
    assert!(approved["status"]["conditions"][1]["lastUpdateTime"].is_string());
    // /status: the certificate, and conditions but for the decision.
    let status = format!("{path}/status");
    c.get(&status).await.expect(200);
    let refused =
        c.merge(&status, &json!({ "status": { "certificate": "bm9uZQ==" } })).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "status.certificate", "{refused}");
    let certificate =
        rcgen::generate_simple_self_signed(vec!["e2e.example.com".to_owned()]).unwrap();
    let certificate = base64::engine::general_purpose::STANDARD.encode(certificate.cert.pem());
    let mut patch = annotate("patchedstatus");
    patch["status"] = json!({ "certificate": certificate });
    let signed = c.merge(&status, &patch).await.expect(200);
    assert_eq!(signed["status"]["certificate"], certificate);
    assert_eq!(signed["metadata"]["annotations"]["patchedstatus"], "true");
    let mut more = signed.clone();
    more["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate"));
    let more = c.put(&status, &more).await.expect(200);
    assert_eq!(more["status"]["conditions"][2]["type"], "StatusUpdate");
    for (change, why) in [
        (json!({ "certificate": "" }), "may not modify existing certificate content"),
        (
            json!({ "conditions": [condition("Approved"), condition("Denied")] }),
            "may not add a condition of type \"Denied\"",
        ),
        (json!({ "conditions": [] }), "may not remove a condition of type \"Approved\""),
    ] {
        let refused = c.merge(&status, &json!({ "status": change })).await.expect(422);
        assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
    }
    c.delete(&path, &Value::Null).await.expect(200);
    c.get(&path).await.expect(404);
    assert_eq!(count(&c.get(&selected).await.expect(200)), 2);
    c.delete(&selected, &Value::Null).await.expect(200);
    assert_eq!(count(&c.get(&selected).await.expect(200)), 0);
    // What was not signed by the key that it asks for is refused.
    let mut forged = template;
    let other = request("x-", "example.com/e2e", &usages);
    forged["spec"]["request"] =
        spliced(&forged["spec"]["request"], &other["spec"]["request"]).into();
    let refused = c.post(REQUESTS, &forged).await.expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.request", "{refused}");
}

/// One request with the signature of another.
fn spliced(one: &Value, other: &Value) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let der = |request: &Value| {
        let pem = STANDARD.decode(request.as_str().unwrap()).unwrap();
        let text = String::from_utf8(pem).unwrap();
        let body: String = text.lines().filter(|l| !l.starts_with("---")).collect();
        STANDARD.decode(body).unwrap()
    };
    let (mut one, other) = (der(one), der(other));
    // The last bytes are within the signature; its length may differ by a byte or two.
    let end = one.len();
    one[end - 16..].copy_from_slice(&other[other.len() - 16..]);
    STANDARD.encode(format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(one)
    ))
}

async fn grant(c: &Client, name: &str, account: &str, rules: Value) {
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules });
    c.post(&format!("{RBAC}/clusterroles"), &role).await.expect(201);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": "default" }],
    });
    c.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
}

const AUTHENTICATION: &str = "authentication.k8s.io";

#[tokio::test]
async fn an_agent_acts_as_its_node() {
    let cluster = Cluster::start().await;
    let on = |node: &str| {
        let mut user = UserInfo::service_account("default", "agent");
        let key = "authentication.kubernetes.io/node-name".to_owned();
        user.extra.insert(key, vec![node.to_owned()]);
        cluster.client(user)
    };
    let agent = on("n1");
    let as_node = |node: &'static str| [("impersonate-user", node)];
    agent.send("GET", PODS, &as_node("system:node:n1"), "").await.expect(403);
    let rules = json!([
        { "verbs": ["impersonate:associated-node"], "apiGroups": [AUTHENTICATION], "resources": ["nodes"] },
        { "verbs": ["impersonate-on:associated-node:list"], "apiGroups": [""], "resources": ["pods"] },
    ]);
    grant(&cluster.admin, "agent", "agent", rules).await;
    // A node may not read the API itself here: that it is one is what the refusal tells.
    let refused = agent.send("GET", PODS, &as_node("system:node:n1"), "").await.expect(403);
    let nodes = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "nodes-view" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes" }],
    });
    assert!(
        refused["message"].as_str().unwrap().contains("User \"system:node:n1\" cannot list"),
        "{refused}"
    );
    cluster.admin.post(&format!("{RBAC}/clusterrolebindings"), &nodes).await.expect(201);
    agent.send("GET", PODS, &as_node("system:node:n1"), "").await.expect(200);
    // Only to list, only as its own node, and as nothing but the node.
    for (client, path, headers) in [
        (&agent, format!("{PODS}?watch=true"), vec![("impersonate-user", "system:node:n1")]),
        (&agent, CONFIG_MAPS.to_owned(), vec![("impersonate-user", "system:node:n1")]),
        (&agent, PODS.to_owned(), vec![("impersonate-user", "system:node:n2")]),
        (&on("n2"), PODS.to_owned(), vec![("impersonate-user", "system:node:n1")]),
        (
            &agent,
            PODS.to_owned(),
            vec![("impersonate-user", "system:node:n1"), ("impersonate-group", "system:nodes")],
        ),
        (&agent, PODS.to_owned(), vec![("impersonate-user", "ann")]),
    ] {
        let refused = client.send("GET", &path, &headers, "").await.expect(403);
        let message = refused["message"].as_str().unwrap();
        assert!(
            message.contains("system:serviceaccount:default:agent\" cannot impersonate"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn acting_as_somebody_for_some_things() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let deputy = cluster.client(UserInfo::service_account("default", "deputy"));
    let rules = json!([
        { "verbs": ["impersonate:user-info"], "apiGroups": [AUTHENTICATION], "resources": ["users"], "resourceNames": ["jane"] },
        { "verbs": ["impersonate:user-info"], "apiGroups": [AUTHENTICATION], "resources": ["groups"], "resourceNames": ["dev", "system:masters"] },
        { "verbs": ["impersonate:user-info"], "apiGroups": [AUTHENTICATION], "resources": ["userextras/example.com/scope"], "resourceNames": ["a"] },
        { "verbs": ["impersonate:serviceaccount"], "apiGroups": [AUTHENTICATION], "resources": ["serviceaccounts"], "resourceNames": ["default"] },
        { "verbs": ["impersonate-on:user-info:create", "impersonate-on:serviceaccount:create"],
          "apiGroups": [AUTHENTICATION], "resources": ["selfsubjectreviews"] },
    ]);
    grant(c, "deputy", "deputy", rules).await;
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" })
        .to_string();
    let ask = async |headers: &[(&str, &str)]| {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        deputy.send("POST", who, &all, body.clone()).await
    };
    let jane = ask(&[
        ("impersonate-user", "jane"),
        ("impersonate-group", "dev"),
        ("impersonate-extra-example.com%2fscope", "a"),
    ])
    .await;
    let jane = jane.expect(201);
    let user = &jane["status"]["userInfo"];
    assert_eq!(
        (&user["username"], &user["groups"]),
        (&json!("jane"), &json!(["dev", "system:authenticated"]))
    );
    assert_eq!(user["extra"]["example.com/scope"], json!(["a"]));
    let account =
        ask(&[("impersonate-user", "system:serviceaccount:default:default")]).await.expect(201);
    assert_eq!(account["status"]["userInfo"]["groups"][0], "system:serviceaccounts");
    for (headers, why) in [
        (vec![("impersonate-user", "joe")], "cannot impersonate:user-info resource \"users\""),
        (
            vec![("impersonate-user", "jane"), ("impersonate-group", "ops")],
            "cannot impersonate:user-info resource \"groups\"",
        ),
        (
            vec![("impersonate-user", "jane"), ("impersonate-group", "system:masters")],
            "impersonating the system:masters group is not allowed",
        ),
        (vec![("impersonate-user", "jane"), ("impersonate-uid", "1")], "resource \"uids\""),
        (
            vec![("impersonate-user", "jane"), ("impersonate-extra-scope", "a")],
            "domain-prefixed path",
        ),
        (
            vec![("impersonate-user", "system:serviceaccount:default:other")],
            "cannot impersonate:serviceaccount resource \"serviceaccounts\"",
        ),
        (
            vec![("impersonate-user", "system:node:n1")],
            "cannot impersonate-on:arbitrary-node:create",
        ),
    ] {
        let refused = ask(&headers).await.expect(403);
        assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
    }
    let refused =
        deputy.send("GET", CONFIG_MAPS, &[("impersonate-user", "jane")], "").await.expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("cannot impersonate-on:user-info:list resource \"configmaps\""),
        "{refused}"
    );
    let nobody = ask(&[("impersonate-group", "dev")]).await.expect(400);
    assert!(
        nobody["message"].as_str().unwrap().contains("without impersonating a user name"),
        "{nobody}"
    );
}

#[tokio::test]
async fn who_may_come_without_credentials() {
    let config = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n";
    let cluster = Cluster::start_on(MemoryStore::new(), |c| {
        c.authentication = parse(config).unwrap();
    })
    .await;
    let ca = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (server, tls) = (cluster.server.clone(), tls(&ca));
    tokio::spawn(async move { server.serve(listener, tls, None, CancellationToken::new()).await });
    let made =
        cluster.admin.post(&format!("{ACCOUNTS}/default/token"), &json!({})).await.expect(201);
    let token = format!("Bearer {}", made["status"]["token"].as_str().unwrap());
    for (path, token, status) in [
        ("/livez", None, "200 OK"),
        ("/readyz", None, "401 Unauthorized"),
        ("/version", None, "401 Unauthorized"),
        ("/version", Some(token.clone()), "200 OK"),
        ("/version", Some("Bearer nonsense".to_owned()), "401 Unauthorized"),
        (CONFIG_MAPS, Some(token), "403 Forbidden"),
    ] {
        check_http(&ca, port, path, token, status, "").await;
    }
}
