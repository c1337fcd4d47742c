//! Resource names and quantities.

use std::collections::HashSet;

use rimward_api::{Quantity, names};
use serde_json::Value;

use super::{NOT_NEGATIVE, POSITIVE};
use crate::path::{Errors, Path};
use crate::read::{Read, members};

/// A quantity in an object; numbers are good quantities too.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(n) => Quantity::parse(&n.to_string()).ok(),
        _ => None,
    }
}

fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// `cpu`, `memory` and the like: without a domain, or in Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether requests may be lower than limits.
pub fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

fn is_standard_for_containers(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_pages(name)
}

/// An extended resource: with a domain that is not Kubernetes' own, and not `requests.` before it.
fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Names without a domain that can be counted or limited somewhere.
const STANDARD: [&str; 20] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    STORAGE,
];
const STORAGE: &str = "storage";

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || is_huge_pages(name) || name.starts_with("requests.hugepages-")
}

/// What a quota can limit, of the names without a domain.
pub fn is_standard_for_quotas(name: &str) -> bool {
    is_standard(name) && name != STORAGE
}

/// `validateResourceName`: a resource's name, with a domain or one that is known.
pub fn resource_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    let wrong = names::qualified_name(name);
    if wrong.is_empty() && !name.contains('/') && !is_standard(name) {
        e.invalid(path, name, "must be a standard resource type or fully qualified");
    }
    e.invalid_each(path, name, wrong);
}

/// A resource's name as a container may ask for it.
pub fn container_resource_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    resource_name(name, path, e);
    if !name.contains('/') {
        if !is_standard_for_containers(name) {
            e.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        e.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

/// A resource's name as a quota may limit it.
pub fn quota_resource_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    resource_name(name, path, e);
    if !name.contains('/') && !is_standard_for_quotas(name) {
        e.invalid(path, name, "must be a standard resource for quota");
    }
}

/// Not negative, and whole for what cannot be split.
pub fn resource_value(name: &str, value: &Value, path: &Path<'_>, e: &mut Errors) {
    let Some(quantity) = quantity(value) else { return };
    if quantity.is_negative() {
        e.invalid(path, quantity.to_string(), NOT_NEGATIVE);
    }
    if is_integer(name) && quantity.millis() % 1000 != 0 {
        e.invalid(path, quantity.to_string(), "must be an integer");
    }
}

/// Resources that are counted in whole pieces.
fn is_integer(name: &str) -> bool {
    is_extended(name)
        || matches!(
            name,
            "pods"
                | "services"
                | "replicationcontrollers"
                | "resourcequotas"
                | "secrets"
                | "configmaps"
                | "persistentvolumeclaims"
                | "services.nodeports"
                | "services.loadbalancers"
        )
        || name.starts_with("count/")
}

/// Greater than zero.
pub fn positive(value: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(quantity) = quantity(value)
        && (quantity.is_negative() || quantity.is_zero())
    {
        e.invalid(path, quantity.to_string(), POSITIVE);
    }
}

/// Limits and requests of a container.
pub fn container_resources(
    resources: &Value,
    claims: &HashSet<&str>,
    path: &Path<'_>,
    e: &mut Errors,
) {
    let (limits_at, requests_at) = (path.field("limits"), path.field("requests"));
    let limits = resources.at("limits");
    let (mut cpu_or_memory, mut huge_pages) = (false, false);
    for (list, at) in [(limits, &limits_at), (resources.at("requests"), &requests_at)] {
        for (name, value) in members(list) {
            let here = at.key(name);
            container_resource_name(name, &here, e);
            cpu_or_memory |= matches!(name.as_str(), "cpu" | "memory");
            resource_value(name, value, &here, e);
            if std::ptr::eq(at, &requests_at) {
                request_within_limit(name, value, limits.get(name), &requests_at, &limits_at, e);
            }
            if is_huge_pages(name) {
                huge_pages = true;
                whole_pages(name, value, &here, e);
            }
        }
    }
    if huge_pages && !cpu_or_memory {
        e.forbidden(path, "HugePages require cpu or memory");
    }
    let list = path.field("claims");
    let mut seen = super::Seen::default();
    for (i, claim) in resources.list("claims").iter().enumerate() {
        let (name, at) = (claim.text("name"), list.index(i));
        match name {
            "" => e.required(&at, ""),
            _ => {
                if seen.again(name) {
                    e.duplicate(&at, name);
                }
                if !claims.contains(&name) {
                    e.not_found(&at, name);
                }
            }
        }
    }
}

/// Huge pages come in multiples of their size.
fn whole_pages(name: &str, value: &Value, path: &Path<'_>, e: &mut Errors) {
    let Some(asked) = quantity(value) else { return };
    let size = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok());
    let divides = size.is_some_and(|size| {
        size.millis() > 0 && asked.millis() >= 0 && asked.millis() % size.millis() == 0
    });
    if !divides {
        let why = format!("{asked} is not positive integer multiple of {name}");
        e.invalid(path, asked.to_string(), &why);
    }
}

fn request_within_limit(
    name: &str,
    request: &Value,
    limit: Option<&Value>,
    path: &Path<'_>,
    limits: &Path<'_>,
    e: &mut Errors,
) {
    let Some(limit) = limit else {
        if !may_overcommit(name) {
            e.required(limits, "Limit must be set for non overcommitable resources");
        }
        return;
    };
    let (Some(request), Some(limit)) = (quantity(request), quantity(limit)) else { return };
    if request != limit && !may_overcommit(name) {
        e.invalid(path, request.to_string(), &format!("must be equal to {name} limit of {limit}"));
    } else if request > limit {
        e.invalid(
            path,
            request.to_string(),
            &format!("must be less than or equal to {name} limit of {limit}"),
        );
    }
}
