//! A document a group and a version. Members stand in the order of Kubernetes' own documents, since
//! scripts look for parts of them as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rimward_api::GroupVersion;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Group, speaks, verbs};
use crate::served::Served;

#[derive(Serialize)]
pub(super) struct ApiVersions {
    kind: &'static str,
    versions: [&'static str; 1],
    #[serde(rename = "serverAddressByClientCIDRs")]
    server_addresses: [(); 0],
}

impl ApiVersions {
    pub const CORE: Self = Self { kind: "APIVersions", versions: ["v1"], server_addresses: [] };
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupList<'a> {
    kind: &'static str,
    api_version: &'static str,
    groups: Vec<ApiGroup<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiGroup<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    name: &'a str,
    versions: Vec<Version<'a>>,
    preferred_version: Version<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version<'a> {
    group_version: String,
    version: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResourceList<'a> {
    kind: &'static str,
    /// Kubernetes leaves it out of the core group's.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    group_version: String,
    resources: Vec<Resource<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource<'a> {
    name: String,
    singular_name: &'a str,
    namespaced: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    kind: &'a str,
    verbs: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    short_names: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    categories: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_version_hash: Option<String>,
}

pub(super) fn group_list<'a>(groups: &[&'a Group<'_>]) -> GroupList<'a> {
    let groups = groups.iter().map(|g| of_list(g)).collect();
    GroupList { kind: "APIGroupList", api_version: "v1", groups }
}

/// A group as a document of its own.
pub(super) fn group<'a>(group: &'a Group<'_>) -> ApiGroup<'a> {
    ApiGroup { kind: Some("APIGroup"), api_version: Some("v1"), ..of_list(group) }
}

fn of_list<'a>(group: &'a Group<'_>) -> ApiGroup<'a> {
    let version =
        |version: &'a str| Version { group_version: format!("{}/{version}", group.name), version };
    ApiGroup {
        kind: None,
        api_version: None,
        name: group.name,
        versions: group.versions.iter().map(|(v, _)| version(v)).collect(),
        preferred_version: version(group.versions[0].0),
    }
}

pub(super) fn resource_list<'a>(gv: &GroupVersion, all: &[&'a Served]) -> ResourceList<'a> {
    ResourceList {
        kind: "APIResourceList",
        api_version: (!gv.group.is_empty()).then_some("v1"),
        group_version: gv.to_string(),
        resources: all.iter().flat_map(|served| resources(served)).collect(),
    }
}

/// A resource and its subresources.
fn resources(served: &Served) -> Vec<Resource<'_>> {
    let kind = &*served.kind;
    let main = Resource {
        name: kind.resource.clone(),
        singular_name: &kind.singular,
        namespaced: kind.namespaced(),
        group: "",
        version: "",
        kind: &kind.kind,
        verbs: verbs(served),
        short_names: &kind.short_names,
        categories: &kind.categories,
        storage_version_hash: storage_version_hash(served),
    };
    let sub = |sub| {
        let (group, version, speaks) = speaks(kind, sub);
        // Said only where it is not that of the list.
        let other = (group, version) != (&*kind.group, &*kind.version);
        Resource {
            name: format!("{}/{}", kind.resource, sub.name),
            singular_name: "",
            namespaced: kind.namespaced(),
            group: if other { group } else { "" },
            version: if other { version } else { "" },
            kind: speaks,
            verbs: sub.verbs.iter().map(String::as_str).collect(),
            short_names: &[],
            categories: &[],
            storage_version_hash: None,
        }
    };
    std::iter::once(main).chain(kind.subresources.iter().map(sub)).collect()
}

/// Names the version in whose form objects are kept; none for what is never kept.
/// `pkg/storageversionhash` and `k8s.io/apiserver/pkg/endpoints/discovery/storageversionhash.go`.
fn storage_version_hash(served: &Served) -> Option<String> {
    let stored = served.kind.verbs.iter().any(|v| v == "delete");
    let kind = served.custom.as_ref().map_or(&served.stored, |custom| &custom.storage);
    let text = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
    stored.then(|| STANDARD.encode(&Sha256::digest(text)[..8]))
}
