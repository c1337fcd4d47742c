//! What is to become of a volume. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rimward_api::local_volumes;
use rimward_control_volumes as volumes;

use crate::pods::{is_deleting, name};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Its phase is this.
    Phase(&'static str),
    /// The claim is looked at: it will complete the binding.
    LookAtClaim,
    /// Its claim is bound elsewhere.
    Unbind,
    /// Its claim is gone.
    Release(Reclaim),
}

/// What the reclaim policy does to a released volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// An administrator, or the provisioner outside that made it, takes care of it.
    Leave,
    Delete,
    /// Nobody can do what the policy says: the reason of the Event, and the message.
    Fail(&'static str, String),
}

/// Keeps a volume that is to go together with its directory until its claim has gone, also when it is deleted
/// before. <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#persistentvolume-deletion-protection-finalizer>
pub const HELD: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// The volume, held or let go of as it should be; None when it is so, or another's.
pub fn held(volume: &PersistentVolume, plan: &Plan) -> Option<PersistentVolume> {
    if provisioner(volume) != Some(local_volumes::PROVISIONER) {
        return None;
    }
    let leaving = is_deleting(&volume.metadata);
    let unbound = matches!(plan, Plan::Release(_) | Plan::Phase("Available"));
    let wanted = policy(volume) == "Delete" && !(leaving && unbound);
    let mut finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
    match (wanted, finalizers.iter().any(|f| f == HELD)) {
        // Nothing is added to what is being deleted.
        (true, false) if !leaving => finalizers.push(HELD.to_owned()),
        (false, true) => finalizers.retain(|f| f != HELD),
        _ => return None,
    }
    let mut next = volume.clone();
    next.metadata.finalizers = Some(finalizers);
    Some(next)
}

/// `claim` is the one that the volume names, if there is one of this name.
pub fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Plan {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(uid) = reference.and_then(|r| r.uid.as_deref()).filter(|uid| !uid.is_empty()) else {
        return Plan::Phase("Available");
    };
    let claim = claim.filter(|c| c.metadata.uid.as_deref() == Some(uid));
    let Some(claim) = claim else { return Plan::Release(reclaim(volume)) };
    let bound_to = volumes::volume_name(claim);
    if bound_to.is_empty() {
        Plan::LookAtClaim
    } else if bound_to == name(&volume.metadata) {
        Plan::Phase("Bound")
    } else if provisioner(volume).is_some() && policy(volume) == "Delete" {
        Plan::Release(reclaim(volume))
    } else {
        Plan::Unbind
    }
}

fn provisioner(volume: &PersistentVolume) -> Option<&str> {
    volumes::volume_annotation(volume, volumes::PROVISIONED_BY)
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

fn reclaim(volume: &PersistentVolume) -> Reclaim {
    match (policy(volume), provisioner(volume)) {
        ("Delete", Some(local_volumes::PROVISIONER)) => Reclaim::Delete,
        ("Delete", Some(_)) => Reclaim::Leave,
        ("Delete", None) => {
            let volume = name(&volume.metadata);
            let message = format!(
                "error getting deleter volume plugin for volume {volume:?}: no deletable volume plugin matched"
            );
            Reclaim::Fail("VolumeFailedDelete", message)
        }
        ("Recycle", _) => {
            let message = "No recycler plugin found for the volume!".into();
            Reclaim::Fail("VolumeFailedRecycle", message)
        }
        _ => Reclaim::Leave,
    }
}
