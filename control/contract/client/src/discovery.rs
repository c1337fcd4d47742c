//! Which resources the server has: classic discovery, each resource once, in its preferred version.
//! <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>

use std::collections::HashSet;

use futures::future::join_all;
use http::Method;
use rimward_api::GroupVersion;
use serde::Deserialize;

use crate::client::Client;
use crate::error::Error;
use crate::resource::Resource;

/// A resource as discovery tells of it; subresources are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub resource: Resource,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Served {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// All that is served, and the groups that could not be asked.
#[derive(Debug, Default)]
pub struct Discovered {
    pub resources: Vec<Served>,
    pub failed: Vec<(GroupVersion, Error)>,
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    preferred_version: Version,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

impl Group {
    /// All versions, the preferred one first.
    fn versions(&self) -> impl Iterator<Item = GroupVersion> {
        let preferred = &self.preferred_version.group_version;
        let others =
            self.versions.iter().map(|v| &v.group_version).filter(move |v| *v != preferred);
        std::iter::once(preferred).chain(others).filter_map(|v| GroupVersion::parse(v))
    }
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

impl Client {
    /// Asks for every version of every group: a resource need not be in the preferred version of its
    /// group. A version that fails is reported, not fatal; the list of groups is.
    pub async fn discover(&self) -> Result<Discovered, Error> {
        let groups: Groups = self.call(Method::GET, "/apis", None::<&()>).await?;
        let core = GroupVersion { group: String::new(), version: "v1".into() };
        let named = groups.groups.iter().flat_map(Group::versions);
        let versions: Vec<GroupVersion> = std::iter::once(core).chain(named).collect();
        let asked = versions.into_iter().map(|version| async move {
            let answer =
                self.call::<Resources>(Method::GET, &version.url_prefix(), None::<&()>).await;
            (version, answer)
        });
        let (mut found, mut known) = (Discovered::default(), HashSet::new());
        for (version, answer) in join_all(asked).await {
            match answer {
                Ok(list) => {
                    let served = list.resources.into_iter().filter_map(|e| e.served(&version));
                    found.resources.extend(served.filter(|s| {
                        known.insert((version.group.clone(), s.resource.name.clone()))
                    }));
                }
                Err(e) => found.failed.push((version, e)),
            }
        }
        Ok(found)
    }
}

impl Entry {
    fn served(self, version: &GroupVersion) -> Option<Served> {
        let main = !self.name.contains('/');
        main.then(|| Served {
            resource: Resource::new(version.clone(), self.name),
            kind: self.kind,
            namespaced: self.namespaced,
            verbs: self.verbs,
        })
    }
}
