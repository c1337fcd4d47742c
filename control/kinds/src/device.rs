//! resource.k8s.io: devices that drivers publish, and claims to them.
//!
//! The rules are those of pkg/apis/resource/validation.

use std::collections::{HashMap, HashSet};

use rimward_api::names;
use rimward_control_cel::{Environment, Type};
use serde_json::{Value, json};

use crate::check::{self, meta, selector, text};
use crate::path::{Errors, Path};
use crate::pod::volume_source::driver_name;
use crate::print;
use crate::read::{Read, fill_text, items_mut, members, same};
use crate::rules::{Field, Rules};

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CONFIGS_MAX: usize = 32;
const EXPRESSION_MAX_BYTES: usize = 10 * 1024;
const PARAMETERS_MAX_BYTES: usize = 10 * 1024;

pub const RESOURCE_CLAIM: Rules = Rules {
    default: |object| {
        if let Some(devices) = object.get_mut("spec").and_then(|s| s.get_mut("devices")) {
            items_mut(devices, "requests").for_each(default_request);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| claim(object.at("spec"), &Path::Root.field("spec"), e),
    update: unchanging,
    status: true,
    cells: print::extension::resource_claim,
    ..Rules::PLAIN
};

/// What was asked for stays; whatever else is wrong with it is not looked at.
fn unchanging(new: &Value, old: &Value, e: &mut Errors) {
    if !same(new.at("spec"), old.at("spec")) {
        e.invalid(&Path::Root.field("spec"), new.at("spec").clone(), check::IMMUTABLE);
    }
}

fn default_request(request: &mut Value) {
    let tolerates = |holder: &mut Value| {
        items_mut(holder, "tolerations").for_each(|t| fill_text(t, "operator", "Equal"));
    };
    let count = |holder: &mut Value| {
        fill_text(holder, "allocationMode", "ExactCount");
        if holder.text("allocationMode") == "ExactCount"
            && holder.int("count").unwrap_or_default() == 0
        {
            holder["count"] = 1.into();
        }
        tolerates(holder);
    };
    if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
        count(exactly);
    }
    items_mut(request, "firstAvailable").filter(|r| r.is_object()).for_each(count);
}

/// The requests of a claim, and the alternatives of each.
type Named<'a> = HashMap<&'a str, HashSet<&'a str>>;

fn claim(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let (devices, path) = (spec.at("devices"), path.field("devices"));
    let requests = devices.list("requests");
    let list = path.field("requests");
    let mut named = Named::new();
    for (i, request) in requests.iter().enumerate() {
        self::request(request, &list.index(i), e);
    }
    for (i, request) in requests.iter().enumerate() {
        let alternatives = request.list("firstAvailable").iter().map(|r| r.text("name")).collect();
        if named.insert(request.text("name"), alternatives).is_some() {
            e.duplicate(&list.index(i), request.text("name"));
        }
    }
    at_most(requests, REQUESTS_MAX, &list, e);
    let (constraints, list) = (devices.list("constraints"), path.field("constraints"));
    for (i, constraint) in constraints.iter().enumerate() {
        self::constraint(constraint, &named, &list.index(i), e);
    }
    at_most(constraints, CONSTRAINTS_MAX, &list, e);
    let (configs, list) = (devices.list("config"), path.field("config"));
    for (i, config) in configs.iter().enumerate() {
        let at = list.index(i);
        references(config, &named, &at, e);
        configuration(config, &at, e);
    }
    at_most(configs, CONFIGS_MAX, &list, e);
}

fn at_most(list: &[Value], max: usize, path: &Path<'_>, e: &mut Errors) {
    if list.len() > max {
        e.too_many(path, list.len(), max);
    }
}

fn request(request: &Value, path: &Path<'_>, e: &mut Errors) {
    let name = request.text("name");
    e.invalid_each(&path.field("name"), name, names::dns1123_label(name));
    let (exactly, choices) = (request.at("exactly"), request.list("firstAvailable"));
    match (exactly.is_object(), !choices.is_empty()) {
        (false, false) => {
            e.required(path, "exactly one of `exactly` or `firstAvailable` is required");
        }
        (true, true) => e.invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (true, false) => devices_of(exactly, &path.field("exactly"), e),
        (false, true) => {
            let list = path.field("firstAvailable");
            let mut seen = check::Seen::default();
            for (i, choice) in choices.iter().enumerate() {
                let (at, name) = (list.index(i), choice.text("name"));
                e.invalid_each(&at.field("name"), name, names::dns1123_label(name));
                devices_of(choice, &at, e);
                if seen.again(name) {
                    e.duplicate(&at, name);
                }
            }
            at_most(choices, ALTERNATIVES_MAX, &list, e);
        }
    }
}

fn devices_of(request: &Value, path: &Path<'_>, e: &mut Errors) {
    let class = request.text("deviceClassName");
    match class {
        "" => e.required(&path.field("deviceClassName"), ""),
        _ => e.invalid_each(&path.field("deviceClassName"), class, names::dns1123_subdomain(class)),
    }
    selectors(request, path, e);
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
    let list = path.field("tolerations");
    for (i, toleration) in request.list("tolerations").iter().enumerate() {
        self::toleration(toleration, &list.index(i), e);
    }
}

fn selectors(holder: &Value, path: &Path<'_>, e: &mut Errors) {
    let (selectors, list) = (holder.list("selectors"), path.field("selectors"));
    for (i, selector) in selectors.iter().enumerate() {
        let at = list.index(i);
        let at = at.field("cel");
        match selector.at("cel") {
            Value::Object(_) => {
                expression(selector.at("cel").text("expression"), &at.field("expression"), e);
            }
            _ => e.required(&at, ""),
        }
    }
    at_most(selectors, SELECTORS_MAX, &list, e);
}

/// An expression over one `device`: it must compile, and say yes or no. What a device holds, its
/// driver knows.
fn expression(text: &str, path: &Path<'_>, e: &mut Errors) {
    if text.len() > EXPRESSION_MAX_BYTES {
        return e.too_long(path, EXPRESSION_MAX_BYTES);
    }
    match Environment::new().with("device", Type::Dyn).compile(text) {
        Err(why) => e.invalid(path, text, &why.to_string()),
        Ok(program) => {
            let output = program.output();
            if ![Type::Bool, Type::Dyn].iter().any(|t| t.same(output)) {
                let why = format!("must evaluate to bool or the unknown type, not {output}");
                e.invalid(path, text, &why);
            }
        }
    }
}

fn toleration(toleration: &Value, path: &Path<'_>, e: &mut Errors) {
    let (key, value) = (toleration.text("key"), toleration.text("value"));
    if !key.is_empty() {
        e.invalid_each(&path.field("key"), key, names::qualified_name(key));
    }
    match toleration.text("operator") {
        "Exists" if !value.is_empty() => {
            e.invalid(&path.field("value"), value, "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" => e.invalid_each(&path.field("value"), value, names::label_value(value)),
        "" => e.required(&path.field("operator"), ""),
        other => e.not_supported(&path.field("operator"), other, &["Equal", "Exists"]),
    }
    if !toleration.text("effect").is_empty() {
        check::one_of(toleration.at("effect"), &EFFECTS, &path.field("effect"), e);
    }
}

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

fn constraint(constraint: &Value, named: &Named<'_>, path: &Path<'_>, e: &mut Errors) {
    references(constraint, named, path, e);
    match (constraint.at("matchAttribute").as_str(), constraint.at("distinctAttribute").as_str()) {
        (None, None) => {
            let why = "exactly one of `matchAttribute` or `distinctAttribute` is required";
            e.required(path, why);
        }
        (matched, distinct) => {
            for (name, field) in [(matched, "matchAttribute"), (distinct, "distinctAttribute")] {
                if let Some(name) = name {
                    attribute_name(name, &path.field(field), e);
                    if !name.is_empty() && !name.contains('/') {
                        e.invalid(&path.field(field), name, "must include a domain");
                    }
                }
            }
        }
    }
}

/// The requests that something is about: by name, or by name and alternative.
fn references(holder: &Value, named: &Named<'_>, path: &Path<'_>, e: &mut Errors) {
    let (requests, list) = (holder.list("requests"), path.field("requests"));
    let mut seen = check::Seen::default();
    for (i, name) in requests.iter().filter_map(Value::as_str).enumerate() {
        let at = list.index(i);
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() <= 2 {
            parts.iter().for_each(|part| e.invalid_each(&at, part, names::dns1123_label(part)));
        }
        let known = match parts.as_slice() {
            [name] => named.contains_key(name),
            [name, alternative] => named.get(name).is_some_and(|set| set.contains(alternative)),
            _ => false,
        };
        if !known {
            e.invalid(&at, name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'");
        }
        if seen.again(name) {
            e.duplicate(&at, name);
        }
    }
    at_most(requests, REQUESTS_MAX, &list, e);
}

/// What a driver is told, in a form of its own.
fn configuration(config: &Value, path: &Path<'_>, e: &mut Errors) {
    let (opaque, at) = (config.at("opaque"), path.field("opaque"));
    if !opaque.is_object() {
        return e.required(&at, "");
    }
    driver_name(opaque.text("driver"), &at.field("driver"), e);
    let (parameters, named) = (opaque.at("parameters"), at.field("parameters"));
    match parameters {
        Value::Null => e.required(&named, ""),
        Value::Object(_) if parameters.to_string().len() > PARAMETERS_MAX_BYTES => {
            e.too_long(&named, PARAMETERS_MAX_BYTES);
        }
        Value::Object(_) => {}
        _ => e.invalid(&named, "<value omitted>", "parameters must be a valid JSON object"),
    }
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
    create: |object, e| {
        let (template, path) = (object.at("spec"), Path::Root.field("spec"));
        meta::template(template.at("metadata"), &path.field("metadata"), e);
        claim(template.at("spec"), &path.field("spec"), e);
    },
    update: unchanging,
    cells: print::name_age,
    ..Rules::PLAIN
};

pub const DEVICE_CLASS: Rules = Rules {
    create: |object, e| device_class(object, e),
    update: |new, _, e| device_class(new, e),
    generation: true,
    cells: print::name_age,
    ..Rules::PLAIN
};

fn device_class(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    selectors(spec, &path, e);
    let (configs, list) = (spec.list("config"), path.field("config"));
    for (i, config) in configs.iter().enumerate() {
        configuration(config, &list.index(i), e);
    }
    at_most(configs, CONFIGS_MAX, &list, e);
}

pub const RESOURCE_SLICE: Rules = Rules {
    create: |object, e| slice(object.at("spec"), &Path::Root.field("spec"), e),
    update: |new, old, e| {
        let (spec, before, path) = (new.at("spec"), old.at("spec"), Path::Root.field("spec"));
        slice(spec, &path, e);
        let pool = path.field("pool");
        let name = |spec: &Value| spec.at("pool").at("name").clone();
        check::immutable(&name(spec), &name(before), &pool.field("name"), e);
        for field in ["driver", "nodeName"] {
            check::immutable(spec.at(field), before.at(field), &path.field(field), e);
        }
    },
    fields: &[
        ("spec.driver", Field::Text(&["spec", "driver"])),
        ("spec.nodeName", Field::Text(&["spec", "nodeName"])),
    ],
    generation: true,
    cells: print::extension::resource_slice,
    ..Rules::PLAIN
};

/// What a driver publishes of a pool, and which nodes can reach it.
fn slice(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    const DEVICES_MAX: usize = 128;
    driver_name(spec.text("driver"), &path.field("driver"), e);
    pool(spec.at("pool"), &path.field("pool"), e);
    let mut placed = reach(spec, path, e);
    if spec.has("perDeviceNodeSelection") {
        placed.push("`perDeviceNodeSelection`");
    }
    let shared = !spec.list("sharedCounters").is_empty();
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match placed.len() {
        0 if !shared => e.required(path, ONE),
        0 | 1 => {}
        _ => {
            let why = format!("{ONE}, but multiple fields are set");
            e.invalid(path, format!("{{{}}}", placed.join(", ")), &why);
        }
    }
    let (devices, list) = (spec.list("devices"), path.field("devices"));
    let mut seen = check::Seen::default();
    for (i, device) in devices.iter().enumerate() {
        let (at, name) = (list.index(i), device.text("name"));
        self::device(device, &at, e);
        if seen.again(name) {
            e.duplicate(&at.field("name"), name);
        }
    }
    at_most(devices, DEVICES_MAX, &list, e);
}

fn pool(pool: &Value, path: &Path<'_>, e: &mut Errors) {
    const NAME_MAX: usize = 253;
    let (name, at) = (pool.text("name"), path.field("name"));
    if name.is_empty() {
        e.required(&at, "");
    } else {
        if name.len() > NAME_MAX {
            e.too_long(&at, NAME_MAX);
        }
        name.split('/').for_each(|part| e.invalid_each(&at, part, names::dns1123_subdomain(part)));
    }
    let number = |field: &str| pool.int(field).unwrap_or_default();
    if number("resourceSliceCount") <= 0 {
        e.invalid(&path.field("resourceSliceCount"), number("resourceSliceCount"), check::POSITIVE);
    }
    if number("generation") < 0 {
        let why = "must be greater than or equal to zero";
        e.invalid(&path.field("generation"), number("generation"), why);
    }
}

/// Which nodes reach a slice or a device; answers with the fields that say so.
fn reach(holder: &Value, path: &Path<'_>, e: &mut Errors) -> Vec<&'static str> {
    let mut placed = Vec::new();
    let node = holder.text("nodeName");
    if !node.is_empty() {
        placed.push("`nodeName`");
        e.invalid_each(&path.field("nodeName"), node, names::dns1123_subdomain(node));
    }
    let (chosen, at) = (holder.at("nodeSelector"), path.field("nodeSelector"));
    if chosen.is_object() {
        placed.push("`nodeSelector`");
        selector::node_selector(chosen, &at, e);
        let terms = chosen.list("nodeSelectorTerms");
        if terms.len() != 1 {
            let why = "must have exactly one node selector term";
            e.invalid(&at.field("nodeSelectorTerms"), terms.to_vec(), why);
        }
    }
    if holder.flag("allNodes") {
        placed.push("`allNodes`");
    }
    placed
}

fn device(device: &Value, path: &Path<'_>, e: &mut Errors) {
    const NAMED_MAX: usize = 32;
    let name = device.text("name");
    e.invalid_each(&path.field("name"), name, names::dns1123_label(name));
    let list = path.field("attributes");
    for (name, attribute) in members(device.at("attributes")) {
        let at = list.key(name);
        attribute_name(name, &at, e);
        attribute_value(attribute, &at, e);
    }
    let list = path.field("capacity");
    members(device.at("capacity")).for_each(|(name, _)| attribute_name(name, &list.key(name), e));
    let named = members(device.at("attributes")).count() + members(device.at("capacity")).count();
    if named > NAMED_MAX {
        let why =
            format!("the total number of attributes and capacities must not exceed {NAMED_MAX}");
        e.invalid(path, named, &why);
    }
    let list = path.field("taints");
    for (i, taint) in device.list("taints").iter().enumerate() {
        let (at, key, value) = (list.index(i), taint.text("key"), taint.text("value"));
        e.invalid_each(&at.field("key"), key, names::qualified_name(key));
        e.invalid_each(&at.field("value"), value, names::label_value(value));
        check::required_one_of(taint.at("effect"), &EFFECTS, &at.field("effect"), e);
    }
    reach(device, path, e);
}

fn attribute_value(attribute: &Value, path: &Path<'_>, e: &mut Errors) {
    const VALUE_MAX: usize = 64;
    let kinds = ["bool", "bools", "int", "ints", "string", "strings", "version", "versions"];
    match kinds.iter().filter(|kind| attribute.has(kind)).count() {
        0 => e.required(path, "exactly one value must be specified"),
        1 => {}
        _ => e.invalid(path, attribute.clone(), "exactly one value must be specified"),
    }
    if attribute.text("string").len() > VALUE_MAX {
        e.too_long(&path.field("string"), VALUE_MAX);
    }
    if let Some(version) = attribute.at("version").as_str() {
        let at = path.field("version");
        if !text::is_semantic_version(version) {
            e.invalid(&at, version, "must be a string compatible with semver.org spec 2.0.0");
        }
        if version.len() > VALUE_MAX {
            e.too_long(&at, VALUE_MAX);
        }
    }
}

/// `[domain/]identifier`, the identifier as C has them.
fn attribute_name(name: &str, path: &Path<'_>, e: &mut Errors) {
    const IDENTIFIER_MAX: usize = 32;
    let identifier = |name: &str, e: &mut Errors| {
        if name.len() > IDENTIFIER_MAX {
            e.too_long(path, IDENTIFIER_MAX);
        }
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts || !name.chars().all(good) {
            e.type_invalid(path, name, "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')");
        }
    };
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [""] => e.required(path, "name required"),
        [name] => identifier(name, e),
        [domain, name] => {
            match *domain {
                "" => e.required(path, "the domain must not be empty"),
                domain => driver_name(domain, path, e),
            }
            match *name {
                "" => e.required(path, "the name must not be empty"),
                name => identifier(name, e),
            }
        }
        _ => {}
    }
}
