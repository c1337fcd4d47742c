//! What becomes of claims and volumes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use rimward_control_controllers::persistent_volume_binder::claim::{self, Plan, Sight};
use rimward_control_controllers::persistent_volume_binder::volume::{self, Reclaim};
use rimward_control_controllers::persistent_volume_binder::{bind, default_class};
use serde_json::{Value, json};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("it is of that kind")
}

fn claim_with(annotations: Value, spec: Value) -> PersistentVolumeClaim {
    let mut whole =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    read(
        json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": annotations}, "spec": whole}),
    )
}

fn volume_with(annotations: Value, spec: Value) -> PersistentVolume {
    let mut whole = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    read(json!({"metadata": {"name": "v", "uid": "w", "annotations": annotations}, "spec": whole,
        "status": {"phase": "Available"}}))
}

fn class(name: &str, provisioner: &str, mode: &str) -> StorageClass {
    read(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode}))
}

struct World {
    volumes: Vec<Arc<PersistentVolume>>,
    class: Option<StorageClass>,
    default: Option<StorageClass>,
    node: Option<Node>,
    waiting: Vec<String>,
}

fn world() -> World {
    World { volumes: vec![], class: None, default: None, node: None, waiting: vec![] }
}

impl World {
    fn plan(&self, claim: &PersistentVolumeClaim) -> Plan {
        claim::plan(&Sight {
            claim,
            volumes: &self.volumes,
            class: self.class.as_ref(),
            default_class: self.default.as_ref(),
            node: self.node.as_ref(),
            waiting: self.waiting.clone(),
        })
    }

    #[track_caller]
    fn says(&self, claim: &PersistentVolumeClaim, reason: &str, message: &str) {
        let said = match self.plan(claim) {
            Plan::Pending(Some(said)) | Plan::Lost(said) => said,
            other => panic!("{other:?}"),
        };
        assert_eq!((said.reason, said.message.as_str()), (reason, message));
    }
}

#[test]
fn a_claim_without_a_volume() {
    let open = |spec: Value| claim_with(json!({}), spec);
    world().says(
        &open(json!({"storageClassName": ""})),
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    );
    world().says(
        &open(json!({"storageClassName": "x"})),
        "ProvisioningFailed",
        "storageclass.storage.k8s.io \"x\" not found",
    );
    let late = class("x", "rimward.dev/local-path", "WaitForFirstConsumer");
    let mut waits = World { class: Some(late), ..world() };
    let claim = open(json!({"storageClassName": "x"}));
    let first = "waiting for first consumer to be created before binding";
    waits.says(&claim, "WaitForFirstConsumer", first);
    waits.waiting = vec!["a".into()];
    waits.says(&claim, "WaitForPodScheduled", "waiting for pod a to be scheduled");
    let outside = World { class: Some(class("x", "far.example.com", "Immediate")), ..world() };
    assert_eq!(outside.plan(&claim), Plan::Delegate("far.example.com".into()));
    let default = Some(class("d", "p", "Immediate"));
    let usual = World { default, ..world() };
    assert_eq!(usual.plan(&open(json!({}))), Plan::Adopt("d".into()));
    assert!(matches!(usual.plan(&open(json!({"storageClassName": ""}))), Plan::Pending(_)));
}

#[test]
fn a_directory_of_the_chosen_node() {
    let class = class("x", "rimward.dev/local-path", "WaitForFirstConsumer");
    let node = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "host1"},
        "annotations": {"rimward.dev/local-volumes": "/var/lib/r/volumes"}}});
    let mut there = World { class: Some(class), node: Some(read(node)), ..world() };
    let chosen = json!({"volume.kubernetes.io/selected-node": "n1"});
    let claim = |spec: Value| {
        let mut spec = spec;
        spec["storageClassName"] = "x".into();
        claim_with(chosen.clone(), spec)
    };
    let Plan::Provision(volume) = there.plan(&claim(json!({}))) else { panic!("no volume") };
    let shown = serde_json::to_value(&*volume).unwrap();
    assert_eq!(shown["metadata"]["name"], "pvc-u");
    assert_eq!(shown["spec"]["local"]["path"], "/var/lib/r/volumes/pvc-u_n_c");
    assert_eq!(shown["spec"]["claimRef"]["uid"], "u");
    assert_eq!(shown["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    let terms = &shown["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["host1"]));
    let failed = |there: &World, spec: Value, why: &str| {
        let why = format!("failed to provision volume with StorageClass \"x\": {why}");
        there.says(&claim(spec), "ProvisioningFailed", &why);
    };
    failed(&there, json!({"selector": {}}), "claim Selector is not supported");
    failed(
        &there,
        json!({"accessModes": ["ReadWriteMany"]}),
        "accessMode ReadWriteMany is not supported: a volume of this class is on one node (ReadWriteOnce, ReadWriteOncePod)",
    );
    there.node = Some(read(json!({"metadata": {"name": "n1"}})));
    failed(
        &there,
        json!({}),
        "node \"n1\" has no annotation \"rimward.dev/local-volumes\": it keeps no volumes",
    );
}

