//! Discovery, OpenAPI, version, health.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const V2: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

#[tokio::test]
async fn every_resource_is_found() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut resources = 0;
    for path in ["/api", "/apis"] {
        let answer = c.send("GET", path, &[("accept", V2)], "").await;
        assert!(
            answer.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList")
        );
        let list = answer.expect(200);
        for group in list["items"].as_array().unwrap() {
            for version in group["versions"].as_array().unwrap() {
                resources += version["resources"].as_array().unwrap().len();
            }
        }
        let etag = answer.headers["etag"].to_str().unwrap().to_owned();
        let same = c.send("GET", path, &[("accept", V2), ("if-none-match", &etag)], "").await;
        assert_eq!((same.code, same.bytes.len()), (304, 0));
    }
    assert_eq!(resources, 70, "those of Kubernetes, and the two of metrics.k8s.io");
    let core = c.get("/api/v1").await.expect(200);
    let pods = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
    assert_eq!((&pods["shortNames"], &pods["namespaced"]), (&json!(["po"]), &json!(true)));
    assert_eq!(pods["storageVersionHash"], "xPOwRZ+Yhw8=", "that of every cluster");
    let groups = c.get("/apis").await.expect(200);
    let autoscaling =
        groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "autoscaling").unwrap();
    assert_eq!(autoscaling["preferredVersion"]["version"], "v2");
    // Scripts, kubectl's own tests among them, look for parts of the text.
    let text = String::from_utf8(c.get("/api/v1").await.bytes.to_vec()).unwrap();
    assert!(text.starts_with(r#"{"kind":"APIResourceList","groupVersion":"v1","resources":["#));
    let config_maps = r#"{"name":"configmaps","singularName":"configmap","namespaced":true,"kind":"ConfigMap","verbs":["create","delete","deletecollection","get","list","patch","update","watch"],"shortNames":["cm"],"storageVersionHash":"qFsyl6wFWjQ="}"#;
    assert!(text.contains(config_maps), "{text}");
    let eviction = r#"{"name":"pods/eviction","singularName":"","namespaced":true,"group":"policy","version":"v1","kind":"Eviction","verbs":["create"]}"#;
    assert!(text.contains(eviction), "{text}");
    assert!(text.contains(
        r#""shortNames":["po"],"categories":["all"],"storageVersionHash":"xPOwRZ+Yhw8="}"#
    ));
    let apps = String::from_utf8(c.get("/apis/apps/v1").await.bytes.to_vec()).unwrap();
    assert!(apps.starts_with(
        r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"apps/v1","resources":[{"name":"#
    ));
    assert_eq!(c.get("/apis/apps").await.expect(200)["kind"], "APIGroup");
    assert_eq!(c.get("/apis/none").await.code, 404);
}

#[tokio::test]
async fn documents() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let index = c.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let apps = c.get(url).await;
    assert_eq!(apps.headers["cache-control"], "public, immutable");
    assert!(
        apps.expect(200)["components"]["schemas"].get("io.k8s.api.apps.v1.Deployment").is_some()
    );
    let v2 = c.get("/openapi/v2").await.expect(200);
    assert!(v2["definitions"].get("io.k8s.api.core.v1.Pod").is_some());
    operations(&v2);
    let pb = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let pb = c.send("GET", "/openapi/v2", &pb, "").await;
    assert!(
        pb.code == 200
            && pb.bytes.len() > 100_000
            && serde_json::from_slice::<Value>(&pb.bytes).is_err()
    );
}

#[tokio::test]
async fn deprecated_kinds_say_so() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let endpoints =
        r#"299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice""#;
    let all = "/api/v1/namespaces/default/endpoints";
    assert_eq!(c.get(all).await.warnings(), [endpoints]);
    assert_eq!(c.post(all, &json!({ "metadata": { "name": "e" } })).await.warnings(), [endpoints]);
    assert_eq!(c.get(&format!("{all}/none")).await.warnings(), [endpoints]);
    let components = c.get("/api/v1/componentstatuses").await.warnings();
    assert_eq!(components, [r#"299 - "v1 ComponentStatus is deprecated in v1.19+""#]);
    assert!(c.get("/api/v1/pods").await.warnings().is_empty());
}

#[tokio::test]
async fn the_store_is_a_component() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let all = "/api/v1/componentstatuses";
    let list = c.get(all).await.expect(200);
    let names: Vec<&Value> =
        list["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!(names, ["etcd-0"]);
    let one = c.get(&format!("{all}/etcd-0")).await.expect(200);
    assert_eq!(one["conditions"][0]["status"], "True");
    assert_eq!(one["kind"], "ComponentStatus");
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = c.send("GET", all, &table, "").await.expect(200);
    assert_eq!(table["rows"][0]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    let none = c.get(&format!("{all}?fieldSelector=metadata.name%3Dx")).await.expect(200);
    assert_eq!(none["items"], json!([]));
    c.get(&format!("{all}/none")).await.expect(404);
}

/// Generated clients name their methods by the ids, so each is there once, and is Kubernetes' own.
fn operations(v2: &Value) {
    let mut ids = std::collections::HashMap::new();
    for (path, item) in v2["paths"].as_object().unwrap() {
        for (method, operation) in
            item.as_object().unwrap().iter().filter(|(m, _)| *m != "parameters")
        {
            let id = operation["operationId"].as_str().unwrap();
            let before = ids.insert(id.to_owned(), (method.clone(), path.clone()));
            assert_eq!(before, None, "{id} is {method} {path} too");
        }
    }
    let expected = [
        ("listCoreV1PodForAllNamespaces", "get", "/api/v1/pods"),
        ("watchCoreV1NamespacedPodList", "get", "/api/v1/watch/namespaces/{namespace}/pods"),
        ("deleteCoreV1CollectionNamespacedPod", "delete", "/api/v1/namespaces/{namespace}/pods"),
        (
            "connectCoreV1PostNamespacedPodExec",
            "post",
            "/api/v1/namespaces/{namespace}/pods/{name}/exec",
        ),
        ("connectCoreV1HeadNodeProxyWithPath", "head", "/api/v1/nodes/{name}/proxy/{path}"),
        ("readCoreV1NamespacedPodLog", "get", "/api/v1/namespaces/{namespace}/pods/{name}/log"),
        (
            "createCoreV1NamespacedPodEviction",
            "post",
            "/api/v1/namespaces/{namespace}/pods/{name}/eviction",
        ),
        ("replaceCoreV1NamespaceFinalize", "put", "/api/v1/namespaces/{name}/finalize"),
        (
            "readRbacAuthorizationV1ClusterRole",
            "get",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}",
        ),
        (
            "patchAppsV1NamespacedDeploymentScale",
            "patch",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
        ),
    ];
    for (id, method, path) in expected {
        assert_eq!(ids.get(id), Some(&(method.to_owned(), path.to_owned())), "{id}");
    }
    // What kubectl's own tests look for.
    let text = v2.to_string();
    for phrase in
        ["list of returned", "List of services", "Watch for changes to the described resources"]
    {
        assert!(text.contains(phrase), "{phrase}");
    }
}

/// Discovery documents come in every encoding; schema documents only in their own.
#[tokio::test]
async fn documents_in_other_encodings() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let ask = async |path: &str, accept: &str| c.send("GET", path, &[("accept", accept)], "").await;
    for path in ["/api", "/apis", "/apis/apps", "/api/v1", "/apis/apps/v1"] {
        let yaml = ask(path, "application/yaml").await;
        assert_eq!((yaml.code, yaml.content_type()), (200, "application/yaml"), "{path}");
        assert!(yaml.text().contains("kind: API"), "{path}: {}", yaml.text());
        let protobuf = ask(path, "application/vnd.kubernetes.protobuf").await;
        assert_eq!(protobuf.content_type(), "application/vnd.kubernetes.protobuf", "{path}");
        assert!(protobuf.bytes.starts_with(b"k8s\0"), "{path}");
        let refused = ask(path, "text/html").await;
        assert_eq!(refused.expect(406)["reason"], "NotAcceptable", "{path}");
        // A client that reads the aggregated form first reads the other too.
        let both = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        ask(path, both).await.expect(200);
    }
    for path in ["/openapi/v2", "/openapi/v3/api/v1"] {
        assert_eq!(ask(path, "text/html").await.code, 406, "{path}");
        assert_eq!(ask(path, "*/*").await.content_type(), "application/json", "{path}");
    }
}

#[tokio::test]
async fn version_health_and_metrics() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let version = c.get("/version").await.expect(200);
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.36.2+rimward"));
    assert_eq!(c.get("/readyz").await.text(), "ok");
    let verbose = c.get("/livez?verbose").await.text();
    assert!(
        verbose.starts_with("[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]poststarthook/"),
        "{verbose}"
    );
    assert!(verbose.ends_with("[+]autoregister-completion ok\nlivez check passed\n"), "{verbose}");
    let some = c
        .get("/readyz?verbose&exclude=etcd&exclude=poststarthook/rbac/bootstrap-roles")
        .await
        .text();
    for line in [
        "[+]etcd excluded: ok\n[+]etcd-readiness ok\n[+]informer-sync ok\n",
        "[+]poststarthook/rbac/bootstrap-roles excluded: ok\n",
        "[+]shutdown ok\nreadyz check passed\n",
    ] {
        assert!(some.contains(line), "{some}");
    }
    let all = c.get("/").await.expect(200)["paths"].as_array().unwrap().clone();
    for path in ["/livez/etcd", "/readyz/ping", "/healthz/poststarthook/rbac/bootstrap-roles"] {
        assert_eq!(c.get(path).await.text(), "ok", "{path}");
        assert!(all.contains(&path.into()), "{path}");
    }
    assert_eq!(c.get("/livez/shutdown").await.code, 404);
    let nobody = cluster.client(rimward_api::UserInfo::anonymous());
    assert_eq!(nobody.get("/healthz").await.code, 200);
    nobody.get("/metrics").await.expect(403);
    let path = "/api/v1/namespaces/default/configmaps";
    c.send("POST", &format!("{path}?dryRun=All"), &[], r#"{"metadata":{"name":"x"}}"#)
        .await
        .expect(201);
    let apply = [("content-type", "application/apply-patch+yaml")];
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap"}"#;
    c.send("PATCH", &format!("{path}/y?fieldManager=m"), &apply, body).await.expect(201);
    c.get("/api/v1/componentstatuses").await.expect(200);
    let metrics = c.get("/metrics").await.text();
    let about = |verb: &str, resource: &str, scope: &str| {
        format!(
            r#"verb="{verb}",group="",version="v1",resource="{resource}",subresource="",scope="{scope}",component="apiserver""#
        )
    };
    for line in [
        format!(
            "apiserver_request_total{{{},dry_run=\"All\",code=\"201\"}} 1",
            about("POST", "configmaps", "resource")
        ),
        format!(
            "apiserver_request_total{{{},dry_run=\"\",code=\"201\"}} 1",
            about("APPLY", "configmaps", "resource")
        ),
        format!(
            "apiserver_request_sli_duration_seconds_count{{{}}} 1",
            about("APPLY", "configmaps", "resource")
        ),
        format!(
            "apiserver_response_sizes_count{{{}}} 1",
            about("LIST", "componentstatuses", "cluster")
        ),
        r#"apiserver_requested_deprecated_apis{group="",version="v1",resource="componentstatuses""#
            .into(),
        r#"subresource="/readyz""#.into(),
        r#"apiserver_resource_objects{group="apps",resource="deployments"} 0"#.into(),
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0".into(),
        "# TYPE apiserver_request_duration_seconds histogram".into(),
        // What the store, the steps of admission and their plugins took.
        r#"etcd_request_duration_seconds_count{operation="create",group="",resource="configmaps"} "#
            .into(),
        r#"apiserver_storage_events_received_total{group="",resource="configmaps"} "#.into(),
        r#"apiserver_admission_step_admission_duration_seconds_summary_count{operation="CREATE",rejected="false",type="validate"} "#.into(),
        r#"apiserver_admission_controller_admission_duration_seconds_count{name="NamespaceLifecycle",operation="CREATE",rejected="false",type="admit"} "#.into(),
        r#"apiserver_admission_controller_admission_duration_seconds_count{name="ResourceQuota",operation="CREATE",rejected="false",type="validate"} "#.into(),
        format!("git_version={}", version["gitVersion"]),
    ] {
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    let slis = c.get("/metrics/slis").await.text();
    let check =
        r#"kubernetes_healthcheck{name="poststarthook/rbac/bootstrap-roles",type="readyz"} 1"#;
    assert!(slis.contains(check), "{slis}");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let of_servers = "labelSelector=apiserver.kubernetes.io/identity%3Dkube-apiserver";
    let leases = c.get(&format!("{leases}?{of_servers}")).await.expect(200);
    let [lease] = &leases["items"].as_array().unwrap()[..] else { panic!("{leases}") };
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap();
    assert!(holder.starts_with(&format!("{}_", lease["metadata"]["name"].as_str().unwrap())));
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);
    assert_eq!(c.get("/openid/v1/jwks").await.expect(200)["keys"][0]["alg"], "ES256");
    cluster.server.stop();
    assert_eq!(c.get("/readyz").await.code, 500);
}
