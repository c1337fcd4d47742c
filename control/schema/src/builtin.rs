//! The model of the built-in kinds, read from the table that `build.rs` made.

use std::borrow::Cow;
use std::io::Read as _;
use std::sync::LazyLock;

use rimward_api::GroupVersionKind;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::{
    Alternative, Definition, Field, ListKind, ListType, MapType, Model, PatchStrategy, Presence,
    Proto, Type, Wire,
};

static MODEL_TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model.json.gz"));
static DESCRIPTIONS_TABLE: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.gz"));

/// The built-in kinds of Kubernetes v1.36, with the parts that they are made of. Decoded once, on
/// first use; descriptions are not part of it (see `openapi`).
pub fn builtin() -> &'static Model {
    static MODEL: LazyLock<Model> = LazyLock::new(|| load(&read_table(MODEL_TABLE)));
    &MODEL
}

/// Texts of the built-in definitions: definition → its own text, and field → text. Read anew on every
/// call, since OpenAPI documents are made seldom and the texts are large.
pub(crate) fn descriptions() -> Descriptions {
    let text = read_table(DESCRIPTIONS_TABLE);
    parse(&text)
}

/// What documentation says of a field of every object's metadata; nothing of what is not one. Kept, since
/// Tables show it.
pub fn metadata_description(field: &str) -> &'static str {
    static TEXTS: LazyLock<std::collections::HashMap<String, String>> = LazyLock::new(|| {
        let mut all = descriptions();
        all.remove("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap_or_default().1
    });
    TEXTS.get(field).map_or("", String::as_str)
}

pub(crate) type Descriptions =
    std::collections::HashMap<String, (Option<String>, std::collections::HashMap<String, String>)>;

fn read_table(table: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(table)
        .read_to_string(&mut text)
        .expect("build.rs wrote gzip'd text");
    text
}

fn parse<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("build.rs wrote the table in this form")
}

/// A definition as `build.rs` writes it.
#[derive(Deserialize)]
struct RawDefinition<'a> {
    n: &'a str,
    #[serde(default)]
    k: Vec<(String, String, String)>,
    #[serde(default)]
    a: bool,
    #[serde(borrow)]
    f: Vec<RawField<'a>>,
}

