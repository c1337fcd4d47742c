//! What a request may ask for beside its object.

use serde::Serialize;
use serde_json::Value;

/// Options of list and watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    /// At most this many items a page; 0 is no limit.
    pub limit: usize,
    /// Where the page before ended.
    pub continue_token: String,
    /// Empty: the newest.
    pub resource_version: String,
    /// Empty, `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
}

/// How dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What must hold for a delete to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// Options of delete: the body of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<Propagation>,
}

impl DeleteOptions {
    /// Only the object with this uid, not a later one of the same name.
    pub fn uid(uid: impl Into<String>) -> Self {
        let preconditions = Preconditions { uid: Some(uid.into()), resource_version: None };
        Self { preconditions: Some(preconditions), ..Self::default() }
    }

    pub fn grace(mut self, seconds: i64) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }

    pub fn propagation(mut self, policy: Propagation) -> Self {
        self.propagation_policy = Some(policy);
        self
    }

    pub fn at_revision(mut self, resource_version: impl Into<String>) -> Self {
        self.preconditions.get_or_insert_default().resource_version = Some(resource_version.into());
        self
    }
}

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchFormat {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchFormat {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A patch and how to apply it.
#[derive(Clone, Debug)]
pub struct Patch {
    pub format: PatchFormat,
    pub body: Value,
    /// Required by [`PatchFormat::Apply`].
    pub field_manager: Option<String>,
    /// Apply only: take over fields of other managers.
    pub force: bool,
}

impl Patch {
    fn new(format: PatchFormat, body: Value) -> Self {
        Self { format, body, field_manager: None, force: false }
    }

    pub fn json(body: Value) -> Self {
        Self::new(PatchFormat::Json, body)
    }

    pub fn merge(body: Value) -> Self {
        Self::new(PatchFormat::Merge, body)
    }

    pub fn strategic(body: Value) -> Self {
        Self::new(PatchFormat::Strategic, body)
    }

    pub fn apply(body: Value, field_manager: &str, force: bool) -> Self {
        Self { format: PatchFormat::Apply, body, field_manager: Some(field_manager.into()), force }
    }
}
