//! The OpenAPI routes: documents are made from the schema model when first asked for, and kept.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::Guard;
use bytes::Bytes;
use parking_lot::Mutex;
use rimward_api::{GroupVersion, Status};
use rimward_control_schema::openapi::{
    self as model, CustomInfo, Dialect, ResourceInfo, SubresourceInfo,
};
use serde_json::{Value, json};

use crate::body::Response;
use crate::definitions::{self, Custom};
use crate::error;
use crate::negotiate;
use crate::paths::{GIT_VERSION, document, etag};
use crate::request::Call;
use crate::served::{Registry, Served};
use crate::server::Inner;

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// As clients ask for it that do not know that this is no media type; they are answered with the one
/// that is, since others refuse to read it.
const V2_PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Version 3 is told in JSON alone; who asks for its protobuf first is answered all the same.
const V3_OFFERED: [&str; 3] = [
    "application/json",
    "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
];

/// As Kubernetes answers who reads none of the forms of a schema document: with nothing more.
fn unacceptable() -> Response {
    error::typed(406, "text/plain; charset=utf-8", Bytes::new())
}

/// Documents made so far, by path.
#[derive(Default)]
pub struct Documents {
    made: Mutex<HashMap<String, Arc<(Bytes, String)>>>,
}

impl Documents {
    /// The documents that hold for another registry too, by their names.
    pub fn kept(&self, keep: impl Fn(&str) -> bool) -> Self {
        let made = self.made.lock();
        let kept = made.iter().filter(|(name, _)| keep(name));
        Self { made: Mutex::new(kept.map(|(name, made)| (name.clone(), made.clone())).collect()) }
    }

    /// The document, made on a thread for blocking work when it is not there yet: the whole of v2
    /// takes long enough to be noticed by others.
    async fn get(
        &self,
        name: &str,
        make: impl FnOnce() -> Bytes + Send + 'static,
    ) -> Result<Arc<(Bytes, String)>, Status> {
        if let Some(found) = self.made.lock().get(name) {
            return Ok(found.clone());
        }
        let bytes = tokio::task::spawn_blocking(make).await.map_err(Status::internal)?;
        let tag = etag(&bytes);
        let made = Arc::new((bytes, tag));
        self.made.lock().insert(name.to_owned(), made.clone());
        Ok(made)
    }
}

pub async fn serve(server: &Arc<Inner>, call: &mut Call, path: &str) -> Result<Response, Status> {
    if server.aggregation.any_remote()
        && let Some(response) = crate::aggregation::openapi::document(server, call, path).await
    {
        return Ok(response);
    }
    let registry: Arc<Registry> = Guard::into_inner(server.registry());
    let (owned, documents) = (registry.clone(), &registry.openapi);
    match path {
        "/openapi/v2" => {
            let offered = ["application/json", V2_PROTOBUF_OLD, V2_PROTOBUF];
            let Some(wanted) = negotiate::media_type(&call.headers, &offered) else {
                return Ok(unacceptable());
            };
            let protobuf = wanted != "application/json";
            let content = if protobuf { V2_PROTOBUF } else { "application/json" };
            if server.aggregation.any_remote() {
                let made = crate::aggregation::openapi::v2(server).await?;
                let (bytes, tag) = if protobuf { &made.protobuf } else { &made.json };
                return Ok(document(call, content, bytes, tag));
            }
            let made = match protobuf {
                true => {
                    documents.get("v2.pb", move || model::v2_protobuf(&v2(&owned)).into()).await?
                }
                false => documents.get("v2", move || v2(&owned).to_string().into()).await?,
            };
            Ok(document(call, content, &made.0, &made.1))
        }
        "/openapi/v3" => Ok(index(call, server)),
        _ if negotiate::media_type(&call.headers, &V3_OFFERED).is_none() => Ok(unacceptable()),
        _ => {
            let under = path.strip_prefix("/openapi/v3/").unwrap_or_default();
            if roots(&registry).iter().any(|r| r == under) {
                let (name, root) = (format!("root {under}"), under.to_owned());
                let make = move || model::v3_root(owned.model, &root).unwrap_or_default();
                let made = documents.get(&name, move || make().to_string().into()).await?;
                return Ok(forever(call, document(call, "application/json", &made.0, &made.1)));
            }
            let Some(gv) = versions(&registry).into_iter().find(|gv| name_of(gv) == under) else {
                return Ok(error::page_not_found());
            };
            let made = documents.get(under, move || v3(&owned, &gv).to_string().into()).await?;
            Ok(forever(call, document(call, "application/json", &made.0, &made.1)))
        }
    }
}

/// A path with the hash names one content for ever.
fn forever(call: &Call, mut response: Response) -> Response {
    if call.query.get("hash").is_some() {
        let forever = http::HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(http::header::CACHE_CONTROL, forever);
    }
    response
}

/// The documents of what is of no resource; the groups of custom kinds have none.
fn roots(registry: &Registry) -> Vec<String> {
    let builtin = registry.all().iter().filter(|s| s.custom.is_none());
    let groups: std::collections::BTreeSet<String> =
        builtin.map(|s| s.kind.group.clone()).collect();
    model::v3_roots(groups)
}

