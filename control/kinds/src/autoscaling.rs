//! HorizontalPodAutoscaler: stored as autoscaling/v2, served as v1 too.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, text};
use crate::kind::Conversion;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, is_empty, member, remove};
use crate::rules::Rules;

pub const AUTOSCALER: Rules = Rules {
    default: default_v2,
    prepare_create: |object| {
        object["status"] = json!({ "desiredReplicas": 0, "currentMetrics": null })
    },
    create: |object, e| autoscaler(object, e),
    update: |new, _, e| autoscaler(new, e),
    status: true,
    cells: print::autoscaling::autoscaler,
    ..Rules::PLAIN
};

/// The first version knows CPU utilization only.
pub const AUTOSCALER_V1: Rules = Rules {
    default: |object| {
        if let Some(spec) = member(object, "spec") {
            fill(spec, "minReplicas", 1);
        }
    },
    ..AUTOSCALER
};

fn default_v2(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill(spec, "minReplicas", 1);
    if spec.list("metrics").is_empty() {
        spec["metrics"] = json!([cpu(80)]);
    }
    let Some(behavior) = spec.get_mut("behavior") else { return };
    if let Some(up) = member(behavior, "scaleUp") {
        fill(up, "stabilizationWindowSeconds", 0);
        fill(up, "selectPolicy", "Max");
        if is_empty(up.at("policies")) {
            up["policies"] = json!([
                { "type": "Pods", "value": 4, "periodSeconds": 15 },
                { "type": "Percent", "value": 100, "periodSeconds": 15 },
            ]);
        }
    }
    if let Some(down) = member(behavior, "scaleDown") {
        fill(down, "selectPolicy", "Max");
        if is_empty(down.at("policies")) {
            down["policies"] = json!([{ "type": "Percent", "value": 100, "periodSeconds": 15 }]);
        }
    }
}

fn cpu(percent: i64) -> Value {
    json!({ "type": "Resource", "resource": { "name": "cpu",
        "target": { "type": "Utilization", "averageUtilization": percent } } })
}

