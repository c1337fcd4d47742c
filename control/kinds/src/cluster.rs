//! Small kinds of the cluster's own machinery: leases, classes, budgets.

use std::collections::HashSet;

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, selector};
use crate::path::{Errors, Path};
use crate::pod::affinity;
use crate::print;
use crate::read::{Read, fill};
use crate::rules::Rules;

pub const LEASE: Rules = Rules {
    create: |object, e| lease(object, e),
    update: |new, _, e| lease(new, e),
    unconditional: false,
    cells: print::node::lease,
    ..Rules::PLAIN
};

fn lease(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    if let Some(seconds) = spec.int("leaseDurationSeconds")
        && seconds <= 0
    {
        e.invalid(&path.field("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    check::not_negative(spec.at("leaseTransitions"), &path.field("leaseTransitions"), e);
    if let Some(strategy) = spec.at("strategy").as_str() {
        // Kubernetes names the field twice.
        let outer = path.field("strategy");
        let at = outer.field("strategy");
        match strategy.contains('/') {
            true => e.invalid_each(&at, strategy, names::qualified_name(strategy)),
            false => check::one_of(spec.at("strategy"), &["OldestEmulationVersion"], &at, e),
        }
    }
    if spec.text("strategy").is_empty() && !spec.text("preferredHolder").is_empty() {
        let why = "may only be specified if `strategy` is defined";
        e.forbidden(&path.field("preferredHolder"), why);
    }
}

pub const PRIORITY_CLASS: Rules = Rules {
    default: |object| {
        fill(object, "preemptionPolicy", "PreemptLowerPriority");
        // A number that is 0 is written out, whether it was given or not.
        fill(object, "value", 0);
    },
    create: priority_class,
    update: |new, old, e| {
        if new.int("value") != old.int("value") {
            e.forbidden(&Path::Root.field("value"), "may not be changed in an update.");
        }
        check::immutable(
            new.at("preemptionPolicy"),
            old.at("preemptionPolicy"),
            &Path::Root.field("preemptionPolicy"),
            e,
        );
    },
    generation: true,
    cells: print::node::priority_class,
    ..Rules::PLAIN
};

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

fn priority_class(object: &Value, e: &mut Errors) {
    let name = object.at("metadata").text("name");
    let value = object.int("value").unwrap_or_default();
    if name.starts_with("system-") {
        if !matches!(
            (name, value),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        ) {
            e.forbidden(
                &Path::Root.field("metadata").field("name"),
                "priority class names with 'system-' prefix are reserved for system use only",
            );
        }
    } else if value > HIGHEST_USER_PRIORITY {
        let why =
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        e.forbidden(&Path::Root.field("value"), &why);
    }
    let policies = ["Never", "PreemptLowerPriority"];
    check::one_of(
        object.at("preemptionPolicy"),
        &policies,
        &Path::Root.field("preemptionPolicy"),
        e,
    );
}

pub const RUNTIME_CLASS: Rules = Rules {
    create: runtime_class,
    update: |new, old, e| {
        check::immutable(new.at("handler"), old.at("handler"), &Path::Root.field("handler"), e);
    },
    unconditional: false,
    cells: print::node::runtime_class,
    ..Rules::PLAIN
};

fn runtime_class(object: &Value, e: &mut Errors) {
    let (handler, at) = (object.text("handler"), Path::Root.field("handler"));
    match handler {
        "" => e.required(&at, ""),
        _ => e.invalid_each(&at, handler, names::dns1123_label(handler)),
    }
    if object.has("overhead") {
        let as_limits = json!({ "limits": object.at("overhead").at("podFixed") });
        let at = Path::Root.field("overhead");
        check::resources::container_resources(&as_limits, &HashSet::new(), &at, e);
    }
    let (scheduling, at) = (object.at("scheduling"), Path::Root.field("scheduling"));
    affinity::node_selector(scheduling.at("nodeSelector"), &at.field("nodeSelector"), e);
    let (tolerations, list) = (scheduling.list("tolerations"), at.field("tolerations"));
    affinity::tolerations(tolerations, &list, e);
    let mut seen = check::Seen::default();
    for (i, toleration) in tolerations.iter().enumerate() {
        if seen.again(["key", "operator", "value", "effect"].map(|field| toleration.text(field))) {
            e.duplicate(&list.index(i), toleration.clone());
        }
    }
}

pub const POD_DISRUPTION_BUDGET: Rules = Rules {
    prepare_create: |object| {
        object["status"] = json!({ "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0 });
    },
    create: |object, e| budget(object, e),
    name: check::text::path_segment,
    update: |new, _, e| budget(new, e),
    status: true,
    generation: true,
    unconditional: false,
    cells: print::autoscaling::disruption_budget,
    ..Rules::PLAIN
};

fn budget(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        e.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        check::count_or_percentage(spec.at(field), &path.field(field), e);
        check::at_most_all(spec.at(field), &path.field(field), e);
    }
    selector::label_selector(spec.at("selector"), &path.field("selector"), e);
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    check::one_of(
        spec.at("unhealthyPodEvictionPolicy"),
        &policies,
        &path.field("unhealthyPodEvictionPolicy"),
        e,
    );
}

pub const COMPONENT_STATUS: Rules = Rules { cells: print::pod::component_status, ..Rules::PLAIN };

/// What nodes and pods use, asked of the nodes.
pub const NODE_METRICS: Rules = Rules { cells: print::usage::node, ..Rules::PLAIN };
pub const POD_METRICS: Rules = Rules { cells: print::usage::pod, ..Rules::PLAIN };

/// Kinds that are answered and never stored: reviews and bindings.
pub const ANSWERED: Rules = Rules { name: |_| Vec::new(), ..Rules::PLAIN };
