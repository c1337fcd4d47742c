//! Admission policies: ValidatingAdmissionPolicy and MutatingAdmissionPolicy with their bindings.
//! <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>
//!
//! Policies are compiled when they are written and held in memory beside their bindings, so that a
//! write that no policy is about pays for one look at an empty list. Which policies a request is for is
//! found first, with what they need from the store; then all expressions are evaluated in one go, off
//! the async threads, each within a budget of cost and of time.

mod bound;
mod held;
mod mutating;
mod params;
mod patch;
mod policy;
mod subject;
pub mod type_checking;
mod types;
mod validating;
pub mod written;

use std::sync::Arc;

use rimward_api::Status;
use rimward_control_cel::limits::PER_MATCH_CONDITIONS;
use rimward_control_cel::policy::{Scope, environment};
use rimward_control_cel::{Budget, MatchConditions};

use super::{Operation, Review};
use crate::mirror::Mirrored;
use crate::served::Served;
use crate::server::Inner;

use held::{Held, Part};
pub use mutating::{Mutation, Round, mutate};
pub use validating::{Validation, validate};

/// The policies of both kinds.
#[derive(Default)]
pub struct Policies {
    pub validating: Arc<Held<Validation>>,
    pub mutating: Arc<Held<Mutation>>,
}

impl Policies {
    /// The resources that they are made of, and what follows each of them.
    pub fn parts(&self) -> [(&'static str, Arc<dyn Mirrored>); 4] {
        let (validating, mutating) = (&self.validating, &self.mutating);
        [
            ("validatingadmissionpolicies", Arc::new(Part::Policies(validating.clone()))),
            ("validatingadmissionpolicybindings", Arc::new(Part::Bindings(validating.clone()))),
            ("mutatingadmissionpolicies", Arc::new(Part::Policies(mutating.clone()))),
            ("mutatingadmissionpolicybindings", Arc::new(Part::Bindings(mutating.clone()))),
        ]
    }
}

/// What configures admission is not itself admitted by it: a wrong policy must be removable. Nor are
/// reviews, which store nothing, and a Binding is reviewed as what was sent, not again as the pod that
/// it changes.
fn exempt(review: &Review<'_>) -> bool {
    let group = review.served.kind.group.as_str();
    matches!(
        group,
        "admissionregistration.k8s.io" | "authentication.k8s.io" | "authorization.k8s.io"
    ) || (review.operation == Operation::Update && review.subresource == "binding")
}

/// Runs what only reckons where it may block: the other tasks of this thread are taken over meanwhile.
fn reckon<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let many =
        Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    if many { tokio::task::block_in_place(work) } else { work() }
}

/// What a policy needs to be applied to a request, or why it cannot be.
type Configured<T> = Result<T, String>;

/// Whether the match conditions of a webhook hold for a request, in a version of its resource.
///
/// # Errors
/// The outer one is the server's; the inner one says what is wrong with a condition: the failure policy
/// decides what follows.
pub async fn conditions_hold(
    server: &Inner,
    review: &Review<'_>,
    served: &Served,
    conditions: &MatchConditions,
) -> Result<Result<bool, String>, Status> {
    if conditions.is_empty() {
        return Ok(Ok(true));
    }
    let subject = subject::Subject::of(server, review, served).await?;
    let asking = subject::Asking { server, user: review.user };
    Ok(reckon(|| {
        let bindings = subject.bindings(&serde_json::Value::Null, &asking);
        conditions.matches(&bindings, &mut Budget::new(PER_MATCH_CONDITIONS))
    }))
}

/// Compiles the match conditions of a webhook.
pub fn conditions_of(webhook: &serde_json::Value) -> MatchConditions {
    let scope = Scope { authorizer: true, ..Scope::default() };
    let none = serde_json::Value::Null;
    let list = webhook.get("matchConditions").unwrap_or(&none);
    MatchConditions::compile(list, &environment(scope))
}

/// The refusal of a policy, as Kubernetes words it.
fn denied(review: &Review<'_>, message: &str, reason: &str) -> Status {
    let mut status = review.forbidden(message);
    status.code = match reason {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = match reason {
        "Unauthorized" => rimward_api::Reason::Unauthorized,
        "Forbidden" => rimward_api::Reason::Forbidden,
        "RequestEntityTooLarge" => rimward_api::Reason::RequestEntityTooLarge,
        _ => rimward_api::Reason::Invalid,
    };
    status
}

/// Where the server's own state is asked for; apart, since the registry is another module's.
impl Inner {
    fn policies(&self) -> &Policies {
        &self.admission_policies
    }
}
