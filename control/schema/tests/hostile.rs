//! Whatever a client sends: no panic, no hang, and what is accepted is in normal form.

use proptest::prelude::*;
use rimward_control_schema::managed::{self, Write};
use rimward_control_schema::{Expected, FieldValidation, Format, builtin, decode, patch};
use serde_json::{Value, json};

fn pod() -> Expected<'static> {
    let definition = builtin().of_kind("", "v1", "Pod").expect("v1 Pod");
    Expected { group: "", version: "v1", kind: "Pod", definition }
}

fn example() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"a": "b"}, "finalizers": ["a/b"]},
        "spec": {"nodeName": "n", "volumes": [{"name": "v", "configMap": {"name": "c"}}], "containers": [{"name": "c", "image": "i",
            "env": [{"name": "A", "value": "é\u{1f600}"}], "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "http"}}}]}})
}

/// Any JSON, with names and directives that mean something.
fn json_value() -> impl Strategy<Value = Value> {
    let names = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("containers"),
        Just("volumes"),
        Just("name"),
        Just("ports"),
        Just("labels"),
        Just("finalizers"),
        Just("managedFields"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("fieldsV1"),
        Just("k:{\"name\":\"c\"}"),
        Just("f:spec"),
        Just("."),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![
            Just("c"),
            Just("v"),
            Just("delete"),
            Just("replace"),
            Just("a/b"),
            Just("Update"),
            Just("FieldsV1")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn broken_bodies(at in 0usize..700, bytes in prop::collection::vec(any::<u8>(), 0..6), cut in any::<bool>()) {
        let mut body = example().to_string().into_bytes();
        let at = at % body.len();
        if cut { body.truncate(at) }
        body.splice(at.min(body.len()).., bytes.clone());
        for format in [Format::Json, Format::Yaml] {
            if let Ok(decoded) = decode::object(builtin(), &pod(), &body, format, FieldValidation::Warn) {
                let again = decode::value(builtin(), &pod(), &decoded.value, FieldValidation::Strict);
                prop_assert_eq!(again.map(|d| d.value), Ok(decoded.value));
            }
        }
    }

    #[test]
    fn any_patch(patch in json_value()) {
        let body = patch.to_string();
        let object = example();
        let _ = patch::merge_patch(&object, body.as_bytes());
        let _ = patch::json_patch(&object, body.as_bytes());
        if let Ok(patched) = patch::strategic_merge_patch(builtin(), pod().definition, &object, body.as_bytes()) {
            let _ = patch::decode_patched(builtin(), &pod(), &patched, Vec::new(), FieldValidation::Strict);
        }
    }

    /// After an apply, applying the same again changes nothing; after an update, every field that the
    /// writer changed is recorded.
    #[test]
    fn ownership(spec in json_value(), fields in json_value()) {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let write = Write { manager: "m", api_version: "v1", subresource: "", now, ignored: &["status"] };
        let id = pod().definition;
        let mut live = example();
        managed::update(builtin(), id, None, &mut live, &write);
        live["metadata"]["uid"] = json!("u");
        let mut sent = example();
        sent["metadata"]["managedFields"] = fields;
        managed::update(builtin(), id, Some(&live), &mut sent, &write);
        let mut applied = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}});
        applied["spec"] = spec;
        let other = Write { manager: "o", ..write };
        if let Ok(once) = managed::apply(builtin(), id, Some(&live), &applied, &other, true) {
            let twice = managed::apply(builtin(), id, Some(&once), &applied, &other, false);
            prop_assert_eq!(twice, Ok(once));
        }
    }
}

/// How long the work of a create takes; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn speed() {
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS").to_owned();
        line.split_whitespace().nth(1).expect("a number").parse::<i64>().expect("a number")
    };
    let before = resident_kib();
    builtin();
    println!("model: {} KiB resident", resident_kib() - before);
    let body = example().to_string().into_bytes();
    let time = |what: &str, work: &mut dyn FnMut()| {
        work();
        let start = std::time::Instant::now();
        (0..20_000).for_each(|_| work());
        println!("{what}: {:.1} µs", start.elapsed().as_secs_f64() / 20_000.0 * 1e6);
    };
    let run = || {
        decode::object(builtin(), &pod(), &body, Format::Json, FieldValidation::Strict)
            .expect("a good pod")
            .value
    };
    let object = run();
    let now = jiff::Timestamp::UNIX_EPOCH;
    let write =
        Write { manager: "m", api_version: "v1", subresource: "", now, ignored: &["status"] };
    time("decode", &mut || drop(run()));
    time("serde_json alone", &mut || drop(serde_json::from_slice::<Value>(&body).expect("JSON")));
    time("clone", &mut || drop(object.clone()));
    time("clone and record a create", &mut || {
        let mut new = object.clone();
        managed::update(builtin(), pod().definition, None, &mut new, &write);
    });
    let mut old = object.clone();
    managed::update(builtin(), pod().definition, None, &mut old, &write);
    time("clone and record an update", &mut || {
        let mut new = object.clone();
        managed::update(builtin(), pod().definition, Some(&old), &mut new, &write);
    });
}

/// As deep as a body may be, in the recursive definition: every walk fits a thread's stack.
#[test]
fn deep_bodies() {
    let crd = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definition = builtin().of_kind(crd.0, crd.1, crd.2).expect("a built-in kind");
    let expected = Expected { group: crd.0, version: crd.1, kind: crd.2, definition };
    let nested = |levels: usize| {
        let mut schema = json!({"type": "object"});
        for _ in 0..levels {
            schema = json!({"properties": {"p": schema}});
        }
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": crd.2, "metadata": {"name": "x"},
            "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}})
    };
    let decode =
        |object: &Value| decode::value(builtin(), &expected, object, FieldValidation::Strict);
    let wrong = decode(&nested(130)).expect_err("too deep");
    assert!(wrong.message.contains("exceeded max depth"), "{wrong}");
    let live = decode(&nested(120)).expect("deep enough").value;
    let now = jiff::Timestamp::UNIX_EPOCH;
    let api_version = "apiextensions.k8s.io/v1";
    let write = Write { manager: "m", api_version, subresource: "", now, ignored: &[] };
    let mut recorded = live.clone();
    managed::update(builtin(), definition, None, &mut recorded, &write);
    recorded["metadata"]["uid"] = json!("u");
    let merged = managed::apply(builtin(), definition, Some(&recorded), &nested(119), &write, true);
    let patch = nested(118).to_string();
    let merged = merged.expect("an apply");
    patch::strategic_merge_patch(builtin(), definition, &merged, patch.as_bytes())
        .expect("a patch");
}
