//! Garbage collector: objects whose owners are gone go too.
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>
//!
//! It watches the metadata of every resource that discovery names, and nothing more of it, into one
//! [`graph`]; that of pods is there already. An owner that the graph has not seen is asked for before anything is deleted for its
//! absence, so a watch that lags can delay a deletion but never cause one.

pub mod graph;
mod pods;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use parking_lot::Mutex;
use rimward_client::discovery::Served;
use rimward_client::{
    Cache, Client, DeleteOptions, Error, Patch, Queue, Resource, Sink, Source, reflector,
};
use rimward_control_lean::Pod;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::driver::Context;
use graph::{FOREGROUND, Graph, ORPHAN, Owner, Partial, Place, ResourceId, Uid, Verdict, Work};

pub const NAME: &str = "generic-garbage-collector";
const WORKERS: usize = 16;
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// How long to wait for all first lists. Going on without one is safe, only slower: owners that are
/// not in the graph are asked for.
const FIRST_LISTS: Duration = Duration::from_secs(30);
/// After a CustomResourceDefinition or an APIService changed, its resource is served a moment later.
const REDISCOVER_AFTER: Duration = Duration::from_millis(500);
/// How far the watches of two resources may lie apart: a dependent that was there before its owner was
/// let go may be seen after it.
const SETTLES_AFTER: Duration = Duration::from_millis(200);

struct Collector {
    client: Client,
    pods: Cache<Pod>,
    graph: Mutex<Graph>,
    work: Queue<Work>,
    resources: Mutex<Resources>,
    /// Objects with an owner of a kind that is not served: looked at again when more is served.
    unresolved: Mutex<HashSet<Uid>>,
    /// Since when owners are being let go with their dependents left alone.
    orphaning: Mutex<HashMap<Uid, Instant>>,
    unlisted: AtomicUsize,
    listed: Notify,
    definitions_changed: Notify,
    shutdown: CancellationToken,
}

/// What is served, by number; numbers are never reused.
#[derive(Default)]
struct Resources {
    table: Vec<Served>,
    watched: BTreeMap<Resource, (ResourceId, CancellationToken)>,
    kinds: HashMap<(String, String), ResourceId>,
}

pub fn start(context: &Context) {
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        pods: context.informers.of(),
        graph: Mutex::default(),
        work: Queue::new(),
        resources: Mutex::default(),
        unresolved: Mutex::default(),
        orphaning: Mutex::default(),
        unlisted: AtomicUsize::new(0),
        listed: Notify::new(),
        definitions_changed: Notify::new(),
        shutdown: context.shutdown.clone(),
    });
    let (tasks, shutdown) = (context.tasks.clone(), context.shutdown.clone());
    context.tasks.spawn(async move {
        let started = collector.clone();
        if shutdown.run_until_cancelled(started.discover_first()).await.is_none() {
            return;
        }
        for _ in 0..WORKERS {
            tasks.spawn(collector.clone().work());
        }
        shutdown.run_until_cancelled(collector.clone().keep_discovering()).await;
        collector.work.close();
    });
}

/// Feeds one resource's metadata into the graph.
struct Monitor {
    collector: Arc<Collector>,
    resource: ResourceId,
    defines_resources: bool,
    first: std::sync::atomic::AtomicBool,
}

impl Monitor {
    fn enqueue(&self, work: Vec<Work>) {
        work.into_iter().for_each(|w| self.collector.work.add(w));
        if self.defines_resources {
            self.collector.definitions_changed.notify_one();
        }
    }
}

impl Sink<Partial> for Monitor {
    fn replace(&self, objects: Vec<Partial>, _revision: u64) {
        let work = self.collector.graph.lock().replace(self.resource, objects);
        self.enqueue(work);
        if self.first.swap(false, Ordering::AcqRel) {
            self.collector.first_listed();
        }
    }

