//! What may change in a pod that exists.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::{qos_class, spec};
use crate::check;
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::read::{Read, keep, same};

/// The fields of a pod's spec that an update may change; the rest is munged to be equal before the
/// two are compared.
const CHANGEABLE: [&str; 3] = ["activeDeadlineSeconds", "tolerations", "schedulingGates"];

pub fn prepare_create(pod: &mut Value) {
    let class = qos_class(pod);
    let mut status = json!({ "phase": "Pending", "qosClass": class });
    if !pod.at("spec").list("schedulingGates").is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    pod["status"] = status;
}

pub fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    match write {
        Write::Sub("ephemeralcontainers") => only(new, old, |spec, wanted| {
            keep(spec, wanted, "ephemeralContainers");
        }),
        Write::Sub("resize") => only(new, old, resize),
        Write::Sub("status") => {
            // The owner and the class are not the status writer's.
            let owners = old.at("metadata").get("ownerReferences").cloned();
            if let Some(Value::Object(meta)) = new.get_mut("metadata") {
                match owners {
                    Some(owners) => meta.insert("ownerReferences".to_owned(), owners),
                    None => meta.remove("ownerReferences"),
                };
            }
            if let Some(status) = new.get_mut("status") {
                keep(status, old.at("status"), "qosClass");
            }
        }
        _ => {}
    }
}

/// The old pod, with what `take` takes from the new spec.
fn only(new: &mut Value, old: &Value, take: fn(&mut Value, &Value)) {
    let mut spec = old.at("spec").clone();
    take(&mut spec, new.at("spec"));
    new["spec"] = spec;
    keep(new, old, "status");
    if let (Value::Object(meta), Value::Object(before)) = (&mut new["metadata"], old.at("metadata"))
    {
        for field in ["labels", "annotations", "ownerReferences", "finalizers"] {
            match before.get(field) {
                Some(value) => meta.insert(field.to_owned(), value.clone()),
                None => meta.remove(field),
            };
        }
    }
}

/// Resources and resize policy of the containers that both have.
fn resize(spec: &mut Value, wanted: &Value) {
    for list in ["containers", "initContainers"] {
        let asked: HashMap<&str, &Value> =
            wanted.list(list).iter().map(|c| (c.text("name"), c)).collect();
        for container in crate::read::items_mut(spec, list) {
            if let Some(asked) = asked.get(container.text("name")).copied() {
                keep(container, asked, "resources");
                keep(container, asked, "resizePolicy");
            }
        }
    }
}

