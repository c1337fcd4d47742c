//! The rows of `kubectl get`: one function a kind, filling the columns of `facts/resources.json` as
//! Kubernetes' own printers do. The server always fills the wide columns too; the client hides them.

pub(crate) mod autoscaling;
pub(crate) mod config;
pub(crate) mod extension;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod storage;
pub(crate) mod usage;
pub(crate) mod workload;

use jiff::Timestamp;
use serde_json::Value;

use crate::read::{Read, members};

pub const NONE: &str = "<none>";
pub const UNSET: &str = "<unset>";
pub const UNKNOWN: &str = "<unknown>";

/// `metadata.name`.
pub fn name(object: &Value) -> Value {
    object.at("metadata").text("name").into()
}

/// How long ago the object was made.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(object.at("metadata").text("creationTimestamp"), now).into()
}

/// Name and age: kinds of which Kubernetes shows no more.
pub fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// Name and the time of creation itself: kinds without a printer.
pub fn name_created(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("metadata").text("creationTimestamp").into()]
}

/// A past time as an age, `<unknown>` when there is none.
pub fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(seconds_between(time, now)),
        Err(_) => UNKNOWN.to_owned(),
    }
}

/// Whole seconds, rounded towards zero.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.duration_since(from).as_secs()
}

/// A duration in two units at most: `duration.HumanDuration` of apimachinery.
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// Labels as `a=b,c=d`.
pub fn labels(value: &Value) -> String {
    let mut pairs: Vec<String> =
        members(value).map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort_unstable();
    or_none(pairs.join(","))
}

/// A `metav1.LabelSelector` in the notation of `kubectl get -l`.
pub fn label_selector(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = members(selector.at("matchLabels"))
        .map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for e in selector.list("matchExpressions") {
        let key = e.text("key");
        let mut values: Vec<&str> = e.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let term = match e.text("operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    or_none(terms.into_iter().map(|(_, t)| t).collect::<Vec<_>>().join(","))
}

pub fn or_none(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { NONE.to_owned() } else { text }
}

/// Text of a member, `<none>` when it has none.
pub fn text_or(value: &Value, otherwise: &str) -> Value {
    match value.as_str() {
        Some(text) => text.into(),
        None => otherwise.into(),
    }
}

/// A whole number, 0 when it is missing.
pub fn number(value: &Value) -> Value {
    value.as_i64().unwrap_or_default().into()
}

/// A number or a percentage as it was written.
pub fn int_or_string(value: &Value, otherwise: &str) -> Value {
    match value {
        Value::Number(n) => n.to_string().into(),
        Value::String(s) => s.as_str().into(),
        _ => otherwise.into(),
    }
}

/// The first `max` of a list, and how many there are beyond: `a,b,c + 2 more...`.
pub fn first_of(list: &[String], max: usize) -> String {
    let shown = list[..list.len().min(max)].join(",");
    match list.len().checked_sub(max) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} + {more} more..."),
    }
}

/// Names and images of a pod template's containers.
pub fn containers(pod_spec: &Value) -> [Value; 2] {
    let joined = |field: &str| {
        let all: Vec<&str> = pod_spec.list("containers").iter().map(|c| c.text(field)).collect();
        Value::from(all.join(","))
    };
    [joined("name"), joined("image")]
}

/// The status of a condition: `True`, `False`, `Unknown`; None when it is not there.
pub fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    let found = status.list("conditions").iter().find(|c| c.text("type") == kind)?;
    Some(found.text("status"))
}

pub fn deleted(object: &Value) -> bool {
    object.at("metadata").has("deletionTimestamp")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    /// Checks a row of the kind against what is expected of it, cell by cell.
    #[track_caller]
    pub fn check(group: &str, version: &str, kind: &str, object: Value, expected: Value) {
        let catalog = crate::Catalog::builtin();
        let kind = catalog.by_kind(group, version, kind).expect("is a kind");
        let cells = kind.hooks.cells(&object, now());
        assert_eq!(Value::from(cells.clone()), expected, "{}", kind.schema);
        assert_eq!(cells.len(), kind.columns.len());
    }

    #[test]
    fn durations() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn selectors() {
        let selector = json!({ "matchLabels": { "b": "x" }, "matchExpressions": [
            { "key": "a", "operator": "In", "values": ["2", "1"] }, { "key": "c", "operator": "DoesNotExist" },
        ] });
        assert_eq!(label_selector(&selector), "a in (1,2),b=x,!c");
        assert_eq!(label_selector(&json!({})), NONE);
        assert_eq!(labels(&json!({ "b": "1", "a": "2" })), "a=2,b=1");
    }
}
