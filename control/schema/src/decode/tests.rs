use serde_json::json;

use super::*;
use crate::builtin;

fn expected<'a>(group: &'a str, version: &'a str, kind: &'a str) -> Expected<'a> {
    let definition = builtin().of_kind(group, version, kind).expect("a built-in kind");
    Expected { group, version, kind, definition }
}

fn pod() -> Expected<'static> {
    expected("", "v1", "Pod")
}

#[track_caller]
fn refused(expected: &Expected<'_>, body: &str, validation: FieldValidation, message: &str) {
    let status =
        object(builtin(), expected, body.as_bytes(), Format::Json, validation).expect_err(body);
    assert_eq!((status.code, status.message.as_str()), (400, message), "{body}");
}

#[track_caller]
fn accepted(expected: &Expected<'_>, body: &Value, normal: Value) {
    let decoded = value(builtin(), expected, body, FieldValidation::Strict).expect("is accepted");
    assert_eq!(decoded.value, normal);
    assert_eq!(decoded.warnings, Vec::<String>::new());
    // The normal form is a fixed point.
    let again =
        value(builtin(), expected, &normal, FieldValidation::Strict).expect("is accepted again");
    assert_eq!(again.value, normal);
}

#[test]
fn syntax_and_kind() {
    let ignore = FieldValidation::Ignore;
    let of_pod = |why: &str, summary: &str| {
        format!("the object provided is unrecognized (must be of type Pod): {why} ({summary})")
    };
    let parse = |why: &str, summary: &str| {
        of_pod(&format!("couldn't get version/kind; json parse error: {why}"), summary)
    };
    let check = |body: &str, message: String| refused(&pod(), body, ignore, &message);
    check(
        r#"{"apiVersion":"v1","kind":"Pod","#,
        parse("unexpected end of JSON input", r#"{"apiVersion":"v1","kind":"Pod ..."#),
    );
    check("", parse("unexpected end of JSON input", "<empty>"));
    check(
        "[]",
        parse(&format!("json: cannot unmarshal array into Go value of type {TYPE_META}"), "5b5d"),
    );
    check(
        r#"{"kind":7}"#,
        parse(
            "json: cannot unmarshal number into Go struct field .kind of type string",
            r#"{"kind":7}"#,
        ),
    );
    check(
        r#"{"apiVersion":"a/b/c"}"#,
        of_pod("unexpected GroupVersion string: a/b/c", r#"{"apiVersion":"a/b/c"}"#),
    );
    check(r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"}}"#,
        r#"Service in version "v1" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion"#.into());
    check(r#"{"apiVersion":"v2","kind":"Pod"}"#,
        r#"Pod in version "v2" cannot be handled as a Pod: no kind "Pod" is registered for version "v2" in scheme "pkg/api/legacyscheme/scheme.go:30""#.into());
    check(r#"{"apiVersion":"v1","kind":"Service","spec":{"ports":7}}"#,
        r#"Service in version "v1" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort"#.into());
}

#[test]
fn wrong_types() {
    let check = |body: Value, why: &str| {
        let message = format!(r#"Pod in version "v1" cannot be handled as a Pod: {why}"#);
        refused(&pod(), &body.to_string(), FieldValidation::Strict, &message);
    };
    check(
        json!({"spec": {"terminationGracePeriodSeconds": "x"}}),
        "json: cannot unmarshal string into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
    );
    check(
        json!({"spec": {"containers": [{"name": 1}]}}),
        "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string",
    );
    check(
        json!({"spec": {"containers": {}}}),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
    );
    check(
        json!({"spec": {"containers": ["x"]}}),
        "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type v1.Container",
    );
    check(
        json!({"metadata": {"labels": {"a": true}}}),
        "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
    );
    check(
        json!({"spec": {"restartPolicy": []}}),
        "json: cannot unmarshal array into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
    );
    check(
        json!({"spec": {"containers": [{"ports": [{"containerPort": 1.5}]}]}}),
        "json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
    );
    check(
        json!({"spec": {"containers": [{"ports": [{"containerPort": 3_000_000_000_u32}]}]}}),
        "json: cannot unmarshal number 3000000000 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
    );
    check(
        json!({"spec": {"volumes": [{"emptyDir": "x"}]}}),
        "json: cannot unmarshal string into Go struct field Volume.spec.volumes.emptyDir of type v1.EmptyDirVolumeSource",
    );
    check(
        json!({"metadata": {"creationTimestamp": 5}}),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
    );
    // A type that decodes itself ends Go's decoding: its complaint comes first, wherever it stands.
    check(
        json!({"metadata": {"name": 1}, "spec": {"containers": [{"resources": {"limits": {"cpu": "abc"}}}]}}),
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    check(
        json!({"spec": {"containers": [{"livenessProbe": {"httpGet": {"port": true}}}]}}),
        "json: cannot unmarshal bool into Go struct field HTTPGetAction.spec.containers.livenessProbe.httpGet.port of type int32",
    );
    let secret = expected("", "v1", "Secret");
    refused(
        &secret,
        r#"{"data":{"k":"not base64!"}}"#,
        FieldValidation::Strict,
        r#"Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 3"#,
    );
}

#[test]
fn strict_fields() {
    let body = r#"{"foo":1,"metadata":{"name":"x","name":"y","labels":{"a":"1","a":"2"}},"spec":{"containers":[{"name":"c"},{"Image":"i"}]}}"#;
    let errors = [
        r#"unknown field "foo""#,
        r#"duplicate field "metadata.name""#,
        r#"duplicate field "metadata.labels.a""#,
        r#"unknown field "spec.containers[1].Image""#,
    ];
    refused(
        &pod(),
        body,
        FieldValidation::Strict,
        &format!(
            r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: {}"#,
            errors.join(", ")
        ),
    );
    let warned = object(builtin(), &pod(), body.as_bytes(), Format::Json, FieldValidation::Warn)
        .expect("accepted");
    assert_eq!(warned.warnings, errors);
    assert_eq!(warned.value["metadata"], json!({"name": "y", "labels": {"a": "2"}}));
    let ignored = object(builtin(), &pod(), body.as_bytes(), Format::Json, FieldValidation::Ignore)
        .expect("accepted");
    assert_eq!((ignored.value, ignored.warnings), (warned.value, vec![]));
}

#[test]
fn normal_form() {
    accepted(
        &pod(),
        &json!({"metadata": {"name": "x", "labels": {}, "generation": 0, "creationTimestamp": null, "deletionTimestamp": null},
            "spec": {"nodeName": "", "hostNetwork": false, "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "env": [], "resources": {"limits": {"cpu": "1000m", "memory": 5, "x": null}}}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
            "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "5", "x": "0"}}}]},
            "status": {}}),
    );
    accepted(
        &expected("", "v1", "Service"),
        &json!({"spec": {"ports": [{"port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {}, "status": {"loadBalancer": {}},
            "spec": {"ports": [{"port": 80, "targetPort": 0}]}}),
    );
    accepted(
        &expected("apps", "v1", "Deployment"),
        &json!({}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}, "status": {},
            "spec": {"selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": null}}}}),
    );
    accepted(
        &expected("rbac.authorization.k8s.io", "v1", "Role"),
        &json!({"rules": []}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {}, "rules": null}),
    );
    accepted(
        &expected("", "v1", "Secret"),
        &json!({"data": {"a": "YQ==", "b": null}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"a": "YQ==", "b": ""}}),
    );
    accepted(
        &expected("coordination.k8s.io", "v1", "Lease"),
        &json!({"spec": {"renewTime": "2026-01-01T00:00:00.000000+01:00"}}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}, "spec": {"renewTime": "2025-12-31T23:00:00.000000Z"}}),
    );
}

#[test]
fn custom_resource_definitions() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "nope": 1}},
        "m": {"type": "object", "additionalProperties": true}, "n": {"type": "number", "maximum": 10.0, "default": {"any": [1]}}}});
    let body = json!({"spec": {"group": "g", "names": {"plural": "p", "kind": "K"}, "scope": "Cluster",
        "versions": [{"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}}]}});
    let decoded = value(
        builtin(),
        &expected("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        &body,
        FieldValidation::Strict,
    );
    let version = &decoded.expect("accepted").value["spec"]["versions"][0];
    assert_eq!(version["storage"], json!(false));
    let properties = &version["schema"]["openAPIV3Schema"]["properties"];
    assert_eq!(properties["a"]["items"], json!({"type": "string"}));
    assert_eq!(properties["m"]["additionalProperties"], json!(true));
    assert_eq!(properties["n"], json!({"type": "number", "maximum": 10, "default": {"any": [1]}}));
}

#[test]
fn yaml() {
    let decode = |text: &str, validation| {
        object(builtin(), &pod(), text.as_bytes(), Format::Yaml, validation)
    };
    let good = decode(
        "metadata: {name: x, labels: {a: 'yes'}}\nspec:\n  hostNetwork: true\n  priority: 5\n",
        FieldValidation::Strict,
    );
    let good = good.expect("accepted").value;
    assert_eq!((&good["metadata"]["name"], &good["spec"]["priority"]), (&json!("x"), &json!(5)));
    let twice = decode("metadata:\n  name: x\n  name: z\n", FieldValidation::Strict)
        .expect_err("a repeated key");
    assert!(twice.message.contains("strict decoding error"), "{twice}");
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    assert!(decode(bomb, FieldValidation::Ignore).is_err());
    assert!(decode("a: [", FieldValidation::Ignore).is_err());
    assert!(any(&vec![b' '; BODY_BYTES_MAX + 1], Format::Json).is_err());
}

/// Every request of Kubernetes' recorded refusals whose body is what is wrong with it.
#[test]
fn recorded_refusals() {
    let rows: Vec<Value> =
        serde_json::from_str(include_str!("../../testdata/refusals.json")).expect("testdata");
    let mut checked = 0;
    for row in rows {
        let (Some("POST"), Some(path)) = (row["method"].as_str(), row["path"].as_str()) else {
            continue;
        };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let kind = match path.rsplit('/').next() {
            Some("pods") => pod(),
            Some("secrets") => expected("", "v1", "Secret"),
            _ => continue,
        };
        let body = match &row["send"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let message = row["answer"]["message"].as_str().unwrap_or_default();
        let validation = query.split('&').find_map(|p| p.strip_prefix("fieldValidation="));
        let validation =
            FieldValidation::parse(validation.unwrap_or_default()).expect("a known value");
        let result = object(builtin(), &kind, body.as_bytes(), Format::Json, validation);
        if row["code"] == 400 && !message.starts_with("the namespace of") {
            assert_eq!(result.map_err(|s| s.message), Err(message.to_owned()), "{row}");
            checked += 1;
        } else {
            assert!(result.is_ok(), "{row}: {result:?}");
        }
    }
    assert!(checked >= 7, "{checked}");
}

/// Every recorded single change to an object: a 400 is the decoder's, and nothing else is.
#[test]
fn recorded_mutations() {
    let table: Value =
        serde_json::from_str(include_str!("../../testdata/mutations.json")).expect("testdata");
    let mut wrong = Vec::new();
    let mut refused = 0;
    for row in table["rows"].as_array().expect("rows") {
        let base = &table["bases"][row["base"].as_u64().expect("base") as usize];
        let mut body = base["object"].clone();
        set(&mut body, row["at"].as_array().expect("path"), &row["to"]);
        let text = |name: &str| base["object"][name].as_str().expect("type meta");
        let gv = GroupVersion::parse(text("apiVersion")).expect("an apiVersion");
        let expected = expected(&gv.group, &gv.version, text("kind"));
        let result = value(builtin(), &expected, &body, FieldValidation::Strict);
        refused += usize::from(result.is_err());
        if result.is_err() != (row["code"] == 400) {
            wrong.push(format!(
                "{} {} -> {}: {:?}",
                text("kind"),
                row["at"],
                row["to"],
                result.err()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    assert!(refused > 700, "{refused}");
}

/// Changes the value at a path; `__del__` takes it away, `__dup__` repeats an item of a list, `__x300__`
/// is a text of 300 letters.
fn set(object: &mut Value, path: &[Value], to: &Value) {
    if to == "__x300__" {
        return set(object, path, &"x".repeat(300).into());
    }
    let (last, path) = path.split_last().expect("a path");
    let mut at = object;
    for step in path {
        at = match step {
            Value::Number(index) => &mut at[index.as_u64().expect("an index") as usize],
            name => &mut at[name.as_str().expect("a name")],
        };
    }
    match (last, to.as_str()) {
        (Value::Number(index), to_text) => {
            let index = index.as_u64().expect("an index") as usize;
            let list = at.as_array_mut().expect("a list");
            match to_text {
                Some("__del__") => drop(list.remove(index)),
                Some("__dup__") => list.push(list[index].clone()),
                _ => list[index] = to.clone(),
            }
        }
        (name, Some("__del__")) => {
            drop(at.as_object_mut().expect("a map").remove(name.as_str().expect("a name")))
        }
        (name, _) => at[name.as_str().expect("a name")] = to.clone(),
    }
}
