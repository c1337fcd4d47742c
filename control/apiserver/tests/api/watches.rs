//! Watches.

use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, config_map};

fn labelled(name: &str, value: &str, label: &str) -> Value {
    let mut object = config_map(name, value);
    object["metadata"]["labels"] = json!({ "l": label });
    object
}

fn is(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn from_a_version_on() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let version = c.get(CONFIG_MAPS).await.expect(200)["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let mut events = c.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(events.brief().await, is("ADDED", "a"));
    let changed = c.put(&format!("{CONFIG_MAPS}/a"), &config_map("a", "2")).await.expect(200);
    let event = events.next().await.unwrap();
    assert_eq!(
        event,
        json!({ "type": "MODIFIED", "object": changed }),
        "an event carries what a get would"
    );
    c.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(200);
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    let revision =
        |o: &Value| o["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(
        revision(&event["object"]) > revision(&changed),
        "the deletion has a version of its own"
    );
}

#[tokio::test]
async fn what_leaves_a_selector_is_deleted() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(CONFIG_MAPS, &labelled("a", "1", "in")).await.expect(201);
    c.post(CONFIG_MAPS, &labelled("b", "1", "out")).await.expect(201);
    let mut events = c.watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=l%3Din")).await;
    assert_eq!(events.brief().await, is("ADDED", "a"));
    c.put(&format!("{CONFIG_MAPS}/b"), &labelled("b", "2", "out")).await.expect(200);
    c.put(&format!("{CONFIG_MAPS}/b"), &labelled("b", "2", "in")).await.expect(200);
    assert_eq!(events.brief().await, is("ADDED", "b"));
    c.put(&format!("{CONFIG_MAPS}/a"), &labelled("a", "1", "out")).await.expect(200);
    let event = events.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["labels"]["l"]),
        (&json!("DELETED"), &json!("in"))
    );
    c.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(200);
    c.delete(&format!("{CONFIG_MAPS}/b"), &Value::Null).await.expect(200);
    assert_eq!(events.brief().await, is("DELETED", "b"));
}

#[tokio::test]
async fn a_watch_can_start_as_a_list() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name%3Da"
    );
    let mut events = c.watch(&path).await;
    assert_eq!(events.brief().await, is("ADDED", "a"));
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    c.put(&format!("{CONFIG_MAPS}/a"), &config_map("a", "2")).await.expect(200);
    assert_eq!(events.brief().await, is("MODIFIED", "a"));
    let refused = c.get(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!(refused.expect(422)["details"]["kind"], "ListOptions");
    // As a Table it cannot; whoever also takes the objects gets those.
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    c.send("GET", &path, &[("accept", table)], "").await.expect(406);
    let mut events = c.watch_as(&path, &format!("{table},application/json")).await;
    assert_eq!(events.next().await.unwrap()["object"]["kind"], "ConfigMap");
}

#[tokio::test]
async fn timeouts_and_lost_history() {
    use rimward_control_store::Store as _;
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let version = cluster.store.revision();
    for i in 0..5 {
        c.post(CONFIG_MAPS, &config_map(&format!("a{i}"), "1")).await.expect(201);
    }
    let mut short = c
        .watch(&format!(
            "{CONFIG_MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={}",
            cluster.store.revision()
        ))
        .await;
    let last = short.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK");
    assert_eq!(last["object"]["metadata"]["resourceVersion"], cluster.store.revision().to_string());
    assert_eq!(short.next().await, None, "the watch ends at its timeout");
    cluster.store.compact(cluster.store.revision()).await.unwrap();
    let mut lost = c.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await;
    let event = lost.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(lost.next().await, None);
}

