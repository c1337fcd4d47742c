//! Lists: pages, versions, selectors, shapes.

use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, PODS, config_map, pod};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|i| i["metadata"]["name"].as_str().unwrap())
        .filter(|n| !n.starts_with("kube-root"))
        .collect()
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for i in 0..10 {
        c.post(CONFIG_MAPS, &config_map(&format!("a{i}"), "1")).await.expect(201);
    }
    let first = c.get(&format!("{CONFIG_MAPS}?limit=4")).await.expect(200);
    assert_eq!(names(&first), ["a0", "a1", "a2", "a3"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 7);
    c.post(CONFIG_MAPS, &config_map("a45", "1")).await.expect(201);
    c.delete(&format!("{CONFIG_MAPS}/a5"), &Value::Null).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = c.get(&format!("{CONFIG_MAPS}?limit=100&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["a4", "a5", "a6", "a7", "a8", "a9"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"].get("continue"), None);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = c
        .get(&format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact"))
        .await
        .expect(200);
    assert_eq!(names(&exact).len(), 10);
    cluster.store_compact().await;
    let expired = c.get(&format!("{CONFIG_MAPS}?limit=4&continue={token}")).await.expect(410);
    assert_eq!(expired["reason"], "Expired");
    // The answer carries a token that goes on at the newest state instead.
    let token = expired["metadata"]["continue"].as_str().unwrap();
    let inconsistent = c.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&inconsistent), ["a4", "a45"], "without a5, which is gone");
    let token = inconsistent["metadata"]["continue"].as_str().unwrap();
    let rest = c.get(&format!("{CONFIG_MAPS}?continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["a6", "a7", "a8", "a9"]);
    let late =
        c.get(&format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!(late.expect(410)["reason"], "Expired");
}

impl Cluster {
    async fn store_compact(&self) {
        use rimward_control_store::Store as _;
        self.store.compact(self.store.revision()).await.unwrap();
    }
}

#[tokio::test]
async fn long_lists_are_whole() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for i in 0..1203 {
        c.post(CONFIG_MAPS, &config_map(&format!("a{i:04}"), &"x".repeat(300))).await.expect(201);
    }
    let list = c.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(names(&list).len(), 1203);
    assert_eq!(list["kind"], "ConfigMapList");
    // The same moment again: the server writes objects of its own meanwhile, which moves the newest.
    let at = list["metadata"]["resourceVersion"].as_str().expect("a revision");
    let again = format!("{CONFIG_MAPS}?resourceVersion={at}&resourceVersionMatch=Exact");
    let zipped = c.send("GET", &again, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&zipped.bytes[..]), &mut text)
        .unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), list);
    let some = c
        .get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name!%3Da0007&limit=1000"))
        .await
        .expect(200);
    assert_eq!(names(&some).len(), 1000);
    assert_eq!(some["metadata"].get("remainingItemCount"), None, "unknown under a selector");
}

#[tokio::test]
async fn selectors() {
    let cluster = Cluster::start().await;
    for (name, labels) in [("a", json!({ "x": "1" })), ("b", json!({ "x": "2" })), ("c", json!({}))]
    {
        let mut p = pod(name);
        p["metadata"]["labels"] = labels;
        cluster.admin.post(PODS, &p).await.expect(201);
    }
    let check = async |query: &str, expected: &[&str]| {
        let list = cluster.admin.get(&format!("/api/v1/pods?{query}")).await.expect(200);
        assert_eq!(names(&list), expected, "{query}");
    };
    check("labelSelector=x", &["a", "b"]).await;
    check("labelSelector=x%20in%20(2,3)", &["b"]).await;
    check("labelSelector=!x", &["c"]).await;
    check("fieldSelector=metadata.name%3Db", &["b"]).await;
    check("fieldSelector=metadata.name%3Db,metadata.namespace%3Ddefault", &["b"]).await;
    check("fieldSelector=status.phase%3DPending&labelSelector=x%3D1", &["a"]).await;
    check("fieldSelector=metadata.namespace%3Dother", &[]).await;
}

