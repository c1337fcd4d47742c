//! A definition as it is served: read once when it changes, not with every request.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use rimward_control_cel::Rules;
use serde_json::Value;

use super::definition::{is_true, storage_version};
use super::jsonpath::JsonPath;
use super::kind::CustomRules;
use super::schema::Schema;
use crate::kind::{CUSTOM_STORAGE, Column, Kind, Scope, Subresource};
use crate::read::Read;

/// What of a CustomResourceDefinition serving needs.
#[derive(Debug)]
pub struct Definition {
    /// `widgets.example.com`
    pub name: String,
    pub uid: String,
    pub group: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    pub scope: Scope,
    /// All of them, served or not, the preferred first.
    pub versions: Vec<Arc<Version>>,
    /// The version in which objects are stored.
    pub storage: Arc<Version>,
    /// It goes: objects can be changed and deleted, not created.
    pub terminating: bool,
    /// `spec.conversion.webhook`, when versions are converted by one.
    pub webhook: Option<Value>,
}

/// One version of a definition.
#[derive(Debug)]
pub struct Version {
    pub name: String,
    pub served: bool,
    pub schema: Schema,
    /// `x-kubernetes-validations`, compiled; None when there are none.
    pub rules: Option<Rules>,
    /// `openAPIV3Schema` as it was written.
    pub raw_schema: Value,
    pub has_status: bool,
    pub scale: Option<Scale>,
    columns: Vec<(Column, Option<JsonPath>)>,
    /// Paths of selectable fields, without the dot before them.
    pub selectable: Vec<String>,
    /// The text of the Warning that every request to it answers with.
    pub deprecation: Option<String>,
    /// Stands for the schema and the selectable fields: what was stored under the same one needs
    /// nothing done when it is read.
    pub fingerprint: u64,
}

/// Where `/scale` reads and writes: simple JSON paths.
#[derive(Clone, Debug)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    /// Empty when there is none.
    pub selector: String,
}

