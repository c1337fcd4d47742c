//! Whatever bytes come: an answer, never a panic, a hang or memory without bound. More cases:
//! `PROPTEST_CASES=1000000 cargo test -p rimward-control-apiserver --lib bad_input`.

use http::{HeaderMap, HeaderValue, Method};
use proptest::prelude::*;
use rimward_control_schema as schema;

use crate::negotiate::{self, Offer};
use crate::options::{DeleteOptions, ListOptions, WriteOptions};
use crate::protobuf;
use crate::request::{Attributes, Query};
use crate::served::Registry;

fn pods() -> (Registry, schema::DefId) {
    let registry = Registry::builtin();
    let id = registry.model.expect("io.k8s.api.core.v1.Pod");
    (registry, id)
}

/// Bytes that begin like something real, so that the depths are reached too.
fn spoilt(real: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let changes = prop::collection::vec(change, 0..8);
    let cut = any::<prop::sample::Index>();
    let noise = prop::collection::vec(any::<u8>(), 0..64);
    prop_oneof![
        noise.clone(),
        (changes, cut, noise).prop_map(move |(changes, cut, noise)| {
            let mut bytes = real.to_vec();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let at = cut.index(bytes.len() + 1);
            bytes.splice(at..at, noise);
            bytes
        }),
    ]
}

const POD: &[u8] = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","resources":{"limits":{"cpu":"1"}},"ports":[{"containerPort":80}]}],"terminationGracePeriodSeconds":30}}"#;
const PATCH: &[u8] = br#"{"metadata":{"labels":{"$retainKeys":["a"],"a":null}},"spec":{"containers":[{"$patch":"delete","name":"c"}],"$setElementOrder/containers":[{"name":"c"}]}}"#;
const JSON_PATCH: &[u8] = br#"[{"op":"add","path":"/metadata/labels/a~1b","value":1},{"op":"move","from":"/spec/containers/0","path":"/spec/containers/-"},{"op":"test","path":"","value":{}}]"#;
const YAML: &[u8] = b"a: &x\n  - {b: 1, c: !!str 2}\n  - *x\n---\nd: |\n  text\n<<: *x\n";

fn pod_protobuf() -> &'static [u8] {
    let (registry, id) = pods();
    let object: serde_json::Value = serde_json::from_slice(POD).expect("is JSON");
    let mut message = Vec::new();
    protobuf::message(registry.model, id, &object, &mut message);
    protobuf::enveloped("v1", "Pod", &[&message]).leak()
}

proptest! {
    #[test]
    fn protobuf_bodies(bytes in spoilt(pod_protobuf())) {
        let (registry, id) = pods();
        if let Ok(envelope) = protobuf::envelope(&bytes)
            && let Ok(object) = protobuf::decode(registry.model, id, &envelope)
        {
            // What was read can be written.
            protobuf::message(registry.model, id, &object, &mut Vec::new());
        }
    }

    #[test]
    fn text_bodies(json in spoilt(POD), yaml in spoilt(YAML)) {
        let (registry, id) = pods();
        let expected = schema::Expected { group: "", version: "v1", kind: "Pod", definition: id };
        let (model, strict) = (registry.model, schema::FieldValidation::Strict);
        let _either = schema::decode::object(model, &expected, &json, schema::Format::Json, strict);
        let _either = schema::decode::object(model, &expected, &yaml, schema::Format::Yaml, strict);
        let _either = DeleteOptions::parse(&Query::default(), &json);
    }

    #[test]
    fn patches(strategic in spoilt(PATCH), json in spoilt(JSON_PATCH)) {
        let (registry, id) = pods();
        let object: serde_json::Value = serde_json::from_slice(POD).expect("is JSON");
        let _either = schema::patch::strategic_merge_patch(registry.model, id, &object, &strategic);
        let _either = schema::patch::merge_patch(&object, &strategic);
        let _either = schema::patch::json_patch(&object, &json);
    }

    #[test]
    fn queries(
        path in "(/|api|apis|v1|namespaces|watch|pods|%2[0-9a-z]|%|\\PC){0,12}",
        query in "((labelSelector|fieldSelector|continue|limit|resourceVersion|resourceVersionMatch|timeoutSeconds|watch|sendInitialEvents|dryRun|fieldManager|timeout)=(a|!|=|in|notin|\\(|\\)|,|[0-9]{1,20}|-1|%[0-9a-f]{2}|\\PC){0,12}&){0,4}",
    ) {
        let query = Query::parse(Some(&query));
        let _any = Attributes::parse(&Method::GET, &path, &query);
        let registry = Registry::builtin();
        let pods = registry.resource("", "pods").expect("a built-in kind");
        for watch in [false, true] {
            let _either = ListOptions::parse(&query, &pods.kind, watch);
        }
        let _either = WriteOptions::parse(&query, "PatchOptions", "agent", true);
        let _either = crate::deadline::of(&query, tokio::time::Instant::now());
    }

    #[test]
    fn continue_tokens(token in "[A-Za-z0-9_=-]{0,80}|eyJ2IjoibWV0YS5rOHMuaW8vdjEi[A-Za-z0-9_-]{0,60}") {
        let registry = Registry::builtin();
        let pods = registry.resource("", "pods").expect("a built-in kind");
        let query = Query::parse(Some(&format!("limit=1&continue={token}")));
        let _either = ListOptions::parse(&query, &pods.kind, false);
    }

    #[test]
    fn accept_headers(text in "((application/|\\*/|text/)(json|yaml|\\*|vnd\\.kubernetes\\.protobuf)?(;(as|g|v|q|stream)=?[A-Za-z0-9.]{0,8}){0,3},?){0,4}") {
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_str(&text).expect("visible ASCII"));
        headers.insert("accept-encoding", HeaderValue::from_str(&text).expect("visible ASCII"));
        let _either = negotiate::form(&headers, Offer::OWN);
        let _either = negotiate::gzip(&headers);
        let _either = negotiate::sent(&headers);
    }
}
