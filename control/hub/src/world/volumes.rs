//! Claims and volumes: a node is told the claims of its pods, the volumes that these are bound to, and the
//! volumes that it keeps itself, used or not: that one of them is gone is how it knows that the data may go.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rimward_api::{ObjectKey, local_volumes};
use rimward_client::Cache;
use rimward_tunnel::wire::ObjectKind;

use super::interest::{Interest, Reference};
use super::{Entry, World, entry};

const HOSTNAME: &str = "kubernetes.io/hostname";

impl World {
    /// Marks what changes of claims and volumes concern.
    pub(super) fn follow_volumes(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.claims.on_change(move |change| {
            let Some(world) = weak.upgrade() else { return };
            let interest = world.interest.lock();
            interest.mark_referrers(&(ObjectKind::PersistentVolumeClaim, change.key.clone()));
            for claim in [change.old, change.new].into_iter().flatten() {
                interest.mark_volume_of(change.key, claim);
            }
        });
        let weak = Arc::downgrade(self);
        self.volumes.on_change(move |change| {
            let Some(world) = weak.upgrade() else { return };
            let interest = world.interest.lock();
            for volume in [change.old, change.new].into_iter().flatten() {
                for node in world.told_of(&interest, volume) {
                    interest.mark(node, (ObjectKind::PersistentVolume, change.key.clone()));
                }
            }
        });
    }

    /// The nodes that are told a volume.
    fn told_of<'a>(
        &self,
        interest: &'a Interest,
        volume: &'a PersistentVolume,
    ) -> impl Iterator<Item = &'a str> {
        let used = self.claim_that_has(volume);
        let users = used.map(|used| interest.nodes_of(&used).collect::<Vec<_>>());
        home_of(volume).into_iter().chain(users.into_iter().flatten())
    }

    /// The claim that a volume is bound to, if it is bound to that volume.
    fn claim_that_has(&self, volume: &PersistentVolume) -> Option<Reference> {
        let key = claim_of(volume)?;
        let claim = self.claims.get_key(&key)?;
        let both = volume_of(&claim)? == volume.metadata.name.as_deref()?;
        both.then_some((ObjectKind::PersistentVolumeClaim, key))
    }

    /// Whether a node is told a volume.
    fn concerns(&self, interest: &Interest, node: &str, volume: &PersistentVolume) -> bool {
        home_of(volume) == Some(node)
            || self.claim_that_has(volume).is_some_and(|used| interest.concerns(node, &used))
    }

    pub(super) fn told_volume(&self, node: &str, key: &ObjectKey) -> Option<Arc<PersistentVolume>> {
        let volume = self.volumes.get_key(key)?;
        self.concerns(&self.interest.lock(), node, &volume).then_some(volume)
    }

    pub(super) fn told_volumes(&self, node: &str) -> Vec<Entry> {
        let interest = self.interest.lock();
        let all = self.volumes.list().into_iter();
        all.filter(|(_, volume)| self.concerns(&interest, node, volume))
            .map(|(key, volume)| entry(key, &*volume))
            .collect()
    }
}

impl Interest {
    /// The nodes whose pods use a claim look at its volume too.
    fn mark_volume_of(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) {
        if let Some(volume) = volume_of(claim) {
            let used = (ObjectKind::PersistentVolumeClaim, key.clone());
            for node in self.nodes_of(&used) {
                tracing::trace!(node, volume, "its claim changed");
                self.mark(node, (ObjectKind::PersistentVolume, ObjectKey::new("", volume)));
            }
        }
    }

    /// A node's pods begin or cease to use a claim: its volume comes or goes with it.
    pub(super) fn mark_with_volume(
        &self,
        node: &str,
        claims: &Cache<PersistentVolumeClaim>,
        reference: &Reference,
    ) {
        if reference.0 != ObjectKind::PersistentVolumeClaim {
            return;
        }
        if let Some(claim) = claims.get_key(&reference.1)
            && let Some(volume) = volume_of(&claim)
        {
            self.mark(node, (ObjectKind::PersistentVolume, ObjectKey::new("", volume)));
        }
    }
}

fn volume_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(reference.namespace.clone()?, reference.name.clone()?))
}

/// The node that keeps a volume of the built-in provisioner.
fn home_of(volume: &PersistentVolume) -> Option<&str> {
    let by = volume.metadata.annotations.as_ref()?.get(local_volumes::PROVISIONED_BY)?;
    if by != local_volumes::PROVISIONER {
        return None;
    }
    let terms = &volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let mut expressions =
        terms.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    let named = expressions.find(|e| e.key == HOSTNAME)?;
    named.values.as_ref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_keeps_a_volume() {
        let check = |by: &str, key: &str, expected: Option<&str>| {
            let volume: Value = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": by}},
                "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": key, "operator": "In", "values": ["n1"]}]}]}}}});
            let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
            assert_eq!(home_of(&volume), expected);
        };
        check(local_volumes::PROVISIONER, HOSTNAME, Some("n1"));
        check(local_volumes::PROVISIONER, "zone", None);
        check("another", HOSTNAME, None);
    }
}
