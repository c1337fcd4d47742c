//! Discovery: which groups, versions and resources there are, in the aggregated and the classic form.
//! <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>

use std::collections::HashMap;

use bytes::Bytes;
use rimward_control_kinds::{Kind, Scope, Subresource};
use serde_json::{Value, json};

use crate::body::Response;
use crate::error;
use crate::paths::{document, etag};
use crate::request::Call;
use crate::served::{Registry, Served};

pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// All discovery documents, made once.
pub struct Documents {
    /// `/api` and `/apis` in the aggregated form.
    aggregated: HashMap<&'static str, (Bytes, String)>,
    classic: HashMap<String, (Bytes, String)>,
}

/// A group and its versions, in the order of preference.
struct Group<'a> {
    name: &'a str,
    versions: Vec<(&'a str, Vec<&'a Served>)>,
}

fn groups(registry: &Registry) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for served in registry.all() {
        let served: &Served = served;
        let kind: &Kind = &served.kind;
        let at = groups.iter().position(|g| g.name == kind.group).unwrap_or_else(|| {
            groups.push(Group { name: &kind.group, versions: Vec::new() });
            groups.len() - 1
        });
        let versions = &mut groups[at].versions;
        match versions.iter_mut().find(|(v, _)| *v == kind.version) {
            Some((_, resources)) => resources.push(served),
            None => versions.push((&kind.version, vec![served])),
        }
    }
    groups
}

impl Documents {
    pub fn of(registry: &Registry) -> Self {
        let groups = groups(registry);
        let (core, named): (Vec<&Group<'_>>, Vec<&Group<'_>>) =
            groups.iter().partition(|g| g.name.is_empty());
        let aggregated = [("/api", &core), ("/apis", &named)]
            .map(|(path, groups)| (path, finished(&aggregated_list(groups))))
            .into();
        let mut classic = HashMap::new();
        classic.insert(
            "/api".to_owned(),
            finished(&json!({
                "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
            })),
        );
        let list: Vec<Value> = named.iter().map(|g| api_group(g)).collect();
        classic.insert(
            "/apis".to_owned(),
            finished(&json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list })),
        );
        for group in &groups {
            if !group.name.is_empty() {
                let mut one = api_group(group);
                one["kind"] = "APIGroup".into();
                one["apiVersion"] = "v1".into();
                classic.insert(format!("/apis/{}", group.name), finished(&one));
            }
            for (_, resources) in &group.versions {
                let gv = resources[0].kind.group_version();
                let list = resource_list(&gv.to_string(), resources);
                classic.insert(gv.url_prefix(), finished(&list));
            }
        }
        Self { aggregated, classic }
    }
}

fn finished(value: &Value) -> (Bytes, String) {
    let bytes = Bytes::from(value.to_string());
    let tag = etag(&bytes);
    (bytes, tag)
}

/// A document with its content type and tag.
#[derive(Clone)]
pub struct Document {
    pub content_type: &'static str,
    pub bytes: Bytes,
    pub tag: String,
}

impl Document {
    pub fn of(aggregated: bool, value: &Value) -> Self {
        let (bytes, tag) = finished(value);
        let content_type = if aggregated { AGGREGATED } else { "application/json" };
        Self { content_type, bytes, tag }
    }

    pub fn respond(&self, call: &Call) -> Response {
        document(call, self.content_type, &self.bytes, &self.tag)
    }
}

