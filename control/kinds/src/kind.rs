//! What the generic engine knows about a resource.

use std::sync::Arc;

use rimward_api::{FieldError, GroupResource, GroupVersion};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// A Table column: `metav1.TableColumnDefinition`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// OpenAPI type: string, integer, date …
    pub kind: String,
    pub format: String,
    pub description: String,
    /// 0 shows always, 1 with `-o wide`.
    pub priority: i32,
}

/// A subresource and the kind that it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log`, `binding` …
    pub name: String,
    pub verbs: Vec<String>,
    /// The (group, version, kind) of its bodies when not the parent's.
    pub speaks: Option<(String, String, String)>,
}

/// A resource as served: names, scope, verbs, columns and hooks.
pub struct Kind {
    pub group: String,
    /// The version that is stored and served (built-in kinds of v1.36 serve exactly one; events are
    /// stored once and served under two groups, see `storage`).
    pub version: String,
    pub kind: String,
    /// Plural, lower case: the URL segment.
    pub resource: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub scope: Scope,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    pub columns: Vec<Column>,
    /// Where records live: `/{group}/{resource}/`. Kinds served under two groups share one.
    pub storage: String,
    /// The definition in the schema model: `io.k8s.api.core.v1.Pod`.
    pub schema: String,
    /// Field selector labels beyond metadata.name and metadata.namespace.
    pub selectable_fields: Vec<String>,
    /// Set while the behaviour behind the kind does not exist yet: the text of the Warning header
    /// that a write to it answers with.
    pub not_yet: Option<String>,
    /// Set when the version is deprecated: the text of the Warning header that every request for it is
    /// answered with.
    pub deprecated: Option<String>,
    /// Set when records are stored in another kind's form (`storage` names whose): how to get there
    /// and back. The order of a write is then: decode and `default` in the served form, `to_stored`,
    /// and from there on all hooks of the *stored* form, but for `validate_*`: these are the served
    /// kind's own, about the stored form; of a read: `from_stored` on what is kept.
    pub conversion: Option<Arc<dyn Conversion>>,
    pub hooks: Arc<dyn Hooks>,
}

/// What the storage prefixes of custom kinds begin with: apart from built-in kinds, since a definition
/// may bear the name of one, and goes with its objects.
pub const CUSTOM_STORAGE: &str = "/custom/";

/// A second served form of records that another kind stores: `events.k8s.io/v1` Event,
/// `autoscaling/v1` HorizontalPodAutoscaler. `apiVersion` and `kind` are left to the engine.
#[allow(clippy::wrong_self_convention, reason = "`self` converts; it is not what is converted")]
pub trait Conversion: Send + Sync + 'static {
    fn to_stored(&self, served: Value) -> Value;
    fn from_stored(&self, stored: Value) -> Value;

    /// What a selectable field of the served form is called among those of the stored.
    fn stored_field(&self, field: &str) -> String {
        field.to_owned()
    }
}

impl Kind {
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.clone(), self.resource.clone())
    }

    pub fn api_version(&self) -> String {
        self.group_version().to_string()
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Whether a CustomResourceDefinition brought it.
    pub fn is_custom(&self) -> bool {
        self.storage.starts_with(CUSTOM_STORAGE)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Which write a hook is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<'a> {
    /// The object itself.
    Main,
    /// A subresource: `status`, `ephemeralcontainers`, `resize` …
    Sub(&'a str),
}

/// What is particular to a kind. All objects are whole, in the hub version, metadata included.
///
/// Order on a write: decode and strict validation (schema) → `default` → `prepare_*` → generic
/// metadata rules → admission → `validate_*`.
pub trait Hooks: Send + Sync + 'static {
    /// Why Kubernetes' conversion to its internal form refuses an object that decodes: 400, before any
    /// rule is asked.
    fn unconvertible(&self, _object: &Value) -> Option<String> {
        None
    }

    /// Fills the defaults that Kubernetes' `SetDefaults_*` fill. Must be idempotent.
    fn default(&self, _object: &mut Value) {}

    /// `PrepareForCreate`: drops what a client may not set (status), sets what the server sets.
    /// `metadata.generation` is the engine's.
    fn prepare_create(&self, _object: &mut Value) {}

    /// `PrepareForUpdate` of the resource or of a subresource: for Main keeps the old status, for
    /// `Sub("status")` keeps the old spec; and so on.
    fn prepare_update(&self, _write: Write<'_>, _new: &mut Value, _old: &Value) {}

    /// Everything beyond metadata, which the engine validates.
    fn validate_create(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    fn validate_update(&self, _write: Write<'_>, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Name rules: the texts of what is wrong with `name` (`prefix` true: it is a generateName).
    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        rimward_api::names::dns1123_subdomain(name)
    }

    /// Whether a finalizer may be a name without a domain that nobody knows: custom resources only.
    fn any_finalizer(&self) -> bool {
        false
    }

    /// Whether spec changes bump `metadata.generation` (kinds with a spec that Kubernetes counts).
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether an update may come without a resourceVersion; where it may not, Kubernetes refuses it
    /// with `metadata.resourceVersion: Invalid value: 0: must be specified for an update`, before any
    /// other rule.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// The value of a selectable field, "" where it is not set.
    fn field<'a>(&self, _object: &'a Value, _field: &str) -> Option<std::borrow::Cow<'a, str>> {
        None
    }

    /// The cells of a Table row, one per column, as Kubernetes' printers fill them.
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value>;

    /// Warnings on a write (deprecated fields and the like), without the `299` framing.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Warnings on an update; those of the object, unless it matters what is new.
    fn update_warnings(&self, new: &Value, _old: &Value) -> Vec<String> {
        self.warnings(new)
    }

    /// The grace period in seconds with which a delete without options marks the object; None
    /// deletes at once (all kinds but Pod).
    fn grace_period(&self, _object: &Value) -> Option<i64> {
        None
    }
}
