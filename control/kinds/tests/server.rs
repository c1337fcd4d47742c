//! What a real API server answered, replayed: thousands of single changes to objects, written and
//! updated, through decoding, defaults, preparation and validation.
//!
//! Cases that are known to differ stand in `testdata/known-misses.txt`. The list may only shrink: a case
//! on it that agrees fails the test, as does one that is not on it and differs. Running with
//! `REWRITE_MISSES=1` writes the list anew.

#![allow(clippy::unwrap_used, reason = "test data that is not as expected fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rimward_control_kinds::check::meta;
use rimward_control_kinds::{Catalog, Kind, Write};
use rimward_control_schema::{Expected, FieldValidation, Format, builtin, decode};
use serde::Deserialize;
use serde_json::{Value, json};

const UID: &str = "00000000-0000-4000-8000-000000000000";

#[derive(Deserialize)]
struct Changes {
    bases: Vec<Base>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Base {
    path: String,
    object: Value,
}

#[derive(Deserialize)]
struct Row {
    base: usize,
    at: Vec<Value>,
    to: Value,
    code: u16,
    #[serde(default)]
    causes: Option<Vec<(String, String)>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u16,
    causes: BTreeSet<(String, String)>,
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The changed object: `__del__` removes, `__dup__` appends a copy, `__x300__` is 300 letters.
fn changed(base: &Value, at: &[Value], to: &Value) -> Value {
    let mut object = base.clone();
    let (last, parents) = at.split_last().expect("a path");
    let mut place = &mut object;
    for step in parents {
        place = match step {
            Value::String(key) => &mut place[key.as_str()],
            index => &mut place[index.as_u64().unwrap() as usize],
        };
    }
    let key = last.as_str().unwrap_or_default().to_owned();
    let index = last.as_u64().unwrap_or_default() as usize;
    match (to.as_str(), place) {
        (Some("__del__"), Value::Array(list)) => drop(list.remove(index)),
        (Some("__del__"), Value::Object(map)) => drop(map.remove(&key)),
        (Some("__dup__"), Value::Array(list)) => list.push(list[index].clone()),
        (Some("__x300__"), Value::Array(list)) => list[index] = "x".repeat(300).into(),
        (Some("__x300__"), place) => place[key.as_str()] = "x".repeat(300).into(),
        (_, Value::Array(list)) => list[index] = to.clone(),
        (_, place) => place[key.as_str()] = to.clone(),
    }
    object
}

struct Server {
    catalog: Catalog,
}

impl Server {
    fn kind(&self, path: &str) -> &Kind {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            other => panic!("{other:?}"),
        };
        let resource = rest.last().copied().unwrap_or_default();
        self.catalog.by_resource(group, version, resource).unwrap_or_else(|| panic!("{path}"))
    }

    fn decode(&self, kind: &Kind, body: &Value) -> Result<Value, u16> {
        let model = builtin();
        let expected = Expected {
            group: &kind.group,
            version: &kind.version,
            kind: &kind.kind,
            definition: model.expect(&kind.schema),
        };
        let body = body.to_string();
        let decoded = decode::object(
            model,
            &expected,
            body.as_bytes(),
            Format::Json,
            FieldValidation::Strict,
        );
        let mut object = decoded.map_err(|status| status.code)?.value;
        if kind.hooks.unconvertible(&object).is_some() {
            return Err(400);
        }
        kind.hooks.default(&mut object);
        Ok(object)
    }

    fn stored(&self, kind: &Kind, object: Value) -> Value {
        match &kind.conversion {
            Some(conversion) => conversion.to_stored(object),
            None => object,
        }
    }

    fn create(&self, path: &str, body: &Value) -> Result<Value, Answer> {
        let kind = self.kind(path);
        let mut object = self.decode(kind, body).map_err(code)?;
        if kind.namespaced() {
            object["metadata"]["namespace"] = "default".into();
        }
        object["metadata"]["uid"] = UID.into();
        let mut object = self.stored(kind, object);
        kind.hooks.prepare_create(&mut object);
        allocate(kind, &mut object);
        admit_pod_create(kind, &mut object);
        let mut errors = meta::validate_create(kind, &object);
        errors.extend(kind.hooks.validate_create(&object));
        if errors.is_empty() { Ok(object) } else { Err(refused(&errors)) }
    }

