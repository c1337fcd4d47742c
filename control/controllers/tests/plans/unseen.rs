//! What a controller did and did not see yet: the counts that keep it from doing it twice.

use std::sync::Arc;

use rimward_control_controllers::staleness::Unseen;
use rimward_control_lean::Pod;
use serde_json::json;

fn pod(name: &str, revision: u64, leaving: bool) -> Pod {
    let mut object = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": revision.to_string()}});
    if leaving {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    serde_json::from_value(object).expect("a pod")
}

/// After "a" at 5 and "b" at 6 were created: how many a look that shows `children` and is as new as
/// `seen` misses.
#[track_caller]
fn check_created(children: &[&str], seen: u64, expected: usize) {
    let unseen = Unseen::default();
    unseen.created("owner", &pod("a", 5, false));
    unseen.created("owner", &pod("b", 6, false));
    let children: Vec<Arc<Pod>> =
        children.iter().map(|name| Arc::new(pod(name, 9, false))).collect();
    assert_eq!(unseen.settle("owner", &children, seen).0, expected);
}

#[test]
fn a_created_child_is_counted_once() {
    check_created(&[], 4, 2);
    check_created(&["a"], 5, 1);
    // It came after the revision was read and before the children were: seen, not missed.
    check_created(&["a"], 4, 1);
    check_created(&["a", "b"], 4, 0);
    // It came and went.
    check_created(&["b"], 6, 0);
    // It came after the look, wherever the cache is by now.
    check_created(&["a"], 4, 1);
}

#[test]
fn a_deleted_child_is_not_deleted_again() {
    let unseen = Unseen::default();
    unseen.deleted("owner", &pod("a", 5, false));
    let alive = [Arc::new(pod("a", 5, false))];
    assert_eq!(unseen.settle("owner", &alive, 9).1.len(), 1, "this look still has it alive");
    let leaving = [Arc::new(pod("a", 6, true))];
    assert_eq!(unseen.settle("owner", &leaving, 9).1.len(), 0);
    unseen.deleted("owner", &pod("a", 5, false));
    assert_eq!(unseen.settle::<Pod>("owner", &[], 9).1.len(), 0);
}
