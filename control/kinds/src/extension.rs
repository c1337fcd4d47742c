//! What extends the API: webhooks, admission policies, CustomResourceDefinitions, APIServices.

use rimward_api::names;
use serde_json::{Value, json};

use crate::admission_policy;
use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, items_mut, member};
use crate::rules::Rules;

pub const VALIDATING_WEBHOOKS: Rules = Rules {
    default: |object| items_mut(object, "webhooks").for_each(webhook),
    create: |object, e| webhooks(object, e),
    update: |new, _, e| webhooks(new, e),
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

fn webhooks(object: &Value, e: &mut Errors) {
    let (hooks, list) = (object.list("webhooks"), Path::Root.field("webhooks"));
    let mut seen = check::Seen::default();
    for (i, hook) in hooks.iter().enumerate() {
        let (at, name) = (list.index(i), hook.text("name"));
        match name {
            "" => e.required(&at.field("name"), ""),
            _ if names::dns1123_subdomain(name).is_empty() && name.split('.').count() < 3 => {
                e.invalid(
                    &at.field("name"),
                    name,
                    "should be a domain with at least three segments separated by dots",
                );
            }
            _ => e.invalid_each(&at.field("name"), name, names::dns1123_subdomain(name)),
        }
        if !name.is_empty() && seen.again(name) {
            e.duplicate(&at.field("name"), name);
        }
        review_versions(hook, &at.field("admissionReviewVersions"), e);
        client_config(hook.at("clientConfig"), &at.field("clientConfig"), e);
        rules(hook.list("rules"), &at.field("rules"), e);
        match hook.at("sideEffects") {
            Value::Null => {
                e.required(&at.field("sideEffects"), "must specify one of None, NoneOnDryRun")
            }
            effects => {
                check::one_of(effects, &["None", "NoneOnDryRun"], &at.field("sideEffects"), e)
            }
        }
        check::one_of(hook.at("failurePolicy"), &["Fail", "Ignore"], &at.field("failurePolicy"), e);
        check::one_of(
            hook.at("matchPolicy"),
            &["Equivalent", "Exact"],
            &at.field("matchPolicy"),
            e,
        );
        check::one_of(
            hook.at("reinvocationPolicy"),
            &["IfNeeded", "Never"],
            &at.field("reinvocationPolicy"),
            e,
        );
        if let Some(seconds) = hook.int("timeoutSeconds")
            && !(1..=30).contains(&seconds)
        {
            e.invalid(
                &at.field("timeoutSeconds"),
                seconds,
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        for field in ["namespaceSelector", "objectSelector"] {
            check::selector::label_selector(hook.at(field), &at.field(field), e);
        }
    }
}

/// At least one version of AdmissionReview that the server speaks.
fn review_versions(hook: &Value, path: &Path<'_>, e: &mut Errors) {
    let versions = hook.list("admissionReviewVersions");
    if versions.is_empty() {
        return e.required(path, "must specify one of v1, v1beta1");
    }
    let mut seen = check::Seen::default();
    for (i, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        if seen.again(version) {
            e.invalid(&path.index(i), version, "duplicate version");
        }
        e.invalid_each(&path.index(i), version, names::dns1035_label(version));
    }
    if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        e.invalid(
            path,
            Value::Array(versions.to_vec()),
            "must include at least one of v1, v1beta1",
        );
    }
}

/// A service or a URL. Of the service, Kubernetes names the two missing fields the wrong way round.
fn client_config(config: &Value, path: &Path<'_>, e: &mut Errors) {
    let service = config.at("service");
    if service.is_object() == config.has("url") {
        return e.required(path, "exactly one of url or service is required");
    }
    if !service.is_object() {
        return check::webhook::url(config.text("url"), &path.field("url"), e);
    }
    let at = path.field("service");
    for (field, named) in [("name", "namespace"), ("namespace", "name")] {
        if service.text(field).is_empty() {
            e.required(&at.field(named), "");
        }
    }
    let port = service.int("port").unwrap_or_default();
    if !check::text::is_port(port) {
        e.invalid(
            &at.field("port"),
            port,
            &format!("port is not valid: {}", check::text::PORT_RANGE),
        );
    }
    check::webhook::service_path(service.text("path"), &at.field("path"), e);
}

/// What a webhook or policy is asked about.
fn rules(rules: &[Value], path: &Path<'_>, e: &mut Errors) {
    for (i, rule) in rules.iter().enumerate() {
        let at = path.index(i);
        for field in ["operations", "apiGroups", "apiVersions", "resources"] {
            let (values, list) = (rule.list(field), at.field(field));
            if values.is_empty() {
                e.required(&list, "");
            }
            let others = match field {
                "operations" => "operations",
                "apiGroups" => "API groups",
                _ => "API versions",
            };
            if values.len() > 1 && values.iter().any(|v| v == "*") && field != "resources" {
                e.invalid(
                    &list,
                    Value::Array(values.to_vec()),
                    &format!("if '*' is present, must not specify other {others}"),
                );
            }
            if field == "resources" {
                check::webhook::resources(values, &list, e);
            }
            for (j, value) in values.iter().enumerate() {
                if field == "operations" {
                    check::one_of(
                        value,
                        &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"],
                        &list.index(j),
                        e,
                    );
                } else if field != "apiGroups" && value == "" {
                    e.required(&list.index(j), "");
                }
            }
        }
        check::one_of(rule.at("scope"), &["*", "Cluster", "Namespaced"], &at.field("scope"), e);
    }
}

fn validating_policy(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    if spec.list("validations").is_empty() && spec.list("auditAnnotations").is_empty() {
        for field in ["validations", "auditAnnotations"] {
            e.required(&path.field(field), "validations or auditAnnotations must be provided");
        }
    }
    let list = path.field("validations");
    for (i, validation) in spec.list("validations").iter().enumerate() {
        if validation.text("expression").trim().is_empty() {
            e.required(&list.index(i).field("expression"), "expression is not specified");
        }
    }
    admission_policy::validations(spec, &path, e);
    match_constraints(spec, &path, e);
}

fn mutating_policy(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    admission_policy::mutations(spec, &path, e);
    match_constraints(spec, &path, e);
}

/// What both kinds of policy say of when they are asked.
fn match_constraints(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    check::one_of(spec.at("failurePolicy"), &["Fail", "Ignore"], &path.field("failurePolicy"), e);
    admission_policy::common(spec, path, e);
    let at = path.field("matchConstraints");
    let constraints = spec.at("matchConstraints");
    if !constraints.is_object() {
        return e.required(&at, "");
    }
    if constraints.list("resourceRules").is_empty() {
        e.required(&at.field("resourceRules"), "");
    }
    match_resources(constraints, &at, e);
}

fn match_resources(matches: &Value, at: &Path<'_>, e: &mut Errors) {
    for field in ["resourceRules", "excludeResourceRules"] {
        rules(matches.list(field), &at.field(field), e);
    }
    check::one_of(matches.at("matchPolicy"), &["Equivalent", "Exact"], &at.field("matchPolicy"), e);
    for field in ["namespaceSelector", "objectSelector"] {
        check::selector::label_selector(matches.at(field), &at.field(field), e);
    }
}

fn policy_binding(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    admission_policy::binding(spec, &path, e);
    match_resources(spec.at("matchResources"), &path.field("matchResources"), e);
}

fn matching(holder: &mut Value) {
    fill(holder, "matchPolicy", "Equivalent");
    fill(holder, "namespaceSelector", json!({}));
    fill(holder, "objectSelector", json!({}));
}

pub const VALIDATING_POLICY: Rules = Rules {
    default: |object| policy(object),
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| validating_policy(object, e),
    update: |new, _, e| validating_policy(new, e),
    status: true,
    generation: true,
    unconditional: false,
    cells: print::extension::validating_policy,
    ..Rules::PLAIN
};

pub const MUTATING_POLICY: Rules = Rules {
    default: |object| policy(object),
    create: |object, e| mutating_policy(object, e),
    update: |new, _, e| mutating_policy(new, e),
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
    create: |object, e| policy_binding(object, e),
    update: |new, _, e| policy_binding(new, e),
    generation: true,
    unconditional: false,
    cells: print::extension::policy_binding,
    ..Rules::PLAIN
};

pub const VALIDATING_POLICY_BINDING: Rules = Rules {
    create: |object, e| validating_policy_binding(object, e),
    update: |new, _, e| validating_policy_binding(new, e),
    ..POLICY_BINDING
};

fn validating_policy_binding(object: &Value, e: &mut Errors) {
    policy_binding(object, e);
    admission_policy::actions(object.at("spec"), &Path::Root.field("spec"), e);
}

pub const API_SERVICE: Rules = Rules {
    // `v1.` is the core group's.
    name: check::text::path_segment,
    default: |object| {
        if let Some(service) = object.get_mut("spec").and_then(|s| s.get_mut("service")) {
            fill(service, "port", 443);
        }
    },
    prepare_create: |object| {
        object["status"] = json!({});
        // What this server serves itself is there at once.
        if !object.at("spec").at("service").is_object() {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            object["status"]["conditions"] = json!([{
                "type": "Available", "status": "True", "lastTransitionTime": now,
                "reason": "Local", "message": "Local APIServices are always available",
            }]);
        }
    },
    create: |object, e| api_service(object, e),
    update: |new, _, e| api_service(new, e),
    update_sub: |sub, new, _, e| {
        if sub == "status" {
            api_service_conditions(new.at("status"), e);
        }
    },
    status: true,
    unconditional: false,
    cells: print::extension::api_service,
    ..Rules::PLAIN
};

fn api_service(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let (group, version) = (spec.text("group"), spec.text("version"));
    let name = object.at("metadata").text("name");
    let required = format!("{version}.{group}");
    if !name.is_empty() && name != required && check::text::path_segment(name).is_empty() {
        e.invalid(
            &Path::Root.field("metadata").field("name"),
            name,
            &format!("must be `spec.version+\".\"+spec.group`: {required:?}"),
        );
    }
    match (group, version) {
        ("", "v1") => {}
        ("", _) => e.required(
            &path.field("group"),
            "only v1 may have an empty group and it better be legacy kube",
        ),
        _ => e.invalid_each(&path.field("group"), group, names::dns1123_subdomain(group)),
    }
    e.invalid_each(&path.field("version"), version, names::dns1035_label(version));
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = spec.int(field).unwrap_or_default();
        if value <= 0 || value > max {
            e.invalid(&path.field(field), value, &format!("must be positive and less than {max}"));
        }
    }
    let (bundle, insecure) = (spec.text("caBundle"), spec.flag("insecureSkipTLSVerify"));
    let skips = path.field("insecureSkipTLSVerify");
    let service = spec.at("service");
    if !service.is_object() {
        if !bundle.is_empty() {
            let why = "local APIServices may not have a caBundle";
            let bytes = check::text::base64_len(bundle);
            e.invalid(&path.field("caBundle"), format!("{bytes} bytes"), why);
        }
        if insecure {
            e.invalid(&skips, true, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    let at = path.field("service");
    for field in ["namespace", "name"] {
        if service.text(field).is_empty() {
            e.required(&at.field(field), "");
        }
    }
    let port = service.int("port").unwrap_or_default();
    if !check::text::is_port(port) {
        let why = format!("port is not valid: {}", check::text::PORT_RANGE);
        e.invalid(&at.field("port"), port, &why);
    }
    if insecure && !bundle.is_empty() {
        e.invalid(&skips, true, "may not be true if caBundle is present");
    }
}

fn api_service_conditions(status: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    let list = path.field("conditions");
    for (i, condition) in status.list("conditions").iter().enumerate() {
        let is = condition.text("status");
        let at = list.index(i);
        check::one_of(&is.into(), &["True", "False", "Unknown"], &at.field("status"), e);
    }
}