    fn update(&self, path: &str, old: &Value, body: &Value) -> Result<Value, Answer> {
        let kind = self.kind(path);
        let mut new = self.decode(kind, body).map_err(code)?;
        let mut old = self.decode(kind, old).map_err(code)?;
        if new["metadata"]["name"] != old["metadata"]["name"] {
            return Err(code(400));
        }
        if kind.namespaced() {
            new["metadata"]["namespace"] = "default".into();
            old["metadata"]["namespace"] = "default".into();
        }
        let (mut new, old) = (self.stored(kind, new), self.stored(kind, old));
        if !kind.hooks.allows_unconditional_update() {
            let cause = ("metadata.resourceVersion".to_owned(), "FieldValueInvalid".to_owned());
            return Err(Answer { code: 422, causes: [cause].into() });
        }
        kind.hooks.prepare_update(Write::Main, &mut new, &old);
        allocate(kind, &mut new);
        admit_pod_update(kind, &mut new, &old);
        let mut errors = meta::validate_update(kind, &new, &old);
        errors.extend(kind.hooks.validate_update(Write::Main, &new, &old));
        if errors.is_empty() { Ok(new) } else { Err(refused(&errors)) }
    }
}

fn code(code: u16) -> Answer {
    Answer { code, causes: BTreeSet::new() }
}

fn refused(errors: &[rimward_api::FieldError]) -> Answer {
    let name = |e: &rimward_api::FieldError| {
        let reason = json!(e.reason).as_str().unwrap_or_default().to_owned();
        (e.field.clone(), reason)
    };
    Answer { code: 422, causes: errors.iter().map(name).collect() }
}

/// What the API server allocates, as it did in the dry runs that the cases come from.
fn allocate(kind: &Kind, object: &mut Value) {
    if kind.kind != "Service" {
        return;
    }
    use rimward_control_kinds::service::{needs_cluster_ip, needs_node_port};
    let Some(spec) = object.get_mut("spec") else { return };
    if needs_cluster_ip(spec) && spec.get("clusterIP").is_none() {
        spec["clusterIP"] = "10.0.0.0".into();
        spec["clusterIPs"] = json!(["10.0.0.0"]);
    }
    if needs_node_port(spec) {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port.get("nodePort").is_none() {
                port["nodePort"] = 32769.into();
            }
        }
    }
    if spec["type"] == "LoadBalancer"
        && spec["externalTrafficPolicy"] == "Local"
        && spec.get("healthCheckNodePort").is_none_or(|port| port == 0)
    {
        spec["healthCheckNodePort"] = 32770.into();
    }
}

/// The admission plugin ServiceAccount gives a pod its account.
fn admit_pod_create(kind: &Kind, object: &mut Value) {
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if kind.kind == "Pod" && spec.get("serviceAccountName").is_none_or(|name| name == "") {
        spec["serviceAccountName"] = "default".into();
    }
}

/// The admission plugins that complete a pod on an update: Priority and DefaultTolerationSeconds.
fn admit_pod_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.kind != "Pod" {
        return;
    }
    let spec = &mut new["spec"];
    for field in ["priority", "preemptionPolicy"] {
        if spec.get(field).is_none() && old["spec"].get(field).is_some() {
            spec[field] = old["spec"][field].clone();
        }
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if spec.get("tolerations").is_none() {
            spec["tolerations"] = json!([]);
        }
        let list = spec["tolerations"].as_array_mut().unwrap();
        let text = |t: &Value, f: &str| t[f].as_str().unwrap_or_default().to_owned();
        let covers = |t: &Value| {
            [key, ""].contains(&text(t, "key").as_str())
                && ["NoExecute", ""].contains(&text(t, "effect").as_str())
        };
        if !list.iter().any(covers) {
            list.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }));
        }
    }
}

/// The cluster of the updates put one more file into each token volume than that of the defaults.
fn add_trust(pod: &mut Value) {
    if pod["kind"] != "Pod" {
        return;
    }
    for volume in pod["spec"]["volumes"].as_array_mut().into_iter().flatten() {
        if volume["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-")) {
            let items = json!([{ "key": "service-ca.crt", "path": "service-ca.crt" }]);
            let source = json!({ "configMap": { "name": "service-ca", "items": items } });
            volume["projected"]["sources"].as_array_mut().unwrap().push(source);
        }
    }
}

