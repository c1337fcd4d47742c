//! Which objects a quota with scopes looks at.

use serde_json::Value;

use super::Resource;
use crate::pod::resources::qos_class;
use crate::read::Read;

/// Whether a quota with this specification counts the object.
pub fn matches(spec: &Value, resource: Resource<'_>, object: &Value) -> bool {
    let plain = spec.list("scopes").iter().filter_map(Value::as_str);
    let plain = plain.map(|scope| (scope, "Exists", &[][..]));
    let selected = spec.at("scopeSelector").list("matchExpressions").iter();
    let selected = selected.map(|e| (e.text("scopeName"), e.text("operator"), e.list("values")));
    plain.chain(selected).all(|(scope, operator, values)| match resource {
        ("", "pods") => pod_in(scope, operator, values, object),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            names_match(&attribute_classes(object), operator, values)
        }
        // Scopes are about pods (and that one about claims): nothing else has any.
        _ => false,
    })
}

/// Whether every scope sees two versions of an object alike.
pub fn same(resource: Resource<'_>, old: &Value, new: &Value) -> bool {
    match resource {
        ("", "pods") => {
            let (before, after) = (old.at("spec"), new.at("spec"));
            ["activeDeadlineSeconds", "priorityClassName", "affinity"]
                .iter()
                .all(|field| before.at(field) == after.at(field))
                && qos_class(old) == qos_class(new)
        }
        ("", "persistentvolumeclaims") => attribute_classes(old) == attribute_classes(new),
        _ => true,
    }
}

fn pod_in(scope: &str, operator: &str, values: &[Value], pod: &Value) -> bool {
    let spec = pod.at("spec");
    let terminating = spec.int("activeDeadlineSeconds").is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => {
            let class = Some(spec.text("priorityClassName")).filter(|c| !c.is_empty());
            names_match(&class.into_iter().collect::<Vec<_>>(), operator, values)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        _ => false,
    }
}

/// A scope's requirement on a set of names, as a label selector has it.
fn names_match(names: &[&str], operator: &str, values: &[Value]) -> bool {
    let listed = |name: &&str| values.iter().any(|v| v.as_str() == Some(name));
    match operator {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.iter().any(listed),
        "NotIn" => names.is_empty() || names.iter().any(|name| !listed(name)),
        _ => false,
    }
}

fn attribute_classes(claim: &Value) -> Vec<&str> {
    let paths: [&[&str]; 3] = [
        &["spec", "volumeAttributesClassName"],
        &["status", "currentVolumeAttributesClassName"],
        &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
    ];
    let named = paths.into_iter().filter_map(|path| claim.deep(path).as_str());
    named.filter(|name| !name.is_empty()).collect()
}

fn crosses_namespaces(spec: &Value) -> bool {
    let crosses =
        |term: &Value| !term.list("namespaces").is_empty() || term.has("namespaceSelector");
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = spec.deep(&["affinity", kind]);
        affinity.list("requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || affinity
                .list("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| crosses(weighted.at("podAffinityTerm")))
    })
}
