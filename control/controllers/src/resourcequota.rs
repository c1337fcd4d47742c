//! ResourceQuota: `status.hard` follows the specification, and `status.used` is counted once when it
//! does. From then on the API server keeps it: every write changes it in its own transaction.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>
//!
//! A count is written with the revision that the quota had before it began. Whatever was created
//! meanwhile changed the quota, so a count that missed it is refused and made again. Only writes that
//! had begun before the quota was there could slip through: a second look, a little later, finds them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use parking_lot::Mutex;
use rimward_api::{GroupVersion, ObjectKey};
use rimward_client::{Cache, Client, Error, Resource};
use rimward_control_kinds::quota::{self, Amounts};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use k8s_openapi::api::core::v1::ResourceQuota;

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};

pub const NAME: &str = "resourcequota-controller";
const WORKERS: usize = 4;
/// When what was counted is looked at once more. No write is under way for longer.
const SECOND_LOOK: Duration = Duration::from_secs(10);
const PAGE: usize = 500;
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

struct ResourceQuotas {
    client: Client,
    quotas: Cache<ResourceQuota>,
    /// When a quota that was counted is to be looked at again.
    second_looks: Mutex<HashMap<ObjectKey, Instant>>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let quotas = context.informers.of::<ResourceQuota>();
    enqueue_changes(&quotas, &keys);
    let controller = ResourceQuotas {
        client: context.client.clone(),
        quotas: quotas.clone(),
        second_looks: Mutex::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, vec![synced(&quotas)]);
}

/// Whether a quota's status does not say what its specification asks for. Pure.
pub fn is_dirty(quota: &ResourceQuota) -> bool {
    let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
    let status = quota.status.clone().unwrap_or_default();
    let used = status.used.unwrap_or_default();
    status.hard.unwrap_or_default() != hard || !used.keys().eq(hard.keys())
}

/// How much of what a quota limits there is to be counted where: names by resource. Pure.
pub fn to_count(hard: &Amounts) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut by_resource = BTreeMap::<_, BTreeSet<String>>::new();
    for name in hard.keys() {
        if let Some(resource) = quota::counted_by(name) {
            by_resource.entry(resource).or_default().insert(name.clone());
        }
    }
    by_resource
}

/// `status.used`: for every hard limit what the objects use, zero where there are none. Pure.
pub fn used(hard: &Amounts, counted: &Amounts) -> Amounts {
    let amount = |name| counted.get(name).copied().unwrap_or(rimward_api::Quantity::ZERO);
    hard.keys().map(|name| (name.clone(), amount(name))).collect()
}

#[async_trait]
impl Controller for ResourceQuotas {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(quota) = self.quotas.get_key(key) else {
            self.second_looks.lock().remove(key);
            return Ok(Next::Change);
        };
        let due = self.second_looks.lock().get(key).copied();
        if is_dirty(&quota) {
            self.recount(key, &quota).await?;
            self.second_looks.lock().insert(key.clone(), Instant::now() + SECOND_LOOK);
            return Ok(Next::After(SECOND_LOOK));
        }
        let Some(due) = due else { return Ok(Next::Change) };
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        self.recount(key, &quota).await?;
        self.second_looks.lock().remove(key);
        Ok(Next::Change)
    }
}

