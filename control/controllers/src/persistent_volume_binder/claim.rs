//! What is to become of a claim. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use rimward_api::local_volumes;
use rimward_control_volumes::{self as volumes, Search};

use super::local;
use crate::pods::name;

/// What the caches show, as far as one claim is concerned.
pub struct Sight<'a> {
    pub claim: &'a PersistentVolumeClaim,
    pub volumes: &'a [Arc<PersistentVolume>],
    /// The claim's class, if it exists.
    pub class: Option<&'a StorageClass>,
    /// The class of claims that name none.
    pub default_class: Option<&'a StorageClass>,
    /// The node that the scheduler chose, if it exists.
    pub node: Option<&'a Node>,
    /// Names of pods that use the claim and have no node yet.
    pub waiting: Vec<String>,
}

/// An Event about the claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Both sides are made to name each other.
    Bind(Arc<PersistentVolume>),
    /// It had a volume, which is gone or another's.
    Lost(Said),
    /// It waits.
    Pending(Option<Said>),
    /// It names no class, and there is one for such claims.
    Adopt(String),
    /// Somebody outside is to provision it: this provisioner.
    Delegate(String),
    /// The built-in provisioner's volume.
    Provision(Box<PersistentVolume>),
}

fn said(warning: bool, reason: &'static str, message: impl Into<String>) -> Said {
    Said { warning, reason, message: message.into() }
}

pub fn plan(sight: &Sight<'_>) -> Plan {
    let claim = sight.claim;
    match volumes::claim_annotation(claim, volumes::BIND_COMPLETED) {
        Some(_) => bound(sight),
        None if volumes::volume_name(claim).is_empty() => unbound(sight),
        None => asked_for_one(sight),
    }
}

fn find<'a>(sight: &Sight<'a>, wanted: &str) -> Option<&'a Arc<PersistentVolume>> {
    sight.volumes.iter().find(|v| name(&v.metadata) == wanted)
}

/// It was bound before: nothing may change that but a loss.
fn bound(sight: &Sight<'_>) -> Plan {
    let lost = |reason, message: &str| Plan::Lost(said(true, reason, message));
    let wanted = volumes::volume_name(sight.claim);
    if wanted.is_empty() {
        return lost(
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        );
    }
    let Some(volume) = find(sight, wanted) else {
        return lost(
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        );
    };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    match reference {
        Some(r) if r.uid != sight.claim.metadata.uid => lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        ),
        _ => Plan::Bind(volume.clone()),
    }
}

/// Its author named the volume.
fn asked_for_one(sight: &Sight<'_>) -> Plan {
    let wanted = volumes::volume_name(sight.claim);
    let Some(volume) = find(sight, wanted) else { return Plan::Pending(None) };
    if volumes::is_for(volume, sight.claim) {
        return Plan::Bind(volume.clone());
    }
    if volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some()) {
        let message = format!("volume {wanted:?} already bound to a different claim.");
        return Plan::Pending(Some(said(true, "FailedBinding", message)));
    }
    match volumes::mismatch(volume, sight.claim) {
        None => Plan::Bind(volume.clone()),
        Some(why) => {
            let message = format!("Cannot bind to requested volume {wanted:?}: {why}");
            Plan::Pending(Some(said(true, "VolumeMismatch", message)))
        }
    }
}

fn unbound(sight: &Sight<'_>) -> Plan {
    let claim = sight.claim;
    let delayed = volumes::waits_for_consumer(sight.class);
    let all = sight.volumes.iter().map(|v| &**v);
    let found = volumes::best_match(claim, all, &Search::Anywhere { delayed }, &HashSet::new());
    if let Some(found) = found.and_then(|v| find(sight, name(&v.metadata))) {
        return Plan::Bind(found.clone());
    }
    let class_name = volumes::class_of_claim(claim);
    let names_none = claim.spec.as_ref().is_none_or(|s| s.storage_class_name.is_none());
    if class_name.is_empty() {
        return match sight.default_class {
            Some(class) if names_none => Plan::Adopt(name(&class.metadata).to_owned()),
            _ => Plan::Pending(Some(said(
                false,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ))),
        };
    }
    if delayed && volumes::claim_annotation(claim, volumes::SELECTED_NODE).is_none() {
        return Plan::Pending(Some(waits(&sight.waiting)));
    }
    provision(sight, class_name)
}

fn waits(pods: &[String]) -> Said {
    match pods {
        [] => said(
            false,
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        ),
        [pod] => {
            said(false, "WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled"))
        }
        pods => said(
            false,
            "WaitForPodScheduled",
            format!("waiting for pods {} to be scheduled", pods.join(",")),
        ),
    }
}

fn provision(sight: &Sight<'_>, class_name: &str) -> Plan {
    let failed = |message: String| Plan::Pending(Some(said(true, "ProvisioningFailed", message)));
    let Some(class) = sight.class else {
        return failed(format!("storageclass.storage.k8s.io {class_name:?} not found"));
    };
    match class.provisioner.as_str() {
        local_volumes::PROVISIONER => match local::volume(sight.claim, class, sight.node) {
            Ok(volume) => Plan::Provision(Box::new(volume)),
            Err(why) => failed(format!(
                "failed to provision volume with StorageClass {class_name:?}: {why}"
            )),
        },
        volumes::NO_PROVISIONER => {
            failed(format!("no volume plugin matched name: {}", volumes::NO_PROVISIONER))
        }
        other => Plan::Delegate(other.to_owned()),
    }
}
