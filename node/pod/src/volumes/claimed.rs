//! The volume behind a claim: which one it is, and what it is on this node.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod, Volume,
};
use rimward_api::local_volumes;

use super::content::Nfs;
use crate::downward::Facts;
use crate::outside::Objects;

const HOSTNAME: &str = "kubernetes.io/hostname";
/// On a volume. <https://kubernetes.io/docs/tasks/configure-pod-container/configure-persistent-volume-storage/#access-control>
const GROUP: &str = "pv.beta.kubernetes.io/gid";

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
    /// A file system on a disk of the node.
    Disk(Disk),
    /// A disk of the node itself (`volumeMode: Block`).
    Device {
        path: PathBuf,
    },
    Nfs(Nfs),
}

/// A block device, to be mounted; one that is empty is formatted before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Disk {
    pub device: PathBuf,
    pub fs_type: String,
    pub options: Vec<String>,
    pub read_only: bool,
}

/// A claim's volume: its name, for messages, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claimed {
    pub volume: String,
    pub source: Source,
    /// Whatever mounts say: nothing of it is changed, not even whose it is.
    pub read_only: bool,
    /// For one pod at a time.
    pub exclusive: bool,
    /// A group that whoever uses it is to be in.
    pub group: Option<i64>,
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
    facts: &Facts<'_>,
) -> Result<Claimed, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let unprocessed = |why: String| {
        let name = &volume.name;
        format!(
            "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to process volumes=[{name}]: {why}"
        )
    };
    let failed =
        |why: String| unprocessed(format!("error processing PVC {namespace}/{claim_name}: {why}"));
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
    fits_mode(pod, volume, &found).map_err(unprocessed)?;
    if !is_reached(&found, facts.node_name) {
        return Err(format!(
            "MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms"
        ));
    }
    let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true);
    let source = source(&found, read_only).map_err(|why| {
        format!("MountVolume.NewMounter initialization failed for volume {name:?} : {why}")
    })?;
    let source = looked_at(source, &found, read_only)
        .map_err(|why| format!("MountVolume.SetUp failed for volume {name:?} : {why}"))?;
    // With several modes nobody knows which one the pod means.
    let modes = found.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    let exclusive = matches!(modes, [only] if only == "ReadWriteOncePod");
    let group = found.metadata.annotations.as_ref().and_then(|a| a.get(GROUP)?.parse().ok());
    Ok(Claimed { volume: name.to_owned(), source, read_only, exclusive, group })
}

/// A volume is mounted or is a device, as its mode says, and no container may take it for the other.
fn fits_mode(pod: &Pod, volume: &Volume, found: &PersistentVolume) -> Result<(), String> {
    let mode = found.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    let spec = pod.spec.as_ref();
    let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
    let containers: Vec<_> = spec.into_iter().flat_map(|s| &s.containers).chain(init).collect();
    let name = &volume.name;
    let mut mounts = containers.iter().flat_map(|c| c.volume_mounts.iter().flatten());
    let mut devices = containers.iter().flat_map(|c| c.volume_devices.iter().flatten());
    let wrong = |field: &str| {
        Err(format!("volume {name} has volumeMode {mode}, but is specified in {field}"))
    };
    if mode == "Block" && mounts.any(|mount| mount.name == *name) {
        return wrong("volumeMounts");
    }
    match mode != "Block" && devices.any(|device| device.name == *name) {
        true => wrong("volumeDevices"),
        false => Ok(()),
    }
}

/// Whether this node may be one that reaches a volume, by what it knows of itself: its name. Labels are the control
/// plane's, and the scheduler has looked at them; a pod that was bound past it is held here.
fn is_reached(volume: &PersistentVolume, node_name: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    let names = |r: &NodeSelectorRequirement, key: &str| match (r.key == key, r.operator.as_str()) {
        (true, "In") => r.values.iter().flatten().any(|v| v == node_name),
        (true, "NotIn") => r.values.iter().flatten().all(|v| v != node_name),
        _ => true,
    };
    let holds = |term: &NodeSelectorTerm| {
        term.match_expressions.iter().flatten().all(|r| names(r, HOSTNAME))
            && term.match_fields.iter().flatten().all(|r| names(r, "metadata.name"))
    };
    required.is_none_or(|required| required.node_selector_terms.iter().any(holds))
}

