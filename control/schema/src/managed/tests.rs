use serde_json::{Map, json};

use super::*;
use crate::decode::{Decoded, Expected, FieldValidation};
use crate::{builtin, defaults, patch};

fn write<'a>(manager: &'a str, api_version: &'a str) -> Write<'a> {
    let now = Timestamp::UNIX_EPOCH;
    Write { manager, api_version, subresource: "", now, ignored: &["status"] }
}

/// An update, which must come to the same when the record stays text.
fn update(model: &Model, id: DefId, old: Option<&Value>, new: &mut Value, write: &Write<'_>) {
    fn record(object: &Value) -> Option<&Value> {
        object["metadata"].get("managedFields")
    }
    fn without(object: &Value) -> Value {
        let mut object = object.clone();
        take_managed_fields(&mut object);
        object
    }
    let sent = record(new).is_some_and(|sent| old.and_then(record) != Some(sent));
    let as_sent = without(new);
    super::update(model, id, old, new, write);
    let Some(old) = old.filter(|_| !sent) else { return };
    let recorded = record(old).map(ToString::to_string);
    let text = updated_text(model, id, &without(old), recorded.as_deref(), &as_sent, write);
    let expected = record(new).map(ToString::to_string);
    match text.expect("as this server writes it") {
        Recorded::Same => assert_eq!(recorded, expected),
        Recorded::New(text) => assert_eq!(text, expected),
    }
}

/// A server with nothing but what the recorded cases need: patches, defaults, ownership.
struct Server {
    expected: Expected<'static>,
    api_version: &'static str,
    stored: Value,
}

impl Server {
    fn normal(&self, decoded: Decoded) -> Value {
        let mut object = decoded.value;
        set_defaults(&mut object);
        defaults::apply_defaults(builtin(), self.expected.definition, &mut object);
        object
    }

    fn create(&mut self, body: &Value) {
        let decoded = decode::value(builtin(), &self.expected, body, FieldValidation::Strict)
            .expect("a good object");
        let mut object = self.normal(decoded);
        let text = object["metadata"].get("managedFields").is_none().then(|| {
            let write = write("creator", self.api_version);
            created(builtin(), self.expected.definition, &object, &write).unwrap_or_default()
        });
        update(
            builtin(),
            self.expected.definition,
            None,
            &mut object,
            &write("creator", self.api_version),
        );
        if let Some(text) = text {
            let recorded = object["metadata"].get("managedFields");
            assert_eq!(text, recorded.map(ToString::to_string).unwrap_or_default());
        }
        object["metadata"]["uid"] = json!("0-0");
        self.stored = object;
    }

    fn step(
        &mut self,
        content_type: &str,
        manager: &str,
        force: bool,
        body: &[u8],
    ) -> Result<(), rimward_api::Status> {
        let (model, id) = (builtin(), self.expected.definition);
        let patched = match content_type {
            "application/apply-patch+yaml" => {
                let applied = decode::applied(body, FieldValidation::Strict)?.value;
                apply(
                    model,
                    id,
                    Some(&self.stored),
                    &applied,
                    &write(manager, self.api_version),
                    force,
                )?
            }
            "application/strategic-merge-patch+json" => {
                patch::strategic_merge_patch(model, id, &self.stored, body)?
            }
            "application/merge-patch+json" => patch::merge_patch(&self.stored, body)?,
            "application/json-patch+json" => patch::json_patch(&self.stored, body)?,
            other => panic!("{other}"),
        };
        let decoded = patch::decode_patched(
            model,
            &self.expected,
            &patched,
            Vec::new(),
            FieldValidation::Strict,
        )?;
        let mut object = self.normal(decoded);
        if content_type != "application/apply-patch+yaml" {
            update(model, id, Some(&self.stored), &mut object, &write(manager, self.api_version));
        }
        self.stored = object;
        Ok(())
    }
}