fn autoscaler(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let (min, max) = (spec.int("minReplicas"), spec.int("maxReplicas").unwrap_or_default());
    if min.is_some_and(|n| n < 1) {
        e.invalid(
            &path.field("minReplicas"),
            min.unwrap_or_default(),
            "must be greater than or equal to 1",
        );
    }
    if max == 0 {
        e.required(&path.field("maxReplicas"), "");
    }
    if max < 1 {
        e.invalid(&path.field("maxReplicas"), max, "must be greater than 0");
    }
    if min.is_some_and(|n| max < n) {
        e.invalid(
            &path.field("maxReplicas"),
            max,
            "must be greater than or equal to `minReplicas`",
        );
    }
    let scales_from_zero = |m: &Value| matches!(m.text("type"), "Object" | "External");
    if min == Some(0) && !spec.list("metrics").iter().any(scales_from_zero) {
        e.forbidden(&path.field("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas");
    }
    target_ref(spec.at("scaleTargetRef"), &path.field("scaleTargetRef"), e);
    let list = path.field("metrics");
    for (i, metric) in spec.list("metrics").iter().enumerate() {
        self::metric(metric, &list.index(i), e);
    }
    behavior(spec.at("behavior"), &path.field("behavior"), e);
}

fn target_ref(target: &Value, path: &Path<'_>, e: &mut Errors) {
    for field in ["kind", "name"] {
        match target.text(field) {
            "" => e.required(&path.field(field), ""),
            value => e.invalid_each(&path.field(field), value, text::path_segment(value)),
        }
    }
    let version = target.text("apiVersion");
    let good = rimward_api::GroupVersion::parse(version).is_some_and(|v| {
        names::dns1035_label(&v.version).is_empty()
            && (v.group.is_empty() || names::dns1123_subdomain(&v.group).is_empty())
    });
    if !good {
        e.invalid(
            &path.field("apiVersion"),
            version,
            "must be a group and version, such as apps/v1",
        );
    }
}

const METRIC_TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

type SourceRule = fn(&Value, &Path<'_>, &mut Errors);

/// The sources of metrics: type, field, and rule, in Kubernetes' order.
const SOURCES: [(&str, &str, SourceRule); 5] = [
    ("Object", "object", |source, path, e| {
        target_ref(source.at("describedObject"), &path.field("describedObject"), e);
        described(source, path, e);
        if !source.at("target").has("value") && !source.at("target").has("averageValue") {
            let why = "must set either a target value or averageValue";
            e.required(&path.field("target").field("averageValue"), why);
        }
    }),
    ("External", "external", |source, path, e| {
        described(source, path, e);
        let at = path.field("target");
        match ["value", "averageValue"].map(|field| source.at("target").has(field)) {
            [false, false] => e.required(
                &at.field("averageValue"),
                "must set either a target value for metric or a per-pod target",
            ),
            [true, true] => e.forbidden(
                &at.field("value"),
                "may not set both a target value for metric and a per-pod target",
            ),
            _ => {}
        }
    }),
    ("Pods", "pods", |source, path, e| {
        described(source, path, e);
        let average = check::resources::quantity(source.at("target").at("averageValue"));
        if average.is_none_or(|q| q.is_zero() || q.is_negative()) {
            let why = "must specify a positive target averageValue";
            e.required(&path.field("target").field("averageValue"), why);
        }
    }),
    ("ContainerResource", "containerResource", |source, path, e| {
        if source.text("container").is_empty() {
            e.required(&path.field("container"), "must specify a container");
        }
        resource_source(source, path, e);
    }),
    ("Resource", "resource", resource_source),
];

/// Exactly one source, the one that the type names.
fn metric(metric: &Value, path: &Path<'_>, e: &mut Errors) {
    let kind = metric.text("type");
    if kind.is_empty() {
        e.required(&path.field("type"), "must specify a metric source type");
    }
    if !METRIC_TYPES.contains(&kind) {
        e.not_supported(&path.field("type"), kind, &METRIC_TYPES);
    }
    let there = || SOURCES.iter().filter(|(_, field, _)| metric.at(field).is_object());
    if let Some((_, field, rule)) = there().next() {
        rule(metric.at(field), &path.field(field), e);
    }
    let wanted = SOURCES.iter().find(|(of, ..)| *of == kind).map(|(_, field, _)| *field);
    if let Some(field) = wanted.filter(|field| !metric.at(field).is_object()) {
        let why = "must populate information for the given metric source";
        e.required(&path.field(field), why);
    }
    if there().count() > 1 {
        for (_, field, _) in there().filter(|(_, field, _)| Some(*field) != wanted) {
            e.forbidden(&path.field(field), "must populate the given metric source only");
        }
    }
}

/// A metric by name and labels, and what it should come to.
fn described(source: &Value, path: &Path<'_>, e: &mut Errors) {
    let (metric, at) = (source.at("metric"), path.field("metric"));
    match metric.text("name") {
        "" => e.required(&at.field("name"), "must specify a metric name"),
        name => e.invalid_each(&at.field("name"), name, text::path_segment(name)),
    }
    check::selector::label_selector(metric.at("selector"), &at.field("selector"), e);
    target(source.at("target"), &path.field("target"), e);
}

fn resource_source(source: &Value, path: &Path<'_>, e: &mut Errors) {
    if source.text("name").is_empty() {
        e.required(&path.field("name"), "must specify a resource name");
    }
    let at = path.field("target");
    target(source.at("target"), &at, e);
    match ["averageUtilization", "averageValue"].map(|field| source.at("target").has(field)) {
        [false, false] => e.required(
            &at.field("averageUtilization"),
            "must set either a target raw value or a target utilization",
        ),
        [true, true] => e.forbidden(
            &at.field("averageValue"),
            "may not set both a target raw value and a target utilization",
        ),
        _ => {}
    }
}

fn target(target: &Value, path: &Path<'_>, e: &mut Errors) {
    let kind = target.text("type");
    if kind.is_empty() {
        e.required(&path.field("type"), "must specify a metric target type");
    }
    if !matches!(kind, "AverageValue" | "Utilization" | "Value") {
        let why = "must be either Utilization, Value, or AverageValue";
        e.invalid(&path.field("type"), kind, why);
    }
    for field in ["value", "averageValue"] {
        if let Some(quantity) = check::resources::quantity(target.at(field))
            && (quantity.is_negative() || quantity.is_zero())
        {
            e.invalid(&path.field(field), quantity.to_string(), "must be positive");
        }
    }
    if let Some(percent) = target.int("averageUtilization")
        && percent < 1
    {
        e.invalid(&path.field("averageUtilization"), percent, "must be greater than 0");
    }
}

/// How fast it may scale, either way.
fn behavior(behavior: &Value, path: &Path<'_>, e: &mut Errors) {
    const WINDOW_MAX: i64 = 3600;
    const PERIOD_MAX: i64 = 1800;
    const ABOVE_ZERO: &str = "must be greater than zero";
    for direction in ["scaleUp", "scaleDown"] {
        let (rules, at) = (behavior.at(direction), path.field(direction));
        if !rules.is_object() {
            continue;
        }
        if let Some(seconds) = rules.int("stabilizationWindowSeconds") {
            let at = at.field("stabilizationWindowSeconds");
            if seconds < 0 {
                e.invalid(&at, seconds, "must be greater than or equal to zero");
            }
            if seconds > WINDOW_MAX {
                e.invalid(&at, seconds, &format!("must be less than or equal to {WINDOW_MAX}"));
            }
        }
        let selects = ["Disabled", "Max", "Min"];
        check::one_of(rules.at("selectPolicy"), &selects, &at.field("selectPolicy"), e);
        let (policies, list) = (rules.list("policies"), at.field("policies"));
        if policies.is_empty() {
            e.required(&list, "must specify at least one Policy");
        }
        for (i, policy) in policies.iter().enumerate() {
            let at = list.index(i);
            let kind = policy.text("type");
            check::one_of(&kind.into(), &["Percent", "Pods"], &at.field("type"), e);
            let number = |field: &str| policy.int(field).unwrap_or_default();
            let (value, period) = (number("value"), number("periodSeconds"));
            if value <= 0 {
                e.invalid(&at.field("value"), value, ABOVE_ZERO);
            }
            if period <= 0 {
                e.invalid(&at.field("periodSeconds"), period, ABOVE_ZERO);
            }
            if period > PERIOD_MAX {
                let why = format!("must be less than or equal to {PERIOD_MAX}");
                e.invalid(&at.field("periodSeconds"), period, &why);
            }
        }
        if check::resources::quantity(rules.at("tolerance")).is_some_and(|q| q.is_negative()) {
            let why = "must be greater than or equal to 0";
            e.invalid(&at.field("tolerance"), rules.at("tolerance").clone(), why);
        }
    }
}

/// What v1 has no field for travels in annotations, under Kubernetes' own names.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// autoscaling/v1 to the stored v2 and back.
pub struct AutoscalerConversion;

impl Conversion for AutoscalerConversion {
    fn to_stored(&self, mut object: Value) -> Value {
        let take = |object: &mut Value, key: &str| -> Option<Value> {
            let annotations =
                object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
            serde_json::from_str(annotations.remove(key)?.as_str()?).ok()
        };
        let others =
            take(&mut object, METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
        let behavior = take(&mut object, BEHAVIOR);
        take(&mut object, CURRENT);
        take(&mut object, CONDITIONS);
        let Some(spec) = member(&mut object, "spec") else { return object };
        let mut metrics = Vec::new();
        if let Some(percent) = spec.int("targetCPUUtilizationPercentage") {
            metrics.push(cpu(percent));
        }
        metrics.extend(others);
        remove(spec, "targetCPUUtilizationPercentage");
        if metrics.is_empty() {
            metrics.push(cpu(80));
        }
        spec["metrics"] = metrics.into();
        if let Some(behavior) = behavior {
            spec["behavior"] = behavior;
        }
        if let Some(status) = object.get_mut("status") {
            remove(status, "currentCPUUtilizationPercentage");
        }
        object
    }

    fn from_stored(&self, mut object: Value) -> Value {
        let is_cpu = |m: &&Value| {
            m.text("type") == "Resource"
                && m.deep(&["resource", "name"]) == "cpu"
                && m.deep(&["resource", "target"]).has("averageUtilization")
        };
        let spec = object.at("spec");
        let metrics = spec.list("metrics");
        let percent = metrics
            .iter()
            .find(is_cpu)
            .and_then(|m| m.deep(&["resource", "target"]).int("averageUtilization"));
        let others: Vec<Value> = metrics.iter().filter(|m| !is_cpu(m)).cloned().collect();
        let (behavior, status) = (spec.at("behavior").clone(), object.at("status"));
        let (conditions, current) =
            (status.at("conditions").clone(), status.at("currentMetrics").clone());
        let used =
            status.list("currentMetrics").iter().find(|m| m.deep(&["resource", "name"]) == "cpu");
        let used = used.and_then(|m| m.deep(&["resource", "current"]).int("averageUtilization"));
        let mut notes = vec![(BEHAVIOR, behavior), (CONDITIONS, conditions), (CURRENT, current)];
        notes.push((METRICS, others.into()));
        for (key, value) in notes.into_iter().filter(|(_, v)| !is_empty(v)) {
            if let Some(annotations) =
                member(&mut object, "metadata").and_then(|m| member(m, "annotations"))
            {
                annotations[key] = value.to_string().into();
            }
        }
        if let Some(spec) = member(&mut object, "spec") {
            remove(spec, "metrics");
            remove(spec, "behavior");
            if let Some(percent) = percent {
                spec["targetCPUUtilizationPercentage"] = percent.into();
            }
        }
        if let Some(status) = object.get_mut("status") {
            remove(status, "currentMetrics");
            remove(status, "conditions");
            fill(status, "currentReplicas", 0);
            if let Some(used) = used {
                status["currentCPUUtilizationPercentage"] = used.into();
            }
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let v1 = json!({ "metadata": { "name": "h" }, "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50 } });
        let stored = AutoscalerConversion.to_stored(v1.clone());
        assert_eq!(stored["spec"]["metrics"], json!([cpu(50)]));
        assert_eq!(AutoscalerConversion.from_stored(stored), v1);

        let v2 = json!({ "metadata": {}, "spec": { "metrics": [cpu(50), { "type": "Pods", "pods": {} }], "behavior": { "scaleUp": {} } } });
        let round = AutoscalerConversion.to_stored(AutoscalerConversion.from_stored(v2.clone()));
        assert_eq!(round["spec"], v2["spec"]);
    }
}
