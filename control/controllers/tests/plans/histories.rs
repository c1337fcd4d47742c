//! Which revision a template is.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use rimward_control_controllers::history::{Newest, patch_to, plan, revision, sort, template_of};
use serde_json::json;

fn template(image: &str) -> PodTemplateSpec {
    let object = json!({ "metadata": { "labels": { "app": "a" } }, "spec": {
        "restartPolicy": "Always", "containers": [{ "name": "c", "image": image, "resources": {} }] } });
    serde_json::from_value(object).expect("a template")
}

fn owner() -> DaemonSet {
    let object = json!({
        "metadata": { "name": "d", "namespace": "ns", "uid": "u", "annotations": { "kubernetes.io/change-cause": "why" } },
        "spec": { "selector": {}, "template": {} },
    });
    serde_json::from_value(object).expect("a DaemonSet")
}

fn stored(image: &str, number: i64) -> Arc<ControllerRevision> {
    Arc::new(revision(&owner(), &template(image), "hash", number, 0))
}

#[test]
fn which_number_a_template_gets() {
    #[track_caller]
    fn check(there: &[(&str, i64)], wanted: &str, expected: &str) {
        let mut revisions: Vec<_> = there.iter().map(|(image, n)| stored(image, *n)).collect();
        sort(&mut revisions);
        let said = match plan(&revisions, &patch_to(&template(wanted))) {
            Newest::Is(r) => format!("is {}", r.revision),
            Newest::Again(r, number) => format!("{} becomes {number}", r.revision),
            Newest::New(number) => format!("new {number}"),
        };
        assert_eq!(said, expected);
    }
    check(&[], "a", "new 1");
    check(&[("a", 1)], "a", "is 1");
    check(&[("a", 1)], "b", "new 2");
    check(&[("b", 2), ("a", 1)], "a", "1 becomes 3");
    check(&[("b", 7), ("a", 3)], "c", "new 8");
    check(&[("a", 2), ("a", 1)], "a", "is 2");
}

/// kubectl makes the same bytes of the object, and compares.
#[test]
fn what_is_stored() {
    let made = revision(&owner(), &template("i"), "hash", 4, 0);
    let data = serde_json::to_string(&made.data).expect("JSON");
    assert_eq!(
        data,
        r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"a"}},"spec":{"containers":[{"image":"i","name":"c","resources":{}}],"restartPolicy":"Always"}}}}"#
    );
    assert_eq!(template_of(&made), Some(template("i")));
    let labels = made.metadata.labels.expect("labels");
    assert_eq!(made.metadata.name, Some(format!("d-{}", labels["hash"])));
    assert_eq!((labels["app"].as_str(), made.revision), ("a", 4));
    assert_eq!(
        made.metadata.annotations.expect("annotations")["kubernetes.io/change-cause"],
        "why"
    );
    // A name that is taken is tried otherwise.
    let other = revision(&owner(), &template("i"), "hash", 4, 1);
    assert_ne!(other.metadata.name, made.metadata.name);
    let broken = ControllerRevision { data: None, ..other };
    assert_eq!(template_of(&broken), None);
}
