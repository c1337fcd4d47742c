//! Encodings beside JSON: protobuf in every kind of answer, and what is refused.

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cluster::{Answer, CONFIG_MAPS, Client, Cluster, PODS, config_map, pod};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// As client-go asks.
const GO: &str = "application/vnd.kubernetes.protobuf,application/json";

async fn get(c: &Client, path: &str, accept: &str) -> Answer {
    c.send("GET", path, &[("accept", accept)], "").await
}

/// The fields of a message whose values have lengths.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = varint(&mut bytes);
        if tag & 7 == 2 {
            let (content, rest) = bytes.split_at(value as usize);
            bytes = rest;
            out.push((tag >> 3, content));
        }
    }
    out
}

fn field(bytes: &[u8], number: u64) -> &[u8] {
    fields(bytes).into_iter().find(|(n, _)| *n == number).unwrap_or_default().1
}

/// apiVersion, kind and message of a body.
fn opened(body: &[u8]) -> (String, String, &[u8]) {
    let unknown = body.strip_prefix(b"k8s\0").unwrap();
    let meta = field(unknown, 1);
    let text = |n| String::from_utf8(field(meta, n).to_vec()).unwrap();
    (text(1), text(2), field(unknown, 2))
}

#[tokio::test]
async fn what_is_read_can_be_written_back() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut full = pod("a");
    full["metadata"]["labels"] = json!({ "x": "1", "a": "" });
    full["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": { "sizeLimit": "1Gi" } }]);
    full["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "100m" } });
    full["spec"]["containers"][0]["livenessProbe"] =
        json!({ "httpGet": { "path": "/", "port": "web" } });
    full["spec"]["containers"][0]["ports"] = json!([{ "name": "web", "containerPort": 80 }]);
    let created = c
        .send(
            "POST",
            PODS,
            &[("accept", GO), ("content-type", "application/json")],
            full.to_string(),
        )
        .await;
    assert_eq!((created.code, &created.headers["content-type"]), (201, &PROTOBUF.parse().unwrap()));
    let path = format!("{PODS}/a");
    let before = c.get(&path).await.expect(200);
    let read = get(c, &path, GO).await;
    let (api_version, kind, message) = opened(&read.bytes);
    assert_eq!((api_version.as_str(), kind.as_str()), ("v1", "Pod"));
    assert_eq!(field(field(message, 1), 1), b"a");
    assert_eq!(read.bytes, get(c, &path, PROTOBUF).await.bytes, "the kept one is the same");
    // Written back it changes nothing: not even the version, which a lost field would.
    let written = c
        .send("PUT", &path, &[("accept", GO), ("content-type", PROTOBUF)], read.bytes.clone())
        .await;
    assert_eq!((written.code, &written.bytes), (200, &read.bytes));
    assert_eq!(c.get(&path).await.expect(200), before);

    let patch = [("accept", GO), ("content-type", "application/merge-patch+json")];
    let patched = c.send("PATCH", &path, &patch, r#"{"metadata":{"labels":{"x":"2"}}}"#).await;
    assert_eq!(opened(&patched.bytes).1, "Pod");
    let deleted = c.send("DELETE", &path, &[("accept", GO)], "").await;
    assert_eq!((deleted.code, opened(&deleted.bytes).1.as_str()), (200, "Pod"));
    let gone =
        c.send("DELETE", &format!("{CONFIG_MAPS}/kube-root-ca.crt"), &[("accept", GO)], "").await;
    assert_eq!((gone.code, opened(&gone.bytes).1.as_str()), (200, "Status"));
    let missing = get(c, &format!("{PODS}/none"), GO).await;
    let (_, kind, status) = opened(&missing.bytes);
    assert_eq!((missing.code, kind.as_str()), (404, "Status"));
    assert_eq!(field(status, 3), b"pods \"none\" not found");
}

#[tokio::test]
async fn lists_and_shapes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    for name in ["a", "b"] {
        c.post(PODS, &pod(name)).await.expect(201);
    }
    let one = get(c, &format!("{PODS}/b"), GO).await;
    let list = get(c, PODS, GO).await;
    let (api_version, kind, message) = opened(&list.bytes);
    assert_eq!((api_version.as_str(), kind.as_str()), ("v1", "PodList"));
    let items: Vec<&[u8]> =
        fields(message).into_iter().filter(|(n, _)| *n == 2).map(|(_, item)| item).collect();
    assert_eq!(items.len(), 2);
    assert_eq!(items[1], opened(&one.bytes).2);
    let version = c.get(PODS).await.expect(200)["metadata"]["resourceVersion"].clone();
    assert_eq!(field(field(message, 1), 2), version.as_str().unwrap().as_bytes());
    let page = get(c, &format!("{PODS}?limit=1"), GO).await;
    assert!(!field(field(opened(&page.bytes).2, 1), 3).is_empty(), "a continue token");

    let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let metadata = get(c, PODS, &partial).await;
    let (api_version, kind, message) = opened(&metadata.bytes);
    assert_eq!(
        (api_version.as_str(), kind.as_str()),
        ("meta.k8s.io/v1", "PartialObjectMetadataList")
    );
    assert_eq!(field(field(field(message, 2), 1), 1), b"a");
    // Tables have no protobuf: the next best that the client takes.
    let table = "as=Table;v=v1;g=meta.k8s.io";
    let shown =
        get(c, PODS, &format!("{PROTOBUF};{table},application/json;{table},application/json"))
            .await;
    assert_eq!(shown.json()["kind"], "Table");
    let refused = get(c, PODS, &format!("{PROTOBUF};{table}")).await.expect(406);
    assert_eq!(
        refused["message"],
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    get(c, PODS, "application/cbor").await.expect(406);
    let cbor = c.send("POST", PODS, &[("content-type", "application/cbor")], "x").await;
    cbor.expect(415);
    let gone = c.send("DELETE", PODS, &[("accept", GO)], "").await;
    assert_eq!((gone.code, opened(&gone.bytes).1.as_str()), (200, "PodList"));
}

#[tokio::test]
async fn watches() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let selected = "fieldSelector=metadata.name%3Da";
    let path = format!(
        "{CONFIG_MAPS}?watch=true&{selected}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let response = c.open("GET", &path, &[("accept", GO)], Bytes::new()).await;
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let mut body = response.into_body();
    let mut rest: Vec<u8> = Vec::new();
    let mut next = async || loop {
        if let Some((len, frame)) = rest.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*len) as usize;
            if frame.len() >= len {
                let event = frame[..len].to_vec();
                rest.drain(..len + 4);
                return event;
            }
        }
        rest.extend_from_slice(&body.next().await.unwrap().unwrap());
    };
    let shown = |event: &[u8]| {
        let kind = String::from_utf8(field(event, 1).to_vec()).unwrap();
        (kind, field(field(event, 2), 1).to_vec())
    };
    let (kind, object) = shown(&next().await);
    assert_eq!(
        (kind.as_str(), object),
        ("ADDED", get(c, &format!("{CONFIG_MAPS}/a"), GO).await.bytes.to_vec())
    );
    let (kind, object) = shown(&next().await);
    assert_eq!(kind, "BOOKMARK");
    let (_, kind, message) = opened(&object);
    assert_eq!(kind, "ConfigMap");
    let annotation = field(field(message, 1), 12);
    assert_eq!(field(annotation, 1), b"k8s.io/initial-events-end");
    c.put(&format!("{CONFIG_MAPS}/a"), &config_map("a", "2")).await.expect(200);
    let (kind, object) = shown(&next().await);
    assert_eq!(
        (kind.as_str(), object),
        ("MODIFIED", get(c, &format!("{CONFIG_MAPS}/a"), GO).await.bytes.to_vec())
    );
    c.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(200);
    assert_eq!(shown(&next().await).0, "DELETED");
    // Also the refusal comes in the encoding that the client takes.
    let yaml = get(c, &format!("{CONFIG_MAPS}?watch=true"), "application/yaml").await;
    assert_eq!(
        (yaml.code, &yaml.headers["content-type"]),
        (406, &"application/yaml".parse().unwrap())
    );
    let accepted = "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    assert!(yaml.text().contains(accepted), "{}", yaml.text());
}

/// What left a selection is seen in its last selected form, and does not become what others read.
#[tokio::test]
async fn a_form_that_is_gone_is_not_kept() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut object = pod("a");
    object["metadata"]["labels"] = json!({ "x": "1" });
    c.post(PODS, &object).await.expect(201);
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = format!("{PODS}?watch=true&labelSelector=x%3D1");
    for accept in [accept, GO] {
        let mut body = c.open("GET", &path, &[("accept", accept)], Bytes::new()).await.into_body();
        body.next().await.unwrap().unwrap();
        c.merge(&format!("{PODS}/a"), &json!({ "metadata": { "labels": { "x": "2" } } }))
            .await
            .expect(200);
        body.next().await.unwrap().unwrap();
        let read = get(c, &format!("{PODS}/a"), GO).await;
        let labels = field(field(opened(&read.bytes).2, 1), 11);
        assert_eq!(field(labels, 2), b"2", "{accept}");
        c.merge(&format!("{PODS}/a"), &json!({ "metadata": { "labels": { "x": "1" } } }))
            .await
            .expect(200);
    }
}
