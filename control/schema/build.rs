//! Makes the tables of the built-in kinds: joins the Go types of `facts/` with the descriptions and
//! required fields that k8s-openapi's `schemars` feature knows, and resolves every type name, so that
//! a mistake in the facts fails the build and not a request.
//!
//! Two tables come out, gzip'd JSON: the model (all that decoding and merging need) and the
//! descriptions (all that only OpenAPI needs).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use k8s_openapi::{api, apiextensions_apiserver, apimachinery, kube_aggregator};
use serde_json::{Map, Value, json};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const CORE: &str = "io.k8s.api.core.v1";
const METRICS: &str = "io.k8s.metrics.pkg.apis.metrics.v1beta1";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

fn main() {
    println!("cargo::rerun-if-changed=facts");
    println!("cargo::rerun-if-changed=build.rs");
    let read = |file: &str| -> Map<String, Value> {
        let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
    };
    let mut facts = Facts {
        wire: read("facts/wire-facts.json"),
        schema: read("facts/schema-facts.json"),
        published: published_schemas(),
    };
    // Types that the wire facts leave out: without fields, or with an encoding of their own.
    facts.wire.insert(format!("{APIEXTENSIONS}.CustomResourceSubresourceStatus"), json!({}));
    facts.wire.insert(format!("{META}.Patch"), json!({}));
    facts.wire.insert(
        format!("{META}.WatchEvent"),
        json!({
            "type": { "n": 1, "wire": "bytes", "type": "string" },
            "object": { "n": 2, "wire": "bytes", "type": "runtime.RawExtension" },
        }),
    );
    metrics(&mut facts);
    let mut definitions = Vec::new();
    let mut descriptions = BTreeMap::new();
    for name in facts.wire.keys().filter(|name| facts.is_object(name)) {
        let (definition, texts) = facts.definition(name);
        definitions.push(definition);
        descriptions.insert(name.as_str(), texts);
    }
    for special in facts.published.keys().filter(|n| special(n).is_some()) {
        let text = facts.published[special].get("description").cloned().unwrap_or_default();
        descriptions.insert(special, json!([text, {}]));
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    write_gzip(&Path::new(&out).join("model.json.gz"), &json!(definitions));
    write_gzip(&Path::new(&out).join("descriptions.json.gz"), &json!(descriptions));
}

/// The types of `k8s.io/metrics`, which belong to no API of Kubernetes' own server; the numbers are those
/// of its `generated.proto`.
fn metrics(facts: &mut Facts) {
    let kinds = json!({
        "NodeMetrics": { "usage": { "n": 4, "wire": "bytes", "rep": 1, "type": "v1.ResourceList" } },
        "PodMetrics": {
            "containers": { "n": 4, "wire": "bytes", "rep": 1, "type": "[]ContainerMetrics" },
        },
    });
    for (kind, own) in kinds.as_object().into_iter().flatten() {
        let mut fields = json!({
            "(inline metav1.TypeMeta)": { "type": "metav1.TypeMeta", "inline": 1 },
            "metadata": { "n": 1, "wire": "bytes", "type": "metav1.ObjectMeta", "omitempty": 1 },
            "timestamp": { "n": 2, "wire": "bytes", "type": "metav1.Time" },
            "window": { "n": 3, "wire": "bytes", "type": "metav1.Duration" },
        });
        let list = json!({
            "(inline metav1.TypeMeta)": { "type": "metav1.TypeMeta", "inline": 1 },
            "metadata": { "n": 1, "wire": "bytes", "type": "metav1.ListMeta", "omitempty": 1 },
            "items": { "n": 2, "wire": "bytes", "rep": 1, "type": format!("[]{kind}") },
        });
        let fields_of = fields.as_object_mut().expect("it was written as one");
        fields_of.extend(own.as_object().cloned().into_iter().flatten());
        for (name, fields) in [(kind.clone(), fields), (format!("{kind}List"), list)] {
            let gvk = json!({ "gvk": [["metrics.k8s.io", "v1beta1", name]] });
            facts.schema.insert(format!("{METRICS}.{name}"), gvk);
            facts.wire.insert(format!("{METRICS}.{name}"), fields);
        }
    }
    facts.wire.insert(
        format!("{METRICS}.ContainerMetrics"),
        json!({
            "name": { "n": 1, "wire": "bytes", "type": "string" },
            "usage": { "n": 2, "wire": "bytes", "rep": 1, "type": "v1.ResourceList" },
        }),
    );
}

fn write_gzip(path: &Path, value: &Value) {
    let file = std::fs::File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    gzip.write_all(value.to_string().as_bytes()).expect("the build directory is writable");
    gzip.finish().expect("the build directory is writable");
}

struct Facts {
    /// Go type → JSON field → number, wire kind, Go type, omitempty.
    wire: Map<String, Value>,
    /// Definition → list types, merge keys, defaults, kinds.
    schema: Map<String, Value>,
    /// Definition → the schema that k8s-openapi publishes.
    published: Map<String, Value>,
}

/// A resolved type: its encoding in the table, and the Go name as error messages print it.
struct Resolved {
    code: Value,
    go: String,
    pointer: bool,
    /// Whether the zero value is a Go struct, which is never empty to `omitempty`.
    structure: bool,
}

impl Facts {
    fn is_object(&self, name: &str) -> bool {
        !name.is_empty() && name != "aliases" && special(name).is_none()
    }

    fn definition(&self, name: &str) -> (Value, Value) {
        let facts = self.schema.get(name);
        let mut fields = Vec::new();
        let mut texts = Map::new();
        self.fields(name, name, &mut Vec::new(), &mut fields, &mut texts);
        let mut definition = json!({ "n": name, "f": fields });
        if let Some(kinds) = facts.and_then(|f| f.get("gvk")) {
            definition["k"] = kinds.clone();
        }
        if facts.and_then(|f| f.get("mapType")) == Some(&json!("atomic")) {
            definition["a"] = json!(true);
        }
        let text = match (self.published.get(name), bare(name).strip_suffix("List")) {
            (Some(published), _) => published.get("description").cloned().unwrap_or_default(),
            (None, Some(kind)) => self.list_texts(kind, &mut texts),
            (None, None) => Value::Null,
        };
        (definition, json!([text, texts]))
    }

    /// What is said of a list, all of which k8s-openapi makes of one generic type: its description is
    /// returned, those of its fields are added.
    fn list_texts(&self, kind: &str, texts: &mut Map<String, Value>) -> Value {
        let of_any = &self.published[&format!("{META}.APIGroupList")]["properties"];
        for field in ["apiVersion", "kind"] {
            texts.insert(field.to_owned(), of_any[field]["description"].clone());
        }
        texts.insert("metadata".to_owned(), json!("Standard list metadata."));
        texts.insert("items".to_owned(), json!(format!("List of {}", plural(kind))));
        json!(format!("{kind}List is a list of {}.", plural(kind)))
    }

    /// The fields of the Go type `from`, as part of the definition `of` into which it is embedded.
    fn fields(
        &self,
        of: &str,
        from: &str,
        within: &mut Vec<u64>,
        fields: &mut Vec<Value>,
        texts: &mut Map<String, Value>,
    ) {
        let go_fields = self.wire.get(from).and_then(Value::as_object);
        for (name, go) in go_fields.unwrap_or_else(|| panic!("wire-facts.json lacks {from}")) {
            let go_type =
                go["type"].as_str().unwrap_or_else(|| panic!("{from}.{name} has no type"));
            if name == "-" {
                continue;
            }
            if go.get("inline").is_some() {
                let embedded = self.qualify(package(from), go_type);
                let number = go.get("n").and_then(Value::as_u64);
                within.extend(number);
                self.fields(of, &embedded, within, fields, texts);
                within.truncate(within.len() - usize::from(number.is_some()));
                continue;
            }
            fields.push(self.field(of, from, name, go, go_type, within));
            let published = self.published.get(of).and_then(|p| p.get("properties")?.get(name));
            if let Some(text) = published.and_then(|p| p.get("description")) {
                texts.insert(name.clone(), text.clone());
            }
        }
    }

    fn field(
        &self,
        of: &str,
        from: &str,
        name: &str,
        go: &Value,
        go_type: &str,
        within: &[u64],
    ) -> Value {
        let facts = self.schema.get(of).and_then(|f| f.get("fields")?.get(name));
        let fact = |key: &str| facts.and_then(|f| f.get(key));
        let mut ty = self.resolve(package(from), go_type);
        if ty.code.get("l").is_some() {
            ty.code["k"] = match fact("listType").and_then(Value::as_str) {
                None | Some("atomic") => json!("a"),
                Some("set") => json!("s"),
                Some("map") => {
                    fact("mapKeys").cloned().unwrap_or_else(|| panic!("{of}.{name}: no mapKeys"))
                }
                Some(other) => panic!("{of}.{name}: unknown listType {other}"),
            };
        }
        let omitted = go.get("omitempty").is_some();
        let presence = match (ty.pointer, omitted) {
            _ if go.get("omitzero").is_some() => "z",
            (true, true) => "p",
            (true, false) => "n",
            (false, true) if !ty.structure => "z",
            (false, _) => "a",
        };
        let mut field = json!({ "n": name, "t": ty.code, "p": presence, "g": ty.go });
        // k8s-openapi takes every plain struct for required; Kubernetes none that may be omitted.
        let required = self.published.get(of).and_then(|p| p.get("required")?.as_array());
        if !omitted && required.is_some_and(|r| r.contains(&json!(name))) {
            field["r"] = json!(true);
        }
        for (key, short) in [("default", "d"), ("mergeKey", "mk"), ("patchStrategy", "ps")] {
            if let Some(value) = fact(key) {
                field[short] = value.clone();
            }
        }
        if fact("mapType") == Some(&json!("atomic")) {
            field["a"] = json!(true);
        }
        if let Some(number) = go.get("n") {
            field["w"] = json!([number, go["wire"], within]);
        }
        field
    }

    fn resolve(&self, package: &str, go: &str) -> Resolved {
        if let Some(target) = go.strip_prefix('*') {
            return Resolved { pointer: true, ..self.resolve(package, target) };
        }
        let plain = |code: &str| Resolved {
            code: json!(code),
            go: go.into(),
            pointer: false,
            structure: false,
        };
        match go {
            "string" => return plain("s"),
            "bool" => return plain("b"),
            "int32" => return plain("i"),
            "int64" | "int" => return plain("l"),
            "float64" => return plain("f"),
            "[]byte" => return plain("y"),
            "interface{}" => return plain("*"),
            _ => {}
        }
        if let Some(item) = go.strip_prefix("[]") {
            let item = self.resolve(package, item);
            let go = format!("[]{}", item.go);
            return Resolved {
                code: json!({ "l": item.code }),
                go,
                pointer: false,
                structure: false,
            };
        }
        if let Some((key, value)) = go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
            let (key, value) = (self.resolve(package, key), self.resolve(package, value));
            assert_eq!(key.code, json!("s"), "{package}: {go}: a map's key is a string");
            let go = format!("map[{}]{}", key.go, value.go);
            return Resolved {
                code: json!({ "m": value.code }),
                go,
                pointer: false,
                structure: false,
            };
        }
        let name = self.qualify(package, go);
        let shown =
            format!("{}.{}", package_name(&name), name.rsplit('.').next().unwrap_or_default());
        if let Some(code) = special(&name) {
            let structure = !matches!(code, Special::List(_));
            return Resolved { code: code.encode(), go: shown, pointer: false, structure };
        }
        if name.starts_with("types.") {
            return Resolved { code: json!("s"), go: shown, pointer: false, structure: false };
        }
        if let Some(alias) = self.wire["aliases"].get(&name).and_then(Value::as_str) {
            let home = name.rsplit_once('.').map_or("", |(home, _)| home);
            return Resolved { go: shown, ..self.resolve(home, alias) };
        }
        assert!(self.wire.contains_key(&name), "{package}: {go}: no type {name}");
        Resolved { code: json!({ "o": name }), go: shown, pointer: false, structure: true }
    }

    /// The full name of a Go type as it is written in a package.
    fn qualify(&self, package: &str, go: &str) -> String {
        match go.split_once('.') {
            None => format!("{package}.{go}"),
            Some(("metav1", name)) => format!("{META}.{name}"),
            Some(("v1" | "corev1" | "apiv1", name)) => format!("{CORE}.{name}"),
            Some(("resource", name)) => format!("io.k8s.apimachinery.pkg.api.resource.{name}"),
            Some(("intstr", name)) => format!("io.k8s.apimachinery.pkg.util.intstr.{name}"),
            Some(("runtime", name)) => format!("io.k8s.apimachinery.pkg.runtime.{name}"),
            Some(("types", _)) => go.to_owned(),
            Some((unknown, _)) => panic!("{package}: {go}: unknown import {unknown}"),
        }
    }
}

