//! Paths and operations of resources.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Dialect, ResourceInfo, SubresourceInfo};
use crate::model::{DefId, Model};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Query parameters: name, type, what it is for.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', the answer is printed for people.");
const DRY_RUN: Parameter =
    ("dryRun", "string", "With 'All', everything is done except that nothing is stored.");
const FIELD_MANAGER: Parameter =
    ("fieldManager", "string", "The name under which changes are recorded; required for apply.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What to do about unknown and duplicate fields: Ignore, Warn or Strict.",
);
const FORCE: Parameter = ("force", "boolean", "An apply takes fields over from their managers.");
const LIST: [Parameter; 9] = [
    ("allowWatchBookmarks", "boolean", "Asks for BOOKMARK events in a watch."),
    ("continue", "string", "Where to go on with a list, from the part before."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "How many objects to answer at most."),
    ("resourceVersion", "string", "The revision that the answer is based on."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("timeoutSeconds", "integer", "How long a list or watch may take."),
    ("watch", "boolean", "Answers a stream of changes instead of a list."),
];
const DELETE: [Parameter; 4] = [
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long the object may take to go; 0 is at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    (
        "propagationPolicy",
        "string",
        "What happens to dependents: Orphan, Background or Foreground.",
    ),
];

/// One operation of a path.
struct Operation<'a> {
    method: &'static str,
    action: &'static str,
    /// `list`, `read` …, the first part of the id.
    id_verb: &'static str,
    summary: String,
    query: Vec<Parameter>,
    body: Option<&'a str>,
    answer: &'a str,
    created: bool,
}

/// What the operations of a path share.
struct Place<'a> {
    path: String,
    /// `NamespacedPodStatus`, the last part of every id.
    id_noun: String,
    namespaced: bool,
    named: bool,
    group: &'a str,
    version: &'a str,
    /// (group, version, kind) of the bodies.
    speaks: (&'a str, &'a str, &'a str),
}

/// Adds the paths of a resource, and the definitions that they use.
pub(super) fn add(
    model: &Model,
    resource: &ResourceInfo,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<DefId>,
) {
    let ResourceInfo { group, version, kind, resource: plural, .. } = resource;
    let prefix = if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    };
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let own = &*model.get(resource.definition).name;
    let list_name = format!("{own}List");
    let list = model.definition(&list_name).map_or(own, |d| &*d.name);
    let place = |path: String, noun: String, named: bool| Place {
        path,
        id_noun: format!("{}{noun}", if resource.namespaced { "Namespaced" } else { "" }),
        namespaced: resource.namespaced,
        named,
        group,
        version,
        speaks: (group, version, kind),
    };
    let can = |verb: &str| resource.verbs.iter().any(|v| v == verb);
    let mut add = |place: &Place<'_>, operations: Vec<Operation<'_>>| {
        for name in operations.iter().flat_map(|o| o.body.into_iter().chain([o.answer])) {
            used.extend(model.id(name));
        }
        if !operations.is_empty() {
            paths.insert(place.path.clone(), path_item(place, operations, dialect));
        }
    };

    let collection = place(format!("{prefix}{scope}/{plural}"), kind.clone(), false);
    let mut operations = Vec::new();
    if can("list") {
        operations.push(list_operation(kind, list));
    }
    if can("create") {
        operations.push(create_operation(kind, own));
    }
    if can("deletecollection") {
        let query = [&LIST[..], &DELETE[..]].concat();
        let (method, summary) = ("delete", format!("delete collection of {kind}"));
        operations.push(Operation {
            method,
            action: "deletecollection",
            id_verb: "deleteCollection",
            summary,
            query,
            body: Some(DELETE_OPTIONS),
            answer: STATUS,
            created: false,
        });
    }
    add(&collection, operations);

    if resource.namespaced && can("list") {
        let mut everywhere =
            place(format!("{prefix}/{plural}"), format!("{kind}ForAllNamespaces"), false);
        everywhere.id_noun = format!("{kind}ForAllNamespaces");
        everywhere.namespaced = false;
        add(&everywhere, vec![list_operation(kind, list)]);
    }

    let item_path = format!("{prefix}{scope}/{plural}/{{name}}");
    let item = place(item_path.clone(), kind.clone(), true);
    add(&item, item_operations(&resource.verbs, kind, own));

    for sub in &resource.subresources {
        let Some(definition) = sub.definition else { continue };
        let noun = format!("{kind}{}", capital(&sub.name));
        let mut at = place(format!("{item_path}/{}", sub.name), noun, true);
        at.speaks = (&sub.speaks.0, &sub.speaks.1, &sub.speaks.2);
        add(&at, subresource_operations(sub, kind, &model.get(definition).name));
    }
}

fn list_operation<'a>(kind: &str, list: &'a str) -> Operation<'a> {
    Operation {
        method: "get",
        action: "list",
        id_verb: "list",
        summary: format!("list or watch objects of kind {kind}"),
        query: LIST.to_vec(),
        body: None,
        answer: list,
        created: false,
    }
}

fn create_operation<'a>(kind: &str, body: &'a str) -> Operation<'a> {
    Operation {
        method: "post",
        action: "post",
        id_verb: "create",
        summary: format!("create a {kind}"),
        query: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
        body: Some(body),
        answer: body,
        created: true,
    }
}

