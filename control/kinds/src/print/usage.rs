//! The rows of `metrics.k8s.io`, as metrics-server prints them.

use jiff::Timestamp;
use rimward_api::Quantity;
use serde_json::Value;

use crate::print::name;
use crate::read::Read;

/// NodeMetrics.
pub fn node(object: &Value, _now: Timestamp) -> Vec<Value> {
    row(object, [object.at("usage")].into_iter())
}

/// PodMetrics: its containers together.
pub fn pod(object: &Value, _now: Timestamp) -> Vec<Value> {
    row(object, object.list("containers").iter().map(|c| c.at("usage")))
}

fn row<'a>(object: &Value, usages: impl Iterator<Item = &'a Value> + Clone) -> Vec<Value> {
    let sum = |resource: &str, none: Quantity| {
        let each = usages.clone().filter_map(|u| Quantity::parse(u.text(resource)).ok());
        Value::from(each.reduce(|a, b| a + b).unwrap_or(none).to_string())
    };
    let none = Quantity::ZERO;
    vec![name(object), sum("cpu", none), sum("memory", none), object.text("window").into()]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn containers_are_added_up() {
        let usage = |cpu: &str, memory: &str| json!({ "usage": { "cpu": cpu, "memory": memory } });
        check(
            "metrics.k8s.io",
            "v1beta1",
            "PodMetrics",
            json!({
                "metadata": { "name": "p" }, "window": "15.01s",
                "containers": [usage("1500u", "1Mi"), usage("250u", "512Ki")],
            }),
            json!(["p", "1750u", "1536Ki", "15.01s"]),
        );
        check(
            "metrics.k8s.io",
            "v1beta1",
            "NodeMetrics",
            json!({ "metadata": { "name": "n" }, "window": "1s", "usage": { "cpu": "2", "memory": "1Gi" } }),
            json!(["n", "2", "1Gi", "1s"]),
        );
    }
}
