//! Admission: what a write must pass, and what it is given, before it is validated and stored.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>
//!
//! Visible lists, in the order of Kubernetes; one step is one file.
//!
//! ```text
//! mutate → (the kind prepares) → allocate → (the kind validates) → validate → commit
//! pass → delete, connect
//! ```

use std::sync::Arc;

use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_store::Op;
use serde_json::Value;

use crate::metrics::admission::Timed;
use crate::options::{DeleteOptions, WriteOptions};
use crate::pools::Reservation;
use crate::served::Served;
use crate::server::Inner;

pub mod certificate;
pub mod connect;
pub mod form;
pub mod ingress;
pub mod matching;
pub mod namespace;
pub mod node;
pub mod plugins;
pub mod policies;
pub mod priority;
pub mod roles;
pub mod runtime_class;
pub mod service;
pub mod service_account;
pub mod storage;
pub mod tolerations;
pub mod webhooks;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As rules and reviews write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options that came with a request.
#[derive(Clone, Copy)]
pub enum Options<'a> {
    /// Of a create.
    Create(&'a WriteOptions),
    /// Of an update, a patch or an apply.
    Update(&'a WriteOptions),
    Delete(&'a DeleteOptions),
    /// A connect has none.
    None,
}

impl Options<'_> {
    pub fn dry_run(self) -> bool {
        match self {
            Self::Create(o) | Self::Update(o) => o.dry_run,
            Self::Delete(o) => o.dry_run,
            Self::None => false,
        }
    }
}

/// A request under review. Objects are in the stored form, unless a subresource speaks a kind of its
/// own: then the object is what was sent to it.
pub struct Review<'a> {
    pub served: &'a Arc<Served>,
    pub subresource: &'a str,
    pub operation: Operation,
    pub user: &'a UserInfo,
    pub options: Options<'a>,
    /// As the request names it; the name is empty while it is still to be generated.
    pub key: ObjectKey,
    /// The new object, of a connect its options; null for a delete.
    pub object: &'a mut Value,
    pub old: Option<&'a Value>,
    /// What the client is told by Warning headers, whatever the outcome.
    pub warnings: &'a mut Vec<String>,
}

impl Review<'_> {
    /// The namespace that the request is about; of a Namespace itself, its own name.
    pub fn namespace(&self) -> &str {
        match self.served.is("", "namespaces") {
            true => &self.key.name,
            false => &self.key.namespace,
        }
    }

    fn creates(&self, group: &str, resource: &str) -> bool {
        self.operation == Operation::Create
            && self.subresource.is_empty()
            && self.served.is(group, resource)
    }

    fn text(&self, field: &str) -> &str {
        self.object["metadata"].get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn forbidden(&self, why: &str) -> Status {
        // A name that is yet to be generated shows as what it will begin with.
        let name = match (self.text("name"), self.text("generateName")) {
            ("", prefix) => prefix,
            (name, _) => name,
        };
        Status::forbidden(&self.served.group_resource(), name, why)
    }
}

/// What an admitted write holds until it is committed.
#[derive(Default)]
pub struct Admitted {
    /// A condition of the commit: the namespace is still as it was when it was looked at.
    pub check: Option<Op>,
    /// A policy or a webhook changed the object: what an update carries over must be looked at again.
    pub rewritten: bool,
    reservations: Vec<Reservation>,
}

impl Admitted {
    /// The write is done: what was allocated stays, unless it was only a rehearsal.
    pub fn keep(&mut self, dry_run: bool) {
        if !dry_run {
            self.reservations.iter_mut().for_each(Reservation::keep);
        }
    }
}

/// What may change a new or updated object, before the kind prepares and validates it: plugins, then
/// policies, then webhooks.
pub async fn mutate(server: &Inner, review: &mut Review<'_>) -> Result<Admitted, Status> {
    let timed = Timed::admit(server, review.operation);
    timed.whole(all_that_mutate(server, review, timed)).await
}

async fn all_that_mutate(
    server: &Inner,
    review: &mut Review<'_>,
    timed: Timed<'_>,
) -> Result<Admitted, Status> {
    let mut admitted = Admitted::default();
    if review.operation == Operation::Create && review.served.kind.namespaced() {
        let namespace = review.text("namespace").to_owned();
        let check = namespace::check(server, review.served, review.object, &namespace);
        admitted.check = timed.plugin("NamespaceLifecycle", check).await?;
    }
    built_in(server, review, timed).await?;
    let (mut policies, mut hooks) = (policies::Round::default(), webhooks::Round::default());
    let by_policies = mutated_by_policies(server, review, &mut policies, timed).await?;
    let by_webhooks = mutated_by_webhooks(server, review, &mut hooks, timed).await?;
    if by_policies || by_webhooks {
        // What they changed the plugins have not seen yet, nor has who was called before.
        admitted.rewritten = true;
        let before = review.object.clone();
        built_in(server, review, timed).await?;
        policies.second(review.object);
        mutated_by_policies(server, review, &mut policies, timed).await?;
        hooks.second(*review.object != before);
        mutated_by_webhooks(server, review, &mut hooks, timed).await?;
    }
    Ok(admitted)
}

