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

fn metric(metric: &Value, path: &Path<'_>, e: &mut Errors) {
    let field = match metric.text("type") {
        "" => {
            e.required(&path.field("type"), "must specify a metric source type");
            return e.not_supported(&path.field("type"), "", &METRIC_TYPES);
        }
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        other => {
            return e.not_supported(&path.field("type"), other, &METRIC_TYPES);
        }
    };
    let (source, at) = (metric.at(field), path.field(field));
    if !source.is_object() {
        return e.required(&at, "must populate information for the given metric source");
    }
    if matches!(field, "resource" | "containerResource") && source.text("name").is_empty() {
        e.required(&at.field("name"), "must specify a resource name");
    }
    let (target, at) = (source.at("target"), at.field("target"));
    let kind = target.text("type");
    if kind.is_empty() {
        e.required(&at.field("type"), "must specify a metric target type");
    }
    if !matches!(kind, "AverageValue" | "Utilization" | "Value") {
        e.invalid(&at.field("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    if matches!(field, "resource" | "containerResource")
        && !target.has("averageUtilization")
        && !target.has("averageValue")
    {
        e.required(
            &at.field("averageUtilization"),
            "must set either a target raw value or a target utilization",
        );
    }
    if let Some(percent) = target.int("averageUtilization")
        && percent < 1
    {
        e.invalid(&at.field("averageUtilization"), percent, "must be greater than 0");
    }
    for field in ["value", "averageValue"] {
        check::resources::positive(target.at(field), &at.field(field), e);
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