#[test]
fn a_claim_that_names_its_volume() {
    let free = World { volumes: vec![Arc::new(volume_with(json!({}), json!({})))], ..world() };
    let wants = |spec: Value| {
        let mut spec = spec;
        spec["volumeName"] = "v".into();
        claim_with(json!({}), spec)
    };
    assert!(matches!(free.plan(&wants(json!({}))), Plan::Bind(_)));
    free.says(
        &wants(json!({"volumeMode": "Block"})),
        "VolumeMismatch",
        "Cannot bind to requested volume \"v\": incompatible volumeMode",
    );
    assert_eq!(world().plan(&wants(json!({}))), Plan::Pending(None));
    let other = json!({"claimRef": {"namespace": "n", "name": "other", "uid": "o"}});
    let taken = World { volumes: vec![Arc::new(volume_with(json!({}), other))], ..world() };
    taken.says(
        &wants(json!({})),
        "FailedBinding",
        "volume \"v\" already bound to a different claim.",
    );
}

#[test]
fn a_bound_claim_that_loses_its_volume() {
    let bound =
        claim_with(json!({"pv.kubernetes.io/bind-completed": "yes"}), json!({"volumeName": "v"}));
    world().says(
        &bound,
        "ClaimLost",
        "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
    );
    let of = |uid: &str| json!({"claimRef": {"namespace": "n", "name": "c", "uid": uid}});
    let with =
        |uid: &str| World { volumes: vec![Arc::new(volume_with(json!({}), of(uid)))], ..world() };
    with("another").says(
        &bound,
        "ClaimMisbound",
        "Two claims are bound to the same volume, this one is bound incorrectly",
    );
    assert!(matches!(with("u").plan(&bound), Plan::Bind(_)));
}

#[test]
fn a_volume_and_its_claim() {
    let reference = json!({"namespace": "n", "name": "c", "uid": "u"});
    let check = |by: Value, policy: &str, claim: Option<Value>, expected: volume::Plan| {
        let spec = json!({"claimRef": reference, "persistentVolumeReclaimPolicy": policy});
        let claim = claim.map(|spec| claim_with(json!({}), spec));
        assert_eq!(volume::plan(&volume_with(by, spec), claim.as_ref()), expected);
    };
    let nobodys = volume_with(json!({}), json!({}));
    assert_eq!(volume::plan(&nobodys, None), volume::Plan::Phase("Available"));
    let bound = Some(json!({"volumeName": "v"}));
    check(json!({}), "Retain", bound, volume::Plan::Phase("Bound"));
    check(json!({}), "Retain", Some(json!({})), volume::Plan::LookAtClaim);
    check(json!({}), "Retain", Some(json!({"volumeName": "x"})), volume::Plan::Unbind);
    check(json!({}), "Retain", None, volume::Plan::Release(Reclaim::Leave));
    let by = |who: &str| json!({"pv.kubernetes.io/provisioned-by": who});
    check(by("rimward.dev/local-path"), "Delete", None, volume::Plan::Release(Reclaim::Delete));
    check(by("rimward.dev/local-path"), "Retain", None, volume::Plan::Release(Reclaim::Leave));
    check(by("far.example.com"), "Delete", None, volume::Plan::Release(Reclaim::Leave));
    let message =
        "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched";
    let failed = Reclaim::Fail("VolumeFailedDelete", message.into());
    check(json!({}), "Delete", None, volume::Plan::Release(failed));
}