/// Whether a client reads the aggregated form.
pub fn wants_aggregated(call: &Call) -> bool {
    call.header("accept").split(',').any(|range| {
        let has = |what: &str| range.split(';').any(|p| p.trim() == what);
        has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

/// What this server itself serves, in the aggregated form where it is wanted and there is one.
pub fn find(documents: &Documents, aggregated: bool, path: &str) -> Option<Document> {
    if aggregated && let Some((bytes, tag)) = documents.aggregated.get(path) {
        return Some(Document { content_type: AGGREGATED, bytes: bytes.clone(), tag: tag.clone() });
    }
    let (bytes, tag) = documents.classic.get(path)?;
    Some(Document { content_type: "application/json", bytes: bytes.clone(), tag: tag.clone() })
}

pub fn serve(documents: &Documents, call: &Call, path: &str) -> Response {
    match find(documents, wants_aggregated(call), path) {
        Some(document) => document.respond(call),
        None => error::page_not_found(),
    }
}

fn scope(kind: &Kind) -> &'static str {
    match kind.scope {
        Scope::Cluster => "Cluster",
        Scope::Namespaced => "Namespaced",
    }
}

/// The (group, version, kind) that a subresource speaks.
fn speaks(kind: &Kind, sub: &Subresource) -> (String, String, String) {
    sub.speaks
        .clone()
        .unwrap_or_else(|| (kind.group.clone(), kind.version.clone(), kind.kind.clone()))
}

fn aggregated_list(groups: &[&Group<'_>]) -> Value {
    let gvk = |(group, version, kind): (String, String, String)| json!({ "group": group, "version": version, "kind": kind });
    let resource = |served: &&Served| {
        let kind = &*served.kind;
        let own = (kind.group.clone(), kind.version.clone(), kind.kind.clone());
        let mut resource = json!({
            "resource": kind.resource, "responseKind": gvk(own), "scope": scope(kind),
            "singularResource": kind.singular, "verbs": verbs(served),
        });
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        if !kind.subresources.is_empty() {
            let sub = |s: &Subresource| json!({ "subresource": s.name, "responseKind": gvk(speaks(kind, s)), "verbs": s.verbs });
            resource["subresources"] = kind.subresources.iter().map(sub).collect();
        }
        resource
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|(version, all)| {
                    let resources: Vec<Value> = all.iter().map(resource).collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = match group.name {
                "" => json!({ "creationTimestamp": null }),
                name => json!({ "name": name, "creationTimestamp": null }),
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn api_group(group: &Group<'_>) -> Value {
    let version = |v: &str| json!({ "groupVersion": format!("{}/{v}", group.name), "version": v });
    let versions: Vec<Value> = group.versions.iter().map(|(v, _)| version(v)).collect();
    json!({ "name": group.name, "versions": versions, "preferredVersion": version(group.versions[0].0) })
}

/// What can be done to a resource; one whose definition is going is only looked at and deleted.
fn verbs(served: &Served) -> Vec<&str> {
    let going = served.custom.as_ref().is_some_and(|c| c.definition.terminating);
    let ends = |verb: &str| !matches!(verb, "create" | "patch" | "update");
    let all = served.kind.verbs.iter().map(String::as_str);
    all.filter(|verb| !going || ends(verb)).collect()
}

/// The version in which objects are stored, as clients compare it. None for what is never stored.
/// <https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.36/#apiresource-v1-meta>
fn storage_version_hash(served: &Served) -> Option<String> {
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};
    let stored = served.custom.as_ref().map_or(&served.stored, |custom| &custom.storage);
    let is_stored = served.kind.verbs.iter().any(|v| v == "get");
    let id = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
    let hash = &Sha256::digest(id.as_bytes())[..8];
    is_stored.then(|| base64::engine::general_purpose::STANDARD.encode(hash))
}

fn resource_list(group_version: &str, all: &[&Served]) -> Value {
    let mut resources = Vec::new();
    for served in all {
        let kind = &*served.kind;
        let namespaced = kind.namespaced();
        let mut main = json!({
            "name": kind.resource, "singularName": kind.singular, "namespaced": namespaced,
            "kind": kind.kind, "verbs": verbs(served),
        });
        if !kind.short_names.is_empty() {
            main["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            main["categories"] = json!(kind.categories);
        }
        if let Some(hash) = storage_version_hash(served) {
            main["storageVersionHash"] = hash.into();
        }
        resources.push(main);
        for sub in &kind.subresources {
            let (group, version, speaks) = speaks(kind, sub);
            let mut shown = json!({
                "name": format!("{}/{}", kind.resource, sub.name), "singularName": "", "namespaced": namespaced,
                "kind": speaks, "verbs": sub.verbs,
            });
            if (&group, &version) != (&kind.group, &kind.version) {
                shown["group"] = group.into();
                shown["version"] = version.into();
            }
            resources.push(shown);
        }
    }
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
}
