//! Custom kinds in the documents: their schema is the one that their definition brought.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Dialect, ResourceInfo, paths, schema};
use crate::builtin::descriptions;
use crate::model::Model;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// A custom kind, with the schema that is published of it.
pub struct CustomInfo<'a> {
    pub model: &'a Model,
    pub info: ResourceInfo,
    pub list_kind: String,
    pub schema: Value,
}

/// Adds the paths and schemas of custom kinds to a document.
pub fn add_custom(document: &mut Value, items: &[CustomInfo<'_>], dialect: Dialect) {
    if items.is_empty() {
        return;
    }
    let texts = descriptions();
    let (mut all_paths, mut all_schemas) = (Map::new(), Map::new());
    for item in items {
        let mut used = BTreeSet::new();
        paths::add(item.model, &item.info, dialect, &mut all_paths, &mut used);
        let own = &item.model.get(item.info.definition).name;
        let list = format!("{own}List");
        // What is custom is told below; of the rest the model knows.
        used.remove(&item.info.definition);
        if let Some(id) = item.model.id(&list) {
            used.remove(&id);
        }
        used.extend([OBJECT_META, LIST_META].map(|name| item.model.expect(name)));
        all_schemas.extend(schema::definitions(item.model, &texts, dialect, used));
        all_schemas.insert(own.to_string(), item.schema.clone());
        all_schemas.insert(list, list_schema(item, own, dialect));
    }
    let schemas = match dialect {
        Dialect::V2 => &mut document["definitions"],
        Dialect::V3 => &mut document["components"]["schemas"],
    };
    extend(schemas, all_schemas);
    extend(&mut document["paths"], all_paths);
}

fn extend(target: &mut Value, more: Map<String, Value>) {
    match target {
        Value::Object(map) => map.extend(more),
        other => *other = Value::Object(more),
    }
}

fn list_schema(item: &CustomInfo<'_>, own: &str, dialect: Dialect) -> Value {
    let ResourceInfo { group, version, kind, resource, .. } = &item.info;
    let metadata = match dialect {
        Dialect::V2 => dialect.reference(LIST_META),
        Dialect::V3 => json!({ "allOf": [dialect.reference(LIST_META)] }),
    };
    json!({
        "description": format!("{} is a list of {kind}", item.list_kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string", "description": "The group and version of the list." },
            "kind": { "type": "string", "description": "The kind of the list." },
            "metadata": metadata,
            "items": { "type": "array", "description": format!("List of {resource}."), "items": dialect.reference(own) },
        },
        "x-kubernetes-group-version-kind": [{ "group": group, "version": version, "kind": item.list_kind }],
    })
}