#[test]
fn a_status_that_a_user_wrote_stays_while_the_phase_does() {
    let mut volume = volume_with(json!({}), json!({}));
    volume.status = Some(read(json!({"phase": "Available", "reason": "mine", "message": "too"})));
    assert_eq!(bind::volume_status(&volume, "Available", ""), None);
    let next = bind::volume_status(&volume, "Bound", "").expect("the phase changes");
    assert_eq!(next.status.expect("a status").reason, None);
    let bound = claim_with(json!({}), json!({"volumeName": "v"}));
    let bound = bind::claim_to(&bound, "v").expect("it is marked");
    assert_eq!(bind::claim_to(&bound, "v"), None);
    let first = bind::claim_status(&bound, "Bound", Some(&volume)).expect("it is bound");
    assert_eq!(bind::claim_status(&first, "Bound", Some(&volume)), None);
}

#[test]
fn a_directory_grows_with_its_claim() {
    let ours = json!({"pv.kubernetes.io/provisioned-by": "rimward.dev/local-path"});
    let wants =
        |size: &str| claim_with(json!({}), json!({"resources": {"requests": {"storage": size}}}));
    assert_eq!(bind::grown(&volume_with(ours.clone(), json!({})), &wants("2Gi")), None);
    assert_eq!(bind::grown(&volume_with(json!({}), json!({})), &wants("3Gi")), None);
    let larger = bind::grown(&volume_with(ours, json!({})), &wants("3Gi")).expect("it grows");
    let capacity = larger.spec.and_then(|s| s.capacity).expect("a capacity");
    assert_eq!(capacity["storage"].0, "3Gi");
    let mut claim = wants("3Gi");
    claim.status = Some(read(json!({"phase": "Bound", "capacity": {"storage": "2Gi"}})));
    let ours = json!({"pv.kubernetes.io/provisioned-by": "rimward.dev/local-path"});
    let volume = volume_with(ours, json!({"capacity": {"storage": "3Gi"}}));
    let told = bind::claim_status(&claim, "Bound", Some(&volume)).expect("it is told");
    assert_eq!(told.status.and_then(|s| s.capacity).expect("a capacity")["storage"].0, "3Gi");
}

#[test]
fn the_newest_default_class_counts() {
    let default = |name: &str, made: &str, is: &str| -> StorageClass {
        read(json!({"metadata": {"name": name, "creationTimestamp": made,
            "annotations": {"storageclass.kubernetes.io/is-default-class": is}}, "provisioner": "p"}))
    };
    let classes = [
        default("old", "2026-01-01T00:00:00Z", "true"),
        default("new", "2026-02-01T00:00:00Z", "true"),
        default("not", "2026-03-01T00:00:00Z", "false"),
    ];
    let name = default_class(&classes).and_then(|c| c.metadata.name.clone());
    assert_eq!(name.as_deref(), Some("new"));
}

#[test]
fn what_is_to_go_with_its_directory_is_held() {
    let check =
        |by: &str, policy: &str, leaving: bool, held: bool, plan: volume::Plan, expected| {
            let mut volume = volume_with(
                json!({"pv.kubernetes.io/provisioned-by": by}),
                json!({"persistentVolumeReclaimPolicy": policy}),
            );
            let other = "kubernetes.io/pv-protection".to_owned();
            let finalizers = std::iter::once(other).chain(held.then(|| volume::HELD.to_owned()));
            volume.metadata.finalizers = Some(finalizers.collect());
            volume.metadata.deletion_timestamp =
                leaving.then(|| serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
            let next =
                volume::held(&volume, &plan).map(|v| v.metadata.finalizers.unwrap().len() == 2);
            assert_eq!(next, expected, "{by} {policy} {leaving} {held}");
        };
    let ours = "rimward.dev/local-path";
    let (bound, release) =
        (|| volume::Plan::Phase("Bound"), || volume::Plan::Release(Reclaim::Delete));
    check(ours, "Delete", false, false, bound(), Some(true));
    check(ours, "Delete", false, true, bound(), None);
    check(ours, "Delete", true, true, bound(), None);
    check(ours, "Delete", true, false, bound(), None);
    check(ours, "Delete", false, true, release(), None);
    check(ours, "Delete", true, true, release(), Some(false));
    check(ours, "Delete", true, true, volume::Plan::Phase("Available"), Some(false));
    check(ours, "Retain", false, true, bound(), Some(false));
    check(ours, "Retain", false, false, bound(), None);
    check("far.example.com", "Delete", false, false, bound(), None);
}