async fn mutated_by_policies(
    server: &Inner,
    review: &mut Review<'_>,
    round: &mut policies::Round,
    timed: Timed<'_>,
) -> Result<bool, Status> {
    timed.plugin("MutatingAdmissionPolicy", policies::mutate(server, review, round)).await
}

async fn mutated_by_webhooks(
    server: &Inner,
    review: &mut Review<'_>,
    round: &mut webhooks::Round,
    timed: Timed<'_>,
) -> Result<bool, Status> {
    timed.plugin("MutatingAdmissionWebhook", webhooks::mutate(server, review, round)).await
}

/// Whether anybody from outside is shown new objects before they are stored.
pub fn looks_on(server: &Inner) -> bool {
    let policies = &server.admission_policies;
    let silent = server.mutating_webhooks.is_empty()
        && server.validating_webhooks.is_empty()
        && policies.mutating.is_empty()
        && policies.validating.is_empty();
    !silent
}

/// Kubernetes' own mutating plugins. They may run twice on an object.
async fn built_in(server: &Inner, review: &mut Review<'_>, timed: Timed<'_>) -> Result<(), Status> {
    if review.creates("", "pods") {
        timed.plugin("ServiceAccount", service_account::admit(server, review)).await?;
        tolerate(review, timed);
        timed.at_once("Priority", || priority::admit(server, review))?;
        timed.plugin("RuntimeClass", runtime_class::admit(server, review)).await?;
        plugins::fill_in(server, review, timed).await?;
    }
    if review.operation == Operation::Update
        && review.subresource.is_empty()
        && review.served.is("", "pods")
    {
        tolerate(review, timed);
        timed.filled("Priority", || priority::keep(review));
    }
    if review.creates("", "nodes") {
        timed.filled("TaintNodesByCondition", || node::admit(review.object));
    }
    if review.creates("", "persistentvolumeclaims") || review.creates("", "persistentvolumes") {
        timed.filled("StorageObjectInUseProtection", || storage::admit(review));
        plugins::fill_in(server, review, timed).await?;
    }
    if review.creates("networking.k8s.io", "ingresses") {
        timed.plugin("DefaultIngressClass", ingress::admit(server, review)).await?;
    }
    Ok(())
}

fn tolerate(review: &mut Review<'_>, timed: Timed<'_>) {
    timed.filled("DefaultTolerationSeconds", || tolerations::admit(review.object));
}

/// What a prepared object is given of what there is only once; before it is validated, so that it is
/// validated whole.
pub fn allocate(
    server: &Inner,
    review: &mut Review<'_>,
    admitted: &mut Admitted,
) -> Result<(), Status> {
    if review.served.is("certificates.k8s.io", "certificatesigningrequests") {
        certificate::admit(review);
    }
    if review.served.kind.group == "rbac.authorization.k8s.io" {
        roles::admit(server, review)?;
    }
    if review.served.is("", "services") && review.subresource.is_empty() {
        admitted.reservations = service::admit(server, review)?;
    }
    Ok(())
}

/// What may only refuse, once the kind's own validation has passed: plugins, then policies, then
/// webhooks, and quota last of all, since it counts what was admitted.
pub async fn validate(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let timed = Timed::validate(server, review.operation);
    timed.whole(all_that_validate(server, review, timed)).await
}

async fn all_that_validate(
    server: &Inner,
    review: &mut Review<'_>,
    timed: Timed<'_>,
) -> Result<(), Status> {
    policies::written::check(review)?;
    plugins::check(server, review, timed).await?;
    timed.plugin("ValidatingAdmissionPolicy", policies::validate(server, review)).await?;
    timed.plugin("ValidatingAdmissionWebhook", webhooks::validate(server, review)).await?;
    plugins::rehearse_quota(server, review, timed).await
}

/// All steps for a request that changes no object by itself: a delete, a connect, or what is sent to
/// a subresource that speaks a kind of its own (an Eviction, a Binding).
pub async fn pass(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let timed = Timed::admit(server, review.operation);
    let mutating = async {
        if review.operation == Operation::Delete {
            timed.at_once("NamespaceLifecycle", || {
                namespace::check_delete(review.served, &review.key)
            })?;
        }
        mutated_by_webhooks(server, review, &mut webhooks::Round::default(), timed).await
    };
    timed.whole(mutating).await?;
    validate(server, review).await
}
