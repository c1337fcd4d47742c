//! Discovery: which groups, versions and resources there are, in the aggregated and the classic form.
//! <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>

mod aggregated;
mod classic;

use std::collections::HashMap;

use bytes::Bytes;
use rimward_api::Status;
use rimward_control_kinds::{Kind, Subresource};
use serde::Serialize;
use serde_json::Value;

use crate::body::Response;
use crate::error;
use crate::negotiate::{self, Encoding, Offer};
use crate::paths::{document, etag};
use crate::request::Call;
use crate::served::{Registry, Served};
use crate::views;

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
        let kind: &Kind = &served.kind;
        let at = groups.iter().position(|g| g.name == kind.group).unwrap_or_else(|| {
            groups.push(Group { name: &kind.group, versions: Vec::new() });
            groups.len() - 1
        });
        let versions = &mut groups[at].versions;
        match versions.iter_mut().find(|(v, _)| *v == kind.version) {
            Some((_, all)) => all.push(served),
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
            .map(|(path, groups)| (path, finished(&aggregated::list(groups))))
            .into();
        let mut classic = HashMap::new();
        classic.insert("/api".to_owned(), finished(&classic::ApiVersions::CORE));
        classic.insert("/apis".to_owned(), finished(&classic::group_list(&named)));
        for group in &groups {
            if !group.name.is_empty() {
                classic.insert(format!("/apis/{}", group.name), finished(&classic::group(group)));
            }
            for (_, all) in &group.versions {
                let gv = all[0].kind.group_version();
                let list = classic::resource_list(&gv, all);
                classic.insert(gv.url_prefix(), finished(&list));
            }
        }
        Self { aggregated, classic }
    }
}

fn finished(document: &impl Serialize) -> (Bytes, String) {
    let bytes = Bytes::from(serde_json::to_vec(document).expect("a document is JSON"));
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

    /// Answers in the encoding that the client reads.
    ///
    /// # Errors
    /// When it reads none of ours: 406.
    pub fn respond(&self, call: &Call) -> Result<Response, Status> {
        // The aggregated form was asked for by its name, and is JSON.
        if self.content_type != AGGREGATED {
            let form = negotiate::form(&call.headers, Offer::OWN)?;
            if form.encoding != Encoding::Json {
                let value: Value = serde_json::from_slice(&self.bytes).map_err(Status::internal)?;
                return Ok(views::encoded(call, 200, form, &value));
            }
        }
        Ok(document(call, self.content_type, &self.bytes, &self.tag))
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

pub fn serve(documents: &Documents, call: &Call, path: &str) -> Result<Response, Status> {
    match find(documents, wants_aggregated(call), path) {
        Some(document) => document.respond(call),
        None => Ok(error::page_not_found()),
    }
}

/// What can be done to a resource; one whose definition is going is only looked at and deleted.
fn verbs(served: &Served) -> Vec<&str> {
    let going = served.custom.as_ref().is_some_and(|c| c.definition.terminating);
    let ends = |verb: &str| !matches!(verb, "create" | "patch" | "update");
    let all = served.kind.verbs.iter().map(String::as_str);
    all.filter(|verb| !going || ends(verb)).collect()
}

/// The (group, version, kind) that a subresource speaks.
fn speaks<'a>(kind: &'a Kind, sub: &'a Subresource) -> (&'a str, &'a str, &'a str) {
    match &sub.speaks {
        Some((group, version, kind)) => (group, version, kind),
        None => (&kind.group, &kind.version, &kind.kind),
    }
}
