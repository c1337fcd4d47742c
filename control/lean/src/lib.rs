//! Pods as the control plane holds them in memory: what the scheduler, the controllers and the hub
//! decide by, and nothing else of them.
//!
//! A cluster has more pods than anything else, and every one lies decoded in the shared informer. As
//! k8s-openapi has it, a pod with one container and one volume takes 14 KB there, most of it room for
//! fields that are not set: a `Volume` alone has thirty sources, side by side. This one takes a quarter,
//! and is read in half the time.
//!
//! It refuses to be written: what it lacks would be gone. Whoever changes a pod sends a patch, or its
//! status alone; whoever needs all of it asks the API.
//!
//!
//! Fields are named and shaped as in k8s-openapi, so that code reads the same; add one when a decision
//! needs it.

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{
    Affinity, ContainerPort, EnvFromSource, EnvVarSource, EphemeralVolumeSource,
    LocalObjectReference, PersistentVolumeClaimVolumeSource, PodSchedulingGate, PodStatus,
    Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize, Serializer};

mod amounts;

pub use amounts::Amounts;

/// core/v1 Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Pod {
    #[serde(default)]
    pub metadata: ObjectMeta,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

impl Pod {
    /// The Secrets that its containers get to see, and those that its images are pulled with. One may
    /// come more than once.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.spec.iter().flat_map(PodSpec::secrets)
    }
}

impl PodSpec {
    fn secrets(&self) -> impl Iterator<Item = &str> {
        let pulls = self.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str());
        let volumes = self.volumes.iter().flatten().flat_map(|volume| {
            let whole = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref());
            let parts = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            let parts = parts.filter_map(|part| Some(part.secret.as_ref()?.name.as_str()));
            whole.into_iter().chain(parts)
        });
        let more = self.init_containers.iter().chain(&self.ephemeral_containers).flatten();
        let containers = self.containers.iter().chain(more);
        let variables = containers.flat_map(|container| {
            let all = container.env_from.iter().flatten();
            let all = all.filter_map(|from| Some(from.secret_ref.as_ref()?.name.as_str()));
            let one = container.env.iter().flatten().filter_map(|variable| {
                let from = variable.value_from.as_ref()?;
                Some(from.secret_key_ref.as_ref()?.name.as_str())
            });
            all.chain(one)
        });
        pulls.chain(volumes).chain(variables)
    }
}

impl k8s_openapi::Resource for Pod {
    const API_VERSION: &'static str = "v1";
    const GROUP: &'static str = "";
    const KIND: &'static str = "Pod";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "pods";
    type Scope = NamespaceResourceScope;
}

impl k8s_openapi::Metadata for Pod {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Clients ask it of whatever they may send; this is never sent.
impl Serialize for Pod {
    fn serialize<S: Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("a pod that lacks most of its fields is not written"))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    pub affinity: Option<Box<Affinity>>,
    #[serde(default)]
    pub containers: Vec<Container>,
    pub ephemeral_containers: Option<Vec<Container>>,
    pub host_network: Option<bool>,
    pub hostname: Option<String>,
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
    pub init_containers: Option<Vec<Container>>,
    pub node_name: Option<String>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub overhead: Option<Amounts>,
    pub preemption_policy: Option<String>,
    pub priority: Option<i32>,
    pub resources: Option<ResourceRequirements>,
    pub restart_policy: Option<String>,
    pub runtime_class_name: Option<String>,
    pub scheduler_name: Option<String>,
    pub scheduling_gates: Option<Vec<PodSchedulingGate>>,
    pub service_account_name: Option<String>,
    pub subdomain: Option<String>,
    pub tolerations: Option<Vec<Toleration>>,
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    pub volumes: Option<Vec<Volume>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    #[serde(default)]
    pub name: String,
    pub env: Option<Vec<EnvVar>>,
    pub env_from: Option<Vec<EnvFromSource>>,
    pub image: Option<String>,
    pub ports: Option<Vec<ContainerPort>>,
    pub resources: Option<ResourceRequirements>,
    pub restart_policy: Option<String>,
}

/// What a variable's value is taken from; not what it is called, nor a value that is said.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    pub value_from: Option<Box<EnvVarSource>>,
}

/// Requests stand for limits too: a limit without a request was made one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ResourceRequirements {
    pub requests: Option<Amounts>,
}

/// The sources that refer to other objects. Of any other only the volume's name is known.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    #[serde(default)]
    pub name: String,
    pub config_map: Option<Named>,
    pub ephemeral: Option<Box<EphemeralVolumeSource>>,
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
    pub projected: Option<Projected>,
    pub secret: Option<SecretVolumeSource>,
}

/// A reference by name within the namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Named {
    #[serde(default)]
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolumeSource {
    pub secret_name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Projected {
    pub sources: Option<Vec<Projection>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Projection {
    pub config_map: Option<Named>,
    pub secret: Option<Named>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decisions_need_is_read() {
        let pod: Pod = serde_json::from_str(
            r#"{ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "p", "labels": { "a": "b" } },
                "spec": {
                    "nodeName": "n", "dnsPolicy": "ClusterFirst",
                    "containers": [{ "name": "c", "image": "i",
                        "env": [{ "name": "A", "value": "1" },
                            { "name": "B", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }],
                        "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "10m" } } }],
                    "volumes": [
                        { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } },
                            { "configMap": { "name": "ca" } }] } },
                        { "name": "d", "persistentVolumeClaim": { "claimName": "data" } }] },
                "status": { "phase": "Running" } }"#,
        )
        .expect("a pod");
        assert_eq!(pod.secrets().collect::<Vec<_>>(), ["s"]);
        let spec = pod.spec.expect("a spec");
        assert_eq!(spec.node_name.as_deref(), Some("n"));
        let container = &spec.containers[0];
        let from = container.env.as_ref().expect("variables")[1].value_from.as_ref();
        assert_eq!(from.expect("a source").secret_key_ref.as_ref().expect("a Secret").name, "s");
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let said: Vec<_> =
            requests.expect("requests").iter().map(|(name, q)| (name, q.0.as_str())).collect();
        assert_eq!(said, [("cpu", "10m")]);
        let volumes = spec.volumes.expect("volumes");
        let sources = volumes[0].projected.as_ref().and_then(|p| p.sources.as_ref());
        assert_eq!(sources.expect("sources")[1].config_map.as_ref().expect("a map").name, "ca");
        let claim = volumes[1].persistent_volume_claim.as_ref();
        assert_eq!(claim.expect("a claim").claim_name, "data");
        assert_eq!(pod.status.expect("a status").phase.as_deref(), Some("Running"));
    }

    #[test]
    fn it_is_small_and_is_not_written() {
        let full = size_of::<k8s_openapi::api::core::v1::Pod>();
        assert!(size_of::<Pod>() * 3 / 2 < full, "{} of {full} bytes", size_of::<Pod>());
        assert!(size_of::<Container>() <= 192 && size_of::<Volume>() <= 160);
        assert!(serde_json::to_string(&Pod::default()).is_err());
    }
}
