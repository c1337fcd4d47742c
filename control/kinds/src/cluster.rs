//! Small kinds of the cluster's own machinery: leases, classes, budgets, slices.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, selector};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, items_mut, member};
use crate::rules::{Field, Rules};

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
    let strategy = spec.text("strategy");
    if !strategy.is_empty() && !strategy.contains('/') {
        check::one_of(spec.at("strategy"), &["OldestEmulationVersion"], &path.field("strategy"), e);
    }
    if spec.text("strategy").is_empty() && !spec.text("preferredHolder").is_empty() {
        e.forbidden(
            &path.field("preferredHolder"),
            "may only be specified when `strategy` is defined",
        );
    }
    if spec.at("holderIdentity") == "" {
        e.invalid(&path.field("holderIdentity"), "", "must not be empty");
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
    create: |object, e| {
        let handler = object.text("handler");
        e.invalid_each(&Path::Root.field("handler"), handler, names::dns1123_label(handler));
        let path = Path::Root.field("overhead");
        let fixed = path.field("podFixed");
        for (name, value) in crate::read::members(object.deep(&["overhead", "podFixed"])) {
            check::resources::resource_value(name, value, &fixed.key(name), e);
        }
        if object.has("scheduling") {
            let at = Path::Root.field("scheduling");
            crate::pod::affinity::node_selector(
                object.deep(&["scheduling", "nodeSelector"]),
                &at.field("nodeSelector"),
                e,
            );
            crate::pod::affinity::tolerations(
                object.at("scheduling").list("tolerations"),
                &at.field("tolerations"),
                e,
            );
        }
    },
    update: |new, old, e| {
        check::immutable(new.at("handler"), old.at("handler"), &Path::Root.field("handler"), e)
    },
    unconditional: false,
    cells: print::node::runtime_class,
    ..Rules::PLAIN
};

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

