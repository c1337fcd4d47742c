//! Asking whether someone may do something, from within a policy's expression.
//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-authorizer-library>

/// Who answers. Users are the request's own, unless `serviceAccount` names another.
pub trait Authorizer: Sync {
    fn check(&self, asked: &Asked) -> Decision;
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Namespace and name of the service account asked for, in place of the request's user.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    /// A path that is no resource; empty for resources.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    /// What kept the authorizer from deciding; empty if nothing did.
    pub error: String,
}

/// A question on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Authorizer(Asked),
    Path(Asked),
    Group(Asked),
    Resource(Asked),
    Decision(Decision),
}

impl Check {
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Authorizer(_) => "kubernetes.authorization.Authorizer",
            Self::Path(_) => "kubernetes.authorization.PathCheck",
            Self::Group(_) => "kubernetes.authorization.GroupCheck",
            Self::Resource(_) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }
}
