//! Admission: what a write must pass, and what it is given, before it is validated and stored.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>
//!
//! One visible list, in the order of Kubernetes; one step is one file.

use rimward_api::{Status, UserInfo};
use rimward_control_store::Op;
use serde_json::Value;

use crate::pools::Reservation;
use crate::served::Served;
use crate::server::Inner;

pub mod certificate;
pub mod ingress;
pub mod namespace;
pub mod node;
pub mod priority;
pub mod roles;
pub mod runtime_class;
pub mod service;
pub mod service_account;
pub mod storage;
pub mod tolerations;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
}

/// A write under review. Objects are in the stored form.
pub struct Review<'a> {
    pub served: &'a Served,
    pub subresource: &'a str,
    pub operation: Operation,
    pub user: &'a UserInfo,
    pub object: &'a mut Value,
    pub old: Option<&'a Value>,
    /// Nothing will come of it.
    pub dry_run: bool,
}

impl Review<'_> {
    fn creates(&self, group: &str, resource: &str) -> bool {
        self.operation == Operation::Create
            && self.subresource.is_empty()
            && self.served.is(group, resource)
    }

    fn text(&self, field: &str) -> &str {
        self.object["metadata"].get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(&self.served.group_resource(), self.text("name"), why)
    }
}

/// What an admitted write holds until it is committed.
#[derive(Default)]
pub struct Admitted {
    /// A condition of the commit: the namespace is still as it was when it was looked at.
    pub check: Option<Op>,
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

pub async fn admit(server: &Inner, review: &mut Review<'_>) -> Result<Admitted, Status> {
    let mut admitted = Admitted::default();
    if review.operation == Operation::Create && review.served.kind.namespaced() {
        let namespace = review.text("namespace").to_owned();
        admitted.check = namespace::check(server, review.served, review.object, &namespace).await?;
    }
    if review.creates("", "pods") {
        service_account::admit(server, review).await?;
        tolerations::admit(review.object);
        priority::admit(server, review)?;
        runtime_class::admit(server, review).await?;
    }
    if review.operation == Operation::Update
        && review.subresource.is_empty()
        && review.served.is("", "pods")
    {
        tolerations::admit(review.object);
        priority::keep(review);
    }
    if review.creates("", "nodes") {
        node::admit(review.object);
    }
    if review.creates("", "persistentvolumeclaims") || review.creates("", "persistentvolumes") {
        storage::admit(review);
    }
    if review.creates("networking.k8s.io", "ingresses") {
        ingress::admit(server, review).await?;
    }
    if review.served.is("certificates.k8s.io", "certificatesigningrequests") {
        certificate::admit(review);
    }
    if review.served.kind.group == "rbac.authorization.k8s.io" {
        roles::admit(server, review)?;
    }
    if review.served.is("", "services") && review.subresource.is_empty() {
        admitted.reservations = service::admit(server, review)?;
    }
    Ok(admitted)
}