/// What the kinds' defaulting does, for the three kinds of the recorded cases.
fn set_defaults(object: &mut Value) {
    fn fill(value: &mut Value, defaults: Value) {
        let map = value.as_object_mut().expect("an object");
        for (key, default) in defaults.as_object().cloned().unwrap_or_default() {
            map.entry(key).or_insert(default);
        }
    }
    match object["kind"].as_str() {
        Some("Deployment") => {
            let spec = &mut object["spec"];
            fill(
                spec,
                json!({"revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, "replicas": 1}),
            );
            fill(&mut spec["strategy"], json!({"type": "RollingUpdate"}));
            if spec["strategy"]["type"] == "RollingUpdate" {
                fill(
                    &mut spec["strategy"],
                    json!({"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}),
                );
            }
            let pod = &mut spec["template"]["spec"];
            fill(
                pod,
                json!({"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "securityContext": {}, "schedulerName": "default-scheduler"}),
            );
            for volume in pod.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten()
            {
                if let Some(config_map) = volume.get_mut("configMap") {
                    fill(config_map, json!({"defaultMode": 420}));
                }
            }
            for container in pod["containers"].as_array_mut().expect("containers") {
                fill(
                    container,
                    json!({"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "imagePullPolicy": "IfNotPresent"}),
                );
            }
        }
        Some("Service") => {
            fill(
                &mut object["spec"],
                json!({"sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster"}),
            );
            for port in object["spec"]["ports"].as_array_mut().expect("ports") {
                if port["targetPort"] == 0 {
                    port["targetPort"] = port["port"].clone();
                }
            }
        }
        _ => {}
    }
}

/// managedFields without times, which the recorded answers leave out.
fn timeless(object: &Value) -> Value {
    let mut fields = object["metadata"]["managedFields"].clone();
    for entry in fields.as_array_mut().into_iter().flatten() {
        entry.as_object_mut().map(|e| e.remove("time"));
    }
    fields
}

/// Each recorded patch, step by step: the resulting object and who owns what.
#[test]
fn recorded_patching() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../testdata/patching.json")).expect("testdata");
    let (mut patched, mut refused) = (0, 0);
    for case in &cases {
        let (kind, group, api_version) =
            match case["path"].as_str().and_then(|p| p.rsplit('/').next()) {
                Some("deployments") => ("Deployment", "apps", "apps/v1"),
                Some("services") => ("Service", "", "v1"),
                _ => ("ConfigMap", "", "v1"),
            };
        let definition = builtin().of_kind(group, "v1", kind).expect("a built-in kind");
        let expected = Expected { group, version: "v1", kind, definition };
        let mut server = Server { expected, api_version, stored: Value::Null };
        server.create(&case["create"]);
        for (i, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
            let about = format!("{} step {i}: {}", case["case"], step["send"]);
            let query = step["query"].as_str().expect("a query");
            let manager = query
                .split(['?', '&'])
                .find_map(|p| p.strip_prefix("fieldManager="))
                .unwrap_or("curl");
            let body = match &step["send"] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let before = server.stored.clone();
            let result = server.step(
                step["contentType"].as_str().expect("a type"),
                manager,
                query.contains("force=true"),
                body.as_bytes(),
            );
            let answer = &step["answer"];
            if step["code"] == 200 {
                result.expect(&about);
                assert_eq!(timeless(&server.stored), timeless(answer), "{about}");
                for part in ["data", "spec"] {
                    let allocated = ["clusterIPs", "ipFamilies", "ipFamilyPolicy"];
                    let strip = |object: &Value| {
                        let mut part = object.get(part).cloned().unwrap_or_default();
                        if let Some(map) = part.as_object_mut() {
                            map.retain(|key, _| !allocated.contains(&key.as_str()));
                        }
                        part
                    };
                    assert_eq!(strip(&server.stored), strip(answer), "{about}");
                }
                patched += 1;
            } else {
                // What is wrong with the name, the revision or a key is the API server's to find.
                let message = answer["message"].as_str().expect("a message");
                if !(message.contains("the name of the object")
                    || message.contains("the object has been modified")
                    || message.contains("config key"))
                {
                    let status = result.expect_err(&about);
                    assert_eq!(status.to_value(), *answer, "{about}");
                    refused += 1;
                }
                server.stored = before;
            }
        }
    }
    assert!(patched >= 20 && refused >= 4, "{patched} {refused}");
}

#[test]
fn records_of_the_client() {
    let id = builtin().expect("io.k8s.api.core.v1.ConfigMap");
    let mut old = json!({"metadata": {"name": "x"}, "data": {"a": "1"}});
    update(builtin(), id, None, &mut old, &write("one", "v1"));
    old["metadata"]["uid"] = json!("u");
    let check = |sent: Value, data: Value, managers: &[&str]| {
        let mut new =
            json!({"metadata": {"name": "x", "uid": "u", "managedFields": sent}, "data": data});
        update(builtin(), id, Some(&old), &mut new, &write("two", "v1"));
        let entries = new["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> =
            entries.iter().map(|e| e["manager"].as_str().expect("a name")).collect();
        assert_eq!(names, managers, "{sent}");
    };
    let entry = |fields: Value| json!({"manager": "three", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
    check(Value::Null, json!({"a": "1"}), &["one"]);
    check(Value::Null, json!({"a": "1", "b": "2"}), &["one", "two"]);
    check(Value::Null, json!({"a": "2"}), &["one", "two"]);
    check(json!([]), json!({"a": "1"}), &[]);
    check(json!([{}]), json!({"a": "1"}), &[]);
    check(json!([entry(json!({"f:data": {"f:a": {}}}))]), json!({"a": "1"}), &["three"]);
    // What is not a record is passed over.
    check(json!([{"manager": "x"}]), json!({"a": "1"}), &["one"]);
    check(json!([entry(json!(7))]), json!({"a": "1"}), &["one"]);
}

#[test]
fn subresources_are_recorded_apart() {
    let id = builtin().expect("io.k8s.api.apps.v1.Deployment");
    let object = |replicas: i64| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"uid": "u"}, "spec": {"replicas": 1, "strategy": {}}, "status": {"replicas": replicas}});
    let mut old = object(0);
    update(builtin(), id, None, &mut old, &write("one", "apps/v1"));
    let mut new = object(3);
    new["spec"]["replicas"] = json!(9);
    let status =
        Write { subresource: "status", ignored: &["spec"], ..write("controller", "apps/v1") };
    update(builtin(), id, Some(&old), &mut new, &status);
    let entries = &new["metadata"]["managedFields"];
    assert_eq!(entries.as_array().map(Vec::len), Some(2), "{entries}");
    assert_eq!(
        (&entries[0]["manager"], &entries[0]["subresource"]),
        (&json!("controller"), &json!("status"))
    );
    assert_eq!(entries[0]["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(entries[1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn old_updaters_are_merged() {
    let id = builtin().expect("io.k8s.api.core.v1.ConfigMap");
    let mut stored = json!({"metadata": {"uid": "u"}});
    let mut data = Map::new();
    for i in 0..15 {
        let manager = format!("m{i:02}");
        data.insert(format!("k{i}"), json!("v"));
        let mut new = json!({"metadata": {"uid": "u"}, "data": data});
        let now = Timestamp::from_second(i).expect("a time");
        let old = (i > 0).then_some(&stored);
        update(builtin(), id, old, &mut new, &Write { now, ..write(&manager, "v1") });
        stored = new;
    }
    let entries = stored["metadata"]["managedFields"].as_array().expect("a record");
    assert_eq!((entries.len(), &entries[0]["manager"]), (10, &json!("ancient-changes")));
    assert_eq!(entries[0]["fieldsV1"]["f:data"].as_object().map(Map::len), Some(7));
}

#[test]
fn what_cannot_be_applied() {
    let id = builtin().expect("io.k8s.api.core.v1.Pod");
    #[track_caller]
    fn check(id: DefId, spec: Value, wrong: &str) {
        let applied = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "n"}, "spec": spec});
        let status =
            apply(builtin(), id, None, &applied, &write("m", "v1"), false).expect_err(wrong);
        let message = format!("failed to create typed patch object (n/x; /v1, Kind=Pod): {wrong}");
        assert_eq!((status.code, status.message), (500, message));
    }
    check(id, json!({"foo": 1}), ".spec.foo: field not declared in schema");
    check(
        id,
        json!({"containers": [{"name": "a"}, {"name": "a"}]}),
        r#".spec.containers: duplicate entries for key [name="a"]"#,
    );
    check(
        id,
        json!({"containers": [{}]}),
        r#".spec.containers: element 0: associative list with keys has an element that omits all key fields ["name"] (and doesn't have default values for any key fields)"#,
    );
    check(
        id,
        json!({"containers": [{"name": "a", "image": 1}]}),
        r#".spec.containers[name="a"].image: expected string, got &value.valueUnstructured{Value:1}"#,
    );
    check(id, json!({"hostNetwork": "x"}), ".spec.hostNetwork: expected boolean, got &{x}");
    check(
        id,
        json!({"priority": "x", "nodeSelector": []}),
        "errors:\n  .spec.nodeSelector: expected map, got &{[]}\n  .spec.priority: expected numeric (int or float), got string",
    );
}

#[test]
fn kubectl_takes_over_what_client_side_apply_set() {
    let id = builtin().expect("io.k8s.api.core.v1.ConfigMap");
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "1", "b": "1"}});
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut live = last.clone();
    live["metadata"] = json!({"name": "x", "annotations": {annotation: last.to_string()}});
    update(builtin(), id, None, &mut live, &write("kubectl-client-side-apply", "v1"));
    live["metadata"]["uid"] = json!("u");
    let mut next = last.clone();
    next["data"]["a"] = json!("2");
    let apply_by =
        |manager: &str| apply(builtin(), id, Some(&live), &next, &write(manager, "v1"), false);
    assert_eq!(apply_by("helm").expect_err("a conflict").code, 409);
    let merged = apply_by("kubectl").expect("no conflict");
    assert_eq!(merged["data"], json!({"a": "2", "b": "1"}));
    let annotated: Value =
        serde_json::from_str(merged["metadata"]["annotations"][annotation].as_str().expect("text"))
            .expect("JSON");
    assert_eq!(annotated, next);
}
