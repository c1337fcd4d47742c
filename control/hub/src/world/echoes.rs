//! What nodes said of their pods comes back from the API as a change of the pod. To tell a node what it
//! said itself would be half of all that nodes are told, each time with the whole pod, to be written
//! to the node's disk.
//!
//! A node therefore holds pods with older statuses and resourceVersions than the API does. When it
//! connects again it is told those once; nothing that it decides depends on them before.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::PodStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use rimward_control_lean::Pod;

/// Statuses that are on their way into the API, by the pod's UID.
#[derive(Default)]
pub struct Echoes(Mutex<HashMap<String, PodStatus>>);

impl Echoes {
    /// This status, which its node reported, is about to be written.
    pub fn expect(&self, uid: &str, status: PodStatus) {
        self.0.lock().insert(uid.to_owned(), status);
    }

    /// It was not written.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// Whether a change is only that what was expected came. An expectation is good for one change:
    /// if another comes in its place, the node has to be told of both.
    pub fn came(&self, old: Option<&Pod>, new: Option<&Pod>) -> bool {
        let uid = new.or(old).and_then(|pod| pod.metadata.uid.as_deref()).unwrap_or_default();
        let Some(said) = self.0.lock().remove(uid) else { return false };
        let (Some(old), Some(new)) = (old, new) else { return false };
        same_but_status(&old.metadata, &new.metadata) && new.status.as_ref() == Some(&said)
    }
}

/// Whether two versions of a pod differ in their status at most. The generation counts what changes
/// in the spec, also what the lean pod does not hold.
fn same_but_status(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    old.uid == new.uid
        && old.generation == new.generation
        && old.deletion_timestamp == new.deletion_timestamp
        && old.deletion_grace_period_seconds == new.deletion_grace_period_seconds
        && old.finalizers == new.finalizers
        && old.labels == new.labels
        && old.annotations == new.annotations
        && old.owner_references == new.owner_references
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_what_the_node_said_is_an_echo() {
        let pod = |change: fn(&mut Value)| -> Pod {
            let mut pod = json!({
                "metadata": { "name": "p", "uid": "u", "generation": 1, "resourceVersion": "5" },
                "spec": { "containers": [], "nodeName": "n" }, "status": { "phase": "Pending" },
            });
            change(&mut pod);
            serde_json::from_value(pod).expect("a pod")
        };
        let as_it_was: fn(&mut Value) = |_| {};
        let check = |what: &str, change: fn(&mut Value), echo: bool| {
            let echoes = Echoes::default();
            echoes.expect("u", PodStatus { phase: Some("Running".into()), ..PodStatus::default() });
            let (old, mut new) = (pod(as_it_was), pod(change));
            new.metadata.resource_version = Some("6".into());
            assert_eq!(echoes.came(Some(&old), Some(&new)), echo, "{what}");
            assert!(!echoes.came(Some(&old), Some(&new)), "{what}, twice");
        };
        check("what was said", |p| p["status"]["phase"] = "Running".into(), true);
        check("something else", |p| p["status"]["phase"] = "Failed".into(), false);
        let more =
            |p: &mut Value| p["status"] = json!({ "phase": "Running", "qosClass": "Burstable" });
        check("more than was said", more, false);
        let with_spec = |p: &mut Value| {
            p["status"]["phase"] = "Running".into();
            p["metadata"]["generation"] = 2.into();
        };
        check("the spec too", with_spec, false);
        let labelled = |p: &mut Value| {
            p["status"]["phase"] = "Running".into();
            p["metadata"]["labels"] = json!({ "a": "b" });
        };
        check("a label too", labelled, false);
        let leaving = |p: &mut Value| {
            p["status"]["phase"] = "Running".into();
            p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        };
        check("a deletion too", leaving, false);

        let echoes = Echoes::default();
        echoes.expect("u", PodStatus::default());
        assert!(!echoes.came(Some(&pod(as_it_was)), None), "a pod that is gone");
        assert!(echoes.0.lock().is_empty());
    }
}