/// `ValidatePodUpdate`, without the object's metadata.
pub fn update(new: &Value, old: &Value, e: &mut Errors) {
    let (spec, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
    spec::of_pod(new, e);
    for list in ["containers", "initContainers"] {
        if spec.list(list).len() != before.list(list).len() {
            return e.forbidden(&path.field(list), "pod updates may not add or remove containers");
        }
        images(spec.list(list), &path.field(list), e);
    }
    if !deadline(spec, before, &path.field("activeDeadlineSeconds"), e) {
        return;
    }
    tolerations(spec, before, &path.field("tolerations"), e);
    gates(spec, before, &path.field("schedulingGates"), e);
    if same(spec, before) {
        return;
    }
    if !before.list("schedulingGates").is_empty() {
        narrowed(spec, before, &path, e);
    }
    if !same(&munged(spec, before), before) {
        e.forbidden(&path, "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)");
    }
}

/// Images may change, and are looked at again.
fn images(containers: &[Value], path: &Path<'_>, e: &mut Errors) {
    for (i, container) in containers.iter().enumerate() {
        let at = path.index(i);
        match container.text("image") {
            "" => e.required(&at.field("image"), ""),
            image if image.trim() != image => {
                let why = "must not have leading or trailing whitespace";
                e.invalid(&at.field("image"), image, why);
            }
            _ => {}
        }
    }
}

/// A deadline may be set, and come nearer. Answers whether the rest is still looked at.
fn deadline(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) -> bool {
    let value = |spec: &Value| spec.int("activeDeadlineSeconds");
    match (value(new), value(old)) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            e.invalid(path, new, "must be between 0 and 2147483647, inclusive");
            false
        }
        (Some(new), Some(old)) if new > old => {
            e.invalid(path, new, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            e.invalid(path, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn gates(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    let before: HashSet<&str> =
        old.list("schedulingGates").iter().map(|g| g.text("name")).collect();
    for (i, gate) in new.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !before.contains(name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            e.forbidden(&path.index(i).field("name"), &why);
        }
    }
}

/// A pod that waits at its gates may ask for fewer nodes than before, and not for others.
fn narrowed(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    let (now, before) = (new.at("nodeSelector"), old.at("nodeSelector"));
    if crate::read::members(before).any(|(key, value)| now.get(key) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        e.invalid(&path.field("nodeSelector"), now.clone(), why);
    }
    let required = ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    let (now, before) = (new.deep(&required), old.deep(&required));
    let (terms, were) = (now.list("nodeSelectorTerms"), before.list("nodeSelectorTerms"));
    let [affinity, node, required] = required;
    let at = path.field(affinity);
    let at = at.field(node);
    let at = at.field(required);
    let at = at.field("nodeSelectorTerms");
    if !were.is_empty() && were.len() != terms.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return e.invalid(&at, terms.to_vec(), why);
    }
    for (i, (term, was)) in terms.iter().zip(were).enumerate() {
        let grew = |field: &str| {
            let (now, before) = (term.list(field), was.list(field));
            now.len() >= before.len() && now.iter().zip(before).all(|(n, b)| same(n, b))
        };
        // A term without requirements chooses no node, and must not begin to.
        let empty = was.list("matchExpressions").is_empty() && was.list("matchFields").is_empty();
        if if empty { !same(term, was) } else { !grew("matchExpressions") || !grew("matchFields") }
        {
            let why = "only additions are allowed (no mutations or deletions)";
            e.invalid(&at.index(i), term.clone(), why);
        }
    }
}

/// Tolerations may be added, and the seconds of one that is there may change.
fn tolerations(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    fn key(toleration: &Value) -> [&str; 4] {
        ["key", "operator", "value", "effect"].map(|field| toleration.text(field))
    }
    let now: HashSet<_> = new.list("tolerations").iter().map(key).collect();
    if !old.list("tolerations").iter().all(|t| now.contains(&key(t))) {
        e.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
}

/// The new spec with everything that may change as it was.
fn munged(spec: &Value, old: &Value) -> Value {
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        for (i, container) in crate::read::items_mut(&mut munged, list).enumerate() {
            if let Some(before) = old.list(list).get(i) {
                keep(container, before, "image");
            }
        }
    }
    for field in CHANGEABLE {
        keep(&mut munged, old, field);
    }
    if old.int("terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && spec.int("terminationGracePeriodSeconds") == Some(1)
    {
        keep(&mut munged, old, "terminationGracePeriodSeconds");
    }
    // A pod that waits at its gates may still be narrowed.
    if !old.list("schedulingGates").is_empty() {
        keep(&mut munged, old, "nodeSelector");
        let was = old.deep(&["affinity", "nodeAffinity"]);
        if !same(munged.deep(&["affinity", "nodeAffinity"]), was)
            && let Some(affinity) = crate::read::member(&mut munged, "affinity")
        {
            keep(affinity, old.at("affinity"), "nodeAffinity");
        }
    }
    munged
}

/// Writes to subresources.
pub fn update_sub(sub: &str, new: &Value, old: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    match sub {
        "ephemeralcontainers" => {
            spec::of_pod(new, e);
            let (after, before) = (
                new.at("spec").list("ephemeralContainers"),
                old.at("spec").list("ephemeralContainers"),
            );
            let after: HashMap<&str, &Value> = after.iter().map(|c| (c.text("name"), c)).collect();
            for container in before {
                let name = container.text("name");
                match after.get(name).copied() {
                    None => e.forbidden(
                        &path.field("ephemeralContainers"),
                        &format!("existing ephemeral containers {name:?} may not be removed\n"),
                    ),
                    Some(c) if !same(c, container) => {
                        e.forbidden(
                            &path.field("ephemeralContainers"),
                            &format!("existing ephemeral containers {name:?} may not be changed\n"),
                        );
                    }
                    Some(_) => {}
                }
            }
        }
        "resize" => resized(new, old, &path, e),
        "status" => status(new.at("status"), old, e),
        _ => {}
    }
}

/// What may be asked for anew: cpu and memory, of containers that run as long as the pod.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
const MIRROR: &str = "kubernetes.io/config.mirror";

/// `ValidatePodResize`; of the rest, [`prepare_update`] let nothing through.
fn resized(new: &Value, old: &Value, path: &Path<'_>, e: &mut Errors) {
    let pod = Path::Root.field("");
    if old.at("metadata").at("annotations").has(MIRROR) {
        return e.forbidden(&pod, "static pods cannot be resized");
    }
    if old.at("spec").at("os").text("name") == "windows" {
        return e.forbidden(&pod, "windows pods cannot be resized");
    }
    spec::of_pod(new, e);
    if old.at("status").has("qosClass") && qos_class(new) != old.at("status").text("qosClass") {
        e.invalid(path, Value::Null, "Pod QOS Class may not change as a result of resizing");
    }
    let mut other = false;
    for field in ["containers", "initContainers"] {
        let list = path.field(field);
        let containers = new.at("spec").list(field).iter().zip(old.at("spec").list(field));
        for (i, (container, before)) in containers.enumerate() {
            let (asked, had) = (container.at("resources"), before.at("resources"));
            let item = list.index(i);
            let at = item.field("resources");
            for (kind, why) in [
                ("requests", "resource requests cannot be removed"),
                ("limits", "resource limits cannot be removed"),
            ] {
                if RESIZABLE.iter().any(|r| had.at(kind).has(r) && !asked.at(kind).has(r)) {
                    e.forbidden(&at.field(kind), why);
                }
            }
            let stays = field == "containers" || container.text("restartPolicy") == "Always";
            other |= match stays {
                true => !same(&without_resizable(asked), &without_resizable(had)),
                false => !same(asked, had),
            };
        }
    }
    if other {
        e.forbidden(path, "only cpu and memory resources are mutable");
    }
}

fn without_resizable(resources: &Value) -> Value {
    let mut rest = resources.clone();
    for kind in ["requests", "limits"] {
        if let Some(Value::Object(amounts)) = rest.get_mut(kind) {
            amounts.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        }
    }
    rest
}

fn status(status: &Value, old: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    let nominated = status.text("nominatedNodeName");
    if !nominated.is_empty() {
        e.invalid_each(
            &path.field("nominatedNodeName"),
            nominated,
            rimward_api::names::dns1123_subdomain(nominated),
        );
    }
    let list = path.field("podIPs");
    for (i, ip) in status.list("podIPs").iter().enumerate() {
        check::net::ip(ip.text("ip"), &list.index(i), e);
    }
    // A container that ended for good does not run again.
    let list = path.field("containerStatuses");
    for (i, before) in old.at("status").list("containerStatuses").iter().enumerate() {
        let ended = before.deep(&["state", "terminated"]);
        let name = before.text("name");
        let code = ended.int("exitCode").unwrap_or_default();
        let fine = ended.is_null() || may_run_again(old.at("spec"), name, code);
        let now = status.list("containerStatuses").iter().find(|c| c.text("name") == name);
        if !fine && now.is_some_and(|c| c.deep(&["state", "terminated"]).is_null()) {
            e.forbidden(
                &list.index(i).field("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

/// Whether a container that ended with a code is ever started again: by its own rules and policy, the pod's, or
/// because the end of another one begins all of them anew.
fn may_run_again(spec: &Value, name: &str, code: i64) -> bool {
    let all = || spec.list("containers").iter().chain(spec.list("initContainers"));
    if all()
        .flat_map(|c| c.list("restartPolicyRules"))
        .any(|rule| rule.text("action") == "RestartAllContainers")
    {
        return true;
    }
    let container = all().find(|c| c.text("name") == name).unwrap_or(&Value::Null);
    let applies = |rule: &Value| {
        let codes = rule.at("exitCodes");
        let listed = codes.list("values").iter().any(|value| value.as_i64() == Some(code));
        listed == (codes.text("operator") == "In")
    };
    if container.list("restartPolicyRules").iter().any(applies) {
        return true;
    }
    let own = container.text("restartPolicy");
    match if own.is_empty() { spec.text("restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

/// `terminationGracePeriodSeconds`, at least 1, unless it is 0.
pub fn grace_period(pod: &Value) -> Option<i64> {
    match pod.at("spec").int("terminationGracePeriodSeconds") {
        Some(seconds) if seconds < 0 => Some(1),
        Some(seconds) => Some(seconds),
        None => Some(30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_may_run_again() {
        #[track_caller]
        fn check(policy: &str, container: Value, code: i64, expected: bool) {
            let mut container = container;
            container["name"] = json!("c");
            let spec = json!({"restartPolicy": policy, "containers": [container]});
            assert_eq!(may_run_again(&spec, "c", code), expected);
        }
        let rule = |action: &str| {
            json!({"restartPolicy": "Never", "restartPolicyRules": [
            {"action": action, "exitCodes": {"operator": "In", "values": [42]}}]})
        };
        check("Never", json!({}), 1, false);
        check("Always", json!({}), 0, true);
        check("OnFailure", json!({}), 0, false);
        check("OnFailure", json!({}), 3, true);
        check("Never", json!({"restartPolicy": "Always"}), 0, true);
        check("Always", json!({"restartPolicy": "Never"}), 1, false);
        check("Never", rule("Restart"), 42, true);
        check("Never", rule("Restart"), 1, false);
        check("Never", rule("RestartAllContainers"), 0, true);
    }
}