    fn apply(&self, object: Partial, _revision: u64) {
        let work = self.collector.graph.lock().observe(self.resource, object);
        self.enqueue(work);
    }

    fn remove(&self, object: Partial, _revision: u64) {
        let work = self.collector.graph.lock().remove(&object.metadata.uid);
        self.enqueue(work);
    }
}

impl Collector {
    async fn discover_first(self: Arc<Self>) {
        let mut failures = 0;
        while let Err(e) = self.clone().discover().await {
            tracing::warn!(error = %e, "garbage collection waits for discovery");
            let pause =
                reflector::backoff(failures, Duration::from_millis(50), Duration::from_secs(10));
            tokio::time::sleep(pause).await;
            failures += 1;
        }
        let all = async {
            while self.unlisted.load(Ordering::Acquire) > 0 {
                self.listed.notified().await;
            }
        };
        if tokio::time::timeout(FIRST_LISTS, all).await.is_err() {
            tracing::warn!(
                "some resources cannot be listed; garbage collection starts without them"
            );
        }
    }

    async fn keep_discovering(self: Arc<Self>) {
        loop {
            self.definitions_changed.notified().await;
            tokio::time::sleep(REDISCOVER_AFTER).await;
            if let Err(e) = self.clone().discover().await {
                tracing::warn!(error = %e, "discovery failed, garbage collection goes on as it is");
                self.definitions_changed.notify_one();
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }

    /// Watches what is served now; forgets what no longer is.
    async fn discover(self: Arc<Self>) -> Result<(), Error> {
        let discovered = self.client.discover().await?;
        let collectable = |r: &Served| r.can("delete") && r.can("list") && r.can("watch");
        // Events have owners in name only, and are many.
        let wanted = discovered
            .resources
            .into_iter()
            .filter(|r| collectable(r) && r.resource.name != "events");
        let wanted: BTreeMap<Resource, Served> = wanted.map(|r| (r.resource.clone(), r)).collect();
        let mut resources = self.resources.lock();
        // A group that could not be asked still has what it had.
        let silent: HashSet<String> =
            discovered.failed.into_iter().map(|(version, _)| version.group).collect();
        let gone = resources
            .watched
            .keys()
            .filter(|r| !wanted.contains_key(r) && !silent.contains(&r.group_version.group));
        let gone: Vec<Resource> = gone.cloned().collect();
        let ended: Vec<(Resource, ResourceId)> = gone
            .into_iter()
            .filter_map(|resource| {
                let (id, token) = resources.watched.remove(&resource)?;
                token.cancel();
                resources.kinds.retain(|_, known| *known != id);
                Some((resource, id))
            })
            .collect();
        let mut begun = Vec::new();
        for (resource, served) in wanted {
            if resources.watched.contains_key(&resource) {
                continue;
            }
            let id = resources.table.len() as ResourceId;
            resources.kinds.insert((resource.group_version.group.clone(), served.kind.clone()), id);
            resources.table.push(served);
            let token = self.shutdown.child_token();
            resources.watched.insert(resource.clone(), (id, token.clone()));
            begun.push((resource, id, token));
        }
        drop(resources);
        self.end(&ended, &begun);
        begun.into_iter().for_each(|(resource, id, token)| self.begin(resource, id, token));
        let unresolved = std::mem::take(&mut *self.unresolved.lock());
        unresolved.into_iter().for_each(|uid| self.work.add(Work::Judge(uid)));
        Ok(())
    }

    /// What is watched in another version from now on is still there; of what is served no more, nobody
    /// can tell.
    fn end(
        &self,
        ended: &[(Resource, ResourceId)],
        begun: &[(Resource, ResourceId, CancellationToken)],
    ) {
        let same = |a: &Resource, b: &Resource| {
            a.name == b.name && a.group_version.group == b.group_version.group
        };
        for (resource, id) in ended {
            if let Some((_, next, _)) = begun.iter().find(|(other, ..)| same(resource, other)) {
                self.graph.lock().transfer(*id, *next);
            } else {
                let work = self.graph.lock().forget(*id);
                work.into_iter().for_each(|w| self.work.add(w));
            }
        }
    }

    /// The objects of one more resource are all known.
    fn first_listed(&self) {
        if self.unlisted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.listed.notify_one();
        }
    }

    /// Watches a resource.
    fn begin(self: &Arc<Self>, resource: Resource, id: ResourceId, token: CancellationToken) {
        self.unlisted.fetch_add(1, Ordering::AcqRel);
        if resource == Resource::of::<Pod>() {
            return self.follow_pods(&self.pods, id, token);
        }
        let monitor = Monitor {
            collector: self.clone(),
            resource: id,
            defines_resources: matches!(
                resource.name.as_str(),
                "customresourcedefinitions" | "apiservices"
            ),
            first: true.into(),
        };
        let source = Source::of(resource).metadata_only();
        tokio::spawn(reflector::run(self.client.clone(), source, Arc::new(monitor), token));
    }

    async fn work(self: Arc<Self>) {
        while let Some(work) = self.work.get().await {
            let outcome = match &work {
                Work::Judge(uid) => self.judge(uid).await,
                Work::Orphan(uid) => self.orphan(uid).await,
            };
            match outcome {
                Ok(()) => self.work.forget(&work),
                Err(e) => {
                    tracing::debug!(error = %e, ?work, "garbage collection tries again");
                    self.work.retry(work.clone());
                }
            }
            self.work.done(&work);
        }
    }

    async fn judge(&self, uid: &str) -> Result<(), Error> {
        let mut exists = HashSet::new();
        loop {
            let verdict = self.graph.lock().judge(uid, &exists);
            match verdict {
                Verdict::Nothing => return Ok(()),
                Verdict::AskFor(place, owners) => {
                    for owner in owners {
                        match self.owner_exists(&place, &owner).await? {
                            Some(true) => drop(exists.insert(owner.uid)),
                            Some(false) => self.graph.lock().owner_gone(&owner.uid),
                            // Nobody can say: leave the object alone.
                            None => {
                                self.unresolved.lock().insert(uid.into());
                                return Ok(());
                            }
                        }
                    }
                }
                Verdict::Finish(place) => {
                    return self.drop_finalizer(&place, uid, FOREGROUND).await;
                }
                Verdict::Dependents(uids) => {
                    uids.into_iter().for_each(|uid| self.work.add(Work::Judge(uid)));
                    return Ok(());
                }
                Verdict::DropOwners(place, owners) => {
                    return self.change(&place, uid, |meta| drop_owners(meta, &owners)).await;
                }
                Verdict::Delete { place, policy, unblock } => {
                    if unblock {
                        self.change(&place, uid, unblock_owners).await?;
                    }
                    let mut options = DeleteOptions::uid(uid).propagation(policy);
                    if !unblock {
                        options = options.at_revision(place.resource_version.clone());
                    }
                    let resource = self.resource(&place);
                    let answer = self
                        .client
                        .delete_raw(&resource, &place.key.namespace, &place.key.name, &options)
                        .await;
                    return match answer {
                        Err(e) if !e.is_not_found() => Err(e),
                        _ => Ok(()),
                    };
                }
            }
        }
    }

    fn resource(&self, place: &Place) -> Resource {
        self.resources.lock().table[place.resource as usize].resource.clone()
    }

    /// Asks the server whether an owner exists; None when the reference cannot be resolved.
    async fn owner_exists(&self, dependent: &Place, owner: &Owner) -> Result<Option<bool>, Error> {
        let (resource, namespaced) = {
            let resources = self.resources.lock();
            let Some(id) = resources.kinds.get(&(owner.group(), owner.kind.clone())) else {
                tracing::debug!(kind = owner.kind, "an owner is of a kind that is not served");
                return Ok(None);
            };
            let served = &resources.table[*id as usize];
            (served.resource.clone(), served.namespaced)
        };
        if namespaced && dependent.key.namespace.is_empty() {
            tracing::warn!(
                object = dependent.key.name,
                "a cluster-scoped object cannot be owned by one in a namespace"
            );
            return Ok(None);
        }
        let namespace = if namespaced { dependent.key.namespace.as_str() } else { "" };
        match self.metadata(&resource, namespace, &owner.name).await {
            Ok(found) => Ok(Some(found.metadata.uid == owner.uid)),
            Err(e) if e.is_not_found() => Ok(Some(false)),
            Err(e) => Err(e),
        }
    }

    async fn metadata(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Partial, Error> {
        let path = resource.path(namespace, name, "");
        let bytes = self.client.raw(Method::GET, &path, METADATA, None).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Decode { what: path, why: e.to_string() })
    }

    /// Lets all dependents go, then the owner.
    async fn orphan(&self, uid: &str) -> Result<(), Error> {
        let (place, dependents) = {
            let graph = self.graph.lock();
            let Some(place) = graph.find(uid) else {
                self.orphaning.lock().remove(uid);
                return Ok(());
            };
            (place, graph.dependents(uid))
        };
        let owner = [uid.to_owned()];
        for (dependent, at) in dependents {
            self.change(&at, &dependent, |meta| drop_owners(meta, &owner)).await?;
        }
        let since = *self.orphaning.lock().entry(uid.into()).or_insert_with(Instant::now);
        if since.elapsed() < SETTLES_AFTER {
            self.work.add_after(Work::Orphan(uid.into()), SETTLES_AFTER);
            return Ok(());
        }
        self.drop_finalizer(&place, uid, ORPHAN).await?;
        self.orphaning.lock().remove(uid);
        Ok(())
    }

    async fn drop_finalizer(&self, place: &Place, uid: &str, finalizer: &str) -> Result<(), Error> {
        let without = |meta: &Partial| {
            let has = meta.metadata.finalizers.iter().any(|f| f == finalizer);
            let rest: Vec<&String> =
                meta.metadata.finalizers.iter().filter(|f| *f != finalizer).collect();
            has.then(|| json!({"finalizers": rest}))
        };
        self.change(place, uid, without).await
    }

    /// Changes an object's metadata, as the server has it now, by a merge patch that fails if it
    /// changed in between. The object being gone, or another of its name, is no error.
    async fn change(
        &self,
        place: &Place,
        uid: &str,
        change: impl Fn(&Partial) -> Option<Value>,
    ) -> Result<(), Error> {
        let resource = self.resource(place);
        let (namespace, name) = (&place.key.namespace, &place.key.name);
        let current = match self.metadata(&resource, namespace, name).await {
            Ok(current) if current.metadata.uid == uid => current,
            Ok(_) => return Ok(()),
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) => return Err(e),
        };
        let Some(mut metadata) = change(&current) else { return Ok(()) };
        metadata["uid"] = json!(uid);
        metadata["resourceVersion"] = json!(current.metadata.resource_version);
        let patch = Patch::merge(json!({"metadata": metadata}));
        match self.client.patch_raw(&resource, namespace, name, "", &patch).await {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }
}

fn drop_owners(object: &Partial, uids: &[String]) -> Option<Value> {
    let owners = &object.metadata.owner_references;
    let rest: Vec<&Owner> = owners.iter().filter(|o| !uids.contains(&o.uid)).collect();
    (rest.len() < owners.len()).then(|| json!({"ownerReferences": rest}))
}

fn unblock_owners(object: &Partial) -> Option<Value> {
    let owners = &object.metadata.owner_references;
    let freed: Vec<Owner> =
        owners.iter().map(|o| Owner { block_owner_deletion: Some(false), ..o.clone() }).collect();
    (freed != *owners).then(|| json!({"ownerReferences": freed}))
}
