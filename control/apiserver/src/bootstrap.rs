//! What a fresh cluster holds, and what every start brings up to date.

use std::sync::Arc;

use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_kinds::bootstrap;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::options::WriteOptions;
use crate::rest::find;
use crate::rest::write::{Author, Change};
use crate::served::Served;
use crate::server::{Inner, StartError};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Objects that are made at a time: the store commits concurrent writes as one.
const WIDTH: usize = 64;

pub async fn run(server: &Arc<Inner>) -> Result<(), StartError> {
    let mut objects = bootstrap::objects();
    objects.extend(kubernetes_service(server));
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
    Ok(())
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
    server.registry.all().iter().find(is).cloned()
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
            let Some(change) = reconciled(served, &current, object) else { return Ok(()) };
            let rewrite = move |_| Ok(change.clone());
            let change = Change::Rewrite(&rewrite);
            server.update(served, key, "", change, &author, &mut warnings).await.map(|_| ())
        }
        Err(e) if e.is_not_found() => {
            let decoded = crate::decode::patched(
                &server.registry,
                served,
                object.clone(),
                rimward_control_schema::FieldValidation::Strict,
                &mut warnings,
            )?;
            match server.create(served, &key.namespace, decoded, &author, &mut warnings).await {
                // Another control plane on the same store was quicker.
                Err(e) if e.is_already_exists() => Ok(()),
                other => other.map(|_| ()),
            }
        }
        Err(e) => Err(e),
    }
}

/// What a stored object becomes; None when it is as it should be. Roles and bindings gain what a
/// newer version adds, unless their owner opted out; the endpoint of the API follows its address;
/// everything else is the operator's once it is there.
fn reconciled(served: &Served, current: &Value, wanted: &Value) -> Option<Value> {
    let mut new = current.clone();
    let list = |o: &Value, field: &str| {
        o.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    if served.kind.group == "rbac.authorization.k8s.io" {
        let annotation =
            current.pointer("/metadata/annotations").and_then(|a| a.get(AUTOUPDATE)?.as_str());
        // A role that others' rules are gathered into is its controller's.
        if annotation != Some("true") || wanted.get("aggregationRule").is_some() {
            return None;
        }
        for field in ["rules", "subjects"] {
            let mut all = list(current, field);
            all.extend(
                list(wanted, field).into_iter().filter(|w| !list(current, field).contains(w)),
            );
            if !all.is_empty() {
                new[field] = all.into();
            }
        }
    }
    for field in ["subsets", "endpoints"] {
        if let Some(value) = wanted.get(field) {
            new[field] = value.clone();
        }
    }
    if served.is("discovery.k8s.io", "endpointslices") {
        new["ports"] = wanted["ports"].clone();
    }
    (new != *current).then_some(new)
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
