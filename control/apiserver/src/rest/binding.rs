//! `pods/binding`: the scheduler gives a pod its node, once.

use std::sync::Arc;

use rimward_api::meta::str_at;
use rimward_api::{FieldError, GroupKind, ObjectKey, Status};
use serde_json::{Value, json};

use crate::admission::{self, Operation, Review};
use crate::body::Response;
use crate::decode;
use crate::meta;
use crate::negotiate::{self, Offer};
use crate::options::WriteOptions;
use crate::request::Call;
use crate::rest::take_body;
use crate::rest::write::{Author, Change};
use crate::server::Inner;
use crate::views;

pub async fn create(
    server: &Arc<Inner>,
    call: &mut Call,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let form = negotiate::form(&call.headers, Offer::OWN)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let mut binding =
        decode::spoken(&server.registry(), ("", "v1", "Binding"), call, &body, options.validation)?;
    let text = |path: &[&str]| str_at(&binding, path).unwrap_or_default();
    let name = match (key.name.as_str(), text(&["metadata", "name"])) {
        ("", sent) => sent.to_owned(),
        (name, "") => name.to_owned(),
        (name, sent) if name == sent => name.to_owned(),
        (name, sent) => {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Binding object: {name:?}, {sent:?}"
            )));
        }
    };
    let served = server.registry().resource("", "pods").expect("a built-in kind");
    let key = ObjectKey::new(key.namespace.clone(), name.clone());
    let mut review = Review {
        served: &served,
        subresource: "binding",
        operation: Operation::Create,
        user: &call.user,
        options: admission::Options::Create(&options),
        key: key.clone(),
        object: &mut binding,
        old: None,
        warnings: &mut call.warnings,
    };
    admission::pass(server, &mut review).await?;
    let text = |path: &[&str]| str_at(&binding, path).unwrap_or_default();
    let (kind, node) = (text(&["target", "kind"]), text(&["target", "name"]).to_owned());
    let mut errors = Vec::new();
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported("target.kind", &json!(kind), &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        let kind = GroupKind { group: String::new(), kind: "Binding".into() };
        return Err(Status::invalid(&kind, &name, &errors));
    }
    let resource = served.group_resource();
    let now = meta::time(jiff::Timestamp::now());
    let topology = crate::admission::plugins::topology::labels_of(server, &node).await?;
    let bind = |mut pod: Value| {
        let refuse = |why: String| Err(Status::conflict(&resource, &name, &why));
        let wanted = text(&["metadata", "uid"]);
        if !wanted.is_empty() && str_at(&pod, &["metadata", "uid"]) != Some(wanted) {
            return refuse(format!(
                "Precondition failed: UID in precondition: {wanted}, UID in object meta: another"
            ));
        }
        if str_at(&pod, &["metadata", "deletionTimestamp"]).is_some() {
            return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        match str_at(&pod, &["spec", "nodeName"]).unwrap_or_default() {
            "" => {}
            taken => return refuse(format!("pod {name} is already assigned to node {taken:?}")),
        }
        if pod["spec"]
            .get("schedulingGates")
            .and_then(Value::as_array)
            .is_some_and(|g| !g.is_empty())
        {
            return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        pod["spec"]["nodeName"] = node.as_str().into();
        for field in ["annotations", "labels"] {
            for (k, v) in
                binding["metadata"].get(field).and_then(Value::as_object).into_iter().flatten()
            {
                pod["metadata"][field][k] = v.clone();
            }
        }
        crate::admission::plugins::topology::put(&mut pod, topology.clone());
        schedule(&mut pod, &now);
        Ok(pod)
    };
    let author = Author { user: &call.user, options: &options };
    let change = Change::Rewrite(&bind);
    server.update(&served, &key, "binding", change, &author, &mut call.warnings).await?;
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(views::encoded(call, 201, form, &status))
}

/// The PodScheduled condition turns true.
fn schedule(pod: &mut Value, now: &str) {
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let generation = pod["metadata"]["generation"].clone();
    let conditions = pod["status"]["conditions"].as_array_mut().expect("was just made one");
    let before = conditions.iter().position(|c| c["type"] == "PodScheduled");
    if before.is_some_and(|i| conditions[i]["status"] == "True") {
        return;
    }
    let mut condition = json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now });
    if !generation.is_null() {
        condition["observedGeneration"] = generation;
    }
    match before {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}
