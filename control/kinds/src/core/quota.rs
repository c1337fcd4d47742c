//! LimitRange and ResourceQuota.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill_text, member, members};
use crate::rules::Rules;

pub const LIMIT_RANGE: Rules = Rules {
    default: default_limit_range,
    // A LimitRange needs no name of its own.
    prepare_create: |object| {
        let uid = object.deep(&["metadata", "uid"]).clone();
        if let Some(meta) = member(object, "metadata")
            && !uid.is_null()
        {
            fill_text(meta, "name", uid.as_str().unwrap_or_default());
        }
    },
    create: limit_range,
    update: |new, _, e| limit_range(new, e),
    cells: print::name_created,
    ..Rules::PLAIN
};

/// A container's default comes from its maximum, its default request from its default or minimum.
fn default_limit_range(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for limit in crate::read::items_mut(spec, "limits") {
        if limit.text("type") != "Container" {
            continue;
        }
        for (to, from) in
            [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")]
        {
            let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else {
                continue;
            };
            if let Some(target) = member(limit, to) {
                source
                    .into_iter()
                    .for_each(|(name, value)| crate::read::fill(target, &name, value));
            }
        }
    }
}

fn limit_range(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let list = path.field("limits");
    let limits = object.at("spec").list("limits");
    let mut seen = check::Seen::default();
    for (i, limit) in limits.iter().enumerate() {
        let at = list.index(i);
        let kind = limit.text("type");
        let wrong = names::qualified_name(kind);
        if wrong.is_empty()
            && !kind.contains('/')
            && !matches!(kind, "Container" | "Pod" | "PersistentVolumeClaim")
        {
            e.invalid(&at.field("type"), kind, "must be a standard limit type or fully qualified");
        }
        e.invalid_each(&at.field("type"), kind, wrong);
        if seen.again(kind) {
            e.duplicate(&at.field("type"), kind);
        }
        limit_values(limit, kind, &at, e);
    }
}

fn limit_values(limit: &Value, kind: &str, path: &Path<'_>, e: &mut Errors) {
    use check::resources::quantity;
    const FIELDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if !crate::read::is_empty(limit.at(field)) {
                e.forbidden(&path.field(field), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if kind == "PersistentVolumeClaim" {
        let has = |field: &str| limit.at(field).get("storage").is_some();
        if !has("min") && !has("max") {
            e.required(
                &path.field("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            );
        }
    }
    let mut resources = std::collections::BTreeSet::new();
    let defaults = |field: &str| matches!(field, "default" | "defaultRequest");
    for field in FIELDS.into_iter().filter(|field| kind != "Pod" || !defaults(field)) {
        for (name, _) in members(limit.at(field)) {
            resource_name(kind, name, &path.field(field).key(name), e);
            resources.insert(name);
        }
    }
    for name in resources {
        let value = |field: &str| match kind == "Pod" && defaults(field) {
            true => None,
            false => limit.at(field).get(name).and_then(quantity),
        };
        let [max, min, default, request, ratio] = FIELDS.map(value);
        // (lower, its name, upper, its name, the field that is wrong)
        let orders = [
            (min, "min", max, "max", "min"),
            (min, "min", request, "default request", "defaultRequest"),
            (request, "default request", max, "max", "defaultRequest"),
            (request, "default request", default, "default limit", "defaultRequest"),
            (min, "min", default, "default", "default"),
            (default, "default", max, "max", "default"),
        ];
        for (lower, lower_name, upper, upper_name, field) in orders {
            if let (Some(lower), Some(upper)) = (lower, upper)
                && lower > upper
            {
                let shown = match (field, upper_name) {
                    ("default", "max") | ("defaultRequest", "default request") => upper,
                    _ => lower,
                };
                let why = format!(
                    "{lower_name} value {lower} is greater than {upper_name} value {upper}"
                );
                e.invalid(&path.field(field).key(name), shown.to_string(), &why);
            }
        }
        if let Some(ratio) = ratio
            && ratio < rimward_api::Quantity::from_whole(1)
        {
            e.invalid(
                &path.field("maxLimitRequestRatio").key(name),
                ratio.to_string(),
                &format!("ratio {ratio} is less than 1"),
            );
        }
        if let (Some(ratio), Some(min), Some(max)) = (ratio, min, max)
            && !min.is_zero()
        {
            let most = max.millis() as f64 / min.millis() as f64;
            if ratio.millis() as f64 / 1000.0 > most {
                e.invalid(
                    &path.field("maxLimitRequestRatio").key(name),
                    ratio.to_string(),
                    &format!("ratio {ratio} is greater than max/min = {most:.6}"),
                );
            }
        }
        if let (Some(default), Some(request)) = (default, request)
            && default != request
            && !check::resources::may_overcommit(name)
        {
            let why = format!(
                "default value {default} must equal to defaultRequest value {request} in {name}"
            );
            e.invalid(&path.field("defaultRequest").key(name), request.to_string(), &why);
        }
    }
}

fn resource_name(kind: &str, name: &str, path: &Path<'_>, e: &mut Errors) {
    match kind {
        "Pod" | "Container" => check::resources::container_resource_name(name, path, e),
        _ => check::resources::resource_name(name, path, e),
    }
}

pub const RESOURCE_QUOTA: Rules = Rules {
    create: resource_quota,
    update: |new, old, e| {
        resource_quota(new, e);
        let path = Path::Root.field("spec");
        if !crate::read::same(new.at("spec").at("scopes"), old.at("spec").at("scopes")) {
            e.invalid(&path.field("scopes"), new.at("spec").at("scopes").clone(), check::IMMUTABLE);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    status: true,
    cells: print::config::resource_quota,
    ..Rules::PLAIN
};

fn resource_quota(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("spec");
    let hard = path.field("hard");
    for (name, value) in members(object.at("spec").at("hard")) {
        let at = hard.key(name);
        check::resources::quota_resource_name(name, &at, e);
        check::resources::resource_value(name, value, &at, e);
    }
    let names: Vec<&str> = members(object.at("spec").at("hard")).map(|(n, _)| n.as_str()).collect();
    let listed = object.at("spec").list("scopes");
    let scopes: Vec<&str> = listed.iter().filter_map(Value::as_str).collect();
    let (at, shown) = (path.field("scopes"), Value::from(listed));
    for scope in &scopes {
        scope_of_quota(scope, &names, (&at, &shown), (&at, &shown), e);
    }
    conflicting(&scopes, &at, &shown, e);
    scope_selector(object.at("spec").at("scopeSelector"), &names, &path.field("scopeSelector"), e);
}

fn scope_selector(selector: &Value, names: &[&str], path: &Path<'_>, e: &mut Errors) {
    const OF_EXISTENCE: [&str; 5] = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "Terminating",
    ];
    let at = path.field("matchExpressions");
    let expressions = selector.list("matchExpressions");
    for expression in expressions {
        let (scope, operator) = (expression.text("scopeName"), expression.text("operator"));
        let (named, shown) = (at.field("scopeName"), Value::from(scope));
        scope_of_quota(scope, names, (&named, &shown), (&at, selector), e);
        if OF_EXISTENCE.contains(&scope) && operator != "Exists" {
            e.invalid(&at.field("operator"), operator, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        let values = expression.list("values");
        match operator {
            "In" | "NotIn" if values.is_empty() => e.required(
                &at.field("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => e.invalid(
                &at.field("values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => e.invalid(&at.field("operator"), operator, "not a valid selector operator"),
        }
    }
    let scopes: Vec<&str> = expressions.iter().map(|x| x.text("scopeName")).collect();
    conflicting(&scopes, &at, &Value::from(expressions), e);
}

/// Whether a scope exists, and makes sense for all that the quota limits. Each error has its place and
/// the value that is shown there.
fn scope_of_quota(
    scope: &str,
    names: &[&str],
    unknown: (&Path<'_>, &Value),
    senseless: (&Path<'_>, &Value),
    e: &mut Errors,
) {
    const COMPUTE: [&str; 7] =
        ["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];
    let about = |name: &str| match scope {
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        _ => COMPUTE.contains(&name),
    };
    let known = matches!(
        scope,
        "BestEffort"
            | "CrossNamespacePodAffinity"
            | "NotBestEffort"
            | "NotTerminating"
            | "PriorityClass"
            | "Terminating"
            | "VolumeAttributesClass"
    );
    if !known {
        e.invalid(unknown.0, unknown.1.clone(), "unsupported scope");
    }
    // What is counted as objects, and extended resources, are not looked at.
    let plain = check::resources::is_standard_for_quotas;
    for _ in names.iter().filter(|name| plain(name) && known && !about(name)) {
        e.invalid(senseless.0, senseless.1.clone(), "unsupported scope applied to resource");
    }
}

fn conflicting(scopes: &[&str], path: &Path<'_>, shown: &Value, e: &mut Errors) {
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            e.invalid(path, shown.clone(), "conflicting scopes");
        }
    }
}
