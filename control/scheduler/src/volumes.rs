//! What a pod's claims demand of a node. Pure: claims, volumes and classes are mirrored here change by change,
//! as nodes and pods are in the snapshot.
//! <https://kubernetes.io/docs/concepts/storage/storage-classes/#volume-binding-mode>
//!
//! A claim that is bound ties the pod to where its volume is reached. One whose class waits for its first
//! consumer gets its volume together with the node: one that is there and that the node reaches, else one that is
//! made for the node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use rimward_api::ObjectKey;
use rimward_api::nodes::NodeTerm;
use rimward_control_volumes::{self as volumes, Search};

use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    classes: HashMap<String, Arc<StorageClass>>,
    /// Volumes that were given to a claim, which the API server does not show yet.
    assumed: HashMap<String, ObjectKey>,
}

impl Volumes {
    pub fn set_claim(&mut self, key: &ObjectKey, claim: Option<Arc<PersistentVolumeClaim>>) {
        match claim {
            Some(claim) => self.claims.insert(key.clone(), claim),
            None => self.claims.remove(key),
        };
    }

    pub fn set_volume(&mut self, name: &str, volume: Option<Arc<PersistentVolume>>) {
        let has_claim =
            |v: &PersistentVolume| v.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
        if volume.as_ref().is_none_or(|v| has_claim(v)) {
            self.assumed.remove(name);
        }
        match volume {
            Some(volume) => self.volumes.insert(name.to_owned(), volume),
            None => self.volumes.remove(name),
        };
    }

    pub fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
    }

    pub fn claim(&self, key: &ObjectKey) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }

    /// The volumes of a choice count as given, until the API server shows it or the choice is taken back.
    pub fn assume(&mut self, choice: &Choice) {
        for (volume, claim) in &choice.bind {
            self.assumed.insert(name_of(volume).to_owned(), ObjectKey::of_meta(&claim.metadata));
        }
    }

    pub fn take_back(&mut self, choice: &Choice) {
        choice.bind.iter().for_each(|(volume, _)| drop(self.assumed.remove(name_of(volume))));
    }
}

fn name_of(volume: &PersistentVolume) -> &str {
    volume.metadata.name.as_deref().unwrap_or_default()
}

/// What binding a pod's claims takes, once its node is known.
#[derive(Debug, Default)]
pub struct Choice {
    pub bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    pub provision: Vec<Arc<PersistentVolumeClaim>>,
}

impl Choice {
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }

    /// The claims that are bound in the end.
    pub fn claims(&self) -> impl Iterator<Item = ObjectKey> {
        let bound = self.bind.iter().map(|(_, claim)| claim);
        bound.chain(&self.provision).map(|claim| ObjectKey::of_meta(&claim.metadata))
    }
}

/// Where a volume is reached: any term will do; None is everywhere.
type Reach = Option<Vec<NodeTerm>>;

/// What one pod's claims demand, worked out once for all nodes.
#[derive(Debug, Default)]
pub struct Demands {
    /// Why no node at all will do.
    pub refusal: Option<String>,
    bound: Vec<Reach>,
    open: Vec<Open>,
    /// Another pod has a claim that only one may have.
    pub is_taken: bool,
}

#[derive(Debug)]
struct Open {
    claim: Arc<PersistentVolumeClaim>,
    candidates: BTreeMap<String, (Arc<PersistentVolume>, Reach)>,
    /// None when nothing is made for it.
    class: Option<Arc<StorageClass>>,
}

impl Demands {
    pub fn new(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let mut demands = Self::default();
        for key in &pod.claims {
            if let Err(why) = demands.add(pod, key, &snapshot.volumes) {
                demands.refusal = Some(why);
                break;
            }
        }
        if demands.refusal.is_none() {
            demands.is_taken = pod.claims.iter().any(|key| is_taken(pod, key, snapshot));
        }
        demands
    }

