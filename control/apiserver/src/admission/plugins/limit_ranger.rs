//! LimitRanges: what containers ask for when they do not say, and what nobody may ask for.
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use rimward_api::{Quantity, Status};
use rimward_control_kinds::pod::{pod_limits, pod_requests};
use rimward_control_kinds::quota::{Amounts, amounts};
use rimward_control_kinds::read::{Read, fill, items_mut, member, members};
use serde_json::{Value, json};

use crate::admission::Review;
use crate::mirror::Mirrored;
use crate::server::Inner;
use crate::views::Stored;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The stored LimitRanges, by namespace and name.
#[derive(Default)]
pub struct LimitRanges(RwLock<HashMap<String, BTreeMap<String, Arc<Value>>>>);

impl LimitRanges {
    fn of(&self, namespace: &str) -> Vec<Arc<Value>> {
        self.0.read().get(namespace).map(|m| m.values().cloned().collect()).unwrap_or_default()
    }

    fn set(&self, key: &str, range: Option<Arc<Value>>) {
        let Some((namespace, name)) = key.split_once('/') else { return };
        let mut all = self.0.write();
        let ranges = all.entry(namespace.to_owned()).or_default();
        match range {
            Some(range) => ranges.insert(name.to_owned(), range),
            None => ranges.remove(name),
        };
        if ranges.is_empty() {
            all.remove(namespace);
        }
    }
}

fn parse(stored: &Stored) -> Option<Arc<Value>> {
    serde_json::from_slice(stored.record.body()).ok().map(Arc::new)
}

impl Mirrored for LimitRanges {
    fn replace(&self, all: Vec<(String, Stored)>) {
        self.0.write().clear();
        for (key, stored) in all {
            self.set(&key, parse(&stored));
        }
    }

    fn put(&self, key: &str, stored: &Stored) {
        self.set(key, parse(stored));
    }

    fn remove(&self, key: &str) {
        self.set(key, None);
    }
}

fn concerns(review: &Review<'_>) -> bool {
    // What a pod asks for is fixed once it is there; a claim may grow.
    review.creates("", "pods")
        || (review.subresource.is_empty() && review.served.is("", "persistentvolumeclaims"))
}

/// Gives containers the defaults. (Claims have none: they always say what they want.)
pub fn fill_in(server: &Inner, review: &mut Review<'_>) {
    if !review.creates("", "pods") {
        return;
    }
    for range in server.plugins.limit_ranges.of(review.text("namespace")) {
        set_defaults(&range, review.object);
    }
}

/// Refuses what is outside of the limits.
pub fn check(server: &Inner, review: &Review<'_>) -> Result<(), Status> {
    if !concerns(review) {
        return Ok(());
    }
    for range in server.plugins.limit_ranges.of(review.text("namespace")) {
        let mut wrong = match review.served.is("", "pods") {
            true => pod_violations(&range, review.object),
            false => claim_violations(&range, review.object),
        };
        let mut seen = std::collections::HashSet::new();
        wrong.retain(|why| seen.insert(why.clone()));
        match wrong.as_slice() {
            [] => {}
            [one] => return Err(review.forbidden(one)),
            many => return Err(review.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

fn limits<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range.at("spec").list("limits").iter().filter(move |limit| limit.text("type") == kind)
}

fn set_defaults(range: &Value, pod: &mut Value) {
    let (mut requests, mut maxima) = (json!({}), json!({}));
    for limit in limits(range, "Container") {
        for (defaults, field) in [(&mut requests, "defaultRequest"), (&mut maxima, "default")] {
            members(limit.at(field)).for_each(|(name, value)| defaults[name] = value.clone());
        }
    }
    let mut told = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in items_mut(&mut pod["spec"], list) {
            let name = container.text("name").to_owned();
            // The order in which Kubernetes tells: requests, then limits.
            for (field, word, defaults) in
                [("requests", "request", &requests), ("limits", "limit", &maxima)]
            {
                let lacking: Vec<String> = members(defaults)
                    .filter(|(n, _)| !container.deep(&["resources", field]).has(n))
                    .map(|(n, _)| n.clone())
                    .collect();
                let resources = member(container, "resources");
                let Some(target) = resources.and_then(|r| member(r, field)) else { continue };
                lacking.iter().for_each(|n| fill(target, n, defaults[n].clone()));
                if !lacking.is_empty() {
                    told.push(format!("{} {word} for {what} {name}", lacking.join(", ")));
                }
            }
            drop_empty(container);
        }
    }
    if !told.is_empty() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        if let Some(annotations) = member(&mut pod["metadata"], "annotations") {
            annotations[ANNOTATION] = text.into();
        }
    }
}

/// An empty list of requests or limits is none.
fn drop_empty(container: &mut Value) {
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
        resources.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
    }
}

fn pod_violations(range: &Value, pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let spec = pod.at("spec");
    for limit in range.at("spec").list("limits") {
        let asked = |holder: &Value| {
            let resources = holder.at("resources");
            (amounts(resources.at("requests")), amounts(resources.at("limits")))
        };
        match limit.text("type") {
            "Container" => {
                for container in spec.list("containers").iter().chain(spec.list("initContainers")) {
                    let (requests, limits) = asked(container);
                    bounds(limit, "Container", &requests, &limits, &mut wrong);
                }
            }
            "Pod" => {
                // The runtime's overhead is not what the user asked for.
                let mut plain = pod.clone();
                if let Some(spec) = plain["spec"].as_object_mut() {
                    spec.remove("overhead");
                }
                let own = |totals: rimward_control_kinds::pod::resources::Totals<'_>| -> Amounts {
                    totals.into_iter().map(|(name, q)| (name.to_owned(), q)).collect()
                };
                let (requests, limits) = (own(pod_requests(&plain)), own(pod_limits(&plain)));
                bounds(limit, "Pod", &requests, &limits, &mut wrong);
            }
            _ => {}
        }
    }
    wrong
}

