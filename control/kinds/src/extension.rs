//! What extends the API: webhooks, admission policies, CustomResourceDefinitions, APIServices.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, fill_text, items_mut, member};
use crate::rules::Rules;

pub const VALIDATING_WEBHOOKS: Rules = Rules {
    default: |object| items_mut(object, "webhooks").for_each(webhook),
    generation: true,
    unconditional: false,
    cells: print::extension::webhooks,
    ..Rules::PLAIN
};

pub const MUTATING_WEBHOOKS: Rules = Rules {
    default: |object| {
        for hook in items_mut(object, "webhooks") {
            webhook(hook);
            fill(hook, "reinvocationPolicy", "Never");
        }
    },
    ..VALIDATING_WEBHOOKS
};

fn webhook(hook: &mut Value) {
    fill(hook, "failurePolicy", "Fail");
    fill(hook, "timeoutSeconds", 10);
    matching(hook);
    items_mut(hook, "rules").for_each(|r| fill(r, "scope", "*"));
    if let Some(service) = hook.get_mut("clientConfig").and_then(|c| c.get_mut("service")) {
        fill(service, "port", 443);
    }
}

fn matching(holder: &mut Value) {
    fill(holder, "matchPolicy", "Equivalent");
    fill(holder, "namespaceSelector", json!({}));
    fill(holder, "objectSelector", json!({}));
}

pub const VALIDATING_POLICY: Rules = Rules {
    default: |object| policy(object),
    prepare_create: |object| object["status"] = json!({}),
    status: true,
    generation: true,
    unconditional: false,
    cells: print::extension::validating_policy,
    ..Rules::PLAIN
};

pub const MUTATING_POLICY: Rules = Rules {
    default: |object| policy(object),
    generation: true,
    unconditional: false,
    cells: print::extension::mutating_policy,
    ..Rules::PLAIN
};

fn policy(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill(spec, "failurePolicy", "Fail");
    if let Some(matches) = spec.get_mut("matchConstraints") {
        matched_resources(matches);
    }
}

fn matched_resources(matches: &mut Value) {
    matching(matches);
    for list in ["resourceRules", "excludeResourceRules"] {
        items_mut(matches, list).for_each(|r| fill(r, "scope", "*"));
    }
}

pub const POLICY_BINDING: Rules = Rules {
    default: |object| {
        if let Some(matches) = object.get_mut("spec").and_then(|s| s.get_mut("matchResources")) {
            matched_resources(matches);
        }
    },
    generation: true,
    unconditional: false,
    cells: print::extension::policy_binding,
    ..Rules::PLAIN
};

pub const CUSTOM_RESOURCE_DEFINITION: Rules = Rules {
    default: |object| {
        let Some(spec) = member(object, "spec") else { return };
        if let Some(conversion) = member(spec, "conversion") {
            fill_text(conversion, "strategy", "None");
        }
        if let Some(names) = member(spec, "names") {
            let kind = names.text("kind").to_owned();
            if !kind.is_empty() {
                fill_text(names, "singular", &kind.to_lowercase());
                fill_text(names, "listKind", &format!("{kind}List"));
            }
        }
    },
    prepare_create: |object| {
        let versions = object.at("spec").list("versions").iter();
        let stored: Vec<&str> = versions.filter(|v| v.flag("storage")).map(|v| v.text("name")).collect();
        object["status"] = json!({ "conditions": null, "acceptedNames": { "plural": "", "kind": "" }, "storedVersions": stored });
    },
    create: |object, e| definition(object, e),
    update: |new, _, e| definition(new, e),
    status: true,
    generation: true,
    unconditional: false,
    cells: print::name_created,
    ..Rules::PLAIN
};

fn definition(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let (group, plural) = (spec.text("group"), spec.at("names").text("plural"));
    let name = object.at("metadata").text("name");
    if name != format!("{plural}.{group}") {
        e.invalid(&Path::Root.field("metadata").field("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    match group {
        "" => e.required(&path.field("group"), ""),
        _ => {
            e.invalid_each(&path.field("group"), group, names::dns1123_subdomain(group));
            if !group.contains('.') {
                e.invalid(&path.field("group"), group, "should be a domain with at least one dot");
            }
        }
    }
    check::required_one_of(spec.at("scope"), &["Cluster", "Namespaced"], &path.field("scope"), e);
    let at = path.field("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = spec.at("names").text(field);
        if value.is_empty() && matches!(field, "plural" | "singular" | "kind" | "listKind") {
            e.required(&at.field(field), "");
        } else {
            e.invalid_each(&at.field(field), value, names::dns1035_label(&value.to_lowercase()));
        }
    }
}

pub const API_SERVICE: Rules = Rules {
    default: |object| {
        if let Some(service) = object.get_mut("spec").and_then(|s| s.get_mut("service")) {
            fill(service, "port", 443);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| api_service(object, e),
    update: |new, _, e| api_service(new, e),
    status: true,
    unconditional: false,
    cells: print::extension::api_service,
    ..Rules::PLAIN
};

fn api_service(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let name = object.at("metadata").text("name");
    let required = format!("{}.{}", spec.text("version"), spec.text("group"));
    if name != required {
        e.invalid(&Path::Root.field("metadata").field("name"), name, &format!("must be `spec.version+\".\"+spec.group`: {required:?}"));
    }
    for field in ["groupPriorityMinimum", "versionPriority"] {
        let (value, max) = (spec.int(field).unwrap_or_default(), if field == "versionPriority" { 1000 } else { 20_000 });
        if value <= 0 || value > max {
            e.invalid(&path.field(field), value, &format!("must be positive and less than {max}"));
        }
    }
}
