//! Pod security standards: what pods of a namespace may do, by the labels of the namespace.
//! <https://kubernetes.io/docs/concepts/security/pod-security-admission/>

mod checks;
mod policy;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::Status;
use rimward_control_kinds::read::Read;
use rimward_control_store::ListRequest;
use serde_json::Value;

use crate::admission::{Operation, Review};
use crate::error;
use crate::mirror::Mirrored;
use crate::server::Inner;
use crate::views::Stored;
use checks::Violation;
use policy::{Level, LevelVersion, Policy};

/// Existing pods that a new enforced level is tried on, as Kubernetes does.
const PODS_CHECKED_MAX: usize = 3000;

/// The policies of the namespaces that have one: most say nothing, and cost nothing.
#[derive(Default)]
pub struct Policies(RwLock<HashMap<String, Arc<Policy>>>);

impl Policies {
    fn of(&self, namespace: &str) -> Option<Arc<Policy>> {
        self.0.read().get(namespace).cloned()
    }
}

fn parse(stored: &Stored) -> Option<Arc<Policy>> {
    let (policy, _) = Policy::of(|label| stored.record.label(label).map(str::to_owned));
    (policy != Policy::default()).then(|| Arc::new(policy))
}

impl Mirrored for Policies {
    fn replace(&self, all: Vec<(String, Stored)>) {
        *self.0.write() = all.iter().filter_map(|(k, s)| Some((k.clone(), parse(s)?))).collect();
    }

    fn put(&self, key: &str, stored: &Stored) {
        match parse(stored) {
            Some(policy) => self.0.write().insert(key.to_owned(), policy),
            None => self.0.write().remove(key),
        };
    }

    fn remove(&self, key: &str) {
        self.0.write().remove(key);
    }
}

/// Refuses a pod that the namespace's enforced level forbids, or a namespace whose labels make no
/// sense; warns of what another level would forbid.
pub async fn check(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let warnings = warnings(server, review).await?;
    review.warnings.extend(warnings);
    Ok(())
}

async fn warnings(server: &Inner, review: &Review<'_>) -> Result<Vec<String>, Status> {
    if review.served.is("", "namespaces") && review.subresource.is_empty() {
        return namespace(server, review).await;
    }
    let is_pod = review.served.is("", "pods");
    let concerned = match review.subresource {
        "" => is_pod || template_of(review).is_some(),
        "ephemeralcontainers" | "resize" => is_pod,
        _ => false,
    };
    if !concerned {
        return Ok(Vec::new());
    }
    let Some(policy) = server.plugins.pod_security.of(review.text("namespace")) else {
        return Ok(Vec::new());
    };
    if is_pod {
        if review.old.is_some_and(|old| !runs_something_else(review.object, old)) {
            return Ok(Vec::new());
        }
        let violations = checks::evaluate(policy.enforce, review.object);
        if !violations.is_empty() {
            let (level, details) = (policy.enforce, details(&violations));
            return Err(review.forbidden(&format!("violates PodSecurity \"{level}\": {details}")));
        }
    }
    let object = if is_pod { Some(&*review.object) } else { template_of(review) };
    let violations = object.map(|o| checks::evaluate(policy.warn, o)).unwrap_or_default();
    if violations.is_empty() {
        return Ok(Vec::new());
    }
    let (level, details) = (policy.warn, details(&violations));
    Ok(vec![format!("would violate PodSecurity \"{level}\": {details}")])
}

/// The pod template of a kind that makes pods.
fn template_of<'a>(review: &'a Review<'_>) -> Option<&'a Value> {
    let kind = &review.served.kind;
    let object = &*review.object;
    let template = match (kind.group.as_str(), kind.resource.as_str()) {
        ("", "podtemplates") => object.at("template"),
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => object.deep(&["spec", "template"]),
        ("batch", "cronjobs") => object.deep(&["spec", "jobTemplate", "spec", "template"]),
        _ => return None,
    };
    template.is_object().then_some(template)
}