impl Definition {
    /// Reads a stored definition that is established; None for any other.
    pub fn read(object: &Value) -> Option<Self> {
        if !is_true(object, "Established") && !is_true(object, "NamesAccepted") {
            return None;
        }
        let (meta, spec) = (object.at("metadata"), object.at("spec"));
        let names = object.deep(&["status", "acceptedNames"]);
        let group = spec.text("group").to_owned();
        let kind = names.text("kind").to_owned();
        let texts = |field: &str| {
            names.list(field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let all = spec.list("versions");
        let storage = storage_version(object)?;
        let mut versions: Vec<Arc<Version>> =
            all.iter().map(|v| Arc::new(Version::read(v, &group, &kind, all))).collect();
        versions.sort_by_key(|v| Reverse(priority(&v.name)));
        let storage = versions.iter().find(|v| v.name == storage)?.clone();
        let conversion = spec.at("conversion");
        Some(Self {
            name: meta.text("name").to_owned(),
            uid: meta.text("uid").to_owned(),
            list_kind: names.text("listKind").to_owned(),
            plural: names.text("plural").to_owned(),
            singular: names.text("singular").to_owned(),
            short_names: texts("shortNames"),
            categories: texts("categories"),
            scope: match spec.text("scope") {
                "Namespaced" => Scope::Namespaced,
                _ => Scope::Cluster,
            },
            terminating: meta.has("deletionTimestamp") || is_true(object, "Terminating"),
            webhook: (conversion.text("strategy") == "Webhook")
                .then(|| conversion.at("webhook").clone()),
            group,
            kind,
            versions,
            storage,
        })
    }

    pub fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// The prefix of the store keys of all objects.
    pub fn storage_prefix(&self) -> String {
        format!("{CUSTOM_STORAGE}{}/{}/", self.group, self.plural)
    }

    /// The kind of a served version.
    pub fn kind_of(&self, version: &Arc<Version>) -> Kind {
        let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let sub = |name: &str, speaks| Subresource {
            name: name.to_owned(),
            verbs: texts(&["get", "patch", "update"]),
            speaks,
        };
        let scale = ("autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned());
        let status = version.has_status.then(|| sub("status", None));
        let subresources =
            status.into_iter().chain(version.scale.as_ref().map(|_| sub("scale", Some(scale))));
        let name = Column {
            name: "Name".into(),
            kind: "string".into(),
            format: "name".into(),
            description: String::new(),
            priority: 0,
        };
        let columns = version.columns.iter().map(|(column, _)| column.clone());
        Kind {
            group: self.group.clone(),
            version: version.name.clone(),
            kind: self.kind.clone(),
            resource: self.plural.clone(),
            singular: self.singular.clone(),
            short_names: self.short_names.clone(),
            categories: self.categories.clone(),
            scope: self.scope,
            verbs: texts(&[
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch",
            ]),
            subresources: subresources.collect(),
            columns: std::iter::once(name).chain(columns).collect(),
            storage: self.storage_prefix(),
            schema: definition_name(&self.group, &version.name, &self.kind),
            selectable_fields: version.selectable.clone(),
            not_yet: None,
            deprecated: version.deprecation.clone(),
            conversion: None,
            hooks: Arc::new(CustomRules::new(version.clone())),
        }
    }
}

/// The name of a kind's schema in OpenAPI: the group turned round, `com.example.v1.Widget`.
pub fn definition_name(group: &str, version: &str, kind: &str) -> String {
    let turned: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", turned.join("."))
}

impl Version {
    fn read(raw: &Value, group: &str, kind: &str, all: &[Value]) -> Self {
        let raw_schema = raw.deep(&["schema", "openAPIV3Schema"]).clone();
        let subresources = raw.at("subresources");
        let scale = subresources.at("scale");
        let selectable: Vec<String> = raw
            .list("selectableFields")
            .iter()
            .map(|f| f.text("jsonPath").trim_start_matches('.').to_owned())
            .collect();
        let mut hasher = DefaultHasher::new();
        (raw_schema.to_string(), &selectable).hash(&mut hasher);
        Self {
            name: raw.text("name").to_owned(),
            served: raw.flag("served"),
            schema: Schema::read(&raw_schema),
            // A definition is only stored when its rules compile.
            rules: Rules::compile(&raw_schema, "").ok().filter(|rules| !rules.is_empty()),
            has_status: subresources.get("status").is_some_and(|s| !s.is_null()),
            scale: scale.is_object().then(|| Scale {
                spec_replicas: scale.text("specReplicasPath").to_owned(),
                status_replicas: scale.text("statusReplicasPath").to_owned(),
                selector: scale.text("labelSelectorPath").to_owned(),
            }),
            columns: columns(raw.list("additionalPrinterColumns")),
            selectable,
            deprecation: raw.flag("deprecated").then(|| deprecation(raw, group, kind, all)),
            fingerprint: hasher.finish(),
            raw_schema,
        }
    }

    pub fn columns(&self) -> &[(Column, Option<JsonPath>)] {
        &self.columns
    }
}

fn columns(raw: &[Value]) -> Vec<(Column, Option<JsonPath>)> {
    let read = |name: &str, kind: &str, format: &str, text: &str, priority: i64, path: &str| {
        let column = Column {
            name: name.to_owned(),
            kind: kind.to_owned(),
            format: format.to_owned(),
            description: match text {
                "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                text => text.to_owned(),
            },
            priority: i32::try_from(priority).unwrap_or_default(),
        };
        (column, JsonPath::parse(path))
    };
    if raw.is_empty() {
        let mut age = read("Age", "date", "", "", 0, ".metadata.creationTimestamp");
        // What documentation says of the field, as for built-in kinds.
        age.0.description.clear();
        return vec![age];
    }
    raw.iter()
        .map(|c| {
            let priority = c.int("priority").unwrap_or_default();
            let (name, kind) = (c.text("name"), c.text("type"));
            read(name, kind, c.text("format"), c.text("description"), priority, c.text("jsonPath"))
        })
        .collect()
}

fn deprecation(raw: &Value, group: &str, kind: &str, all: &[Value]) -> String {
    if let Some(text) = raw.at("deprecationWarning").as_str() {
        return text.to_owned();
    }
    let own = raw.text("name");
    let better = all
        .iter()
        .filter(|v| v.flag("served") && !v.flag("deprecated"))
        .map(|v| v.text("name"))
        .filter(|name| priority(name) > priority(own))
        .max_by_key(|name| priority(name));
    let message = format!("{group}/{own} {kind} is deprecated");
    match better {
        Some(version) => format!("{message}; use {group}/{version} {kind}"),
        None => message,
    }
}

/// Kubernetes' order of versions: general availability before beta before alpha, then by number, then
/// whatever else there is by name, backwards.
/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#version-priority>
pub fn priority(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let other = (0, 0, 0, Reverse(version.to_owned()));
    let number = |t: &str| t.parse::<u64>().ok().filter(|_| !t.starts_with('0'));
    let Some(rest) = version.strip_prefix('v') else { return other };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, stage) = rest.split_at(end);
    let Some(major) = number(major) else { return other };
    let staged = |rank: u8, minor: &str| match number(minor) {
        Some(minor) => (rank, major, minor, Reverse(String::new())),
        None => other.clone(),
    };
    match stage {
        "" => (3, major, 0, Reverse(String::new())),
        _ => match (stage.strip_prefix("beta"), stage.strip_prefix("alpha")) {
            (Some(minor), _) => staged(2, minor),
            (_, Some(minor)) => staged(1, minor),
            _ => other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order() {
        let mut all = vec![
            "foo10",
            "v11beta2",
            "v12alpha1",
            "foo1",
            "v10beta3",
            "v3beta1",
            "v1",
            "v10",
            "v11alpha2",
            "v2",
        ];
        all.sort_by_key(|v| Reverse(priority(v)));
        let expected = [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "foo1",
            "foo10",
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn names_of_schemas() {
        assert_eq!(
            definition_name("stable.example.com", "v1", "CronTab"),
            "com.example.stable.v1.CronTab"
        );
    }
}
