//! What a fresh cluster holds, and what every start brings up to date.

use std::sync::Arc;

use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_kinds::bootstrap;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::aggregation;
use crate::health::Part;
use crate::options::{DeleteOptions, WriteOptions};
use crate::rbac::Rule;
use crate::rest::find;
use crate::rest::write::{Author, Change};
use crate::served::Served;
use crate::server::{Inner, StartError};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Objects that are made at a time: the store commits concurrent writes as one.
const WIDTH: usize = 64;

pub async fn run(server: &Arc<Inner>) -> Result<(), StartError> {
    let mut objects = bootstrap::objects();
    objects.push(service_range(server));
    objects.extend(kubernetes_service(server));
    objects.extend(aggregation::register::builtin(server));
    objects.push(aggregation::register::authentication(server));
    // What stands in a namespace needs it to be there.
    let (namespaces, others): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|o| o["kind"] == "Namespace");
    for group in [namespaces, others] {
        let mut rest = group.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < WIDTH
                && let Some(object) = rest.next()
            {
                let server = server.clone();
                running.spawn(async move { one(&server, &object).await });
            }
            match running.join_next().await {
                None => break,
                Some(Ok(made)) => made?,
                Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
    }
    for part in
        [Part::Namespaces, Part::Roles, Part::PriorityClasses, Part::FlowObjects, Part::OwnObjects]
    {
        server.parts.done(part);
    }
    Ok(())
}

/// Makes anew what flow control cannot be without, if somebody deleted it.
pub async fn mandatory_flow_control(server: &Arc<Inner>) {
    let mandatory = |o: &Value| {
        matches!(o["kind"].as_str(), Some("FlowSchema" | "PriorityLevelConfiguration"))
            && matches!(o["metadata"]["name"].as_str(), Some("exempt" | "catch-all"))
    };
    for object in bootstrap::objects().into_iter().filter(mandatory) {
        if let Err(e) = one(server, &object).await {
            tracing::warn!(error = %e, "it stays missing");
        }
    }
}

async fn one(server: &Arc<Inner>, object: &Value) -> Result<(), StartError> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text("name"), text("namespace"));
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let fail = |status| StartError::Bootstrap { kind: kind.clone(), name: name.clone(), status };
    let served = served_of(server, object)
        .ok_or_else(|| fail(Status::internal("its kind is not served")))?;
    let key = ObjectKey::new(namespace, name.clone());
    ensure(server, &served, &key, object).await.map_err(fail)
}

fn served_of(server: &Inner, object: &Value) -> Option<Arc<Served>> {
    let gv = rimward_api::GroupVersion::parse(object["apiVersion"].as_str()?)?;
    let kind = object["kind"].as_str()?;
    let is = |s: &&Arc<Served>| {
        s.kind.group == gv.group && s.kind.version == gv.version && s.kind.kind == kind
    };
    server.registry().all().iter().find(is).cloned()
}

async fn ensure(
    server: &Arc<Inner>,
    served: &Arc<Served>,
    key: &ObjectKey,
    object: &Value,
) -> Result<(), Status> {
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let query = crate::request::Query::default();
    let options = WriteOptions::parse(&query, "CreateOptions", "kube-apiserver", false)?;
    let author = Author { user: &user, options: &options };
    let mut warnings = Vec::new();
    match find(server, served, key).await {
        Ok(stored) => {
            let current = server.value(served, &stored)?;
            if binds_another(&current, object) {
                let options = DeleteOptions::default();
                server.delete(served, key, &options, &user, &mut warnings).await?;
                return make(server, served, key, object, &author).await;
            }
            let Some(change) = reconciled(served, &current, object) else { return Ok(()) };
            let rewrite = move |_| Ok(change.clone());
            let change = Change::Rewrite(&rewrite);
            server.update(served, key, "", change, &author, &mut warnings).await.map(|_| ())
        }
        Err(e) if e.is_not_found() => make(server, served, key, object, &author).await,
        Err(e) => Err(e),
    }
}

