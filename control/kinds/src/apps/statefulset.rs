//! StatefulSet.

use std::borrow::Cow;
use std::collections::HashSet;

use rimward_api::names;
use serde_json::{Value, json};

use super::{always_restarting, selector_and_template};
use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, items_mut, member};
use crate::rules::{Rules, Updates};

pub const STATEFULSET: Rules = Rules {
    default,
    prepare_create: |object| object["status"] = json!({ "replicas": 0, "availableReplicas": 0 }),
    create,
    update,
    name: names::dns1123_label,
    status: true,
    generation: true,
    cells: print::workload::statefulset,
    warnings: crate::warnings::stateful_set,
    warns_of_updates: Updates::OfSpec,
    ..Rules::PLAIN
};

fn default(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill_text(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = member(spec, "updateStrategy") {
        fill_text(strategy, "type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate"
            && let Some(rolling) = member(strategy, "rollingUpdate")
        {
            fill(rolling, "partition", 0);
        }
    }
    if let Some(retention) = member(spec, "persistentVolumeClaimRetentionPolicy") {
        fill_text(retention, "whenDeleted", "Retain");
        fill_text(retention, "whenScaled", "Retain");
    }
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    crate::pod::defaults::template(spec);
    for claim in items_mut(spec, "volumeClaimTemplates") {
        // What is said here is not listened to.
        claim["apiVersion"] = "v1".into();
        claim["kind"] = "PersistentVolumeClaim".into();
        if let Some(spec) = member(claim, "spec") {
            crate::pod::defaults::claim_spec(spec);
        }
        if let Some(status) = member(claim, "status") {
            fill_text(status, "phase", "Pending");
        }
    }
}

fn statefulset(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let policy = spec.text("podManagementPolicy");
    match policy {
        "" => e.required(&path.field("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => e.invalid(
            &path.field("podManagementPolicy"),
            other,
            "must be 'OrderedReady' or 'Parallel'",
        ),
    }
    strategy(spec.at("updateStrategy"), &path.field("updateStrategy"), e);
    let at = path.field("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let policy = spec.deep(&["persistentVolumeClaimRetentionPolicy", field]);
        check::one_of(policy, &["Delete", "Retain"], &at.field(field), e);
    }
    for field in ["replicas", "minReadySeconds"] {
        check::not_negative(spec.at(field), &path.field(field), e);
    }
    check::not_negative(
        spec.deep(&["ordinals", "start"]),
        &path.field("ordinals").field("start"),
        e,
    );
    check::not_negative(spec.at("revisionHistoryLimit"), &path.field("revisionHistoryLimit"), e);
    selector_and_template(spec, "statefulset", &path, e);
    always_restarting(&with_claims(spec), "StatefulSet", &path.field("template"), e);
}

fn create(object: &Value, e: &mut Errors) {
    statefulset(object, e);
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let service = spec.text("serviceName");
    if !service.is_empty() {
        e.invalid_each(&path.field("serviceName"), service, names::dns1123_subdomain(service));
    }
    let list = path.field("volumeClaimTemplates");
    for (i, claim) in spec.list("volumeClaimTemplates").iter().enumerate() {
        crate::pod::claim::spec(claim.at("spec"), &list.index(i).field("spec"), e);
    }
}

/// The template as its pods will have it: each claim is a volume, before those of the template, and
/// stands for one of the same name.
fn with_claims(spec: &Value) -> Cow<'_, Value> {
    let claims = spec.list("volumeClaimTemplates");
    if claims.is_empty() {
        return Cow::Borrowed(spec.at("template"));
    }
    let name = |claim: &Value| claim.at("metadata").text("name").to_owned();
    let mut names = HashSet::new();
    let mut volumes = Vec::new();
    for claim in claims {
        if names.insert(name(claim)) {
            let source = json!({ "claimName": name(claim) });
            volumes.push(json!({ "name": name(claim), "persistentVolumeClaim": source }));
        }
    }
    let own = spec.deep(&["template", "spec"]).list("volumes");
    volumes.extend(own.iter().filter(|v| !names.contains(v.text("name"))).cloned());
    let mut template = spec.at("template").clone();
    if let Some(pod) = member(&mut template, "spec") {
        pod["volumes"] = volumes.into();
    }
    Cow::Owned(template)
}

fn strategy(strategy: &Value, path: &Path<'_>, e: &mut Errors) {
    match strategy.text("type") {
        "" => e.required(path, ""),
        "OnDelete" => {
            if strategy.has("rollingUpdate") {
                e.invalid(
                    &path.field("rollingUpdate"),
                    strategy.at("rollingUpdate").clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let at = path.field("rollingUpdate");
            let rolling = strategy.at("rollingUpdate");
            check::not_negative(rolling.at("partition"), &at.field("partition"), e);
            let unavailable = rolling.at("maxUnavailable");
            check::count_or_percentage(unavailable, &at.field("maxUnavailable"), e);
            if !unavailable.is_null() && check::is_zero_count(unavailable) {
                e.invalid(&at.field("maxUnavailable"), unavailable.clone(), "cannot be 0");
            }
            check::at_most_all(unavailable, &at.field("maxUnavailable"), e);
        }
        other => e.invalid(path, other, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// The fields of a StatefulSet that may change.
const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
    "revisionHistoryLimit",
];

fn update(new: &Value, old: &Value, e: &mut Errors) {
    statefulset(new, e);
    let mut after = new.at("spec").clone();
    for field in CHANGEABLE {
        crate::read::keep(&mut after, old.at("spec"), field);
    }
    if !crate::read::same(&after, old.at("spec")) {
        e.forbidden(
            &Path::Root.field("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}