fn package(type_name: &str) -> &str {
    type_name.rsplit_once('.').map_or("", |(package, _)| package)
}

fn bare(type_name: &str) -> &str {
    type_name.rsplit_once('.').map_or(type_name, |(_, bare)| bare)
}

/// A kind as a word for several: `config maps`, `ingress classes`, `network policies`.
fn plural(kind: &str) -> String {
    let (mut words, mut before) = (String::new(), true);
    for c in kind.chars() {
        if c.is_uppercase() && !before {
            words.push(' ');
        }
        before = c.is_uppercase();
        words.extend(c.to_lowercase());
    }
    match words.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if words.ends_with("endpoints") => words,
        _ if words.ends_with(['s', 'x']) => format!("{words}es"),
        _ => format!("{words}s"),
    }
}

/// The Go package as messages print it: the last part of its path.
fn package_name(type_name: &str) -> &str {
    package(type_name).rsplit('.').next().unwrap_or_default()
}

/// Types that encode themselves.
enum Special {
    Scalar(&'static str),
    SchemaOr(&'static str),
    List(&'static str),
}

impl Special {
    fn encode(&self) -> Value {
        match self {
            Self::Scalar(code) => json!(code),
            Self::SchemaOr(or) => {
                json!({ "or": or, "o": format!("{APIEXTENSIONS}.JSONSchemaProps") })
            }
            Self::List(item) => json!({ "l": item }),
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let (package, bare) = name.rsplit_once('.')?;
    Some(match (package, bare) {
        (_, "Quantity") => Special::Scalar("q"),
        (META, "Time") => Special::Scalar("t"),
        (META, "MicroTime") => Special::Scalar("u"),
        // `1m30s`
        (META, "Duration") => Special::Scalar("d"),
        (META, "FieldsV1") => Special::Scalar("r"),
        (META, "Verbs") => Special::List("s"),
        (_, "IntOrString") => Special::Scalar("x"),
        (_, "RawExtension") => Special::Scalar("r"),
        ("io.k8s.apimachinery.pkg.runtime", "Unknown" | "Object") => Special::Scalar("*"),
        (APIEXTENSIONS, "JSON") => Special::Scalar("*"),
        (APIEXTENSIONS, "JSONSchemaPropsOrBool") => Special::SchemaOr("b"),
        (APIEXTENSIONS, "JSONSchemaPropsOrArray") => Special::SchemaOr("l"),
        (APIEXTENSIONS, "JSONSchemaPropsOrStringArray") => Special::SchemaOr("s"),
        _ => return None,
    })
}

/// What k8s-openapi publishes about each kind that is served and all the parts they are made of.
fn published_schemas() -> Map<String, Value> {
    let mut generator = schemars::SchemaGenerator::default();
    macro_rules! walk {
        ($($module:path: $($kind:ident)+;)+) => {
            $($({ use $module as module; generator.subschema_for::<module::$kind>(); })+)+
        };
    }
    walk! {
        api::core::v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node
            PersistentVolumeClaim PersistentVolume Pod PodTemplate ReplicationController ResourceQuota
            Secret ServiceAccount Service;
        api::apps::v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        api::events::v1: Event;
        api::authentication::v1: SelfSubjectReview TokenReview TokenRequest;
        api::authorization::v1: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview
            SubjectAccessReview;
        api::autoscaling::v1: HorizontalPodAutoscaler Scale;
        api::autoscaling::v2: HorizontalPodAutoscaler;
        api::batch::v1: CronJob Job;
        api::certificates::v1: CertificateSigningRequest;
        api::networking::v1: IngressClass Ingress IPAddress NetworkPolicy ServiceCIDR;
        api::policy::v1: PodDisruptionBudget Eviction;
        api::rbac::v1: ClusterRoleBinding ClusterRole RoleBinding Role;
        api::storage::v1: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment
            VolumeAttributesClass;
        api::admissionregistration::v1: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding
            MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding
            ValidatingWebhookConfiguration;
        apiextensions_apiserver::pkg::apis::apiextensions::v1: CustomResourceDefinition;
        kube_aggregator::pkg::apis::apiregistration::v1: APIService;
        api::scheduling::v1: PriorityClass;
        api::coordination::v1: Lease;
        api::node::v1: RuntimeClass;
        api::discovery::v1: EndpointSlice;
        api::resource::v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        api::flowcontrol::v1: FlowSchema PriorityLevelConfiguration;
        apimachinery::pkg::apis::meta::v1: DeleteOptions Status APIGroup APIGroupList APIResourceList
            APIVersions ListMeta Patch;
    }
    generator.subschema_for::<apimachinery::pkg::apis::meta::v1::WatchEvent<()>>();
    let definitions = generator.take_definitions(true);
    let names: BTreeSet<&String> = definitions.keys().collect();
    assert!(names.len() > 400, "k8s-openapi publishes only {} definitions: {names:?}", names.len());
    definitions
}
