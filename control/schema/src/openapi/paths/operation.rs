//! Operations: their ids, bodies, answers and media types.

use serde_json::{Map, Value, json};

use super::parameters::{self, PRETTY, Parameter};
use crate::openapi::Dialect;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON_STREAM: &str = "application/json;stream=watch";
const PROTOBUF_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const ANY: &str = "*/*";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// What an operation speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    /// One object.
    Object,
    /// A list, or a stream of events.
    Stream,
    /// A patch goes in, an object comes out.
    Patch,
    /// The text of a log.
    Log,
    /// Bytes of any kind, both ways.
    Connection,
}

/// One operation of a path.
pub(super) struct Operation<'a> {
    pub method: &'static str,
    /// `x-kubernetes-action`.
    pub action: &'static str,
    /// `list`, `read` …, the first part of the id.
    pub verb: &'static str,
    /// What stands in the id before the noun: `Collection`, `Get`.
    pub before: &'static str,
    pub summary: String,
    pub query: Vec<Parameter>,
    pub body: Option<Body<'a>>,
    /// The definition that is answered; none is a text.
    pub answer: Option<&'a str>,
    /// Codes of success besides 200.
    pub codes: &'static [u16],
    pub media: Media,
}

#[derive(Clone, Copy)]
pub(super) struct Body<'a> {
    pub definition: &'a str,
    pub required: bool,
}

/// What the operations of a path share.
pub(super) struct Place<'a> {
    pub path: String,
    /// `NamespacedPodStatus`, the last part of every id.
    pub noun: String,
    pub group: &'a str,
    pub version: &'a str,
    /// (group, version, kind) of the bodies.
    pub speaks: (&'a str, &'a str, &'a str),
    /// Custom kinds have neither protobuf nor strategic merge.
    pub custom: bool,
    /// What the `name` in the path is a name of.
    pub named: Option<&'a str>,
}