fn name_of(operation: &str, base: &Base, row: &Row) -> String {
    let at: Vec<String> =
        row.at.iter().map(|s| s.as_str().map_or(s.to_string(), str::to_owned)).collect();
    let object = &base.object;
    format!(
        "{operation} {} {} {} {}",
        object["kind"].as_str().unwrap(),
        object["metadata"]["name"].as_str().unwrap(),
        at.join("/"),
        row.to
    )
}

#[test]
fn single_changes() {
    let server = Server { catalog: Catalog::builtin() };
    let defaulted: Vec<Value> = read("defaulting.json");
    let (mut misses, mut counts) = (BTreeMap::new(), BTreeMap::<String, (u32, u32)>::new());
    for (operation, file) in [("create", "mutations.json"), ("update", "update-mutations.json")] {
        let changes: Changes = read(file);
        for row in &changes.rows {
            // What admission forbids is not for a kind to say.
            if row.code == 403 {
                continue;
            }
            let base = &changes.bases[row.base];
            let outcome = match operation {
                "create" => server.create(&base.path, &changed(&base.object, &row.at, &row.to)),
                _ => {
                    let mut old = defaulted[row.base]["answer"].clone();
                    add_trust(&mut old);
                    let mut body = old.clone();
                    body.as_object_mut().unwrap().remove("status");
                    if old["kind"] == "Pod" {
                        old["metadata"]["uid"] = UID.into();
                        body["metadata"]["uid"] = UID.into();
                    }
                    if let Some(uid) = old
                        .pointer("/spec/selector/matchLabels/batch.kubernetes.io~1controller-uid")
                        .cloned()
                    {
                        old["metadata"]["uid"] = uid.clone();
                        body["metadata"]["uid"] = uid;
                    }
                    server.update(&base.path, &old, &changed(&body, &row.at, &row.to))
                }
            };
            let success = if operation == "create" { 201 } else { 200 };
            let ours = outcome.map_or_else(|refusal| refusal, |_| code(success));
            let theirs =
                Answer { code: row.code, causes: row.causes.iter().flatten().cloned().collect() };
            let count = counts.entry(base.object["kind"].as_str().unwrap().to_owned()).or_default();
            count.1 += 1;
            if ours == theirs {
                count.0 += 1;
            } else {
                let only = |a: &Answer, b: &Answer| {
                    let list: Vec<String> =
                        a.causes.difference(&b.causes).map(|(f, r)| format!("{f}:{r}")).collect();
                    list.join(" ")
                };
                let why = format!(
                    "{} not {}; missing [{}]; extra [{}]",
                    ours.code,
                    theirs.code,
                    only(&theirs, &ours),
                    only(&ours, &theirs)
                );
                misses.insert(name_of(operation, base, row), why);
            }
        }
    }
    for (kind, (good, all)) in &counts {
        println!("{kind}: {good} of {all}");
    }
    let (good, all) = counts.values().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    println!("all: {good} of {all}");
    ratchet("known-misses.txt", &misses);
}

/// Compares what differs now with the list of what is known to.
fn ratchet(file: &str, misses: &BTreeMap<String, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    if std::env::var_os("REWRITE_MISSES").is_some() {
        let lines: Vec<String> = misses.keys().map(|name| format!("{name}\n")).collect();
        std::fs::write(&path, lines.concat()).unwrap();
        for (name, why) in misses {
            println!("{name} => {why}");
        }
        return;
    }
    let known = std::fs::read_to_string(&path).unwrap();
    let known: BTreeSet<&str> = known.lines().collect();
    let new: Vec<String> = misses
        .iter()
        .filter(|(name, _)| !known.contains(name.as_str()))
        .map(|(n, w)| format!("{n} => {w}"))
        .collect();
    assert!(new.is_empty(), "{} cases differ that did not:\n{}", new.len(), new.join("\n"));
    let healed: Vec<&&str> = known.iter().filter(|name| !misses.contains_key(**name)).collect();
    assert!(healed.is_empty(), "take these off {file}, they agree now: {healed:#?}");
}

#[derive(Deserialize)]
struct Defaulted {
    path: String,
    send: Value,
    answer: Value,
}

/// What the server allocates or admission adds, and so no hook does.
const ALLOCATED: [&str; 9] = [
    "/metadata/uid",
    "/metadata/generation",
    "/spec/clusterIP",
    "/spec/clusterIPs",
    "/spec/tolerations",
    "/spec/priority",
    "/spec/preemptionPolicy",
    "/spec/healthCheckNodePort",
    "/status/lastPhaseTransitionTime",
];

