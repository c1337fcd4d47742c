//! The two sides of a binding as they should be. Pure: each answers the next object, None when it is so
//! already.

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus,
};
use rimward_api::local_volumes;
use rimward_control_volumes as volumes;

/// The claim, with this volume and marked as bound.
pub fn claim_to(claim: &PersistentVolumeClaim, volume: &str) -> Option<PersistentVolumeClaim> {
    let mut next = claim.clone();
    if volumes::volume_name(claim) != volume {
        next.spec.get_or_insert_default().volume_name = Some(volume.to_owned());
        volumes::annotate(&mut next.metadata.annotations, volumes::BOUND_BY_CONTROLLER, "yes");
    }
    volumes::annotate(&mut next.metadata.annotations, volumes::BIND_COMPLETED, "yes");
    (next != *claim).then_some(next)
}

/// The claim with its phase, and what its volume gives it.
pub fn claim_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> Option<PersistentVolumeClaim> {
    let mut next = claim.clone();
    let status = next.status.get_or_insert_with(PersistentVolumeClaimStatus::default);
    let was_bound = status.phase.as_deref() == Some("Bound");
    status.phase = Some(phase.to_owned());
    match volume.and_then(|v| v.spec.as_ref()) {
        None => (status.access_modes, status.capacity) = (None, None),
        Some(spec) => {
            status.access_modes = spec.access_modes.clone();
            // Of a bound claim it is the resizer's: of a directory, which has any size, this controller.
            if !was_bound || status.capacity.is_none() || volume.is_some_and(is_directory) {
                status.capacity = spec.capacity.clone();
            }
        }
    }
    (next != *claim).then_some(next)
}

/// The volume, as large as its claim now wants it; a class that lets claims grow is why it may.
pub fn grown(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    if !is_directory(volume) || volumes::requested(claim) <= volumes::capacity(volume) {
        return None;
    }
    let mut next = volume.clone();
    let wanted = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.clone());
    next.spec.get_or_insert_default().capacity = wanted;
    Some(next)
}

fn is_directory(volume: &PersistentVolume) -> bool {
    volumes::volume_annotation(volume, volumes::PROVISIONED_BY) == Some(local_volumes::PROVISIONER)
}

/// The volume with its phase. What a user may have said beside it stays while the phase does.
pub fn volume_status(
    volume: &PersistentVolume,
    phase: &str,
    message: &str,
) -> Option<PersistentVolume> {
    let mut next = volume.clone();
    let status = next.status.get_or_insert_with(PersistentVolumeStatus::default);
    if status.phase.as_deref() == Some(phase) {
        return None;
    }
    status.phase = Some(phase.to_owned());
    status.message = Some(message.to_owned()).filter(|m| !m.is_empty());
    status.reason = None;
    Some(next)
}

/// The volume, free again: wholly where the binder had chosen it, else still for whoever has the name.
pub fn unbound(volume: &PersistentVolume) -> PersistentVolume {
    let mut next = volume.clone();
    let chosen = volumes::volume_annotation(volume, volumes::BOUND_BY_CONTROLLER).is_some();
    let spec = next.spec.get_or_insert_default();
    if chosen {
        spec.claim_ref = None;
        if let Some(annotations) = &mut next.metadata.annotations {
            annotations.remove(volumes::BOUND_BY_CONTROLLER);
        }
    } else if let Some(reference) = &mut spec.claim_ref {
        reference.uid = None;
        reference.resource_version = None;
    }
    next
}
