//! Namespace: deletes everything in a terminating namespace, then lets it go.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/>

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_api::ObjectKey;
use rimward_client::discovery::{Discovered, Served};
use rimward_client::{Cache, Client, DeleteOptions, Error, Propagation};
use rimward_control_lean::Pod;
use serde::Deserialize;

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::pods::{is_deleting, uid};

pub const NAME: &str = "namespace-controller";
const WORKERS: usize = 4;
const FINALIZER: &str = "kubernetes";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

struct Namespaces {
    client: Client,
    namespaces: Cache<Namespace>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (namespaces, pods) = (context.informers.of::<Namespace>(), context.informers.of::<Pod>());
    enqueue_changes(&namespaces, &keys);
    // What keeps a namespace longest are pods that end in their own time.
    let (queue, known) = (keys.clone(), namespaces.clone());
    pods.on_change(move |change| {
        if change.new.is_none()
            && known.get("", &change.key.namespace).is_some_and(|n| is_deleting(&n.metadata))
        {
            queue.add_after(
                ObjectKey::new("", change.key.namespace.clone()),
                Duration::from_millis(10),
            );
        }
    });
    let caches = vec![synced(&namespaces)];
    let controller = Namespaces { client: context.client.clone(), namespaces };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

pub fn is_terminating(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    is_deleting(&namespace.metadata) || phase == Some("Terminating")
}

/// What one round of deletion left.
#[derive(Debug, Default)]
pub struct Remains {
    /// Objects per resource.
    pub objects: BTreeMap<String, usize>,
    /// Objects per finalizer that holds them.
    pub finalizers: BTreeMap<String, usize>,
    /// What could not be listed or deleted.
    pub failures: Vec<String>,
    /// Groups that could not be asked what they serve.
    pub undiscovered: Vec<String>,
}

impl Remains {
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty() && self.undiscovered.is_empty()
    }
}

/// The conditions that say how the deletion goes. Pure.
pub fn conditions(
    remains: &Remains,
    old: &[NamespaceCondition],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, has: &str| {
        let each = counts.iter().map(|(what, n)| format!("{what}{has}{n} resource instances"));
        each.collect::<Vec<_>>().join(", ")
    };
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            !remains.undiscovered.is_empty(),
            ["ResourcesDiscovered", "DiscoveryFailed"],
            "All resources successfully discovered",
            format!(
                "Discovery failed for some groups, {} failing: {}",
                remains.undiscovered.len(),
                remains.undiscovered.join(", ")
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ["ParsedGroupVersions", "GroupVersionParsingFailed"],
            "All legacy kube types successfully parsed",
            String::new(),
        ),
        (
            "NamespaceDeletionContentFailure",
            !remains.failures.is_empty(),
            ["ContentDeleted", "ContentDeletionFailed"],
            "All content successfully deleted, may be waiting on finalization",
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                remains.failures.len(),
                remains.failures.join(", ")
            ),
        ),
        (
            "NamespaceContentRemaining",
            !remains.objects.is_empty(),
            ["ContentRemoved", "SomeResourcesRemain"],
            "All content successfully removed",
            format!("Some resources are remaining: {}", list(&remains.objects, " has ")),
        ),
        (
            "NamespaceFinalizersRemaining",
            !remains.finalizers.is_empty(),
            ["ContentHasNoFinalizers", "SomeFinalizersRemain"],
            "All content-preserving finalizers finished",
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                list(&remains.finalizers, " in ")
            ),
        ),
    ];
    let ours = rows.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>();
    let kept = old.iter().filter(|c| !ours.contains(&c.type_.as_str())).cloned();
    let new = rows.iter().map(|(kind, bad, reasons, good_text, bad_text)| {
        let known = old.iter().find(|c| c.type_ == *kind);
        let status = if *bad { "True" } else { "False" };
        let since =
            known.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        NamespaceCondition {
            type_: (*kind).into(),
            status: status.into(),
            reason: Some(reasons[usize::from(*bad)].into()),
            message: Some(if *bad { bad_text.clone() } else { (*good_text).into() }),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        }
    });
    kept.chain(new).collect()
}