/// Removes what is allocated from an object.
fn without_allocated(object: &Value) -> Value {
    let mut object = object.clone();
    for pointer in ALLOCATED {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        if let Some(Value::Object(map)) = object.pointer_mut(parent) {
            map.remove(key);
        }
    }
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if kind == "PersistentVolume" || kind == "PersistentVolumeClaim" {
        object["metadata"].as_object_mut().unwrap().remove("finalizers");
    }
    if kind == "Node" {
        object["spec"].as_object_mut().unwrap().remove("taints");
    }
    if kind == "Service" {
        for port in
            object["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
        {
            port.as_object_mut().unwrap().remove("nodePort");
        }
    }
    if kind == "Pod" {
        let spec = &mut object["spec"];
        for field in ["serviceAccount", "serviceAccountName"] {
            spec.as_object_mut().unwrap().remove(field);
        }
        let token =
            |v: &Value| v["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-"));
        let drop_token = |holder: &mut Value, field: &str| {
            let Some(list) = holder.get_mut(field).and_then(Value::as_array_mut) else { return };
            list.retain(|v| !token(v));
            if list.is_empty() {
                holder.as_object_mut().unwrap().remove(field);
            }
        };
        drop_token(spec, "volumes");
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
            {
                drop_token(container, "volumeMounts");
            }
        }
    }
    if kind == "Job" {
        // The uid differs from cluster to cluster.
        return serde_json::from_str(&replace_uids(&object.to_string())).unwrap();
    }
    object
}

fn replace_uids(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive('"') {
        let word = part.trim_end_matches('"');
        let is_uid = word.len() == 36 && word.matches('-').count() == 4;
        out += if is_uid { UID } else { word };
        if part.ends_with('"') {
            out.push('"');
        }
    }
    out
}

#[test]
fn defaults() {
    let server = Server { catalog: Catalog::builtin() };
    let cases: Vec<Defaulted> = read("defaulting.json");
    let mut misses = BTreeMap::new();
    for case in &cases {
        let kind = server.kind(&case.path);
        let name = format!("{} {}", kind.kind, case.send["metadata"]["name"].as_str().unwrap());
        let mut ours = match server.create(&case.path, &case.send) {
            Ok(object) => object,
            Err(why) => {
                misses.insert(name, format!("{why:?}"));
                continue;
            }
        };
        if let Some(conversion) = &kind.conversion {
            ours = conversion.from_stored(ours);
        }
        // Stored and read again, zero values are as Go writes them.
        let ours = server.decode(kind, &ours).map_err(|c| c.to_string()).unwrap();
        let (ours, theirs) = (without_allocated(&ours), without_allocated(&case.answer));
        if ours != theirs {
            misses.insert(name, format!("\n  ours   {ours}\n  theirs {theirs}"));
        }
    }
    ratchet("known-default-misses.txt", &misses);
}

#[derive(Deserialize)]
struct Refusal {
    method: String,
    path: String,
    #[serde(default)]
    send: Value,
    code: u16,
    answer: Value,
}

/// The refusals that name fields, to the letter.
#[test]
fn refusals() {
    let server = Server { catalog: Catalog::builtin() };
    let cases: Vec<Refusal> = read("refusals.json");
    let (mut seen, mut wrong) = (0, Vec::new());
    for case in cases
        .iter()
        .filter(|c| c.method == "POST" && c.code == 422 && c.send.get("apiVersion").is_some())
    {
        let path = case.path.split('?').next().unwrap_or_default();
        let kind = server.kind(path);
        let mut object = server.decode(kind, &case.send).unwrap();
        if kind.namespaced() {
            object["metadata"]["namespace"] = "default".into();
        }
        object["metadata"]["uid"] = UID.into();
        kind.hooks.prepare_create(&mut object);
        allocate(kind, &mut object);
        let mut errors = meta::validate_create(kind, &object);
        errors.extend(kind.hooks.validate_create(&object));
        let group = rimward_api::GroupKind { group: kind.group.clone(), kind: kind.kind.clone() };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let status = rimward_api::Status::invalid(&group, name, &errors);
        let theirs = case.answer["message"].as_str().unwrap();
        // An address or port that is outside the server's range is the allocator's to refuse.
        let allocation = theirs.contains("failed to allocate") || theirs.contains("provided port");
        if status.message != theirs && !allocation {
            wrong.push(format!("ours   {}\ntheirs {theirs}\n", status.message));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{} of {seen} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen > 10, "{seen} cases");
}
