//! What keeps pods running: Deployment, ReplicaSet and their like, also of the core group.

pub mod daemonset;
pub mod deployment;
pub mod replicaset;
pub mod statefulset;

use serde_json::Value;

use crate::check::{self, selector};
use crate::path::{Errors, Path};
use crate::pod::spec;
use crate::print;
use crate::read::{Read, is_empty};
use crate::rules::{Rules, Updates};

pub const CONTROLLER_REVISION: Rules = Rules {
    create: |object, e| {
        check::not_negative(object.at("revision"), &Path::Root.field("revision"), e);
        if !object.at("data").is_object() {
            e.required(&Path::Root.field("data"), "data is mandatory");
        }
    },
    update: |new, old, e| {
        check::not_negative(new.at("revision"), &Path::Root.field("revision"), e);
        check::immutable(new.at("data"), old.at("data"), &Path::Root.field("data"), e);
    },
    cells: print::workload::controller_revision,
    ..Rules::PLAIN
};

pub const POD_TEMPLATE: Rules = Rules {
    default: crate::pod::defaults::template,
    create: |object, e| spec::template(object.at("template"), &Path::Root.field("template"), e),
    update: |new, _, e| spec::template(new.at("template"), &Path::Root.field("template"), e),
    generation: true,
    warnings: crate::warnings::pod_template,
    warns_of_updates: Updates::OfSpec,
    cells: print::pod::template,
    ..Rules::PLAIN
};

/// What Go's parser says of an annotation that is there and should be a number.
fn not_a_number(object: &Value, annotation: &str) -> Option<String> {
    let text = object.deep(&["metadata", "annotations", annotation]).as_str()?;
    let why = match text.parse::<i64>() {
        Ok(_) => return None,
        Err(e) => match e.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                "value out of range"
            }
            _ => "invalid syntax",
        },
    };
    Some(format!("strconv.ParseInt: parsing {text:?}: {why}"))
}

/// As [`selector_and_template`], for kinds that take a missing selector for one that chooses all.
pub fn lenient_selector_and_template(spec: &Value, kind: &str, path: &Path<'_>, e: &mut Errors) {
    let (selector, at) = (spec.at("selector"), path.field("selector"));
    let labels = spec.deep(&["template", "metadata", "labels"]);
    let wrong = e.count(|e| selector::label_selector(selector, &at, e));
    if wrong == 0 && (selector.is_null() || !selector::matches(selector, labels)) {
        let template = path.field("template");
        let template = template.field("metadata");
        e.invalid(
            &template.field("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    if !selector.is_null() && selector::is_empty(selector) {
        e.invalid(&at, selector.clone(), &format!("empty selector is invalid for {kind}"));
    }
}

/// A workload's selector and template: the selector must be there, be good, and choose the pods of
/// the template. `kind` is what Kubernetes calls it here.
pub fn selector_and_template(spec: &Value, kind: &str, path: &Path<'_>, e: &mut Errors) {
    let (selector, at) = (spec.at("selector"), path.field("selector"));
    let labels = spec.deep(&["template", "metadata", "labels"]);
    let template = path.field("template");
    let mismatch = |e: &mut Errors| {
        let shown =
            if labels.is_null() { Value::Object(Default::default()) } else { labels.clone() };
        e.invalid(
            &template.field("metadata").field("labels"),
            shown,
            "`selector` does not match template `labels`",
        );
    };
    if selector.is_null() {
        e.required(&at, "");
        mismatch(e);
        return;
    }
    let wrong = e.count(|e| selector::label_selector(selector, &at, e));
    if selector::is_empty(selector) {
        e.invalid(&at, selector.clone(), &format!("empty selector is invalid for {kind}"));
    } else if wrong > 0 {
        e.invalid(&at, selector.clone(), "invalid label selector");
    } else if !selector::matches(selector, labels) {
        mismatch(e);
    }
}

/// A template whose pods run until they are deleted.
pub fn always_restarting(template: &Value, kind: &str, path: &Path<'_>, e: &mut Errors) {
    spec::template(template, path, e);
    let pod = template.at("spec");
    let policy = pod.text("restartPolicy");
    if !matches!(policy, "Always" | "") {
        e.not_supported(&path.field("spec").field("restartPolicy"), policy, &["Always"]);
    }
    if !is_empty(pod.at("activeDeadlineSeconds")) {
        e.forbidden(
            &path.field("spec").field("activeDeadlineSeconds"),
            &format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}
