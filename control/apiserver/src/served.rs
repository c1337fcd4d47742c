//! The kinds as this server serves them: the catalog joined with the schema model and what the
//! engine keeps per kind.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rimward_api::{GroupKind, GroupResource, GroupVersionResource, ObjectKey};
use rimward_control_kinds::{Catalog, Kind};
use rimward_control_schema::{DefId, Expected, Model};

use crate::record;

/// One served resource.
pub struct Served {
    pub kind: Arc<Kind>,
    /// The kind in whose form records are kept: itself, unless `kind.conversion` says otherwise.
    pub stored: Arc<Kind>,
    /// The schema of the served and of the stored form; None for kinds without one.
    pub definition: Option<DefId>,
    pub stored_definition: Option<DefId>,
    /// What stands before the resourceVersion of an answer.
    pub head: Bytes,
    /// Position in the registry: a small identity for caches.
    pub index: u32,
    pub rules: WriteRules,
    /// Whether it has wire numbers.
    pub protobuf: bool,
}

/// How kinds differ in what a write may do; the strategies of Kubernetes' registries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteRules {
    /// A PUT of something that is not there creates it.
    pub create_on_update: bool,
    /// A delete answers with the object rather than with a Status.
    pub returns_deleted: bool,
    /// Without a propagation policy, dependents are left alone.
    pub orphans_by_default: bool,
    /// Changed annotations count as a new generation too.
    pub annotations_count: bool,
}

impl WriteRules {
    fn of(group: &str, resource: &str) -> Self {
        let create_on_update = matches!(
            (group, resource),
            ("", "endpoints" | "events" | "limitranges" | "services")
                | ("events.k8s.io", "events")
                | ("coordination.k8s.io", "leases")
                | ("rbac.authorization.k8s.io", _)
                | ("node.k8s.io", "runtimeclasses")
        );
        let returns_deleted = group.is_empty()
            && matches!(
                resource,
                "pods"
                    | "services"
                    | "serviceaccounts"
                    | "persistentvolumes"
                    | "persistentvolumeclaims"
                    | "podtemplates"
                    | "resourcequotas"
            );
        Self {
            create_on_update,
            returns_deleted,
            orphans_by_default: matches!(
                (group, resource),
                ("batch", "jobs") | ("", "replicationcontrollers")
            ),
            annotations_count: (group, resource) == ("apps", "deployments"),
        }
    }
}

impl Served {
    /// The store key of an object.
    pub fn key(&self, key: &ObjectKey) -> String {
        match self.kind.namespaced() {
            true => format!("{}{}/{}", self.kind.storage, key.namespace, key.name),
            false => format!("{}{}", self.kind.storage, key.name),
        }
    }

    /// The prefix of all keys, or of a namespace's.
    pub fn prefix(&self, namespace: &str) -> String {
        match namespace {
            "" => self.kind.storage.clone(),
            namespace => format!("{}{namespace}/", self.kind.storage),
        }
    }

    pub fn group_resource(&self) -> GroupResource {
        self.kind.group_resource()
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind { group: self.kind.group.clone(), kind: self.kind.kind.clone() }
    }

    /// What decoding expects of a body, if the kind has a schema.
    pub fn expected(&self) -> Option<Expected<'_>> {
        Some(Expected {
            group: &self.kind.group,
            version: &self.kind.version,
            kind: &self.kind.kind,
            definition: self.definition?,
        })
    }

    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.kind.group == group && self.kind.resource == resource
    }
}

/// All served resources.
pub struct Registry {
    pub model: &'static Model,
    all: Vec<Arc<Served>>,
    by_resource: HashMap<GroupVersionResource, usize>,
}

impl Registry {
    pub fn builtin() -> Self {
        Self::new(&Catalog::builtin(), rimward_control_schema::builtin())
    }

    fn new(catalog: &Catalog, model: &'static Model) -> Self {
        let all: Vec<Arc<Served>> = catalog
            .all()
            .iter()
            .enumerate()
            .map(|(index, kind)| {
                let stored = catalog
                    .all()
                    .iter()
                    .find(|k| k.storage == kind.storage && k.conversion.is_none())
                    .unwrap_or(kind);
                Arc::new(Served {
                    kind: kind.clone(),
                    stored: stored.clone(),
                    definition: model.id(&kind.schema),
                    stored_definition: model.id(&stored.schema),
                    head: record::head(&kind.api_version(), &kind.kind),
                    index: index as u32,
                    rules: WriteRules::of(&kind.group, &kind.resource),
                    protobuf: model
                        .id(&kind.schema)
                        .is_some_and(|id| !model.get(id).message().is_empty()),
                })
            })
            .collect();
        let by_resource = all
            .iter()
            .enumerate()
            .map(|(i, s)| {
                (GroupVersionResource::new(&s.kind.group, &s.kind.version, &s.kind.resource), i)
            })
            .collect();
        Self { model, all, by_resource }
    }

    /// In the order of discovery.
    pub fn all(&self) -> &[Arc<Served>] {
        &self.all
    }

    pub fn get(&self, resource: &GroupVersionResource) -> Option<&Arc<Served>> {
        self.by_resource.get(resource).map(|i| &self.all[*i])
    }

    /// A built-in resource, in the first version that serves it.
    pub fn resource(&self, group: &str, resource: &str) -> Option<&Arc<Served>> {
        self.all.iter().find(|s| s.is(group, resource))
    }

    /// Whether a group and version is served at all.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.all.iter().any(|s| s.kind.group == group && s.kind.version == version)
    }
}
