//! The volume behind a claim: which one it is, and what it is on this node.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use rimward_api::local_volumes;

use super::content::Nfs;
use crate::outside::Objects;

/// A volume that is there, or is to be made, outside of the pod's own directory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    Host {
        path: PathBuf,
        kind: String,
    },
    /// A directory that keeps what pods leave in it. One that is `ours` is made when it is missing.
    Local {
        path: PathBuf,
        ours: bool,
    },
    Nfs(Nfs),
}

/// A claim's volume: its name, for messages, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claimed {
    pub volume: String,
    pub source: Source,
}

/// The claim behind a pod's volume.
pub(crate) fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            Some(format!("{pod}-{}", volume.name))
        }
        (None, None) => None,
    }
}

/// Err is what the FailedMount Event says, in the kubelet's words.
pub(crate) async fn find(
    pod: &Pod,
    volume: &Volume,
    claim_name: &str,
    objects: &dyn Objects,
) -> Result<Claimed, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let failed = |why: String| {
        let name = &volume.name;
        format!(
            "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to process volumes=[{name}]: error processing PVC {namespace}/{claim_name}: {why}"
        )
    };
    let claim = objects
        .claim(namespace, claim_name)
        .await
        .map_err(|e| failed(format!("failed to fetch PVC from API server: {e}")))?;
    if volume.ephemeral.is_some() && !is_owned(&claim, pod) {
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        return Err(failed(format!(
            "PVC {namespace}/{claim_name} was not created for pod {namespace}/{pod} (pod is not owner)"
        )));
    }
    let name = bound_to(&claim).ok_or_else(|| failed("PVC is not bound".into()))?;
    let found = objects
        .volume(name)
        .await
        .map_err(|e| failed(format!("failed to fetch PV {name:?} from API server: {e}")))?;
    belongs(&found, &claim).map_err(failed)?;
    let source = source(&found).map_err(|why| {
        format!("MountVolume.NewMounter initialization failed for volume {name:?} : {why}")
    })?;
    Ok(Claimed { volume: name.to_owned(), source })
}

fn is_owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref())
}

fn bound_to(claim: &PersistentVolumeClaim) -> Option<&str> {
    let phase = claim.status.as_ref()?.phase.as_deref()?;
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    (phase == "Bound" && !name.is_empty()).then_some(name)
}

fn belongs(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).ok_or_else(|| {
        format!("found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim")
    })?;
    if reference.uid != claim.metadata.uid {
        let text = |uid: &Option<String>| uid.clone().unwrap_or_default();
        return Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {}",
            text(&reference.uid),
            text(&claim.metadata.uid)
        ));
    }
    Ok(())
}

fn source(volume: &PersistentVolume) -> Result<Source, String> {
    let spec = volume.spec.as_ref().ok_or("it has no spec")?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("this node does not support volumes of mode Block".into());
    }
    if let Some(host) = &spec.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        return Ok(Source::Host { path: PathBuf::from(&host.path), kind });
    }
    if let Some(local) = &spec.local {
        let by = volume.metadata.annotations.as_ref();
        let by = by.and_then(|a| a.get(local_volumes::PROVISIONED_BY));
        let ours = by.is_some_and(|by| by == local_volumes::PROVISIONER);
        return Ok(Source::Local { path: PathBuf::from(&local.path), ours });
    }
    if let Some(nfs) = &spec.nfs {
        return Ok(Source::Nfs(Nfs {
            server: nfs.server.clone(),
            path: nfs.path.clone(),
            read_only: nfs.read_only == Some(true),
            options: spec.mount_options.clone().unwrap_or_default(),
        }));
    }
    let value = serde_json::to_value(spec).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    let known = ["claimRef", "nodeAffinity", "capacity"];
    let kind =
        fields.filter(|(k, v)| v.is_object() && !known.contains(&k.as_str())).map(|(k, _)| k);
    let kind = kind.into_iter().next().cloned().unwrap_or_else(|| "(none)".into());
    Err(format!("this node does not support volumes of type {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(spec: Value, expected: Result<Source, &str>) {
        let volume = json!({"metadata": {"name": "v", "annotations":
            {"pv.kubernetes.io/provisioned-by": spec["by"].clone()}}, "spec": spec});
        let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
        assert_eq!(source(&volume), expected.map_err(String::from));
    }

    #[test]
    fn sources() {
        check(
            json!({"by": "", "hostPath": {"path": "/x", "type": "Directory"}}),
            Ok(Source::Host { path: "/x".into(), kind: "Directory".into() }),
        );
        check(
            json!({"by": "rimward.dev/local-path", "local": {"path": "/x"}}),
            Ok(Source::Local { path: "/x".into(), ours: true }),
        );
        check(
            json!({"by": "me", "local": {"path": "/x"}}),
            Ok(Source::Local { path: "/x".into(), ours: false }),
        );
        check(
            json!({"by": "", "volumeMode": "Block", "local": {"path": "/dev/x"}}),
            Err("this node does not support volumes of mode Block"),
        );
        check(
            json!({"by": "", "claimRef": {"name": "c"}, "csi": {"driver": "d", "volumeHandle": "h"}}),
            Err("this node does not support volumes of type csi"),
        );
    }

    #[test]
    fn only_the_claim_that_it_is_bound_to() {
        let claim = |uid: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "uid": uid}})).unwrap()
        };
        let volume =
            json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"name": "c", "uid": "u"}}});
        let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
        assert_eq!(belongs(&volume, &claim("u")), Ok(()));
        let other =
            "found PV object v but its pv.Spec.ClaimRef.UID u does not point to claim.UID w";
        assert_eq!(belongs(&volume, &claim("w")), Err(other.into()));
    }
}
