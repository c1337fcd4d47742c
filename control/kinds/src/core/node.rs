//! Node.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, net, resources};
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, members};
use crate::rules::{Field, Rules};

pub const NODE: Rules = Rules {
    default,
    prepare_create: |object| {
        // A node that is registered may bring its status along.
        if !object.has("status") {
            object["status"] = json!({});
        }
    },
    prepare_update,
    create: |object, e| spec(object, e),
    update,
    update_sub: |sub, new, _, e| {
        if sub == "status" {
            status(new, e);
        }
    },
    fields: &[("spec.unschedulable", Field::Flag(&["spec", "unschedulable"]))],
    cells: print::node::node,
    warnings: crate::warnings::node,
    ..Rules::PLAIN
};

fn default(object: &mut Value) {
    if let Some(status) = object.get_mut("status")
        && status.has("capacity")
    {
        let capacity = status.at("capacity").clone();
        fill(status, "allocatable", capacity);
    }
}

fn prepare_update(write: Write<'_>, new: &mut Value, old: &Value) {
    match write {
        Write::Main => crate::read::keep(new, old, "status"),
        Write::Sub("status") => crate::read::keep(new, old, "spec"),
        Write::Sub(_) => {}
    }
}

fn spec(node: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    taints(node.at("spec").list("taints"), &Path::Root.field("metadata").field("taints"), e);
    let ranges = node.at("spec").list("podCIDRs");
    let list = path.field("podCIDRs");
    for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
        net::cidr(range, &list.index(i), e);
    }
    let family = |range: &Value| {
        net::parse_cidr(range.as_str().unwrap_or_default()).map(|(ip, _)| ip.is_ipv4())
    };
    let families: std::collections::HashSet<_> = ranges.iter().map(family).collect();
    if ranges.len() > 2 || families.len() < ranges.len() {
        e.invalid(
            &list,
            Value::Array(ranges.to_vec()),
            "may specify no more than one CIDR for each IP family",
        );
    }
    let mut seen = check::Seen::default();
    for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
        if seen.again(range) {
            e.duplicate(&list.index(i), range);
        }
    }
    amounts(node.at("status"), e);
}

/// What a node has and gives. The place is written as if a resource were a field.
fn amounts(status: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    for field in ["capacity", "allocatable"] {
        let at = path.field(field);
        for (name, value) in members(status.at(field)) {
            resources::resource_value(name, value, &at.field(name), e);
        }
    }
}

fn taints(taints: &[Value], path: &Path<'_>, e: &mut Errors) {
    let mut seen = check::Seen::default();
    for (i, taint) in taints.iter().enumerate() {
        let at = path.index(i);
        let (key, effect) = (taint.text("key"), taint.text("effect"));
        e.invalid_each(&at.field("key"), key, names::qualified_name(key));
        let wrong = names::label_value(taint.text("value"));
        if !wrong.is_empty() {
            e.invalid(&at.field("value"), taint.text("value"), &wrong.join(";"));
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        check::required_one_of(taint.at("effect"), &effects, &at.field("effect"), e);
        if seen.again((key, effect)) {
            let mut shown = taint.clone();
            crate::read::remove(&mut shown, "timeAdded");
            e.duplicate(&at, shown);
        }
    }
}

fn update(new: &Value, old: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let (after, before) = (new.at("spec"), old.at("spec"));
    // Kubernetes looks at the spec and says metadata.
    taints(after.list("taints"), &Path::Root.field("metadata").field("taints"), e);
    // Addresses are handed out once.
    if !before.list("podCIDRs").is_empty() && before.at("podCIDRs") != after.at("podCIDRs") {
        e.forbidden(
            &path.field("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    if !before.text("providerID").is_empty()
        && before.text("providerID") != after.text("providerID")
    {
        e.forbidden(
            &path.field("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
    if before.at("configSource") != after.at("configSource") && after.has("configSource") {
        e.forbidden(&path.field("configSource"), "configSource may not be set");
    }
}

fn status(node: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    let list = path.field("addresses");
    let addresses = node.at("status").list("addresses");
    let mut seen = check::Seen::default();
    for (i, address) in addresses.iter().enumerate() {
        if seen.again((address.text("type"), address.text("address"))) {
            e.duplicate(&list.index(i), address.clone());
        }
    }
    amounts(node.at("status"), e);
}
