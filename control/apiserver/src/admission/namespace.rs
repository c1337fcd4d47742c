//! Nothing is made in a namespace that is not there or on its way out, and some namespaces stay.

use rimward_api::{Cause, CauseReason, GroupResource, ObjectKey, Status};
use rimward_control_store::{Expect, Op};
use serde_json::Value;

use crate::error;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Looks at the namespace of a new object. The condition that it answers makes the commit fail when
/// the namespace changed in between, so that nothing slips into one that just ended.
pub async fn check(
    server: &Inner,
    served: &Served,
    object: &Value,
    namespace: &str,
) -> Result<Option<Op>, Status> {
    let namespaces = GroupResource::new("", "namespaces");
    if namespace.is_empty() {
        return Ok(None);
    }
    let key = format!("{}{namespace}", server.namespaces_prefix);
    let entry = server.store.get(&key, None).await.map_err(error::store)?;
    let entry = entry.ok_or_else(|| Status::not_found(&namespaces, namespace))?;
    if Stored::open(&entry)?.record.deleting() {
        let name = object["metadata"].get("name").and_then(Value::as_str).unwrap_or_default();
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        return Err(Status::forbidden(&served.group_resource(), name, &why).with_causes(vec![
            Cause {
                reason: CauseReason::NamespaceTerminating,
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            },
        ]));
    }
    Ok(Some(Op::Check { key, expect: Expect::At(entry.revision) }))
}

pub fn check_delete(served: &Served, key: &ObjectKey) -> Result<(), Status> {
    if served.is("", "namespaces") && IMMORTAL.contains(&key.name.as_str()) {
        let namespaces = GroupResource::new("", "namespaces");
        return Err(Status::forbidden(&namespaces, &key.name, "this namespace may not be deleted"));
    }
    Ok(())
}
