//! The kinds as this server serves them: the catalog joined with the schema model and what the
//! engine keeps per kind.
//!
//! What is served changes: a CustomResourceDefinition brings kinds and takes them away. A
//! [`Registry`] never changes; the server swaps it for the next one, and a request goes on with the
//! [`Served`] that it began with.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rimward_api::{GroupKind, GroupResource, GroupVersionResource, ObjectKey};
use rimward_control_kinds::custom::version::priority;
use rimward_control_kinds::{Catalog, Hooks, Kind};
use rimward_control_schema::{DefId, Expected, Model};

use crate::definitions::Custom;
use crate::{discovery, openapi, record};

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
    /// A small identity for caches, never used twice in a process.
    pub index: u32,
    /// The model that the definitions are of.
    pub model: ModelRef,
    /// What sets a custom kind apart; None for a built-in one.
    pub custom: Option<Arc<Custom>>,
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
    /// A changed status counts too: a custom kind whose status is not a subresource.
    pub status_counts: bool,
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
            status_counts: false,
        }
    }

    /// Those of custom kinds.
    pub fn of_custom(has_status: bool) -> Self {
        Self {
            create_on_update: false,
            returns_deleted: false,
            orphans_by_default: false,
            annotations_count: false,
            status_counts: !has_status,
        }
    }
}

impl Served {
    /// Whose `validate_*` a write is asked: a form of its own may ask for more than the form in which
    /// its records are kept.
    pub fn rules_of_writes(&self) -> &dyn Hooks {
        if self.kind.conversion.is_some() { &*self.kind.hooks } else { &*self.stored.hooks }
    }

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

    /// Group, version and resource, as a URL names them.
    pub fn resource(&self) -> GroupVersionResource {
        GroupVersionResource::new(&self.kind.group, &self.kind.version, &self.kind.resource)
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

    /// What whoever still uses it is told.
    /// <https://kubernetes.io/docs/reference/using-api/deprecation-guide/>
    pub fn deprecation(&self) -> Option<String> {
        let text = match (self.kind.group.as_str(), self.kind.kind.as_str(), &self.custom) {
            (_, _, Some(custom)) => return custom.version.deprecation.clone(),
            ("", "ComponentStatus", _) => "v1 ComponentStatus is deprecated in v1.19+",
            ("", "Endpoints", _) => {
                "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.kind.group == group && self.kind.resource == resource
    }
}

/// The schema model of a kind: the built-in kinds share one, a custom kind has its own.
#[derive(Clone)]
pub enum ModelRef {
    Builtin(&'static Model),
    Own(Arc<Model>),
}

impl Deref for ModelRef {
    type Target = Model;
    fn deref(&self) -> &Model {
        match self {
            Self::Builtin(model) => model,
            Self::Own(model) => model,
        }
    }
}

/// The next [`Served::index`].
pub fn next_index() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// All resources that are served at one moment.
pub struct Registry {
    /// Of the built-in kinds, and of options, reviews and subresources that every kind speaks.
    pub model: &'static Model,
    all: Vec<Arc<Served>>,
    by_resource: HashMap<GroupVersionResource, usize>,
    /// How many of `all` are built in: they stand first.
    builtin: usize,
    discovery: OnceLock<discovery::Documents>,
    pub openapi: openapi::Documents,
}

impl Registry {
    pub fn builtin() -> Self {
        let (catalog, model) = (Catalog::builtin(), rimward_control_schema::builtin());
        let all: Vec<Arc<Served>> = catalog
            .all()
            .iter()
            .map(|kind| {
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
                    index: next_index(),
                    model: ModelRef::Builtin(model),
                    rules: WriteRules::of(&kind.group, &kind.resource),
                    protobuf: model
                        .id(&kind.schema)
                        .is_some_and(|id| !model.get(id).message().is_empty()),
                    custom: None,
                })
            })
            .collect();
        let builtin = all.len();
        Self::of(model, all, builtin)
    }

    /// The built-in kinds of this registry, and these. A resource that is built in stays what it is.
    pub fn with(&self, custom: impl IntoIterator<Item = Arc<Served>>) -> Self {
        let mut all = self.all[..self.builtin].to_vec();
        let is_new = |s: &Arc<Served>| match self.by_resource.get(&s.resource()) {
            Some(at) => *at >= self.builtin,
            None => true,
        };
        let mut custom: Vec<Arc<Served>> = custom.into_iter().filter(is_new).collect();
        custom.sort_by_cached_key(|s| {
            let kind = &s.kind;
            (kind.group.clone(), Reverse(priority(&kind.version)), kind.resource.clone())
        });
        all.extend(custom);
        let mut next = Self::of(self.model, all, self.builtin);
        let customs = |registry: &Self| {
            let custom = &registry.all[registry.builtin..];
            custom.iter().map(|s| s.kind.group_version().url_prefix()).collect::<HashSet<_>>()
        };
        let changed: HashSet<String> = &customs(self) | &customs(&next);
        // What no custom kind is part of stays as it is.
        next.openapi =
            self.openapi.kept(|name| name.contains('/') && !changed.contains(&format!("/{name}")));
        next
    }

    fn of(model: &'static Model, all: Vec<Arc<Served>>, builtin: usize) -> Self {
        let by_resource = all.iter().enumerate().map(|(i, s)| (s.resource(), i)).collect();
        Self {
            model,
            all,
            by_resource,
            builtin,
            discovery: OnceLock::new(),
            openapi: openapi::Documents::default(),
        }
    }

    /// In the order of discovery.
    pub fn all(&self) -> &[Arc<Served>] {
        &self.all
    }

    pub fn get(&self, resource: &GroupVersionResource) -> Option<&Arc<Served>> {
        self.by_resource.get(resource).map(|i| &self.all[*i])
    }

    /// A built-in resource, in the first version that serves it.
    pub fn resource(&self, group: &str, resource: &str) -> Option<Arc<Served>> {
        self.all[..self.builtin].iter().find(|s| s.is(group, resource)).cloned()
    }

    /// Whether a group and version is served at all.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.all.iter().any(|s| s.kind.group == group && s.kind.version == version)
    }

    /// The discovery documents, made when first asked for.
    pub fn discovery(&self) -> &discovery::Documents {
        self.discovery.get_or_init(|| discovery::Documents::of(self))
    }
}
