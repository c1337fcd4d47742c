//! Which resources the server has: classic discovery, preferred versions only.
//! <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>

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
    preferred_version: PreferredVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PreferredVersion {
    group_version: String,
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
    /// Asks for every group. A group that fails is reported, not fatal; the list of groups is.
    pub async fn discover(&self) -> Result<Discovered, Error> {
        let groups: Groups = self.call(Method::GET, "/apis", None::<&()>).await?;
        let preferred = groups
            .groups
            .iter()
            .filter_map(|g| GroupVersion::parse(&g.preferred_version.group_version));
        let core = GroupVersion { group: String::new(), version: "v1".into() };
        let versions: Vec<GroupVersion> = std::iter::once(core).chain(preferred).collect();
        let asked = versions.into_iter().map(|version| async move {
            let answer =
                self.call::<Resources>(Method::GET, &version.url_prefix(), None::<&()>).await;
            (version, answer)
        });
        let mut found = Discovered::default();
        for (version, answer) in join_all(asked).await {
            match answer {
                Ok(list) => found
                    .resources
                    .extend(list.resources.into_iter().filter_map(|e| e.served(&version))),
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