/// Every served group and version, once.
fn versions(registry: &Registry) -> Vec<GroupVersion> {
    let mut all: Vec<GroupVersion> = Vec::new();
    for served in registry.all() {
        let gv = served.kind.group_version();
        if !all.contains(&gv) {
            all.push(gv);
        }
    }
    all
}

/// `api/v1`, `apis/apps/v1`.
fn name_of(gv: &GroupVersion) -> String {
    gv.url_prefix().trim_start_matches('/').to_owned()
}

fn index(call: &Call, server: &Inner) -> Response {
    let registry = &*server.registry();
    let mut paths = serde_json::Map::new();
    let mut add = |name: String, content: String| {
        let hash = etag(content.as_bytes());
        let url = format!("/openapi/v3/{name}?hash={hash}");
        paths.insert(name, json!({ "serverRelativeURL": url }));
    };
    for name in roots(registry) {
        let content = format!("{GIT_VERSION} root {name}");
        add(name, content);
    }
    for gv in versions(registry) {
        let name = name_of(&gv);
        // Built-in documents change with the program only, so its version stands for their content;
        // those of custom kinds with their schemas.
        let customs = customs(registry, &gv);
        let marks =
            customs.map(|(s, c)| format!("{} {}", s.kind.resource, Custom::mark(&c.version)));
        let content = format!("{GIT_VERSION} {name} {}", marks.collect::<Vec<_>>().join(" "));
        add(name, content);
    }
    crate::aggregation::openapi::add_to_index(&server.aggregation, &mut paths);
    let bytes = Bytes::from(json!({ "paths": paths }).to_string());
    document(call, "application/json", &bytes, &etag(&bytes))
}

fn info(registry: &Registry, served: &Served) -> Option<ResourceInfo> {
    let kind = &served.kind;
    Some(ResourceInfo {
        group: kind.group.clone(),
        version: kind.version.clone(),
        kind: kind.kind.clone(),
        resource: kind.resource.clone(),
        namespaced: kind.namespaced(),
        verbs: kind.verbs.clone(),
        definition: served.definition?,
        custom: served.custom.is_some(),
        returns_deleted: served.rules.returns_deleted,
        subresources: kind
            .subresources
            .iter()
            .map(|s| {
                let speaks = s.speaks.clone();
                let definition = match &speaks {
                    None => served.definition,
                    Some((g, v, k)) => registry.model.of_kind(g, v, k),
                };
                SubresourceInfo {
                    name: s.name.clone(),
                    verbs: s.verbs.clone(),
                    speaks: speaks.unwrap_or_else(|| {
                        (kind.group.clone(), kind.version.clone(), kind.kind.clone())
                    }),
                    definition,
                }
            })
            .collect(),
    })
}

/// The custom kinds of a group and version.
fn customs<'r>(
    registry: &'r Registry,
    gv: &'r GroupVersion,
) -> impl Iterator<Item = (&'r Served, &'r Custom)> {
    let of = |s: &&Arc<Served>| s.kind.group == gv.group && s.kind.version == gv.version;
    let some = registry.all().iter().filter(of);
    some.filter_map(|s| Some((&**s, &**s.custom.as_ref()?)))
}

fn custom_info<'s>(
    registry: &Registry,
    served: &'s Served,
    custom: &Custom,
    dialect: Dialect,
) -> Option<CustomInfo<'s>> {
    Some(CustomInfo {
        model: &served.model,
        info: info(registry, served)?,
        list_kind: custom.definition.list_kind.clone(),
        schema: definitions::openapi::schema(custom, dialect),
    })
}

/// The document of v2 of what this server itself serves.
pub fn v2(registry: &Registry) -> Value {
    let builtin = registry.all().iter().filter(|s| s.custom.is_none());
    let all: Vec<ResourceInfo> = builtin.filter_map(|s| info(registry, s)).collect();
    let mut document = model::v2_document(registry.model, &all);
    let customs = registry.all().iter().filter_map(|s| Some((&**s, &**s.custom.as_ref()?)));
    let customs: Vec<CustomInfo<'_>> =
        customs.filter_map(|(s, c)| custom_info(registry, s, c, Dialect::V2)).collect();
    model::add_custom(&mut document, &customs, Dialect::V2);
    document
}

fn v3(registry: &Registry, gv: &GroupVersion) -> Value {
    let of = |s: &&Arc<Served>| {
        s.custom.is_none() && s.kind.group == gv.group && s.kind.version == gv.version
    };
    let some: Vec<ResourceInfo> =
        registry.all().iter().filter(of).filter_map(|s| info(registry, s)).collect();
    let mut document = model::v3_document(registry.model, &gv.group, &gv.version, &some);
    let customs = customs(registry, gv);
    let customs: Vec<CustomInfo<'_>> =
        customs.filter_map(|(s, c)| custom_info(registry, s, c, Dialect::V3)).collect();
    model::add_custom(&mut document, &customs, Dialect::V3);
    document
}