fn claim_violations(range: &Value, claim: &Value) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = amounts(claim.deep(&["spec", "resources", "requests"]));
    let mut wrong = Vec::new();
    for limit in limits(range, KIND) {
        for (name, bound) in amounts(limit.at("min")) {
            wrong.extend(minimum(KIND, &name, bound, &requests, &Amounts::new()));
        }
        for (name, bound) in amounts(limit.at("max")) {
            let head = format!("maximum {name} usage per {KIND} is {bound}");
            match requests.get(&name) {
                None => wrong.push(format!("{head}.  No request is specified")),
                Some(r) if *r > bound => wrong.push(format!("{head}, but request is {r}")),
                Some(_) => {}
            }
        }
    }
    wrong
}

fn bounds(
    limit: &Value,
    kind: &str,
    requests: &Amounts,
    limits: &Amounts,
    wrong: &mut Vec<String>,
) {
    for (name, bound) in amounts(limit.at("min")) {
        wrong.extend(minimum(kind, &name, bound, requests, limits));
    }
    for (name, bound) in amounts(limit.at("max")) {
        wrong.extend(maximum(kind, &name, bound, requests, limits));
    }
    for (name, bound) in amounts(limit.at("maxLimitRequestRatio")) {
        wrong.extend(ratio(kind, &name, bound, requests, limits));
    }
}

fn minimum(
    kind: &str,
    name: &str,
    bound: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(r), _) if *r < bound => Some(format!("{head}, but request is {r}")),
        (_, Some(l)) if *l < bound => Some(format!("{head}, but limit is {l}")),
        _ => None,
    }
}

fn maximum(
    kind: &str,
    name: &str,
    bound: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let head = format!("maximum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (_, None) => Some(format!("{head}.  No limit is specified")),
        (_, Some(l)) if *l > bound => Some(format!("{head}, but limit is {l}")),
        (Some(r), _) if *r > bound => Some(format!("{head}, but request is {r}")),
        _ => None,
    }
}

fn ratio(
    kind: &str,
    name: &str,
    bound: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {bound}");
    let given = |of: &Amounts| of.get(name).filter(|q| !q.is_zero()).map(Quantity::millis);
    let Some(request) = given(requests) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = given(limits) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let is = limit as f64 / request as f64;
    let exceeds = is * 1000.0 > bound.millis() as f64;
    exceeds.then(|| format!("{head}, but provided ratio is {is:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limits: Value) -> Value {
        json!({ "spec": { "limits": limits } })
    }

    fn pod(resources: Value) -> Value {
        json!({ "metadata": {}, "spec": { "containers": [{ "name": "c", "resources": resources }] } })
    }

    #[test]
    fn defaults_and_what_is_told_of_them() {
        #[track_caller]
        fn check(resources: Value, expected: Value, told: Value) {
            let range = range(
                json!([{ "type": "Container", "default": { "cpu": "500m", "memory": "512Mi" }, "defaultRequest": { "cpu": "100m" } }]),
            );
            let mut object = pod(resources);
            set_defaults(&range, &mut object);
            assert_eq!(object["spec"]["containers"][0]["resources"], expected);
            assert_eq!(object["metadata"]["annotations"][ANNOTATION], told);
        }
        check(
            json!({}),
            json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "500m", "memory": "512Mi" } }),
            json!(
                "LimitRanger plugin set: cpu request for container c; cpu, memory limit for container c"
            ),
        );
        check(
            json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "1", "memory": "1Gi" } }),
            json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "1", "memory": "1Gi" } }),
            Value::Null,
        );
    }

    #[test]
    fn violations() {
        #[track_caller]
        fn check(limit: Value, resources: Value, expected: &[&str]) {
            assert_eq!(pod_violations(&range(json!([limit])), &pod(resources)), expected);
        }
        let container =
            |field: &str, cpu: &str| json!({ "type": "Container", field: { "cpu": cpu } });
        let asks = |request: &str, limit: &str| json!({ "requests": { "cpu": request }, "limits": { "cpu": limit } });
        check(container("min", "100m"), asks("100m", "1"), &[]);
        check(
            container("min", "100m"),
            asks("50m", "1"),
            &["minimum cpu usage per Container is 100m, but request is 50m"],
        );
        check(
            container("min", "100m"),
            json!({}),
            &["minimum cpu usage per Container is 100m.  No request is specified"],
        );
        check(
            container("max", "1"),
            asks("1", "2"),
            &["maximum cpu usage per Container is 1, but limit is 2"],
        );
        check(
            container("max", "1"),
            json!({ "requests": { "cpu": "1" } }),
            &["maximum cpu usage per Container is 1.  No limit is specified"],
        );
        check(
            container("maxLimitRequestRatio", "2"),
            asks("100m", "250m"),
            &["cpu max limit to request ratio per Container is 2, but provided ratio is 2.500000"],
        );
        check(container("maxLimitRequestRatio", "2"), asks("100m", "200m"), &[]);
        check(
            json!({ "type": "Pod", "max": { "cpu": "1" } }),
            asks("1", "1500m"),
            &["maximum cpu usage per Pod is 1, but limit is 1500m"],
        );
        let claims = range(
            json!([{ "type": "PersistentVolumeClaim", "min": { "storage": "1Gi" }, "max": { "storage": "2Gi" } }]),
        );
        let claim =
            |size: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        assert_eq!(claim_violations(&claims, &claim("1Gi")), Vec::<String>::new());
        assert_eq!(
            claim_violations(&claims, &claim("3Gi")),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
    }
}