/// A field: name, type, presence, Go type, required, default, merge key, patch strategy, atomic, wire.
#[derive(Deserialize)]
struct RawField<'a> {
    n: &'a str,
    #[serde(borrow)]
    t: RawType<'a>,
    p: &'a str,
    #[serde(borrow)]
    g: Cow<'a, str>,
    #[serde(default)]
    r: bool,
    d: Option<Value>,
    mk: Option<&'a str>,
    ps: Option<&'a str>,
    #[serde(default)]
    a: bool,
    w: Option<(u32, &'a str, Vec<u32>)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawType<'a> {
    Scalar(&'a str),
    SchemaOr {
        or: &'a str,
        o: &'a str,
    },
    Object {
        o: &'a str,
    },
    List {
        #[serde(borrow)]
        l: Box<RawType<'a>>,
        k: Option<RawKeys<'a>>,
    },
    Map {
        #[serde(borrow)]
        m: Box<RawType<'a>>,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawKeys<'a> {
    Kind(&'a str),
    Keys(#[serde(borrow)] Vec<&'a str>),
}

fn load(text: &str) -> Model {
    let raw: Vec<RawDefinition<'_>> =
        serde_json::from_str(text).expect("build.rs wrote the table in this form");
    let mut model = Model::new();
    for definition in raw {
        let fields = definition.f.into_iter().map(|f| field(&mut model, f)).collect();
        let kinds = definition.k.into_iter();
        let kinds =
            kinds.map(|(group, version, kind)| GroupVersionKind { group, version, kind }).collect();
        model.add(Definition::new(definition.n, kinds, fields, definition.a));
    }
    model
}

fn field(model: &mut Model, raw: RawField<'_>) -> Field {
    let strategy = raw.ps.unwrap_or_default();
    Field {
        name: raw.n.into(),
        ty: ty(model, raw.t),
        presence: match raw.p {
            "p" => Presence::Pointer,
            "n" => Presence::PointerOrNull,
            "z" => Presence::NonZero,
            _ => Presence::Always,
        },
        required: raw.r,
        default: raw.d.map(Box::new),
        merge_key: raw.mk.map(Into::into),
        patch: PatchStrategy {
            merge: strategy.split(',').any(|s| s == "merge"),
            replace: strategy.split(',').any(|s| s == "replace"),
            retain_keys: strategy.split(',').any(|s| s == "retainKeys"),
        },
        atomic: raw.a,
        go_type: raw.g.as_ref().into(),
        proto: raw.w.map(|(number, wire, within)| Proto {
            number,
            wire: match wire {
                "varint" => Wire::Varint,
                "fixed32" => Wire::Fixed32,
                "fixed64" => Wire::Fixed64,
                _ => Wire::Bytes,
            },
            within: within.into(),
        }),
    }
}

fn ty(model: &mut Model, raw: RawType<'_>) -> Type {
    match raw {
        RawType::Scalar(code) => match code {
            "b" => Type::Bool,
            "s" => Type::String,
            "y" => Type::Bytes,
            "i" => Type::Int32,
            "l" => Type::Int64,
            "f" => Type::Number,
            "x" => Type::IntOrString,
            "q" => Type::Quantity,
            "t" => Type::Time,
            "u" => Type::MicroTime,
            "d" => Type::Duration,
            "r" => Type::Raw,
            _ => Type::Any,
        },
        RawType::Object { o } => Type::Object(model.reserve(o)),
        RawType::SchemaOr { or, o } => {
            let alternative = match or {
                "b" => Alternative::Bool,
                "l" => Alternative::List,
                _ => Alternative::Strings,
            };
            Type::SchemaOr(alternative, model.reserve(o))
        }
        RawType::Map { m } => Type::Map(Box::new(MapType { value: ty(model, *m), atomic: false })),
        RawType::List { l, k } => {
            let kind = match k {
                None | Some(RawKeys::Kind("a")) => ListKind::Atomic,
                Some(RawKeys::Kind(_)) => ListKind::Set,
                Some(RawKeys::Keys(keys)) => {
                    ListKind::Map(keys.into_iter().map(Into::into).collect())
                }
            };
            Type::List(Box::new(ListType { item: ty(model, *l), kind }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_is_what_kubernetes_says() {
        let model = builtin();
        let pod = model.get(model.of_kind("", "v1", "Pod").expect("v1 Pod"));
        assert_eq!(&*pod.name, "io.k8s.api.core.v1.Pod");
        let spec = pod.field("spec").expect("a pod has a spec");
        assert_eq!(spec.presence, Presence::Always);
        let Type::Object(spec) = spec.ty else { panic!("{:?}", spec.ty) };
        let containers = model.get(spec).field("containers").expect("containers");
        assert!(containers.required && containers.patch.merge);
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        assert_eq!(&*containers.go_type, "[]v1.Container");
        let Type::List(list) = &containers.ty else { panic!("{:?}", containers.ty) };
        assert_eq!(list.kind, ListKind::Map(["name".into()].into()));
        let Type::Object(container) = list.item else { panic!("{:?}", list.item) };
        let probe = model.get(container).field("livenessProbe").expect("livenessProbe");
        let Type::Object(probe) = probe.ty else { panic!("{:?}", probe.ty) };
        let http = model.get(probe).field("httpGet").expect("embedded handlers are flattened");
        assert_eq!(http.proto.as_ref().expect("wire facts").within.len(), 1);
        let volume = model.definition("io.k8s.api.core.v1.Volume").expect("Volume");
        assert_eq!(volume.field("emptyDir").expect("emptyDir").presence, Presence::Pointer);
    }

    #[test]
    fn every_kind_has_its_parts() {
        let model = builtin();
        for kind in
            ["Pod", "Service", "Node", "Secret", "ConfigMap", "Namespace", "Event", "Binding"]
        {
            assert!(model.of_kind("", "v1", kind).is_some(), "{kind}");
        }
        for (_, definition) in model.definitions() {
            assert!(!definition.name.is_empty());
            for field in &definition.fields {
                if let Type::Object(id) = field.ty {
                    let part = model.get(id);
                    let empty_by_nature = part.fields.is_empty();
                    assert!(
                        !empty_by_nature || EMPTY.contains(&part.go_name()),
                        "{}.{}",
                        definition.name,
                        field.name
                    );
                }
            }
        }
        const EMPTY: &[&str] = &["CustomResourceSubresourceStatus", "Patch"];
        let texts = descriptions();
        assert!(
            texts["io.k8s.api.core.v1.Pod"]
                .0
                .as_deref()
                .is_some_and(|t| t.starts_with("Pod is a collection"))
        );
        assert!(texts["io.k8s.api.core.v1.Container"].1["image"].contains("image"));
    }
}
