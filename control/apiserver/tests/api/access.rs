//! Who may do what: roles, tokens, impersonation, reviews.

use rimward_api::UserInfo;
use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, PODS, config_map, pod};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn roles_hold_at_once() {
    let cluster = Cluster::start().await;
    let ann = cluster.client(UserInfo::authenticated("ann", &["dev"]));
    let refused = ann.get(CONFIG_MAPS).await.expect(403);
    assert_eq!(
        refused["message"],
        "configmaps is forbidden: User \"ann\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    ann.get("/version").await.expect(200);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "b" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "dev" }],
    });
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    cluster.admin.post(&bindings, &binding).await.expect(201);
    ann.get(CONFIG_MAPS).await.expect(200);
    ann.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    ann.get("/api/v1/configmaps").await.expect(403);
    ann.get("/api/v1/namespaces/kube-system/configmaps").await.expect(403);
    cluster.admin.delete(&format!("{bindings}/b"), &Value::Null).await.expect(200);
    ann.get(CONFIG_MAPS).await.expect(403);
}

#[tokio::test]
async fn nobody_grants_more_than_they_hold() {
    let cluster = Cluster::start().await;
    let role = |name: &str, resources: &[&str]| {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": name },
            "rules": [{ "apiGroups": [""], "resources": resources, "verbs": ["get"] }] })
    };
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let bind = |name: &str, kind: &str, role: &str| {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann" }] })
    };
    let manage = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "manage" },
        "rules": [{ "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["*"] },
                  { "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }] });
    // `*` on roles would include `escalate` and `bind`: this one names its verbs.
    let mut manage = manage;
    manage["rules"][0]["verbs"] = json!(["create", "get", "update"]);
    cluster.admin.post(&roles, &manage).await.expect(201);
    cluster.admin.post(&bindings, &bind("ann", "Role", "manage")).await.expect(201);
    let ann = cluster.client(UserInfo::authenticated("ann", &[]));
    ann.post(&roles, &role("ok", &["pods"])).await.expect(201);
    let refused = ann.post(&roles, &role("more", &["secrets"])).await.expect(403);
    assert!(refused["message"].as_str().unwrap().contains("not currently held"), "{refused}");
    ann.post(&bindings, &bind("ok", "Role", "ok")).await.expect(201);
    ann.post(&bindings, &bind("more", "ClusterRole", "cluster-admin")).await.expect(403);
}

#[tokio::test]
async fn tokens_live_with_what_they_are_bound_to() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let made = c.post(PODS, &pod("p")).await.expect(201);
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "expirationSeconds": 3607, "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"] } } });
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token =
        c.post(path, &request).await.expect(201)["status"]["token"].as_str().unwrap().to_owned();
    let review = |token: &str, audiences: Value| json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token, "audiences": audiences } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let good = c.post(reviews, &review(&token, json!([]))).await.expect(201);
    assert_eq!(good["status"]["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(
        good["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    let wrong = c.post(reviews, &review(&token, json!(["vault"]))).await.expect(201);
    assert_ne!(wrong["status"]["authenticated"], true);
    let broken = format!("{}x", &token[..token.len() - 2]);
    assert_ne!(
        c.post(reviews, &review(&broken, json!([]))).await.expect(201)["status"]["authenticated"],
        true
    );
    c.delete(&format!("{PODS}/p"), &Value::Null).await.expect(200);
    assert_ne!(
        c.post(reviews, &review(&token, json!([]))).await.expect(201)["status"]["authenticated"],
        true
    );
    let mut short = request;
    short["spec"] = json!({ "expirationSeconds": 10 });
    c.post(path, &short).await.expect(422);
}

#[tokio::test]
async fn questions_are_answered() {
    let cluster = Cluster::start().await;
    let group = "/apis/authorization.k8s.io/v1";
    let ask = |kind: &str, spec: Value| json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
    let resource = json!({ "verb": "get", "resource": "pods", "namespace": "default" });
    let admin = &cluster.admin;
    let post = async |path: &str, kind: &str, spec: Value| {
        admin.post(&format!("{group}/{path}"), &ask(kind, spec)).await.expect(201)
    };
    let own = json!({ "resourceAttributes": resource });
    let may = post("selfsubjectaccessreviews", "SelfSubjectAccessReview", own).await;
    assert_eq!(may["status"]["allowed"], true);
    let other = json!({ "user": "ann", "resourceAttributes": resource });
    let may = post("subjectaccessreviews", "SubjectAccessReview", other.clone()).await;
    assert_eq!(may["status"]["allowed"], false);
    let may =
        post("namespaces/default/localsubjectaccessreviews", "LocalSubjectAccessReview", other)
            .await;
    assert_eq!(may["status"]["allowed"], false);
    // A question may be about a selection.
    let selecting = |selector: Value| {
        let mut resource = resource.clone();
        resource["fieldSelector"] = selector;
        ask("SelfSubjectAccessReview", json!({ "resourceAttributes": resource }))
    };
    let path = format!("{group}/selfsubjectaccessreviews");
    let term =
        |values: Value| json!({ "key": "spec.nodeName", "operator": "In", "values": values });
    let may = admin.post(&path, &selecting(json!({ "requirements": [term(json!(["n1"]))] }))).await;
    assert_eq!(may.expect(201)["status"]["allowed"], true);
    for (selector, field) in [
        (json!({}), "requirements"),
        (json!({ "requirements": [term(json!([]))] }), "requirements[0].values"),
        (json!({ "rawSelector": "a=b", "requirements": [term(json!(["n1"]))] }), "rawSelector"),
    ] {
        let refused = admin.post(&path, &selecting(selector)).await.expect(422);
        let found = refused["details"]["causes"][0]["field"].as_str().unwrap();
        assert_eq!(found, format!("spec.resourceAttributes.fieldSelector.{field}"));
    }
    let ann = cluster.client(UserInfo::authenticated("ann", &[]));
    let question = ask("SelfSubjectRulesReview", json!({ "namespace": "default" }));
    let rules = ann.post(&format!("{group}/selfsubjectrulesreviews"), &question).await.expect(201);
    assert!(!rules["status"]["resourceRules"].as_array().unwrap().is_empty(), "{rules}");
    let who = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let who = ann.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &who).await.expect(201);
    assert_eq!(who["status"]["userInfo"]["username"], "ann");
}

#[tokio::test]
async fn acting_as_another() {
    let cluster = Cluster::start().await;
    let as_ann = [("impersonate-user", "ann"), ("impersonate-group", "dev")];
    let refused = cluster.admin.send("GET", CONFIG_MAPS, &as_ann, "").await.expect(403);
    assert!(refused["message"].as_str().unwrap().contains("User \"ann\""));
    let ann = cluster.client(UserInfo::authenticated("ann", &[]));
    let refused =
        ann.send("GET", CONFIG_MAPS, &[("impersonate-user", "admin")], "").await.expect(403);
    assert!(
        refused["message"].as_str().unwrap().contains(
            "cannot impersonate-on:user-info:list resource \"configmaps\" in API group \"\""
        ),
        "{refused}"
    );
}