/// Stores an object that is not there, as the server itself.
pub async fn make(
    server: &Arc<Inner>,
    served: &Arc<Served>,
    key: &ObjectKey,
    object: &Value,
    author: &Author<'_>,
) -> Result<(), Status> {
    let mut warnings = Vec::new();
    let decoded = crate::decode::patched(
        served,
        object.clone(),
        None,
        rimward_control_schema::FieldValidation::Strict,
        &mut warnings,
    )?;
    match server.create(served, &key.namespace, decoded, author, &mut warnings).await {
        // Another control plane on the same store was quicker.
        Err(e) if e.is_already_exists() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// What a stored object becomes; None when it is as it should be. Roles and bindings regain what a
/// version has or somebody took, unless their owner opted out; the endpoint of the API follows its
/// address; everything else is the operator's once it is there.
fn reconciled(served: &Served, current: &Value, wanted: &Value) -> Option<Value> {
    let mut new = current.clone();
    if served.kind.group == "rbac.authorization.k8s.io" {
        if !updates(current) {
            return None;
        }
        for field in ["labels", "annotations"] {
            for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
                if new["metadata"][field].get(key).is_none() {
                    new["metadata"][field][key] = value.clone();
                }
            }
        }
        match wanted.pointer("/aggregationRule/clusterRoleSelectors") {
            // The rules of such a role are its controller's.
            Some(selectors) => {
                let place = "clusterRoleSelectors";
                add(&mut new["aggregationRule"], place, selectors, |all, s| all.contains(s));
            }
            None => add_rules(&mut new, wanted),
        }
        add(&mut new, "subjects", &wanted["subjects"], |all, s| all.contains(s));
    }
    for field in ["subsets", "endpoints", "data"] {
        if let Some(value) = wanted.get(field) {
            new[field] = value.clone();
        }
    }
    if served.is("discovery.k8s.io", "endpointslices") {
        new["ports"] = wanted["ports"].clone();
    }
    (new != *current).then_some(new)
}

/// Whether a role or binding follows the version that runs.
fn updates(current: &Value) -> bool {
    let annotations = current.pointer("/metadata/annotations");
    annotations.and_then(|a| a.get(AUTOUPDATE)?.as_str()) != Some("false")
}

/// Appends to a list what it lacks of another.
fn add(object: &mut Value, field: &str, wanted: &Value, has: fn(&[Value], &Value) -> bool) {
    let mut all = object.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let before = all.len();
    for item in wanted.as_array().into_iter().flatten() {
        if !has(&all, item) {
            all.push(item.clone());
        }
    }
    if all.len() > before {
        object[field] = all.into();
    }
}

/// Appends the single permissions that no rule gives.
fn add_rules(role: &mut Value, wanted: &Value) {
    let held = Rule::all_of(role);
    let parts: Vec<Rule> = Rule::all_of(wanted).iter().flat_map(Rule::breakdown).collect();
    let missing = parts.iter().filter(|part| !held.iter().any(|h| h.covers(part)));
    let missing: Vec<Value> = missing.map(Rule::to_value).collect();
    add(role, "rules", &missing.into(), |_, _| false);
}

/// Whether a binding is to another role than it should be. That cannot change: it must be made anew.
fn binds_another(current: &Value, wanted: &Value) -> bool {
    updates(current) && wanted.get("roleRef").is_some_and(|r| current.get("roleRef") != Some(r))
}

/// How pods reach this server: `kubernetes.default`.
fn kubernetes_service(server: &Inner) -> [Value; 3] {
    let address = server.config.advertise;
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    [
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "clusterIP": server.pools.cidr().nth(1).to_string(), "type": "ClusterIP", "sessionAffinity": "None",
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port() }],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": [{
                "addresses": [{ "ip": address.ip().to_string() }],
                "ports": [{ "name": "https", "port": address.port(), "protocol": "TCP" }],
            }],
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "kubernetes" },
            },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{ "addresses": [address.ip().to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": address.port(), "protocol": "TCP" }],
        }),
    ]
}

/// The range that cluster IPs come from.
fn service_range(server: &Inner) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": crate::pools::DEFAULT_RANGE },
        "spec": { "cidrs": [server.pools.cidr().to_string()] },
    })
}
