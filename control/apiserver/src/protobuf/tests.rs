use super::*;
use serde_json::json;

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn int(number: u64, n: i64) -> Vec<u8> {
    [varint(number << 3), varint(n as u64)].concat()
}

fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &meta), bytes(2, message)].concat()
}

#[test]
fn a_pod() {
    let model = rimward_control_schema::builtin();
    let label = bytes(11, &[bytes(1, b"a"), bytes(2, b"b")].concat());
    let created = bytes(8, &int(1, 1_000_000_000));
    let meta = bytes(1, &[bytes(1, b"x"), label, created].concat());
    // A volume's source is embedded: field 2 of the volume, emptyDir (2) within.
    let volume = bytes(1, &[bytes(1, b"v"), bytes(2, &bytes(2, b""))].concat());
    let limit = bytes(1, &[bytes(1, b"cpu"), bytes(2, &bytes(1, b"1"))].concat());
    let container = bytes(2, &[bytes(1, b"c"), bytes(2, b"img"), bytes(8, &limit)].concat());
    let spec = bytes(2, &[volume, container, int(4, -1)].concat());
    let body = body("v1", "Pod", &[meta, spec].concat());
    let envelope = envelope(&body).expect("opens");
    let pod = decode(model, model.expect("io.k8s.api.core.v1.Pod"), &envelope).expect("decodes");
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "x", "labels": { "a": "b" }, "creationTimestamp": "2001-09-09T01:46:40Z" },
            "spec": {
                "volumes": [{ "name": "v", "emptyDir": {} }],
                "containers": [{ "name": "c", "image": "img", "resources": { "limits": { "cpu": "1" } } }],
                "terminationGracePeriodSeconds": -1,
            },
        })
    );
    for cut in 0..body.len() {
        // Whatever is cut off: an answer, never a panic.
        let _either = super::envelope(&body[..cut])
            .and_then(|e| decode(model, model.expect("io.k8s.api.core.v1.Pod"), &e));
    }
}

/// Something of every type, never the zero value, so that nothing can be dropped unseen.
struct Sample {
    count: i64,
}

impl Sample {
    fn object(&mut self, id: rimward_control_schema::DefId, depth: usize) -> serde_json::Value {
        let model = rimward_control_schema::builtin();
        let mut out = serde_json::Map::new();
        for field in &model.get(id).fields {
            // The type of a kind is not part of its message, also where it is a part of another.
            let is_type = matches!(&*field.name, "kind" | "apiVersion");
            if field.proto.is_none() || (is_type && !model.get(id).kinds.is_empty()) {
                continue;
            }
            if let Some(value) = self.value(&field.ty, depth + 1) {
                out.insert(field.name.to_string(), value);
            }
        }
        out.into()
    }

    /// None where the samples would nest without end.
    fn value(
        &mut self,
        ty: &rimward_control_schema::Type,
        depth: usize,
    ) -> Option<serde_json::Value> {
        use rimward_control_schema::Type;
        use rimward_control_schema::model::Alternative;
        self.count += 1;
        let n = self.count;
        Some(match ty {
            Type::Bool => true.into(),
            Type::String => format!("text-{n} ü").into(),
            Type::Bytes => json!("AP8B"),
            Type::Int32 => (if n % 2 == 0 { n } else { -n }).into(),
            Type::Int64 => (n << 33).into(),
            Type::Number => (n as f64 + 0.5).into(),
            Type::IntOrString if n % 2 == 0 => n.into(),
            Type::IntOrString => format!("{n}%").into(),
            Type::Quantity => format!("{n}m").into(),
            Type::Time => json!("2024-02-29T23:59:58Z"),
            Type::MicroTime => json!("2024-02-29T23:59:58.000007Z"),
            Type::Duration => json!("1m30.5s"),
            Type::Raw | Type::Any => json!({ "n": n, "list": [null, 1.5] }),
            Type::Map(map) => {
                let (a, b) = (self.value(&map.value, depth)?, self.value(&map.value, depth)?);
                json!({ "b": a, "a": b })
            }
            Type::List(list) => {
                let (a, b) = (self.value(&list.item, depth)?, self.value(&list.item, depth)?);
                json!([a, b])
            }
            Type::Object(_) | Type::SchemaOr(..) if depth > 9 => return None,
            Type::Object(id) if rimward_control_schema::builtin().get(*id).fields.is_empty() => {
                json!({})
            }
            // JSONSchemaProps is made of itself: two levels are enough.
            Type::SchemaOr(Alternative::Bool, _) => true.into(),
            Type::SchemaOr(Alternative::Strings, _) => json!(["a", "b"]),
            Type::SchemaOr(Alternative::List, _) => json!([{ "type": "string" }]),
            Type::Object(id)
                if rimward_control_schema::builtin().get(*id).go_name() == "JSONSchemaProps"
                    && depth > 6 =>
            {
                return None;
            }
            Type::Object(id) => self.object(*id, depth),
        })
    }
}

