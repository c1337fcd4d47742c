//! All groups in one document: `apidiscovery.k8s.io/v2`. Members stand in the order of Kubernetes' own
//! documents.

use rimward_control_kinds::{Kind, Scope, Subresource};
use serde::Serialize;

use super::{Group, speaks, verbs};
use crate::served::Served;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    items: Vec<GroupItem<'a>>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct GroupItem<'a> {
    metadata: Metadata<'a>,
    versions: Vec<Version<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    creation_timestamp: (),
}

#[derive(Serialize)]
struct Version<'a> {
    version: &'a str,
    resources: Vec<Resource<'a>>,
    freshness: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource<'a> {
    resource: &'a str,
    response_kind: ResponseKind<'a>,
    scope: &'static str,
    singular_resource: &'a str,
    verbs: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    short_names: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    categories: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subresources: Vec<Sub<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sub<'a> {
    subresource: &'a str,
    response_kind: ResponseKind<'a>,
    verbs: &'a [String],
}

#[derive(Serialize)]
struct ResponseKind<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
}

impl<'a> From<(&'a str, &'a str, &'a str)> for ResponseKind<'a> {
    fn from((group, version, kind): (&'a str, &'a str, &'a str)) -> Self {
        Self { group, version, kind }
    }
}

pub(super) fn list<'a>(groups: &[&'a Group<'_>]) -> GroupList<'a> {
    let version = |(version, all): &'a (&str, Vec<&Served>)| Version {
        version,
        resources: all.iter().map(|served| resource(served)).collect(),
        freshness: "Current",
    };
    let item = |group: &&'a Group<'_>| GroupItem {
        metadata: Metadata { name: group.name, creation_timestamp: () },
        versions: group.versions.iter().map(version).collect(),
    };
    GroupList {
        kind: "APIGroupDiscoveryList",
        api_version: "apidiscovery.k8s.io/v2",
        metadata: Empty {},
        items: groups.iter().map(item).collect(),
    }
}

fn resource(served: &Served) -> Resource<'_> {
    let kind = &*served.kind;
    Resource {
        resource: &kind.resource,
        response_kind: (&*kind.group, &*kind.version, &*kind.kind).into(),
        scope: match kind.scope {
            Scope::Cluster => "Cluster",
            Scope::Namespaced => "Namespaced",
        },
        singular_resource: &kind.singular,
        verbs: verbs(served),
        short_names: &kind.short_names,
        categories: &kind.categories,
        subresources: kind.subresources.iter().map(|s| subresource(kind, s)).collect(),
    }
}

fn subresource<'a>(kind: &'a Kind, sub: &'a Subresource) -> Sub<'a> {
    Sub { subresource: &sub.name, response_kind: speaks(kind, sub).into(), verbs: &sub.verbs }
}