/// What lies where a local volume is said to be: a directory, or a disk.
fn looked_at(source: Source, volume: &PersistentVolume, read_only: bool) -> Result<Source, String> {
    let spec = volume.spec.as_ref();
    match source {
        Source::Local { path, ours: false } => match std::fs::metadata(&path) {
            Ok(found) if found.file_type().is_block_device() => {
                let local = spec.and_then(|s| s.local.as_ref());
                let fs_type = local.and_then(|l| l.fs_type.clone()).filter(|t| !t.is_empty());
                Ok(Source::Disk(Disk {
                    device: path,
                    fs_type: fs_type.unwrap_or_else(|| "ext4".into()),
                    options: spec.and_then(|s| s.mount_options.clone()).unwrap_or_default(),
                    read_only,
                }))
            }
            Ok(found) if !found.is_dir() => {
                Err("only directory and block device are supported".into())
            }
            // What is missing says so when it is used.
            _ => Ok(Source::Local { path, ours: false }),
        },
        Source::Device { path } => match std::fs::metadata(&path) {
            Ok(found) if found.file_type().is_block_device() => Ok(Source::Device { path }),
            Ok(_) => Err(format!("path {:?} is not a block device", path.display())),
            Err(cause) => Err(format!("path {:?}: {cause}", path.display())),
        },
        other => Ok(other),
    }
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

/// `read_only` is what the pod says of its claim.
fn source(volume: &PersistentVolume, read_only: bool) -> Result<Source, String> {
    let spec = volume.spec.as_ref().ok_or("it has no spec")?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return match &spec.local {
            Some(local) => Ok(Source::Device { path: PathBuf::from(&local.path) }),
            None => Err("only local volumes can be of mode Block on this node".into()),
        };
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
            read_only: nfs.read_only == Some(true) || read_only,
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
        assert_eq!(source(&volume, false), expected.map_err(String::from));
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
            Ok(Source::Device { path: "/dev/x".into() }),
        );
        check(
            json!({"by": "", "volumeMode": "Block", "hostPath": {"path": "/dev/x"}}),
            Err("only local volumes can be of mode Block on this node"),
        );
        check(
            json!({"by": "", "claimRef": {"name": "c"}, "csi": {"driver": "d", "volumeHandle": "h"}}),
            Err("this node does not support volumes of type csi"),
        );
    }

    #[test]
    fn where_a_volume_is_reached() {
        let check = |terms: Value, expected: bool| {
            let affinity = json!({"required": {"nodeSelectorTerms": terms}});
            let volume = json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": affinity}});
            let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
            assert_eq!(is_reached(&volume, "n1"), expected, "{terms}");
        };
        let host = |operator: &str, name: &str| json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": operator, "values": [name]}]});
        let zone =
            json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]});
        check(json!([host("In", "n1")]), true);
        check(json!([host("In", "n2")]), false);
        check(json!([host("NotIn", "n1")]), false);
        check(json!([host("In", "n2"), zone]), true);
        let field =
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]});
        check(json!([field]), false);
        let anywhere = serde_json::from_value(json!({"spec": {}})).unwrap();
        assert!(is_reached(&anywhere, "n1"));
    }

    #[test]
    fn a_disk_is_not_a_directory() {
        let check = |mode: &str, container: Value, expected: Result<(), &str>| {
            let pod = json!({"spec": {"containers": [container]}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let volume = Volume { name: "v".into(), ..Volume::default() };
            let found = serde_json::from_value(json!({"spec": {"volumeMode": mode}})).unwrap();
            assert_eq!(fits_mode(&pod, &volume, &found), expected.map_err(String::from));
        };
        let mount = json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let device = json!({"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]});
        check("Filesystem", mount.clone(), Ok(()));
        check("Block", device.clone(), Ok(()));
        let text = "volume v has volumeMode Block, but is specified in volumeMounts";
        check("Block", mount, Err(text));
        let text = "volume v has volumeMode Filesystem, but is specified in volumeDevices";
        check("Filesystem", device, Err(text));
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