#[async_trait]
impl Controller for Namespaces {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get_key(key).filter(|n| is_deleting(&n.metadata))
        else {
            return Ok(Next::Change);
        };
        let finalizers =
            namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if finalizers.is_empty() {
            // It was let go before, and only has to be told again.
            let gone = self
                .client
                .delete::<Namespace>("", &key.name, &DeleteOptions::uid(uid(&namespace.metadata)))
                .await;
            return gone.or_else(ignore_lost_race).map(|()| Next::Change);
        }
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(Next::Change);
        }
        let remains = self.delete_content(&key.name).await?;
        let old = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let new = conditions(&remains, &old, Timestamp::now());
        // A namespace that is empty at once goes without being told why it still is there.
        let mut changed = (*namespace).clone();
        if new != old && !(remains.is_empty() && old.is_empty()) {
            changed.status.get_or_insert_default().conditions = Some(new);
            match self.client.update_status(&changed).await {
                Ok(written) => changed = written,
                Err(e) => return ignore_lost_race(e).map(|()| Next::Change),
            }
        }
        if !remains.is_empty() {
            return Ok(Next::After(patience(&namespace, Timestamp::now())));
        }
        let spec = changed.spec.get_or_insert_default();
        spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
        match self.client.update_subresource(&changed, "finalize").await {
            Ok(_) => Ok(Next::Change),
            Err(e) if e.is_not_found() => Ok(Next::Change),
            Err(e) => Err(e),
        }
    }
}

fn ignore_lost_race(e: Error) -> Result<(), Error> {
    if e.is_not_found() || e.is_conflict() { Ok(()) } else { Err(e) }
}

/// The longer it takes, the rarer we look: what remains waits for somebody else's finalizer.
fn patience(namespace: &Namespace, now: Timestamp) -> Duration {
    let since = namespace.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    (age / 4).clamp(Duration::from_millis(100), Duration::from_secs(15))
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    items: Vec<Item>,
    #[serde(default)]
    metadata: ListedMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedMeta {
    #[serde(default)]
    remaining_item_count: Option<usize>,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMeta,
}

#[derive(Deserialize)]
struct ItemMeta {
    name: String,
    uid: Option<String>,
    #[serde(default)]
    finalizers: Vec<String>,
}

impl Namespaces {
    /// One round: pods first, so that nothing that they use goes before them; then all the rest.
    async fn delete_content(&self, namespace: &str) -> Result<Remains, Error> {
        let Discovered { resources, failed } = self.client.discover().await?;
        let deletable = |r: &Served| {
            r.namespaced && r.can("list") && (r.can("delete") || r.can("deletecollection"))
        };
        let (pods, others): (Vec<Served>, Vec<Served>) =
            resources.into_iter().filter(deletable).partition(|r| r.resource.name == "pods");
        let mut remains = Remains {
            undiscovered: failed
                .into_iter()
                .map(|(version, e)| format!("{version}: {e}"))
                .collect(),
            ..Remains::default()
        };
        for stage in [pods, others] {
            let answers = join_all(stage.iter().map(|r| self.delete_all(r, namespace))).await;
            for (served, answer) in stage.iter().zip(answers) {
                let resource = rimward_api::GroupResource::new(
                    served.resource.group_version.group.clone(),
                    served.resource.name.clone(),
                );
                match answer {
                    Ok((0, _)) => {}
                    Ok((count, finalizers)) => {
                        // The dot is there for core resources too, which have no group behind it.
                        let (name, group) = (&resource.resource, &resource.group);
                        remains.objects.insert(format!("{name}.{group}"), count);
                        finalizers
                            .into_iter()
                            .for_each(|f| *remains.finalizers.entry(f).or_default() += 1);
                    }
                    Err(e) => remains.failures.push(format!("{resource}: {e}")),
                }
            }
            // What could not be discovered is no reason to keep what was.
            if !remains.objects.is_empty() || !remains.failures.is_empty() {
                break;
            }
        }
        Ok(remains)
    }

    /// Deletes the objects of one resource; answers how many remain and what holds them.
    async fn delete_all(
        &self,
        served: &Served,
        namespace: &str,
    ) -> Result<(usize, Vec<String>), Error> {
        let before = self.list(served, namespace).await?;
        if before.items.is_empty() {
            return Ok((0, Vec::new()));
        }
        let options = DeleteOptions::default().propagation(Propagation::Background);
        if served.can("deletecollection") {
            self.client.delete_collection(&served.resource, namespace, &options).await?;
        } else {
            for item in &before.items {
                let options = DeleteOptions::uid(item.metadata.uid.clone().unwrap_or_default());
                let answer = self
                    .client
                    .delete_raw(&served.resource, namespace, &item.metadata.name, &options)
                    .await;
                answer.or_else(ignore_lost_race)?;
            }
        }
        let after = self.list(served, namespace).await?;
        let count = after.items.len() + after.metadata.remaining_item_count.unwrap_or(0);
        Ok((count, after.items.into_iter().flat_map(|i| i.metadata.finalizers).collect()))
    }

    async fn list(&self, served: &Served, namespace: &str) -> Result<Listed, Error> {
        let path = format!("{}?limit=500", served.resource.path(namespace, "", ""));
        let bytes = self.client.raw(Method::GET, &path, METADATA_LIST, None).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Decode { what: path, why: e.to_string() })
    }
}