fn item_operations<'a>(verbs: &[String], kind: &str, own: &'a str) -> Vec<Operation<'a>> {
    let can = |verb: &str| verbs.iter().any(|v| v == verb);
    let mut operations = Vec::new();
    if can("get") {
        operations.push(Operation {
            method: "get",
            action: "get",
            id_verb: "read",
            summary: format!("read the specified {kind}"),
            query: vec![],
            body: None,
            answer: own,
            created: false,
        });
    }
    if can("update") {
        operations.push(Operation {
            method: "put",
            action: "put",
            id_verb: "replace",
            summary: format!("replace the specified {kind}"),
            query: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
            body: Some(own),
            answer: own,
            created: true,
        });
    }
    if can("delete") {
        operations.push(Operation {
            method: "delete",
            action: "delete",
            id_verb: "delete",
            summary: format!("delete a {kind}"),
            query: DELETE.to_vec(),
            body: Some(DELETE_OPTIONS),
            answer: STATUS,
            created: false,
        });
    }
    if can("patch") {
        operations.push(Operation {
            method: "patch",
            action: "patch",
            id_verb: "patch",
            summary: format!("partially update the specified {kind}"),
            query: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
            body: Some(PATCH),
            answer: own,
            created: true,
        });
    }
    operations
}

fn subresource_operations<'a>(
    sub: &SubresourceInfo,
    kind: &str,
    body: &'a str,
) -> Vec<Operation<'a>> {
    let about = format!("{} of the specified {kind}", sub.name);
    let mut operations = item_operations(&sub.verbs, kind, body);
    // Connecting subresources are spoken to by GET and POST, and have no body of their own.
    if sub.verbs.iter().any(|v| v == "create") {
        operations.push(create_operation(kind, body));
    }
    for operation in &mut operations {
        operation.summary = format!("{} {about}", operation.id_verb);
    }
    operations
}

fn path_item(place: &Place<'_>, operations: Vec<Operation<'_>>, dialect: Dialect) -> Value {
    let mut item = Map::new();
    for operation in operations {
        item.insert(operation.method.to_owned(), operation_schema(place, &operation, dialect));
    }
    let mut parameters = Vec::new();
    if place.named {
        parameters.push(path_parameter(
            "name",
            &format!("name of the {}", place.speaks.2),
            dialect,
        ));
    }
    if place.namespaced {
        parameters.push(path_parameter(
            "namespace",
            "object name and auth scope, such as for teams and projects",
            dialect,
        ));
    }
    parameters.push(query_parameter(PRETTY, dialect));
    item.insert("parameters".into(), Value::Array(parameters));
    Value::Object(item)
}

fn operation_schema(place: &Place<'_>, operation: &Operation<'_>, dialect: Dialect) -> Value {
    let tag = if place.group.is_empty() {
        "core"
    } else {
        place.group.split('.').next().unwrap_or_default()
    };
    let (group, version, kind) = place.speaks;
    let id =
        format!("{}{}{}{}", operation.id_verb, capital(tag), capital(place.version), place.id_noun);
    let mut parameters: Vec<Value> =
        operation.query.iter().map(|p| query_parameter(*p, dialect)).collect();
    let mut schema = json!({
        "description": operation.summary,
        "tags": [format!("{tag}_{}", place.version)],
        "operationId": id,
        "responses": responses(operation, dialect),
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": { "group": group, "version": version, "kind": kind },
    });
    let consumes: &[&str] = if operation.method == "patch" { &PATCH_TYPES } else { &[JSON, YAML] };
    if let Some(body) = operation.body {
        let required = body != DELETE_OPTIONS;
        match dialect {
            Dialect::V2 => {
                parameters.insert(0, json!({ "name": "body", "in": "body", "required": required, "schema": dialect.reference(body) }));
                schema["consumes"] = json!(consumes);
            }
            Dialect::V3 => {
                schema["requestBody"] =
                    json!({ "content": content(consumes, body, dialect), "required": required });
            }
        }
    }
    if dialect == Dialect::V2 {
        schema["produces"] = json!([JSON, YAML]);
    }
    if !parameters.is_empty() {
        schema["parameters"] = Value::Array(parameters);
    }
    schema
}

fn responses(operation: &Operation<'_>, dialect: Dialect) -> Value {
    let answer = |text: &str| match dialect {
        Dialect::V2 => {
            json!({ "description": text, "schema": dialect.reference(operation.answer) })
        }
        Dialect::V3 => {
            json!({ "description": text, "content": content(&[JSON, YAML], operation.answer, dialect) })
        }
    };
    let mut responses = json!({ "200": answer("OK"), "401": { "description": "Unauthorized" } });
    if operation.created {
        responses["201"] = answer("Created");
    }
    if operation.method == "post" || operation.action == "delete" {
        responses["202"] = answer("Accepted");
    }
    responses
}

fn content(types: &[&str], name: &str, dialect: Dialect) -> Value {
    let media =
        types.iter().map(|t| ((*t).to_owned(), json!({ "schema": dialect.reference(name) })));
    Value::Object(media.collect())
}

fn query_parameter((name, ty, text): Parameter, dialect: Dialect) -> Value {
    parameter(name, "query", ty, text, dialect)
}

fn path_parameter(name: &str, text: &str, dialect: Dialect) -> Value {
    let mut parameter = parameter(name, "path", "string", text, dialect);
    parameter["required"] = json!(true);
    parameter
}

fn parameter(name: &str, place: &str, ty: &str, text: &str, dialect: Dialect) -> Value {
    let mut parameter = json!({ "name": name, "in": place, "description": text });
    match dialect {
        Dialect::V2 => {
            parameter["type"] = json!(ty);
            parameter["uniqueItems"] = json!(true);
        }
        Dialect::V3 => parameter["schema"] = json!({ "type": ty, "uniqueItems": true }),
    }
    parameter
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
