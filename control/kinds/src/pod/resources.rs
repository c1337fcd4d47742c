//! What a pod asks for in all, and the quality of service that follows.

use std::collections::BTreeMap;

use rimward_api::Quantity;
use serde_json::Value;

use crate::check::resources::quantity;
use crate::read::{Read, members};

/// A sum by resource name.
pub type Totals<'a> = BTreeMap<&'a str, Quantity>;

/// What the scheduler counts: containers and sidecars together, but at least what any init container
/// needs while it runs, plus the runtime's overhead. Requests of the pod itself come first.
pub fn pod_requests(pod: &Value) -> Totals<'_> {
    totals(pod.at("spec"), "requests")
}

pub fn pod_limits(pod: &Value) -> Totals<'_> {
    totals(pod.at("spec"), "limits")
}

fn totals<'a>(spec: &'a Value, field: &str) -> Totals<'a> {
    let of = |container: &'a Value| read(container.deep(&["resources", field]));
    let mut sum = Totals::new();
    spec.list("containers").iter().for_each(|c| add(&mut sum, of(c)));
    let (mut sidecars, mut peak) = (Totals::new(), Totals::new());
    for container in spec.list("initContainers") {
        // A sidecar runs on beside all that follow; another init container runs beside the
        // sidecars before it.
        let mut now = of(container);
        if container.text("restartPolicy") == "Always" {
            add(&mut sum, now.clone());
            add(&mut sidecars, now);
            now = sidecars.clone();
        } else {
            add(&mut now, sidecars.clone());
        }
        at_least(&mut peak, now);
    }
    at_least(&mut sum, peak);
    for (name, value) in read(spec.deep(&["resources", field])) {
        sum.insert(name, value);
    }
    if field == "requests" || !sum.is_empty() {
        add(&mut sum, read(spec.at("overhead")));
    }
    sum
}

fn read(map: &Value) -> Totals<'_> {
    members(map).filter_map(|(name, value)| Some((name.as_str(), quantity(value)?))).collect()
}

fn add<'a>(sum: &mut Totals<'a>, more: Totals<'a>) {
    for (name, value) in more {
        sum.entry(name).and_modify(|s| *s = *s + value).or_insert(value);
    }
}

fn at_least<'a>(sum: &mut Totals<'a>, other: Totals<'a>) {
    for (name, value) in other {
        sum.entry(name).and_modify(|s| *s = (*s).max(value)).or_insert(value);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = pod.at("spec");
    if spec.has("resources") {
        return class_of([spec].into_iter());
    }
    class_of(spec.list("containers").iter().chain(spec.list("initContainers")))
}

fn class_of<'a>(holders: impl Iterator<Item = &'a Value>) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for holder in holders {
        for name in ["cpu", "memory"] {
            let value = |field: &str| {
                quantity(holder.deep(&["resources", field, name])).filter(|q| !q.is_zero())
            };
            let (request, limit) = (value("requests"), value("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quality_of_service() {
        #[track_caller]
        fn check(containers: Value, class: &str) {
            assert_eq!(qos_class(&json!({ "spec": { "containers": containers } })), class);
        }
        check(json!([{ "resources": {} }]), "BestEffort");
        check(json!([{ "resources": { "requests": { "cpu": "1" } } }]), "Burstable");
        let whole = json!({ "resources": { "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1Gi" } } });
        check(json!([whole]), "Guaranteed");
        check(json!([whole, { "resources": {} }]), "Burstable");
    }

    #[test]
    fn requests() {
        #[track_caller]
        fn check(spec: Value, expected: &str) {
            let pod = json!({ "spec": spec });
            assert_eq!(pod_requests(&pod)["cpu"].to_string(), expected);
        }
        let asks = |cpu: &str| json!({ "resources": { "requests": { "cpu": cpu } } });
        let sidecar = |cpu: &str| json!({ "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } });
        check(json!({ "containers": [asks("1"), asks("500m")] }), "1500m");
        check(json!({ "containers": [asks("1")], "initContainers": [asks("2")] }), "2");
        check(
            json!({ "containers": [asks("1")], "initContainers": [sidecar("1"), asks("2")] }),
            "3",
        );
        check(
            json!({ "containers": [asks("1")], "initContainers": [asks("2"), sidecar("2")] }),
            "3",
        );
        check(json!({ "containers": [asks("1")], "overhead": { "cpu": "250m" } }), "1250m");
    }
}
