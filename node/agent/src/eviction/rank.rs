//! Which pod goes first, and what it is told.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#pod-selection-for-kubelet-eviction>

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use rimward_api::Quantity;

use super::demand::Demand;
use crate::pressure::{Met, Signal};

/// A pod that may be ended, and what it takes of what is short.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub uid: String,
    pub demand: Arc<Demand>,
    /// By container.
    pub used: BTreeMap<String, u64>,
    pub total: u64,
}

/// Those that use more than they asked for first; of them the lowest priority, then whoever exceeds the most.
/// Nobody asks for inodes or process ids: there priority decides, then the number.
pub(super) fn order(subjects: &mut [Subject], signal: Signal) {
    subjects.sort_by_key(|subject| {
        let asked = match signal.is_bytes() {
            false => 0,
            true => subject.demand.requested(signal.resource()),
        };
        let within = signal.is_bytes() && subject.total <= asked;
        let over = i128::from(subject.total) - i128::from(asked);
        (within, subject.demand.priority, Reverse(over))
    });
}

/// What the pod's status and its Event say, in the kubelet's words.
pub(super) fn message(subject: &Subject, met: &Met) -> String {
    let amount = |n: u64| match met.signal.is_bytes() {
        false => n.to_string(),
        true => bytes(n),
    };
    let resource = met.signal.resource();
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(met.wanted),
        amount(met.observed.available)
    );
    for (container, used) in &subject.used {
        let request = subject.demand.request(container, resource);
        if i128::from(*used) > i128::from(request.value()) {
            text += &format!(
                "Container {container} was using {}, request is {request}, has larger consumption of {resource}. ",
                bytes(*used)
            );
        }
    }
    text
}

fn bytes(n: u64) -> String {
    Quantity::from_bytes(i64::try_from(n).unwrap_or(i64::MAX)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pressure::Observed;

    fn subject(uid: &str, priority: i32, request_mib: u64, used_mib: u64) -> Subject {
        let pod = json!({
            "metadata": { "name": uid, "namespace": "n" },
            "spec": { "priority": priority, "containers": [{
                "name": "c", "resources": { "requests": { "memory": format!("{request_mib}Mi") } },
            }] },
        });
        let demand = Arc::new(Demand::of(&serde_json::from_value(pod).unwrap()));
        let used = used_mib << 20;
        let by_container = BTreeMap::from([("c".to_owned(), used)]);
        Subject { uid: uid.into(), demand, used: by_container, total: used }
    }

    #[test]
    fn usage_over_requests_then_priority_then_usage() {
        let mut subjects = vec![
            subject("within", -5, 500, 400),
            subject("within-more", -5, 500, 450),
            subject("important", 100, 10, 900),
            subject("over", 0, 100, 150),
            subject("over-more", 0, 10, 100),
        ];
        let names = |subjects: &[Subject]| -> Vec<String> {
            subjects.iter().map(|s| s.uid.clone()).collect()
        };
        order(&mut subjects, Signal::Memory);
        let expected = ["over-more", "over", "important", "within-more", "within"];
        assert_eq!(names(&subjects), expected);
        order(&mut subjects, Signal::Inodes);
        assert_eq!(
            names(&subjects),
            ["within-more", "within", "over", "over-more", "important"],
            "nobody asked for inodes"
        );
    }

    #[test]
    fn the_kubelets_words() {
        let observed = Observed { available: 50 << 20, capacity: 1 << 30 };
        let met = Met { signal: Signal::Memory, observed, wanted: 100 << 20, hard: true };
        assert_eq!(
            message(&subject("p", 0, 10, 300), &met),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 300Mi, request is 10Mi, has larger consumption of memory. "
        );
        let met = Met { signal: Signal::Inodes, ..met };
        let text = message(&Subject { used: BTreeMap::new(), ..subject("p", 0, 10, 300) }, &met);
        assert_eq!(
            text,
            "The node was low on resource: inodes. Threshold quantity: 104857600, available: 52428800. "
        );
    }
}
