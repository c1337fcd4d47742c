//! The built-in kinds: the facts of `facts/resources.json` joined with the rules of this crate.

use std::collections::HashMap;
use std::sync::Arc;

use rimward_api::GroupVersionResource;
use serde::Deserialize;

use crate::kind::{Column, Conversion, Kind, Scope, Subresource};
use crate::rules::Rules;
use crate::{
    apps, autoscaling, batch, certificates, cluster, core, custom, device, extension, flowcontrol,
    networking, pod, rbac, service, storage,
};

const RESOURCES: &str = include_str!("../facts/resources.json");

/// Kinds by resource and by kind. Built-in ones are there from the start; the API server adds those
/// of CustomResourceDefinitions.
#[derive(Clone, Default)]
pub struct Catalog {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<GroupVersionResource, usize>,
    by_kind: HashMap<(String, String, String), usize>,
}

impl Catalog {
    pub fn builtin() -> Self {
        let mut catalog = Self::default();
        builtin().into_iter().for_each(|kind| catalog.insert(kind));
        catalog
    }

    /// Adds a kind, or replaces the one of the same group, version and resource.
    pub fn insert(&mut self, kind: Arc<Kind>) {
        let resource = GroupVersionResource::new(&kind.group, &kind.version, &kind.resource);
        let by_kind = (kind.group.clone(), kind.version.clone(), kind.kind.clone());
        if let Some(at) = self.by_resource.get(&resource).copied() {
            self.by_kind.retain(|_, i| *i != at);
            self.by_kind.insert(by_kind, at);
            self.kinds[at] = kind;
            return;
        }
        self.by_resource.insert(resource, self.kinds.len());
        self.by_kind.insert(by_kind, self.kinds.len());
        self.kinds.push(kind);
    }

    /// In the order of discovery.
    pub fn all(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    pub fn get(&self, resource: &GroupVersionResource) -> Option<&Arc<Kind>> {
        self.by_resource.get(resource).map(|i| &self.kinds[*i])
    }

    pub fn by_resource(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.get(&GroupVersionResource::new(group, version, resource))
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        self.by_kind.get(&key).map(|i| &self.kinds[*i])
    }
}

/// All built-in kinds, in the order of discovery.
pub fn builtin() -> Vec<Arc<Kind>> {
    let facts: Vec<Fact> =
        serde_json::from_str(RESOURCES).expect("resources.json is a list of resources");
    facts.into_iter().map(|fact| Arc::new(fact.into_kind())).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fact {
    group: String,
    version: String,
    resource: String,
    kind: String,
    scope: String,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    verbs: Vec<String>,
    subresources: Vec<SubFact>,
    #[serde(default)]
    columns: Vec<(String, String, String, i32)>,
}

#[derive(Deserialize)]
struct SubFact {
    name: String,
    kind: String,
    group: String,
    version: String,
    verbs: Vec<String>,
}

impl Fact {
    fn into_kind(self) -> Kind {
        let rules = rules_of(&self.group, &self.version, &self.kind);
        let or_own =
            |given: String, own: &str| if given.is_empty() { own.to_owned() } else { given };
        let subresources = self
            .subresources
            .into_iter()
            .map(|s| Subresource {
                speaks: (s.kind != self.kind).then(|| {
                    // An empty version in the facts means the parent's group and version.
                    let group = if s.version.is_empty() { self.group.clone() } else { s.group };
                    (group, or_own(s.version, &self.version), s.kind)
                }),
                name: s.name,
                verbs: s.verbs,
            })
            .collect();
        let columns = self
            .columns
            .into_iter()
            .map(|(name, kind, format, priority)| Column {
                name,
                kind,
                format,
                priority,
                description: String::new(),
            })
            .collect();
        let storage_group = match self.group.as_str() {
            // Events are one set of records under two groups.
            "" | "events.k8s.io" => "core",
            group => group,
        };
        Kind {
            storage: format!("/{storage_group}/{}/", self.resource),
            schema: format!("{}.{}", schema_package(&self.group, &self.version), self.kind),
            selectable_fields: rules.fields.iter().map(|(label, _)| (*label).to_owned()).collect(),
            not_yet: not_yet(&self.group, &self.kind),
            deprecated: deprecated(&self.group, &self.kind),
            conversion: conversion_of(&self.group, &self.version, &self.kind),
            hooks: Arc::new(rules),
            scope: if self.scope == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
            group: self.group,
            version: self.version,
            kind: self.kind,
            resource: self.resource,
            singular: self.singular,
            short_names: self.short_names,
            categories: self.categories,
            verbs: self.verbs,
            subresources,
            columns,
        }
    }
}

/// Where the definitions of a group stand in the schema model.
fn schema_package(group: &str, version: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}"),
        "apiextensions.k8s.io" => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}")
        }
        "apiregistration.k8s.io" => {
            format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}")
        }
        "metrics.k8s.io" => format!("io.k8s.metrics.pkg.apis.metrics.{version}"),
        // rbac.authorization.k8s.io → rbac, flowcontrol.apiserver.k8s.io → flowcontrol, apps → apps.
        group => format!("io.k8s.api.{}.{version}", group.split('.').next().unwrap_or(group)),
    }
}