impl ResourceQuotas {
    /// Counts, and writes on the condition that the quota is still as it was seen: the lists below
    /// are newer than that.
    async fn recount(&self, key: &ObjectKey, quota: &ResourceQuota) -> Result<(), Error> {
        let mut quota = serde_json::to_value(quota)
            .map_err(|e| Error::Decode { what: key.to_string(), why: e.to_string() })?;
        let hard = quota::amounts(&quota["spec"]["hard"]);
        let mut counted = Amounts::new();
        let wanted = to_count(&hard);
        let served = self.served(wanted.keys()).await?;
        for (resource, names) in &wanted {
            let Some(list) = served.get(resource) else { continue };
            let sum = self.count(list, resource, names, &quota["spec"], &key.namespace).await?;
            quota::add(&mut counted, &sum);
        }
        let used = quota::to_value(&used(&hard, &counted));
        let status = &mut quota["status"];
        if !status.is_object() {
            *status = Value::Object(Default::default());
        }
        let hard =
            quota["spec"].get("hard").cloned().unwrap_or_else(|| Value::Object(Default::default()));
        if quota["status"].get("hard") == Some(&hard) && quota["status"].get("used") == Some(&used)
        {
            return Ok(());
        }
        quota["status"]["hard"] = hard;
        quota["status"]["used"] = used;
        let path = Resource::of::<ResourceQuota>().path(&key.namespace, &key.name, "status");
        match self.client.call::<Value>(Method::PUT, &path, Some(&quota)).await {
            Err(e) if e.is_not_found() => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// How the wanted resources are listed. The server is asked only for what is not a core one.
    async fn served(
        &self,
        wanted: impl Iterator<Item = &(String, String)>,
    ) -> Result<HashMap<(String, String), Resource>, Error> {
        let (core, others): (Vec<_>, Vec<_>) =
            wanted.cloned().partition(|(group, name)| group.is_empty() && is_plain(name));
        let version = GroupVersion { group: String::new(), version: "v1".into() };
        let mut found: HashMap<_, _> =
            core.into_iter().map(|r| (r.clone(), Resource::new(version.clone(), r.1))).collect();
        if others.is_empty() {
            return Ok(found);
        }
        for served in self.client.discover().await?.resources {
            let id = (served.resource.group_version.group.clone(), served.resource.name.clone());
            if others.contains(&id) && served.namespaced && served.can("list") {
                found.insert(id, served.resource);
            }
        }
        Ok(found)
    }

    /// What all objects of a resource use.
    async fn count(
        &self,
        list: &Resource,
        (group, name): &(String, String),
        wanted: &BTreeSet<String>,
        spec: &Value,
        namespace: &str,
    ) -> Result<Amounts, Error> {
        // Only pods, Services and claims use up other things than places: of the rest a number will do.
        let looks_inside = group.is_empty()
            && matches!(name.as_str(), "pods" | "services" | "persistentvolumeclaims");
        let scoped = !quota::matches(spec, (group, name), &Value::Null);
        if !looks_inside && scoped {
            return Ok(Amounts::new());
        }
        let mut sum = Amounts::new();
        let mut token = String::new();
        loop {
            let limit = if looks_inside { PAGE } else { 1 };
            let mut path = format!("{}?limit={limit}", list.path(namespace, "", ""));
            if !token.is_empty() {
                path.push_str("&continue=");
                path.push_str(&token);
            }
            let accept = if looks_inside { "application/json" } else { METADATA_LIST };
            let bytes = self.client.raw(Method::GET, &path, accept, None).await?;
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|e| Error::Decode { what: path, why: e.to_string() })?;
            if !looks_inside {
                let count = page.items.len() + page.metadata.remaining_item_count.unwrap_or(0);
                let count = rimward_api::Quantity::from_whole(count as i64);
                return Ok(wanted.iter().map(|name| (name.clone(), count)).collect());
            }
            for object in &page.items {
                if quota::matches(spec, (group, name), object) {
                    quota::add(&mut sum, &quota::usage((group, name), object));
                }
            }
            token = page.metadata.token.unwrap_or_default();
            if token.is_empty() {
                return Ok(sum);
            }
        }
    }
}

fn is_plain(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "persistentvolumeclaims"
            | "configmaps"
            | "secrets"
            | "replicationcontrollers"
            | "resourcequotas"
    )
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    items: Vec<Value>,
    #[serde(default)]
    metadata: PageMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    remaining_item_count: Option<usize>,
    #[serde(default, rename = "continue")]
    token: Option<String>,
}
