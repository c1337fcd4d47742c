use super::*;
use crate::builtin;

fn deployments() -> ResourceInfo {
    let model = builtin();
    let verbs = |list: &[&str]| list.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
    let id = |name| model.expect(name);
    let own = ("apps".to_owned(), "v1".to_owned(), "Deployment".to_owned());
    let scale = ("autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned());
    ResourceInfo {
        group: "apps".into(),
        version: "v1".into(),
        kind: "Deployment".into(),
        resource: "deployments".into(),
        namespaced: true,
        verbs: verbs(&[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ]),
        definition: id("io.k8s.api.apps.v1.Deployment"),
        custom: false,
        returns_deleted: false,
        subresources: vec![
            SubresourceInfo {
                name: "status".into(),
                verbs: verbs(&["get", "patch", "update"]),
                speaks: own,
                definition: Some(id("io.k8s.api.apps.v1.Deployment")),
            },
            SubresourceInfo {
                name: "scale".into(),
                verbs: verbs(&["get", "patch", "update"]),
                speaks: scale,
                definition: Some(id("io.k8s.api.autoscaling.v1.Scale")),
            },
        ],
    }
}

/// Every reference of a document leads somewhere.
fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            map.values().for_each(|v| check_references(document, v));
        }
        Value::Array(list) => list.iter().for_each(|v| check_references(document, v)),
        _ => {}
    }
}

#[test]
fn v3() {
    let document = v3_document(builtin(), "apps", "v1", &[deployments()]);
    check_references(&document, &document);
    let paths = document["paths"].as_object().expect("paths");
    let names: Vec<&String> = paths.keys().collect();
    assert_eq!(
        names,
        [
            "/apis/apps/v1/",
            "/apis/apps/v1/deployments",
            "/apis/apps/v1/namespaces/{namespace}/deployments",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status",
            "/apis/apps/v1/watch/deployments",
            "/apis/apps/v1/watch/namespaces/{namespace}/deployments",
            "/apis/apps/v1/watch/namespaces/{namespace}/deployments/{name}",
        ]
    );
    let patch = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    // kubectl reads these to know that the server validates fields, and how to patch.
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let parameters: Vec<&Value> =
        patch["parameters"].as_array().expect("parameters").iter().map(|p| &p["name"]).collect();
    assert_eq!(parameters, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert!(
        patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some()
    );
    let scale = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    let containers = &spec["properties"]["containers"];
    assert_eq!(
        (&containers["x-kubernetes-patch-merge-key"], &containers["x-kubernetes-list-map-keys"]),
        (&json!("name"), &json!(["name"]))
    );
    assert!(
        containers["description"].as_str().is_some_and(|t| t.starts_with("List of containers"))
    );
    let container = &schemas["io.k8s.api.core.v1.Container"]["properties"];
    assert_eq!(container["imagePullPolicy"]["enum"], json!(["Always", "IfNotPresent", "Never"]));
    assert!(schemas["io.k8s.api.core.v1.Pod"].is_null());
    assert_eq!(schemas["io.k8s.api.apps.v1.Deployment"].get("required"), None);
    assert!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"]["description"].is_string());
    let port = &schemas["io.k8s.api.core.v1.ContainerPort"]["properties"];
    assert_eq!(
        (&port["protocol"]["default"], &port["containerPort"]["format"]),
        (&json!("TCP"), &json!("int32"))
    );
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"]["allOf"],
        json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}])
    );
    let list = &schemas["io.k8s.api.apps.v1.DeploymentList"];
    assert_eq!(list["properties"]["items"]["description"], "List of deployments");
    assert!(list["properties"]["kind"]["description"].is_string());
}

#[test]
fn v2() {
    let document = v2_document(builtin(), &[deployments()]);
    check_references(&document, &document);
    let definition = &document["definitions"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        definition["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let bytes = v2_protobuf(&document);
    let names = field_lengths(&bytes);
    // swagger, info, paths, definitions, in the order of their numbers.
    assert_eq!(names.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 8, 9]);
    assert!(names[3].1 > 100_000, "{names:?}");
}

#[test]
fn roots() {
    let model = builtin();
    for name in v3_roots(["".to_owned(), "apps".to_owned()]) {
        let document = v3_root(model, &name).expect("a document");
        check_references(&document, &document);
        assert!(document["paths"].get(format!("/{name}/")).is_some(), "{name}");
    }
    assert_eq!(v3_root(model, "apis/apps/v1"), None);
    let apps = v3_root(model, "apis/apps").expect("a document");
    assert_eq!(apps["paths"]["/apis/apps/"]["get"]["operationId"], "getAppsAPIGroup");
}

/// The fields of a message: number and length; panics when it is not one.
fn field_lengths(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut at = 0;
    let varint = |at: &mut usize| {
        let (mut n, mut shift) = (0u64, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            n |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return n;
            }
        }
    };
    let mut fields = Vec::new();
    while at < bytes.len() {
        let tag = varint(&mut at);
        assert_eq!(tag & 7, 2, "every field of the document has a length");
        let len = varint(&mut at);
        fields.push((tag >> 3, len));
        at += len as usize;
    }
    assert_eq!(at, bytes.len());
    fields
}