pub const FLOW_SCHEMA: Rules = Rules {
    default: |object| {
        if let Some(spec) = member(object, "spec")
            && spec.int("matchingPrecedence").unwrap_or_default() == 0
        {
            spec["matchingPrecedence"] = 1000.into();
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| flow_schema(object, e),
    update: |new, _, e| flow_schema(new, e),
    status: true,
    generation: true,
    cells: print::extension::flow_schema,
    ..Rules::PLAIN
};

fn flow_schema(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let precedence = spec.int("matchingPrecedence").unwrap_or_default();
    if precedence <= 0 {
        e.invalid(&path.field("matchingPrecedence"), precedence, "must be a positive value");
    }
    if precedence > 10_000 {
        e.invalid(&path.field("matchingPrecedence"), precedence, "must not be greater than 10000");
    }
    let kinds = ["ByNamespace", "ByUser"];
    if spec.has("distinguisherMethod") {
        let kind = spec.at("distinguisherMethod").text("type");
        check::one_of(&kind.into(), &kinds, &path.field("distinguisherMethod").field("type"), e);
    }
    let at = path.field("priorityLevelConfiguration");
    match spec.at("priorityLevelConfiguration").text("name") {
        "" => e.required(&at.field("name"), "must reference a priority level"),
        name => e.invalid_each(&at.field("name"), name, names::dns1123_subdomain(name)),
    }
}

pub const PRIORITY_LEVEL: Rules = Rules {
    default: |object| {
        let Some(spec) = member(object, "spec") else { return };
        if let Some(limited) = spec.get_mut("limited") {
            fill(limited, "nominalConcurrencyShares", 30);
            fill(limited, "lendablePercent", 0);
            if let Some(queuing) =
                limited.get_mut("limitResponse").and_then(|r| r.get_mut("queuing"))
            {
                for (field, value) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                    fill(queuing, field, value);
                }
            }
        }
        if spec.text("type") == "Exempt"
            && let Some(exempt) = member(spec, "exempt")
        {
            fill(exempt, "nominalConcurrencyShares", 0);
            fill(exempt, "lendablePercent", 0);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    status: true,
    generation: true,
    cells: print::extension::priority_level,
    ..Rules::PLAIN
};

pub const RESOURCE_CLAIM: Rules = Rules {
    default: |object| {
        if let Some(devices) = object.get_mut("spec").and_then(|s| s.get_mut("devices")) {
            items_mut(devices, "requests").for_each(default_request);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| claim(object.at("spec"), &Path::Root.field("spec"), e),
    update: |new, old, e| {
        if !crate::read::same(new.at("spec"), old.at("spec")) {
            e.invalid(&Path::Root.field("spec"), new.at("spec").clone(), check::IMMUTABLE);
        }
    },
    status: true,
    cells: print::extension::resource_claim,
    ..Rules::PLAIN
};

fn claim(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let path = path.field("devices");
    let list = path.field("requests");
    let requests = spec.at("devices").list("requests");
    let mut seen = check::Seen::default();
    for (i, request) in requests.iter().enumerate() {
        let (at, name) = (list.index(i), request.text("name"));
        e.invalid_each(&at.field("name"), name, names::dns1123_label(name));
        if seen.again(name) {
            e.duplicate(&at, name);
        }
        let (exactly, choices) = (request.at("exactly"), request.list("firstAvailable"));
        match (exactly.is_object(), !choices.is_empty()) {
            (false, false) => e.required(&at, "exactly one of `exactly` or `firstAvailable` is required"),
            (true, true) => e.invalid(&at, Value::Null, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"),
            (true, false) => device_request(exactly, &at.field("exactly"), e),
            (false, true) => {
                let list = at.field("firstAvailable");
                for (j, choice) in choices.iter().enumerate() {
                    device_request(choice, &list.index(j), e);
                }
            }
        }
    }
}

fn device_request(request: &Value, path: &Path<'_>, e: &mut Errors) {
    let class = request.text("deviceClassName");
    match class {
        "" => e.required(&path.field("deviceClassName"), ""),
        _ => e.invalid_each(&path.field("deviceClassName"), class, names::dns1123_subdomain(class)),
    }
    let count = request.int("count").unwrap_or_default();
    match request.text("allocationMode") {
        "ExactCount" if count <= 0 => e.invalid(&path.field("count"), count, check::POSITIVE),
        "All" if count != 0 => e.invalid(
            &path.field("count"),
            count,
            "must not be specified when allocationMode is 'All'",
        ),
        "ExactCount" | "All" => {}
        other => e.not_supported(&path.field("allocationMode"), other, &["All", "ExactCount"]),
    }
}

fn default_request(request: &mut Value) {
    let count = |request: &mut Value| {
        fill_text(request, "allocationMode", "ExactCount");
        if request.text("allocationMode") == "ExactCount" {
            fill(request, "count", 1);
        }
    };
    if let Some(exactly) = request.get_mut("exactly") {
        count(exactly);
    }
    items_mut(request, "firstAvailable").for_each(count);
}

pub const RESOURCE_CLAIM_TEMPLATE: Rules = Rules {
    default: |object| {
        let devices = object
            .get_mut("spec")
            .and_then(|s| s.get_mut("spec"))
            .and_then(|s| s.get_mut("devices"));
        if let Some(devices) = devices {
            items_mut(devices, "requests").for_each(default_request);
        }
    },
    update: |new, old, e| {
        if !crate::read::same(new.at("spec"), old.at("spec")) {
            e.invalid(&Path::Root.field("spec"), new.at("spec").clone(), check::IMMUTABLE);
        }
    },
    cells: print::name_age,
    ..Rules::PLAIN
};

pub const RESOURCE_SLICE: Rules = Rules {
    fields: &[
        ("spec.driver", Field::Text(&["spec", "driver"])),
        ("spec.nodeName", Field::Text(&["spec", "nodeName"])),
    ],
    generation: true,
    cells: print::extension::resource_slice,
    ..Rules::PLAIN
};

pub const DEVICE_CLASS: Rules = Rules { generation: true, cells: print::name_age, ..Rules::PLAIN };

pub const COMPONENT_STATUS: Rules = Rules { cells: print::pod::component_status, ..Rules::PLAIN };

/// Kinds that are answered and never stored: reviews and bindings.
pub const ANSWERED: Rules = Rules { name: |_| Vec::new(), ..Rules::PLAIN };