#[tokio::test]
async fn shapes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(PODS, &pod("a")).await.expect(201);
    let accept = |shape: &str| format!("application/json;as={shape};v=v1;g=meta.k8s.io");
    let table = c.send("GET", PODS, &[("accept", &accept("Table"))], "").await.expect(200);
    assert_eq!(table["kind"], "Table");
    let columns = table["columnDefinitions"].as_array().unwrap();
    for (name, text) in
        [("Name", "must be unique within a namespace"), ("Age", "is a timestamp representing")]
    {
        let column = columns.iter().find(|c| c["name"] == name).expect("a column");
        let description = column["description"].as_str().unwrap();
        assert!(description.contains(text), "{name}: {description}");
    }
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    // The older name of the same.
    let beta = |shape: &str| accept(shape).replace("v1;", "v1beta1;");
    let old = c.send("GET", PODS, &[("accept", &beta("Table"))], "").await.expect(200);
    assert_eq!(
        (&old["apiVersion"], &old["rows"][0]["object"]["apiVersion"]),
        (&json!("meta.k8s.io/v1beta1"), &json!("meta.k8s.io/v1beta1"))
    );
    assert_eq!(old["rows"][0]["cells"], table["rows"][0]["cells"]);
    let one = format!("{PODS}/a");
    let old = c.send("GET", &one, &[("accept", &beta("PartialObjectMetadata"))], "").await;
    assert_eq!(old.expect(200)["apiVersion"], "meta.k8s.io/v1beta1");
    let list = beta("PartialObjectMetadataList");
    let old = c.send("GET", PODS, &[("accept", &list)], "").await.expect(200);
    assert_eq!(
        (&old["apiVersion"], &old["items"][0]["apiVersion"]),
        (&json!("meta.k8s.io/v1beta1"), &json!("meta.k8s.io/v1beta1"))
    );
    let path = format!("{PODS}?watch=1&timeoutSeconds=1");
    let mut events = c.watch_as(&path, &beta("Table")).await;
    let event = events.next().await.unwrap();
    assert_eq!(event["object"]["apiVersion"], "meta.k8s.io/v1beta1");
    let partial = c
        .send("GET", PODS, &[("accept", &accept("PartialObjectMetadataList"))], "")
        .await
        .expect(200);
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert_eq!(partial["items"][0].get("spec"), None);
    let yaml = c.send("GET", &format!("{PODS}/a"), &[("accept", "application/yaml")], "").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.text().contains("kind: Pod"), "{}", yaml.text());
    let head = c.send("HEAD", &format!("{PODS}/a"), &[], "").await;
    assert_eq!((head.code, head.bytes.len()), (200, 0));
}

/// `ValidateListOptions` of kube-apiserver, and what its watch cache makes of a limit.
#[tokio::test]
async fn versions_and_limits() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for i in 0..5 {
        c.post(CONFIG_MAPS, &config_map(&format!("a{i}"), "1")).await.expect(201);
    }
    let any = c.get(&format!("{CONFIG_MAPS}?limit=2&resourceVersion=0")).await.expect(200);
    assert_eq!(names(&any).len(), 5, "any state is answered whole");
    assert_eq!(any["metadata"].get("continue"), None);
    let first = c.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let next = c
        .get(&format!("{CONFIG_MAPS}?limit=2&resourceVersion=0&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&next), ["a2", "a3"]);

    let check = async |query: &str, code: u16, text: &str| {
        let answer = c.get(&format!("{CONFIG_MAPS}?{query}")).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(
            answer.code == code && message.contains(text),
            "{query}: {} {message}",
            answer.code
        );
    };
    let unsupported = r#"resourceVersionMatch: Unsupported value: "x": supported values: "Exact", "NotOlderThan", """#;
    check("resourceVersionMatch=x&resourceVersion=1", 422, unsupported).await;
    check("resourceVersionMatch=Exact", 422, "is forbidden unless resourceVersion is provided")
        .await;
    check("resourceVersionMatch=Exact&resourceVersion=0", 422, r#""exact" is forbidden"#).await;
    let both = format!("resourceVersionMatch=Exact&resourceVersion=5&continue={token}");
    check(&both, 422, "resourceVersionMatch is forbidden when continue is provided").await;
    let older = format!("resourceVersion=5&continue={token}");
    check(&older, 400, "specifying resource version is not allowed when using continue").await;
    check("sendInitialEvents=false", 422, "sendInitialEvents is forbidden for list").await;
    check("resourceVersion=x", 400, "invalid resource version").await;
    let alone = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
    check("watch=1&resourceVersionMatch=NotOlderThan", 422, alone).await;
    let needs = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    check("watch=1&sendInitialEvents=true", 422, needs).await;
}