    fn add(&mut self, pod: &PodInfo, key: &ObjectKey, all: &Volumes) -> Result<(), String> {
        let made_for_pod =
            pod.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| {
                v.ephemeral.is_some() && format!("{}-{}", pod.key.name, v.name) == key.name
            });
        let Some(claim) = all.claims.get(key) else {
            return Err(match made_for_pod {
                true => format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}",
                    key.name
                ),
                false => format!("persistentvolumeclaim {:?} not found", key.name),
            });
        };
        if made_for_pod && !volumes::is_owned_by(claim, &pod.pod) {
            return Err(format!(
                "PVC {key} was not created for pod {} (pod is not owner)",
                pod.key
            ));
        }
        let wanted = volumes::volume_name(claim);
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return Err(format!(
                "persistentvolumeclaim {:?} bound to non-existent persistentvolume {wanted:?}",
                key.name
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {:?} is being deleted", key.name));
        }
        if volumes::is_fully_bound(claim) {
            let volume = all.volumes.get(wanted).ok_or(
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            )?;
            self.bound.push(reach(volume));
            return Ok(());
        }
        let class = all.classes.get(volumes::class_of_claim(claim));
        if !wanted.is_empty() || !volumes::waits_for_consumer(class.map(|c| &**c)) {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        let free = all
            .volumes
            .iter()
            .filter(|(name, _)| all.assumed.get(*name).is_none_or(|other| other == key));
        self.open.push(Open {
            claim: claim.clone(),
            candidates: free.map(|(name, v)| (name.clone(), (v.clone(), reach(v)))).collect(),
            class: class.filter(|c| c.provisioner != volumes::NO_PROVISIONER).cloned(),
        });
        Ok(())
    }

    /// Whether a node reaches the volumes that the pod's claims have.
    pub fn reached_from(&self, node: &NodeInfo) -> bool {
        self.bound.iter().all(|reach| reaches(reach, node))
    }

    /// How the open claims get their volumes on a node; None when they do not.
    pub fn choose(&self, node: &NodeInfo) -> Option<Choice> {
        let mut choice = Choice::default();
        let mut taken: HashSet<&str> = HashSet::new();
        for open in &self.open {
            let selected = volumes::claim_annotation(&open.claim, volumes::SELECTED_NODE);
            if let Some(selected) = selected {
                // Its volume is being made already.
                if selected != &*node.name {
                    return None;
                }
                choice.provision.push(open.claim.clone());
                continue;
            }
            let near = |volume: &PersistentVolume| {
                let candidate = open.candidates.get(name_of(volume));
                candidate.is_some_and(|(_, reach)| reaches(reach, node))
            };
            let all = open.candidates.values().map(|(volume, _)| &**volume);
            match volumes::best_match(&open.claim, all, &Search::Node(&near), &taken) {
                Some(volume) => {
                    let (name, (volume, _)) = open.candidates.get_key_value(name_of(volume))?;
                    taken.insert(name);
                    choice.bind.push((volume.clone(), open.claim.clone()));
                }
                None if open.class.as_ref().is_some_and(|class| allows(class, node)) => {
                    choice.provision.push(open.claim.clone());
                }
                None => return None,
            }
        }
        Some(choice)
    }
}

fn reach(volume: &PersistentVolume) -> Reach {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required.as_ref()?;
    Some(required.node_selector_terms.iter().map(NodeTerm::new).collect())
}

fn reaches(reach: &Reach, node: &NodeInfo) -> bool {
    let Some(terms) = reach else { return true };
    node.node.as_ref().is_some_and(|node| terms.iter().any(|term| term.matches(node)))
}

/// `allowedTopologies`: all expressions of one of the terms.
fn allows(class: &StorageClass, node: &NodeInfo) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    terms.is_empty()
        || terms.iter().any(|term| {
            let mut expressions = term.match_label_expressions.iter().flatten();
            expressions.all(|e| {
                node.label(&e.key).is_some_and(|value| e.values.iter().any(|v| v == value))
            })
        })
}

/// ReadWriteOncePod: whether another pod has the claim.
fn is_taken(pod: &PodInfo, key: &ObjectKey, snapshot: &Snapshot) -> bool {
    let claim = snapshot.volumes.claims.get(key);
    let modes = claim.and_then(|c| c.spec.as_ref()?.access_modes.as_ref());
    let exclusive = modes.is_some_and(|modes| modes.iter().any(|m| m == "ReadWriteOncePod"));
    exclusive
        && snapshot.nodes().any(|node| {
            node.pods.values().any(|other| other.uid != pod.uid && other.claims.contains(key))
        })
}