/// Whether an update changes what runs: only then is a pod looked at again.
fn runs_something_else(new: &Value, old: &Value) -> bool {
    let (new, old) = (new.at("spec"), old.at("spec"));
    let same = |list: &str| {
        let (new, old) = (new.list(list), old.list(list));
        new.len() == old.len()
            && new.iter().zip(old).all(|(n, o)| n.text("image") == o.text("image"))
    };
    let known = |new: &Value| {
        let ephemeral = old.list("ephemeralContainers").iter();
        let old = ephemeral.clone().find(|o| o.text("name") == new.text("name"));
        old.is_some_and(|o| o.text("image") == new.text("image"))
    };
    !same("containers")
        || !same("initContainers")
        || !new.list("ephemeralContainers").iter().all(known)
}

fn details(violations: &[Violation]) -> String {
    let each = violations.iter().map(|v| match v.detail.as_str() {
        "" => v.reason.clone(),
        detail => format!("{} ({detail})", v.reason),
    });
    each.collect::<Vec<_>>().join(", ")
}

async fn namespace(server: &Inner, review: &Review<'_>) -> Result<Vec<String>, Status> {
    let read = |object: &Value| {
        let labels = object.deep(&["metadata", "labels"]).clone();
        Policy::of(move |label| labels.get(label)?.as_str().map(str::to_owned))
    };
    let (new, wrong) = read(review.object);
    let invalid = || Err(Status::invalid(&review.served.group_kind(), review.text("name"), &wrong));
    let Some(old) = review.old.filter(|_| review.operation == Operation::Update) else {
        return if wrong.is_empty() { Ok(Vec::new()) } else { invalid() };
    };
    let (old, was_wrong) = read(old);
    if !wrong.is_empty() && wrong != was_wrong {
        return invalid();
    }
    let stricter =
        new.enforce.version != old.enforce.version || new.enforce.level > old.enforce.level;
    if new.enforce.level == Level::Privileged || !stricter {
        return Ok(Vec::new());
    }
    let name = review.text("name");
    let prefix = format!("{}{name}/", server.pods_prefix);
    let page = server.store.list(ListRequest { prefix, ..ListRequest::default() }).await;
    let pods = server.registry().resource("", "pods").expect("a built-in kind");
    let mut all = Vec::new();
    for entry in page.map_err(error::store)?.entries {
        all.push(Stored::open(&entry)?.stored_value(&pods)?);
    }
    Ok(existing(name, new.enforce, all))
}

/// What to tell of pods that a new enforced level would not let in. Pure.
fn existing(namespace: &str, enforce: LevelVersion, pods: Vec<Value>) -> Vec<String> {
    // One of each owner's first: the others are most likely like it.
    let mut owners = HashSet::new();
    let (mut first, again): (Vec<Value>, Vec<Value>) = pods.into_iter().partition(|pod| {
        let references = pod.at("metadata").list("ownerReferences").iter();
        let owner = references.clone().find(|o| o.flag("controller")).map(|o| o.text("uid"));
        owner.is_none_or(|uid| owners.insert(uid.to_owned()))
    });
    first.extend(again);
    let total = first.len();
    first.truncate(PODS_CHECKED_MAX);
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in &first {
        let reasons: Vec<String> =
            checks::evaluate(enforce, pod).into_iter().map(|v| v.reason).collect();
        if !reasons.is_empty() {
            found.entry(reasons.join(", ")).or_default().push(pod.at("metadata").text("name"));
        }
    }
    let mut warnings = Vec::new();
    if first.len() < total {
        let checked = first.len();
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if found.is_empty() {
        return warnings;
    }
    warnings.push(format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
    ));
    let mut each: Vec<String> = found
        .into_iter()
        .map(|(reasons, names)| {
            let first = names.iter().min().copied().unwrap_or_default();
            match names.len() {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                n => format!("{first} (and {} other pods): {reasons}", n - 1),
            }
        })
        .collect();
    each.sort();
    warnings.extend(each);
    warnings
}

#[cfg(test)]
mod tests;
