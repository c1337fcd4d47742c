//! Discovery, ours and that of extension API servers as one. What cannot be read at the moment is
//! shown as stale rather than left out, so that clients know that they do not see everything.

use std::sync::Arc;

use rimward_api::Status;
use serde_json::{Value, json};

use super::{Aggregation, ApiService};
use crate::body::Response;
use crate::discovery::{self, Document};
use crate::error;
use crate::request::Call;
use crate::server::Inner;

pub const AGGREGATED_ACCEPT: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// Where this server's own group of APIServices stands: before all others.
const OWN_PRIORITY: i64 = 20_000;
/// Documents of extension servers may not grow ours without limit.
const RESOURCES_MAX: usize = 1000;

/// A merged document, and of what.
#[derive(Clone)]
pub struct Made {
    generation: u64,
    local: String,
    document: Document,
}

/// Answers a discovery path while there are remote APIServices.
pub fn serve(server: &Inner, call: &Call, path: &str) -> Result<Response, Status> {
    let aggregated = discovery::wants_aggregated(call);
    let local = discovery::find(server.registry().discovery(), aggregated, path);
    let group = path.strip_prefix("/apis/").filter(|g| !g.contains('/'));
    let is_list = path == "/apis";
    if !is_list && group.is_none() {
        return match local {
            Some(document) => document.respond(call),
            None => Ok(error::page_not_found()),
        };
    }
    let aggregation = &server.aggregation;
    let (generation, tag) = (
        *aggregation.generation.borrow(),
        local.as_ref().map_or("", |d| d.tag.as_str()).to_owned(),
    );
    let key = (path.to_owned(), aggregated && is_list);
    if let Some(made) = aggregation.made.read().get(&key)
        && made.generation == generation
        && made.local == tag
    {
        return made.document.respond(call);
    }
    let ours: Value =
        local.as_ref().and_then(|d| serde_json::from_slice(&d.bytes).ok()).unwrap_or(Value::Null);
    let merged = match group {
        Some(group) => one_group(aggregation, group, ours),
        None if aggregated => Some(aggregated_list(aggregation, ours)),
        None => Some(classic_list(aggregation, ours)),
    };
    let Some(merged) = merged else { return Ok(error::page_not_found()) };
    let document = Document::of(aggregated && is_list, &merged);
    let response = document.respond(call);
    // Only what is there is kept: a path that somebody made up is not.
    aggregation.made.write().insert(key, Made { generation, local: tag, document });
    response
}

/// Remote APIServices, the most important first.
fn remote(aggregation: &Aggregation) -> Vec<Arc<ApiService>> {
    let mut all = aggregation.all();
    all.retain(|s| s.destination.is_some());
    all.sort_by(|a, b| {
        b.group_priority
            .cmp(&a.group_priority)
            .then_with(|| a.group.cmp(&b.group))
            .then_with(|| b.version_priority.cmp(&a.version_priority))
    });
    all
}

fn group_priority(aggregation: &Aggregation, group: &str) -> i64 {
    let known =
        aggregation.all().iter().filter(|s| s.group == group).map(|s| s.group_priority).max();
    known.unwrap_or(OWN_PRIORITY)
}

fn version_priority(aggregation: &Aggregation, group: &str, version: &str) -> i64 {
    aggregation.get(&format!("{version}.{group}")).map_or(0, |s| s.version_priority)
}