#[tokio::test]
async fn tables_are_watched_too() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", c.revision().await);
    let mut events = c.watch_as(&path, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    c.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    let seen = [events.next().await.unwrap(), events.next().await.unwrap()];
    assert_eq!(seen[0]["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(seen[1]["object"]["columnDefinitions"], Value::Null, "columns come once");
    assert_eq!(seen[1]["object"]["rows"][0]["cells"][0], "b");
}

impl crate::cluster::Client {
    async fn revision(&self) -> String {
        self.get(CONFIG_MAPS).await.expect(200)["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

#[tokio::test]
async fn events_are_served_under_two_groups() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e" }, "type": "Normal", "reason": "R", "message": "M",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" },
    });
    c.post("/api/v1/namespaces/default/events", &event).await.expect(201);
    let other = c.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!(
        (&other["apiVersion"], &other["note"], &other["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("M"), &json!("p"))
    );
    let list = c
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp")
        .await
        .expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn one_object_can_be_watched_by_its_path() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for name in ["a", "ab"] {
        c.post(CONFIG_MAPS, &config_map(name, "1")).await.expect(201);
    }
    let mut events = c.watch(&format!("{CONFIG_MAPS}/a?watch=true")).await;
    assert_eq!(events.brief().await, is("ADDED", "a"));
    c.put(&format!("{CONFIG_MAPS}/ab"), &config_map("ab", "2")).await.expect(200);
    c.put(&format!("{CONFIG_MAPS}/a"), &config_map("a", "2")).await.expect(200);
    assert_eq!(events.brief().await, is("MODIFIED", "a"));
}

#[tokio::test]
async fn events_end_after_their_time() {
    let store = rimward_control_store::MemoryStore::new();
    let ttl = std::time::Duration::from_millis(300);
    let cluster = Cluster::start_on(store, |config| config.event_ttl = ttl).await;
    let event = json!({ "metadata": { "name": "e" }, "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" } });
    let path = "/api/v1/namespaces/default/events";
    cluster.admin.post(path, &event).await.expect(201);
    let mut events = cluster.admin.watch(&format!("{path}?watch=1")).await;
    assert_eq!(events.brief().await, is("ADDED", "e"));
    assert_eq!(events.brief().await, is("DELETED", "e"));
}

/// A position that is still to come is waited for: what happens before it is not told.
#[tokio::test]
async fn a_watch_from_the_future_waits() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let newest: u64 = c.revision().await.parse().unwrap();
    let later = newest + 50;
    let mut events = c.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={later}")).await;
    // The server writes objects of its own meanwhile, so counting revisions would not do.
    for i in 0.. {
        let made = c.post(CONFIG_MAPS, &config_map(&format!("a{i:03}"), "1")).await.expect(201);
        let at: u64 = made["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        if at > later {
            assert_eq!(events.brief().await, is("ADDED", &format!("a{i:03}")));
            break;
        }
    }
}

#[tokio::test]
async fn reads_wait_for_a_revision() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let newest: u64 = c.revision().await.parse().unwrap();
    let (next, never) = (newest + 1, newest + 100_000);
    let ways = |at: u64| {
        [
            format!("{CONFIG_MAPS}?resourceVersion={at}"),
            format!("{CONFIG_MAPS}?resourceVersion={at}&resourceVersionMatch=NotOlderThan"),
            format!("{CONFIG_MAPS}?resourceVersion={at}&resourceVersionMatch=Exact"),
            format!("{CONFIG_MAPS}?resourceVersion={at}&limit=1"),
            format!("{CONFIG_MAPS}/a?resourceVersion={at}"),
        ]
    };
    let soon = ways(next);
    let reads = futures::future::join_all(soon.iter().map(|path| c.get(path)));
    let (answers, _) = tokio::join!(reads, async {
        // They all wait by now: what is polled first has begun.
        tokio::task::yield_now().await;
        c.post(CONFIG_MAPS, &config_map("b", "1")).await.expect(201);
    });
    for (path, answer) in soon.iter().zip(answers) {
        assert_eq!(answer.code, 200, "{path}: {}", answer.text());
    }
    let distant = ways(never);
    let answers = futures::future::join_all(distant.iter().map(|path| c.get(path))).await;
    for (path, answer) in distant.iter().zip(answers) {
        assert_eq!(answer.headers["retry-after"], "1", "{path}");
        let status = answer.expect(504);
        let message = status["message"].as_str().unwrap();
        assert!(
            message
                .starts_with(&format!("Timeout: Too large resource version: {never}, current: ")),
            "{message}"
        );
        assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    }
    // A watch that begins with the state has to have that state; its answer has begun by then.
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&resourceVersion={never}"
    );
    let mut events = c.watch(&path).await;
    let event = events.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(504)));
    assert_eq!(events.next().await, None);
}
