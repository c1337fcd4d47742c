//! How much of what one object is.

use rimward_api::Quantity;
use serde_json::Value;

use super::{Amounts, Resource};
use crate::pod::resources::{pod_limits, pod_requests};
use crate::read::Read;

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Counted by their plain name too, from before `count/` was.
const PLAIN: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// The resource whose objects use up what a quota calls `name`; None for what nothing uses up.
pub fn counted_by(name: &str) -> Option<(String, String)> {
    let core = |resource: &str| Some((String::new(), resource.to_owned()));
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group.to_owned(), resource.to_owned()));
    }
    if PLAIN.contains(&name) {
        return core(name);
    }
    if name == "requests.storage" || name.contains(STORAGE_CLASS) {
        return core("persistentvolumeclaims");
    }
    if matches!(name, "services.nodeports" | "services.loadbalancers") {
        return core("services");
    }
    let compute = matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage")
        || name.starts_with("hugepages-")
        || name.starts_with("requests.")
        || name.starts_with("limits.");
    if compute { core("pods") } else { None }
}

/// What a quota counts for an object.
pub fn usage((group, resource): Resource<'_>, object: &Value) -> Amounts {
    let one = Quantity::from_whole(1);
    let count = match group {
        "" => format!("count/{resource}"),
        group => format!("count/{resource}.{group}"),
    };
    let mut amounts = Amounts::from([(count, one)]);
    if !group.is_empty() {
        return amounts;
    }
    if PLAIN.contains(&resource) {
        amounts.insert(resource.to_owned(), one);
    }
    match resource {
        "pods" => pod(object, &mut amounts),
        "services" => service(object, &mut amounts),
        "persistentvolumeclaims" => claim(object, &mut amounts),
        _ => {}
    }
    amounts
}

/// A pod that ended is still an object, but uses nothing.
fn pod(pod: &Value, amounts: &mut Amounts) {
    if matches!(pod.at("status").text("phase"), "Succeeded" | "Failed") {
        return;
    }
    amounts.insert("pods".into(), Quantity::from_whole(1));
    for (name, value) in pod_requests(pod) {
        let native = matches!(name, "cpu" | "memory" | "ephemeral-storage");
        if native || name.starts_with("hugepages-") {
            amounts.insert(name.to_owned(), value);
        }
        if native || name.starts_with("hugepages-") || name.contains('/') {
            amounts.insert(format!("requests.{name}"), value);
        }
    }
    for (name, value) in pod_limits(pod) {
        if matches!(name, "cpu" | "memory" | "ephemeral-storage") {
            amounts.insert(format!("limits.{name}"), value);
        }
    }
}

fn service(service: &Value, amounts: &mut Amounts) {
    let spec = service.at("spec");
    let ports = spec.list("ports");
    let explicit = || ports.iter().filter(|p| p.int("nodePort").unwrap_or(0) != 0).count();
    let (node_ports, balancers) = match spec.text("type") {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if spec.at("allocateLoadBalancerNodePorts").as_bool() == Some(false) => {
            (explicit(), 1)
        }
        "LoadBalancer" => (ports.len(), 1),
        _ => (0, 0),
    };
    amounts.insert("services.nodeports".into(), Quantity::from_whole(node_ports as i64));
    amounts.insert("services.loadbalancers".into(), Quantity::from_whole(balancers));
}

fn claim(claim: &Value, amounts: &mut Amounts) {
    let class = match claim.deep(&["metadata", "annotations", BETA_CLASS]).as_str() {
        Some(class) => class,
        None => claim.at("spec").text("storageClassName"),
    };
    let storage = |path: &[&str]| crate::check::resources::quantity(claim.deep(path));
    let asked = storage(&["spec", "resources", "requests", "storage"]);
    // A claim that is being grown holds what was set aside for it.
    let allocated = storage(&["status", "allocatedResources", "storage"]);
    let size = asked.map(|a| allocated.map_or(a, |b| a.max(b)));
    if !class.is_empty() {
        amounts.insert(
            format!("{class}{STORAGE_CLASS}persistentvolumeclaims"),
            Quantity::from_whole(1),
        );
    }
    if let Some(size) = size {
        let whole = if size.is_whole() { size } else { Quantity::from_bytes(size.value()) };
        amounts.insert("requests.storage".into(), whole);
        if !class.is_empty() {
            amounts.insert(format!("{class}{STORAGE_CLASS}requests.storage"), whole);
        }
    }
}
