//! The paths that are of no resource: which groups, versions and resources there are, which version
//! this server is, and what verifies its tokens.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::paths::operation::{capital, group_word};
use super::{Dialect, ResourceInfo};
use crate::model::{DefId, Model};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const INFO: &str = "io.k8s.apimachinery.pkg.version.Info";

/// A path that is only read.
struct Root {
    path: String,
    id: String,
    tag: String,
    summary: &'static str,
    /// The definition that is answered; none is a text.
    answer: Option<String>,
    produces: &'static [&'static str],
}

const OBJECT: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const JSON: &[&str] = &["application/json"];

/// The names of the documents of v3 that hold such a path and nothing else.
pub fn v3_roots(groups: impl IntoIterator<Item = String>) -> Vec<String> {
    let named = ["api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"];
    let groups = groups.into_iter().filter(|g| !g.is_empty()).map(|g| format!("apis/{g}"));
    named.map(str::to_owned).into_iter().chain(groups).collect()
}

/// Such a document by its name.
pub fn v3_root(model: &Model, name: &str) -> Option<Value> {
    let mut used = BTreeSet::new();
    let mut paths = Map::new();
    add(model, of_name(name)?, Dialect::V3, &mut paths, &mut used);
    let mut document = super::v3(model, paths, used);
    if name == "version" {
        let (info, schema) = version_info();
        document["components"]["schemas"][info] = schema;
    }
    Some(document)
}

/// The path of a group and version, which stands in its document.
pub(super) fn add_version(
    model: &Model,
    (group, version): (&str, &str),
    dialect: Dialect,
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<DefId>,
) {
    let word = group_word(group);
    let root = Root {
        path: match group.is_empty() {
            true => format!("/api/{version}/"),
            false => format!("/apis/{group}/{version}/"),
        },
        id: format!("get{}{}APIResources", capital(&word), capital(version)),
        tag: format!("{word}_{version}"),
        summary: "get available resources",
        answer: Some(format!("{META}.APIResourceList")),
        produces: OBJECT,
    };
    add(model, root, dialect, paths, used);
}

/// All of them, for the one document of v2.
pub(super) fn add_all(
    model: &Model,
    resources: &[ResourceInfo],
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<DefId>,
) {
    let versions: BTreeSet<(&str, &str)> =
        resources.iter().map(|r| (&*r.group, &*r.version)).collect();
    let groups: BTreeSet<String> = versions.iter().map(|(g, _)| (*g).to_owned()).collect();
    for version in versions {
        add_version(model, version, Dialect::V2, paths, used);
    }
    for root in v3_roots(groups).iter().filter_map(|name| of_name(name)) {
        add(model, root, Dialect::V2, paths, used);
    }
}

/// What `/version` answers, which no other definition refers to.
pub(super) fn version_info() -> (String, Value) {
    let text = |required: bool| match required {
        true => json!({ "type": "string", "default": "" }),
        false => json!({ "type": "string" }),
    };
    let always = [
        "major",
        "minor",
        "gitVersion",
        "gitCommit",
        "gitTreeState",
        "buildDate",
        "goVersion",
        "compiler",
        "platform",
    ];
    let sometimes =
        ["emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor"];
    let fields = always.map(|n| (n, true)).into_iter().chain(sometimes.map(|n| (n, false)));
    let properties: Map<String, Value> =
        fields.map(|(name, required)| (name.to_owned(), text(required))).collect();
    let schema = json!({
        "type": "object",
        "description": "Which version a server is.",
        "required": always,
        "properties": properties,
    });
    (INFO.to_owned(), schema)
}

fn of_name(name: &str) -> Option<Root> {
    let root = |id: &str, tag: &str, summary, answer: Option<String>, produces| Root {
        path: format!("/{name}/"),
        id: id.to_owned(),
        tag: tag.to_owned(),
        summary,
        answer,
        produces,
    };
    let meta = |kind: &str| Some(format!("{META}.{kind}"));
    Some(match name {
        "api" => root(
            "getCoreAPIVersions",
            "core",
            "get available API versions",
            meta("APIVersions"),
            OBJECT,
        ),
        "apis" => root(
            "getAPIVersions",
            "apis",
            "get available API versions",
            meta("APIGroupList"),
            OBJECT,
        ),
        "version" => root(
            "getCodeVersion",
            "version",
            "get the version information for this server",
            Some(INFO.to_owned()),
            JSON,
        ),
        ".well-known/openid-configuration" => root(
            "getServiceAccountIssuerOpenIDConfiguration",
            "WellKnown",
            "get the discovery document of who issues the tokens of service accounts",
            None,
            JSON,
        ),
        "openid/v1/jwks" => root(
            "getServiceAccountIssuerOpenIDKeyset",
            "openid",
            "get the public keys that verify the tokens of service accounts",
            None,
            &["application/jwk-set+json"],
        ),
        _ => {
            let word = group_word(name.strip_prefix("apis/").filter(|g| !g.contains('/'))?);
            let id = format!("get{}APIGroup", capital(&word));
            root(&id, &word, "get information of a group", meta("APIGroup"), OBJECT)
        }
    })
}

fn add(
    model: &Model,
    root: Root,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<DefId>,
) {
    used.extend(root.answer.as_ref().and_then(|a| model.id(a)));
    let schema = root.answer.map_or(json!({ "type": "string" }), |a| dialect.reference(&a));
    let mut answer = json!({ "description": "OK" });
    match dialect {
        Dialect::V2 => answer["schema"] = schema,
        Dialect::V3 => {
            let media =
                root.produces.iter().map(|t| ((*t).to_owned(), json!({ "schema": schema })));
            answer["content"] = Value::Object(media.collect());
        }
    }
    let mut operation = json!({
        "description": root.summary,
        "tags": [root.tag],
        "operationId": root.id,
        "responses": { "200": answer, "401": { "description": "Unauthorized" } },
    });
    if dialect == Dialect::V2 {
        operation["consumes"] = json!(root.produces);
        operation["produces"] = json!(root.produces);
        operation["schemes"] = json!(["https"]);
    }
    paths.insert(root.path, json!({ "get": operation }));
}