fn name_of(group: &Value) -> &str {
    group
        .pointer("/metadata/name")
        .or_else(|| group.get("name"))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Puts a version into a list of groups: into its group, or into a new one at its place.
fn insert(
    aggregation: &Aggregation,
    groups: &mut Vec<Value>,
    service: &ApiService,
    new_group: impl FnOnce() -> Value,
    version: Value,
) {
    let at = groups.iter().position(|g| name_of(g) == service.group).unwrap_or_else(|| {
        let lower = |g: &Value| group_priority(aggregation, name_of(g)) < service.group_priority;
        let at = groups.iter().position(lower).unwrap_or(groups.len());
        groups.insert(at, new_group());
        at
    });
    let Some(versions) = groups[at]["versions"].as_array_mut() else { return };
    versions.retain(|v| v["version"] != version["version"]);
    let lower = |v: &Value| {
        let name = v["version"].as_str().unwrap_or_default();
        version_priority(aggregation, &service.group, name) < service.version_priority
    };
    let at = versions.iter().position(lower).unwrap_or(versions.len());
    versions.insert(at, version);
}

fn aggregated_list(aggregation: &Aggregation, mut list: Value) -> Value {
    let Some(groups) = list["items"].as_array_mut() else { return list };
    for service in remote(aggregation) {
        let told = aggregation.told(&service.name).and_then(|t| t.version.clone());
        let version =
            told.unwrap_or_else(|| json!({ "version": service.version, "freshness": "Stale" }));
        let group = || json!({ "metadata": { "name": service.group, "creationTimestamp": null }, "versions": [] });
        insert(aggregation, groups, &service, group, version);
    }
    list
}

fn classic_version(service: &ApiService) -> Value {
    json!({ "groupVersion": format!("{}/{}", service.group, service.version), "version": service.version })
}

fn prefer_first(group: &mut Value) {
    if let Some(first) = group["versions"].get(0).cloned() {
        group["preferredVersion"] = first;
    }
}

fn classic_list(aggregation: &Aggregation, mut list: Value) -> Value {
    let Some(groups) = list["groups"].as_array_mut() else { return list };
    for service in remote(aggregation) {
        let group = || json!({ "name": service.group, "versions": [] });
        insert(aggregation, groups, &service, group, classic_version(&service));
    }
    groups.iter_mut().for_each(prefer_first);
    list
}

fn one_group(aggregation: &Aggregation, group: &str, ours: Value) -> Option<Value> {
    let mut groups = match ours {
        Value::Null => Vec::new(),
        group => vec![group],
    };
    for service in remote(aggregation).into_iter().filter(|s| s.group == group) {
        let new = || json!({ "kind": "APIGroup", "apiVersion": "v1", "name": service.group, "versions": [] });
        insert(aggregation, &mut groups, &service, new, classic_version(&service));
    }
    groups.iter_mut().for_each(prefer_first);
    groups.into_iter().next()
}

/// A version out of what a server says in the aggregated form.
pub fn version_of_list(bytes: &[u8], group: &str, version: &str) -> Option<Value> {
    let list: Value = serde_json::from_slice(bytes).ok()?;
    if list["kind"] != "APIGroupDiscoveryList" {
        return None;
    }
    let found = list["items"].as_array()?.iter().find(|g| name_of(g) == group)?;
    let found = found["versions"].as_array()?.iter().find(|v| v["version"] == version)?;
    let resources = found.get("resources").and_then(Value::as_array).cloned().unwrap_or_default();
    let resources: Vec<Value> = resources.into_iter().take(RESOURCES_MAX).collect();
    Some(json!({ "version": version, "resources": resources, "freshness": "Current" }))
}

/// The same out of the classic page of a group and version (`APIResourceList`).
pub fn version_of_page(bytes: &[u8], group: &str, version: &str) -> Option<Value> {
    let page: Value = serde_json::from_slice(bytes).ok()?;
    let listed = page.get("resources")?.as_array()?;
    let text = |v: &Value, field: &str, or: &str| {
        let own = v.get(field).and_then(Value::as_str).unwrap_or_default();
        if own.is_empty() { or.to_owned() } else { own.to_owned() }
    };
    let kind = |v: &Value| json!({ "group": text(v, "group", group), "version": text(v, "version", version), "kind": text(v, "kind", "") });
    let mut resources: Vec<Value> = Vec::new();
    for listed in listed.iter().take(RESOURCES_MAX) {
        let name = text(listed, "name", "");
        if let Some((parent, sub)) = name.split_once('/') {
            let Some(parent) = resources.iter_mut().find(|r| r["resource"] == parent) else {
                continue;
            };
            let shown = json!({ "subresource": sub, "responseKind": kind(listed), "verbs": listed["verbs"] });
            match parent["subresources"].as_array_mut() {
                Some(list) => list.push(shown),
                None => parent["subresources"] = json!([shown]),
            }
            continue;
        }
        let scope = if listed["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut shown = json!({
            "resource": name, "responseKind": kind(listed), "scope": scope,
            "singularResource": text(listed, "singularName", ""), "verbs": listed["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if let Some(names) = listed.get(field) {
                shown[field] = names.clone();
            }
        }
        resources.push(shown);
    }
    Some(json!({ "version": version, "resources": resources, "freshness": "Current" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classic_page_becomes_a_version() {
        let page = json!({ "kind": "APIResourceList", "groupVersion": "g/v1", "resources": [
            { "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"], "shortNames": ["fl"] },
            { "name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["patch"] },
            { "name": "lost/status", "kind": "X", "verbs": [] },
        ] });
        let version = version_of_page(page.to_string().as_bytes(), "g", "v1").expect("reads");
        assert_eq!(
            version,
            json!({ "version": "v1", "freshness": "Current", "resources": [{
                "resource": "flunders", "responseKind": { "group": "g", "version": "v1", "kind": "Flunder" },
                "scope": "Namespaced", "singularResource": "flunder", "verbs": ["get"], "shortNames": ["fl"],
                "subresources": [{ "subresource": "status", "responseKind": { "group": "g", "version": "v1", "kind": "Flunder" }, "verbs": ["patch"] }],
            }] })
        );
        assert!(version_of_page(b"[]", "g", "v1").is_none());
        assert!(version_of_list(page.to_string().as_bytes(), "g", "v1").is_none());
    }
}