/// Every kind with every field of every part: JSON → protobuf → JSON is the identity, as far as
/// [`rimward_control_schema::decode`] tells things apart.
#[test]
fn every_kind_round_trips() {
    let model = rimward_control_schema::builtin();
    let registry = crate::served::Registry::builtin();
    let (mut kinds, mut wrong, mut dump) = (0, Vec::new(), String::new());
    for served in registry.all() {
        let Some(expected) = served.expected() else { continue };
        let kind = &served.kind.kind;
        if !served.protobuf {
            wrong.push(format!("{kind} has no wire numbers"));
            continue;
        }
        let normal = |value: &serde_json::Value| {
            let strict = rimward_control_schema::FieldValidation::Strict;
            let decoded = rimward_control_schema::decode::value(model, &expected, value, strict);
            decoded.unwrap_or_else(|e| panic!("{kind}: {e}")).value
        };
        let full = Sample { count: 0 }.object(expected.definition, 0);
        // Nothing said at all survives too.
        for object in [full, json!({})] {
            let before = normal(&object);
            let mut raw = Vec::new();
            message(model, expected.definition, &before, &mut raw);
            let name = model.get(expected.definition).name.replacen("io.k8s", "k8s.io", 1);
            let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
            dump += &format!("{name} {hex}\n");
            let body = enveloped(&served.kind.api_version(), kind, &[&raw]);
            let envelope = super::envelope(&body).expect("opens");
            assert_eq!((envelope.kind, envelope.raw), (kind.as_str(), &raw[..]));
            let after = normal(&decode(model, expected.definition, &envelope).expect("decodes"));
            wrong.extend(difference(&before, &after, kind.clone()));
        }
        kinds += 1;
    }
    // To look at the bytes with another implementation: a line is the name of the message, as the
    // `generated.proto` files of Kubernetes have it, and its bytes in hexadecimal. (Python's protobuf
    // reads all of them and writes the same bytes back.)
    if let Ok(path) = std::env::var("RIMWARD_PROTOBUF_DUMP") {
        std::fs::write(path, dump).expect("the path can be written");
    }
    assert!(kinds > 60, "{kinds} kinds");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where two values differ first.
fn difference(a: &serde_json::Value, b: &serde_json::Value, path: String) -> Option<String> {
    use serde_json::Value;
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            keys.into_iter().find_map(|k| difference(&a[k], &b[k], format!("{path}.{k}")))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let pairs = x.iter().zip(y).enumerate();
            pairs.into_iter().find_map(|(i, (x, y))| difference(x, y, format!("{path}[{i}]")))
        }
        _ => (a != b).then(|| format!("{path}: {a:.100} became {b:.100}")),
    }
}

/// A body made by another implementation (Python's protobuf, from Kubernetes' own `generated.proto`),
/// which leaves out what is zero.
#[test]
fn a_body_of_another_implementation() {
    let model = rimward_control_schema::builtin();
    let hex = include_str!("../../testdata/pod.protobuf.hex").trim();
    let bytes = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16));
    let body: Vec<u8> = bytes.collect::<Result<_, _>>().expect("is hexadecimal");
    let envelope = envelope(&body).expect("opens");
    let id = model.expect("io.k8s.api.core.v1.Pod");
    let pod = decode(model, id, &envelope).expect("decodes");
    assert_eq!(
        pod,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "x", "labels": { "a": "1", "b": "2" }, "creationTimestamp": "2024-02-29T23:59:58Z" },
            "spec": {
                "containers": [{
                    "name": "c", "image": "img",
                    "env": [{ "name": "E", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }],
                    "livenessProbe": { "httpGet": { "path": "/", "port": "web" } },
                    "ports": [{ "name": "web", "containerPort": 80 }],
                    "resources": { "limits": { "cpu": "100m" } },
                }],
                "hostNetwork": true,
                "terminationGracePeriodSeconds": -1,
                "tolerations": [{ "key": "k", "tolerationSeconds": 300 }],
                "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "1Gi" } }],
            },
        })
    );
}