/// The warning that a write to a kind answers with whose behaviour does not exist yet.
fn not_yet(group: &str, kind: &str) -> Option<String> {
    let missing = match (group, kind) {
        ("autoscaling", _) => "nothing scales its target yet",
        ("storage.k8s.io", "StorageClass") => return None,
        ("storage.k8s.io", _) => "nodes run no CSI drivers yet",
        ("networking.k8s.io", "NetworkPolicy") => "its rules are not enforced yet",
        ("resource.k8s.io", _) => "no device is allocated yet",
        _ => return None,
    };
    Some(format!("Rimward stores this {kind}, but {missing}"))
}

/// The warning of a kind that Kubernetes advises against, in the words of
/// `k8s.io/apiserver/pkg/endpoints/deprecation`.
fn deprecated(group: &str, kind: &str) -> Option<String> {
    let text = match (group, kind) {
        ("", "ComponentStatus") => "v1 ComponentStatus is deprecated in v1.19+",
        ("", "Endpoints") => {
            "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn conversion_of(group: &str, version: &str, kind: &str) -> Option<Arc<dyn Conversion>> {
    match (group, version, kind) {
        ("events.k8s.io", _, "Event") => Some(Arc::new(core::event::EventConversion)),
        ("autoscaling", "v1", _) => Some(Arc::new(autoscaling::AutoscalerConversion)),
        _ => None,
    }
}

/// What each kind does.
fn rules_of(group: &str, version: &str, kind: &str) -> Rules {
    match (group, kind) {
        ("", "Pod") => pod::POD,
        ("", "Service") => service::SERVICE,
        ("", "ConfigMap") => core::config::CONFIG_MAP,
        ("", "Secret") => core::config::SECRET,
        ("", "ServiceAccount") => core::config::SERVICE_ACCOUNT,
        ("", "LimitRange") => core::quota::LIMIT_RANGE,
        ("", "ResourceQuota") => core::quota::RESOURCE_QUOTA,
        ("", "Namespace") => core::namespace::NAMESPACE,
        ("", "Node") => core::node::NODE,
        ("", "Event") => core::event::EVENT,
        ("events.k8s.io", "Event") => core::event::NEW_EVENT,
        ("", "Endpoints") => networking::endpoints::ENDPOINTS,
        ("", "PersistentVolume") => storage::PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => storage::PERSISTENT_VOLUME_CLAIM,
        ("", "PodTemplate") => apps::POD_TEMPLATE,
        ("", "ReplicationController") => apps::replicaset::REPLICATION_CONTROLLER,
        ("", "ComponentStatus") => cluster::COMPONENT_STATUS,
        ("metrics.k8s.io", "NodeMetrics") => cluster::NODE_METRICS,
        ("metrics.k8s.io", "PodMetrics") => cluster::POD_METRICS,
        ("apps", "Deployment") => apps::deployment::DEPLOYMENT,
        ("apps", "ReplicaSet") => apps::replicaset::REPLICASET,
        ("apps", "StatefulSet") => apps::statefulset::STATEFULSET,
        ("apps", "DaemonSet") => apps::daemonset::DAEMONSET,
        ("apps", "ControllerRevision") => apps::CONTROLLER_REVISION,
        ("batch", "Job") => batch::JOB,
        ("batch", "CronJob") => batch::cronjob::CRON_JOB,
        ("autoscaling", _) if version == "v1" => autoscaling::AUTOSCALER_V1,
        ("autoscaling", _) => autoscaling::AUTOSCALER,
        ("discovery.k8s.io", _) => networking::endpoints::ENDPOINT_SLICE,
        ("networking.k8s.io", "Ingress") => networking::ingress::INGRESS,
        ("networking.k8s.io", "IngressClass") => networking::ingress::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => networking::policy::NETWORK_POLICY,
        ("networking.k8s.io", "ServiceCIDR") => networking::SERVICE_CIDR,
        ("networking.k8s.io", "IPAddress") => networking::IP_ADDRESS,
        ("rbac.authorization.k8s.io", "Role") => rbac::ROLE,
        ("rbac.authorization.k8s.io", "ClusterRole") => rbac::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding") => rbac::ROLE_BINDING,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => rbac::CLUSTER_ROLE_BINDING,
        ("storage.k8s.io", "StorageClass") => storage::class::STORAGE_CLASS,
        ("storage.k8s.io", "CSIDriver") => storage::driver::CSI_DRIVER,
        ("storage.k8s.io", "CSINode") => storage::driver::CSI_NODE,
        ("storage.k8s.io", "CSIStorageCapacity") => storage::driver::CSI_STORAGE_CAPACITY,
        ("storage.k8s.io", "VolumeAttachment") => storage::driver::VOLUME_ATTACHMENT,
        ("storage.k8s.io", "VolumeAttributesClass") => storage::class::VOLUME_ATTRIBUTES_CLASS,
        ("coordination.k8s.io", "Lease") => cluster::LEASE,
        ("scheduling.k8s.io", "PriorityClass") => cluster::PRIORITY_CLASS,
        ("node.k8s.io", "RuntimeClass") => cluster::RUNTIME_CLASS,
        ("certificates.k8s.io", _) => certificates::CERTIFICATE_SIGNING_REQUEST,
        ("policy", "PodDisruptionBudget") => cluster::POD_DISRUPTION_BUDGET,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => flowcontrol::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            flowcontrol::PRIORITY_LEVEL
        }
        ("resource.k8s.io", "ResourceClaim") => device::RESOURCE_CLAIM,
        ("resource.k8s.io", "ResourceClaimTemplate") => device::RESOURCE_CLAIM_TEMPLATE,
        ("resource.k8s.io", "ResourceSlice") => device::RESOURCE_SLICE,
        ("resource.k8s.io", "DeviceClass") => device::DEVICE_CLASS,
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => {
            extension::VALIDATING_WEBHOOKS
        }
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => {
            extension::MUTATING_WEBHOOKS
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            extension::VALIDATING_POLICY
        }
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => extension::MUTATING_POLICY,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            extension::VALIDATING_POLICY_BINDING
        }
        ("admissionregistration.k8s.io", _) => extension::POLICY_BINDING,
        ("apiextensions.k8s.io", _) => custom::definition::CUSTOM_RESOURCE_DEFINITION,
        ("apiregistration.k8s.io", _) => extension::API_SERVICE,
        _ => cluster::ANSWERED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups() {
        let catalog = Catalog::builtin();
        assert_eq!(catalog.all().len(), 70);
        #[track_caller]
        fn check(catalog: &Catalog, group: &str, resource: &str, schema: &str, storage: &str) {
            let kind = catalog.by_resource(group, "v1", resource).expect("is served");
            assert_eq!((kind.schema.as_str(), kind.storage.as_str()), (schema, storage));
            let same = catalog.by_kind(group, "v1", &kind.kind).expect("is found by kind");
            assert!(Arc::ptr_eq(kind, same));
        }
        check(&catalog, "", "pods", "io.k8s.api.core.v1.Pod", "/core/pods/");
        check(&catalog, "events.k8s.io", "events", "io.k8s.api.events.v1.Event", "/core/events/");
        check(
            &catalog,
            "rbac.authorization.k8s.io",
            "roles",
            "io.k8s.api.rbac.v1.Role",
            "/rbac.authorization.k8s.io/roles/",
        );
        let pod = catalog.by_resource("", "v1", "pods").expect("is served");
        let speaks = |sub: &str| pod.subresource(sub).expect("is there").speaks.clone();
        assert_eq!(speaks("status"), None);
        assert_eq!(speaks("eviction"), Some(("policy".into(), "v1".into(), "Eviction".into())));
        assert_eq!(speaks("exec"), Some(("".into(), "v1".into(), "PodExecOptions".into())));
    }

    #[test]
    fn a_row_has_a_cell_for_every_column() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        for kind in builtin() {
            let empty = serde_json::json!({ "metadata": { "name": "x" } });
            if !kind.columns.is_empty() {
                assert_eq!(
                    kind.hooks.cells(&empty, now).len(),
                    kind.columns.len(),
                    "{}",
                    kind.schema
                );
            }
        }
    }
}
