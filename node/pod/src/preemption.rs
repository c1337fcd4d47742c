//! Which pods make room for a critical one that does not fit, as the kubelet chooses: BestEffort ones first, then
//! Burstable, then Guaranteed; of each class as few as will do, and of these the ones that lose least.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::admission::is_critical;
use crate::allocation::Amounts;
use crate::status::qos_class;

/// A pod that is here.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub uid: Arc<str>,
    pub has: Amounts,
    pub class: &'static str,
}

impl Subject {
    /// None if the pod does not give way to `critical`.
    pub fn of(uid: &Arc<str>, pod: &Pod, has: Amounts, critical: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
        let lower = match (priority(critical), priority(pod)) {
            (Some(its), Some(theirs)) => its > theirs,
            _ => false,
        };
        let gives_way = !is_critical(pod) || lower;
        gives_way.then(|| Self { uid: uid.clone(), has, class: qos_class(spec) })
    }
}

/// Those that are to go so that `needed` comes free. None: not even all of them would do.
pub(crate) fn choose(subjects: &[Subject], needed: Amounts) -> Option<Vec<Arc<str>>> {
    let of = |class: &str| -> Vec<&Subject> {
        subjects.iter().filter(|subject| subject.class == class).collect()
    };
    let (best_effort, burstable) = (of("BestEffort"), of("Burstable"));
    let mut needed_of_guaranteed = needed;
    for subject in best_effort.iter().chain(&burstable) {
        needed_of_guaranteed = needed_of_guaranteed.without(subject.has);
    }
    let guaranteed = fewest(of("Guaranteed"), needed_of_guaranteed)?;
    let after = |gone: &[&[&Subject]]| {
        gone.iter().flat_map(|list| list.iter()).fold(needed, |left, s| left.without(s.has))
    };
    let burstable = fewest(burstable, after(&[&best_effort, &guaranteed]))?;
    let best_effort = fewest(best_effort, after(&[&burstable, &guaranteed]))?;
    let all = best_effort.iter().chain(&burstable).chain(&guaranteed);
    Some(all.map(|subject| subject.uid.clone()).collect())
}

/// One after the other the one that leaves least to be found; of those that leave the same the smallest.
fn fewest(mut from: Vec<&Subject>, mut needed: Amounts) -> Option<Vec<&Subject>> {
    let mut chosen = Vec::new();
    while needed != Amounts::default() {
        let rank = |subject: &&Subject| {
            let Amounts { memory_bytes, cpu_millis, .. } = subject.has;
            (needed.share_left_by(subject.has), memory_bytes, cpu_millis)
        };
        let all = from.iter().enumerate().map(|(index, subject)| (rank(subject), index));
        let best =
            all.min_by(|(a, _), (b, _)| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))))?;
        let subject = from.swap_remove(best.1);
        needed = needed.without(subject.has);
        chosen.push(subject);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_room() {
        let subject = |uid: &str, class: &'static str, cpu_millis: u64, mebibytes: u64| Subject {
            uid: uid.into(),
            has: Amounts { pods: 1, cpu_millis, memory_bytes: mebibytes << 20, storage_bytes: 0 },
            class,
        };
        let subjects = [
            subject("idle", "BestEffort", 0, 0),
            subject("small", "Burstable", 100, 100),
            subject("large", "Burstable", 1000, 1000),
            subject("exact", "Burstable", 500, 100),
            subject("precious", "Guaranteed", 1000, 100),
        ];
        #[track_caller]
        fn check(subjects: &[Subject], cpu_millis: u64, pods: u64, expected: Option<&[&str]>) {
            let needed = Amounts { pods, cpu_millis, ..Amounts::default() };
            let got = choose(subjects, needed);
            let names: Option<Vec<&str>> =
                got.as_ref().map(|all| all.iter().map(|uid| &**uid).collect());
            assert_eq!(names.as_deref(), expected);
        }
        check(&subjects, 50, 0, Some(&["small"]));
        check(&subjects, 400, 0, Some(&["exact"]));
        check(&subjects, 1100, 0, Some(&["large", "small"]));
        check(&subjects, 0, 1, Some(&["idle"]));
        check(&subjects, 1700, 0, Some(&["large", "precious"]));
        check(&subjects, 2600, 0, Some(&["large", "exact", "small", "precious"]));
        check(&subjects, 2601, 0, None);
    }
}