/// The item of a path. Parameters that all its operations have stand beside them.
pub(super) fn path_item(
    place: &Place<'_>,
    operations: &[Operation<'_>],
    dialect: Dialect,
) -> Value {
    let shared = |p: &Parameter| operations.iter().all(|o| o.query.contains(p));
    let mut item = Map::new();
    for operation in operations {
        let own = operation.query.iter().copied().filter(|p| !shared(p));
        item.insert(operation.method.to_owned(), schema(place, operation, own, dialect));
    }
    let mut beside: Vec<Value> = in_path(place, dialect);
    let first = operations.iter().take(1).flat_map(|o| &o.query).copied();
    let query = first.filter(|p| shared(p)).chain(pretty(operations));
    beside.extend(query.map(|p| parameters::schema(p, "query", dialect)));
    sort(&mut beside);
    if !beside.is_empty() {
        item.insert("parameters".into(), Value::Array(beside));
    }
    Value::Object(item)
}

/// Everything but connections can be printed for people.
fn pretty(operations: &[Operation<'_>]) -> Option<Parameter> {
    operations.iter().all(|o| o.media != Media::Connection).then_some(PRETTY)
}

fn in_path(place: &Place<'_>, dialect: Dialect) -> Vec<Value> {
    let mut parameters = Vec::new();
    let mut add = |name, text: &str| {
        let mut parameter = parameters::schema((name, "string", ""), "path", dialect);
        parameter["description"] = json!(text);
        parameters.push(parameter);
    };
    if let Some(kind) = place.named {
        add("name", &format!("name of the {kind}"));
    }
    if place.path.contains("{namespace}") {
        add("namespace", "object name and auth scope, such as for teams and projects");
    }
    if place.path.contains("{path}") {
        add("path", "path to the resource");
    }
    parameters
}

fn sort(parameters: &mut [Value]) {
    parameters.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
}

fn schema(
    place: &Place<'_>,
    operation: &Operation<'_>,
    query: impl Iterator<Item = Parameter>,
    dialect: Dialect,
) -> Value {
    let (group, version, kind) = place.speaks;
    let tag = format!("{}_{}", group_word(place.group), place.version);
    let mut parameters: Vec<Value> =
        query.map(|p| parameters::schema(p, "query", dialect)).collect();
    sort(&mut parameters);
    let mut schema = json!({
        "description": operation.summary,
        "tags": [tag],
        "operationId": id(place, operation),
        "responses": responses(place, operation, dialect),
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": { "group": group, "version": version, "kind": kind },
    });
    let consumes = consumes(place, operation);
    if let Some(Body { definition, required }) = operation.body {
        let reference = dialect.reference(definition);
        let mut body = match dialect {
            Dialect::V2 => json!({ "name": "body", "in": "body", "schema": reference }),
            Dialect::V3 => json!({ "content": content(&consumes, &reference) }),
        };
        if required {
            body["required"] = json!(true);
        }
        match dialect {
            Dialect::V2 => parameters.insert(0, body),
            Dialect::V3 => schema["requestBody"] = body,
        }
    }
    if dialect == Dialect::V2 {
        schema["consumes"] = json!(consumes);
        schema["produces"] = json!(produces(place, operation));
        schema["schemes"] = json!(["https"]);
    }
    if !parameters.is_empty() {
        schema["parameters"] = Value::Array(parameters);
    }
    schema
}

/// `listAppsV1NamespacedDeployment`: the verb, the group and its version, and what it is done to.
fn id(place: &Place<'_>, operation: &Operation<'_>) -> String {
    let group = capital(&group_word(place.group));
    let Operation { verb, before, .. } = operation;
    format!("{verb}{group}{}{before}{}", capital(place.version), place.noun)
}

/// A group as one word, `rbacAuthorization` for rbac.authorization.k8s.io: every letter after
/// something that is no letter is a capital.
pub(in crate::openapi) fn group_word(group: &str) -> String {
    if group.is_empty() {
        return "core".to_owned();
    }
    let (mut word, mut next_is_capital) = (String::new(), false);
    for c in group.strip_suffix(".k8s.io").unwrap_or(group).chars() {
        if c.is_alphabetic() || c == '_' || (!word.is_empty() && c.is_ascii_digit()) {
            let upper = next_is_capital.then(|| c.to_uppercase().to_string());
            word += &upper.unwrap_or_else(|| c.to_string());
            next_is_capital = false;
        } else {
            next_is_capital = true;
        }
    }
    word
}

fn consumes(place: &Place<'_>, operation: &Operation<'_>) -> Vec<&'static str> {
    match operation.media {
        Media::Patch => {
            let all = [
                "application/json-patch+json",
                "application/merge-patch+json",
                STRATEGIC,
                "application/apply-patch+yaml",
            ];
            // kubectl apply takes the patch types that are published for those that work.
            all.into_iter().filter(|t| !(place.custom && *t == STRATEGIC)).collect()
        }
        _ => vec![ANY],
    }
}

fn produces(place: &Place<'_>, operation: &Operation<'_>) -> Vec<&'static str> {
    let object = match place.custom {
        true => vec![JSON, YAML],
        false => vec![JSON, YAML, PROTOBUF],
    };
    match operation.media {
        Media::Object | Media::Patch => object,
        Media::Stream if place.custom => object,
        Media::Stream => [object, vec![JSON_STREAM, PROTOBUF_STREAM]].concat(),
        Media::Log => [vec!["text/plain"], object].concat(),
        Media::Connection => vec![ANY],
    }
}

fn responses(place: &Place<'_>, operation: &Operation<'_>, dialect: Dialect) -> Value {
    let schema = operation.answer.map_or(json!({ "type": "string" }), |a| dialect.reference(a));
    let mut responses = json!({ "401": { "description": "Unauthorized" } });
    for code in [200].iter().chain(operation.codes) {
        let text = match code {
            200 => "OK",
            201 => "Created",
            _ => "Accepted",
        };
        let mut answer = json!({ "description": text });
        match dialect {
            Dialect::V2 => answer["schema"] = schema.clone(),
            Dialect::V3 => answer["content"] = content(&produces(place, operation), &schema),
        }
        responses[code.to_string()] = answer;
    }
    responses
}

fn content(types: &[&str], schema: &Value) -> Value {
    let media = types.iter().map(|t| ((*t).to_owned(), json!({ "schema": schema })));
    Value::Object(media.collect())
}

/// The text with its first letter a capital.
pub(in crate::openapi) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
