//! Which names a definition gets, and what its conditions say: the decisions of Kubernetes' naming,
//! establishing and approval controllers in one plan.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::definition::{approval_of, is_protected};
use crate::read::Read;

/// The names that the other definitions of a group hold.
#[derive(Debug, Default)]
pub struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Taken {
    /// Takes what a definition was granted.
    pub fn add(&mut self, definition: &Value) {
        let names = definition.deep(&["status", "acceptedNames"]);
        let texts = |list: &[Value]| {
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        self.resources.extend([names.text("plural").to_owned(), names.text("singular").to_owned()]);
        self.resources.extend(texts(names.list("shortNames")));
        self.kinds.extend([names.text("kind").to_owned(), names.text("listKind").to_owned()]);
    }
}

/// The status that a definition should have; None when it has it. `taken` are the others' names.
pub fn plan(definition: &Value, taken: &Taken, now: Timestamp) -> Option<Value> {
    let (accepted, names_condition) = grant(definition, taken);
    let mut status = definition.at("status").clone();
    if !status.is_object() {
        status = Value::Object(Map::new());
    }
    status["acceptedNames"] = accepted;
    let granted = names_condition.1;
    set_condition(&mut status, "NamesAccepted", names_condition, now);
    let established = is_set(&status, "Established");
    if granted && established != Some(true) {
        let now_it_is =
            ("InitialNamesAccepted", true, "the initial names have been accepted".to_owned());
        set_condition(&mut status, "Established", now_it_is, now);
    } else if established.is_none() {
        let not_yet = ("NotAccepted", false, "not all names are accepted".to_owned());
        set_condition(&mut status, "Established", not_yet, now);
    }
    if is_protected(definition.at("spec").text("group")) {
        let (state, why) = approval_of(definition);
        let reason = match state {
            "Missing" => "MissingAnnotation",
            "Unapproved" => "UnapprovedAnnotation",
            "Approved" => "ApprovedAnnotation",
            _ => "InvalidAnnotation",
        };
        let condition = (reason, state == "Approved", why);
        set_condition(&mut status, "KubernetesAPIApprovalPolicyConformant", condition, now);
    }
    (status != *definition.at("status")).then_some(status)
}

/// Reason, whether it is True, and the message of a condition.
type Condition = (&'static str, bool, String);

fn grant(definition: &Value, taken: &Taken) -> (Value, Condition) {
    let wanted = definition.deep(&["spec", "names"]);
    let had = definition.deep(&["status", "acceptedNames"]);
    let mut accepted =
        if had.is_object() { had.clone() } else { json!({ "plural": "", "kind": "" }) };
    let mut refused: Option<Condition> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    let fields = [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ];
    for (field, reason, used) in fields {
        if field == "kind" {
            short_names(wanted, had, taken, &mut accepted, &mut refused);
        }
        let name = wanted.text(field);
        if name != had.text(field) && used.contains(name) {
            refused = Some((reason, false, in_use(name)));
        } else {
            accepted[field] = name.into();
        }
    }
    copy(wanted, &mut accepted, "categories");
    let good = ("NoConflicts", true, "no conflicts found".to_owned());
    (accepted, refused.unwrap_or(good))
}

fn short_names(
    wanted: &Value,
    had: &Value,
    taken: &Taken,
    accepted: &mut Value,
    refused: &mut Option<Condition>,
) {
    let texts = |v: &Value| -> Vec<String> {
        v.list("shortNames").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let had = texts(had);
    let clash = |name: &String| !had.contains(name) && taken.resources.contains(name);
    let clashes: Vec<String> = texts(wanted)
        .into_iter()
        .filter(clash)
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    match clashes.as_slice() {
        [] => copy(wanted, accepted, "shortNames"),
        [one] => *refused = Some(("ShortNamesConflict", false, one.clone())),
        many => *refused = Some(("ShortNamesConflict", false, format!("[{}]", many.join(", ")))),
    }
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    match from.get(field).filter(|v| !v.is_null()) {
        Some(value) => to[field] = value.clone(),
        None => crate::read::remove(to, field),
    }
}

fn is_set(status: &Value, kind: &str) -> Option<bool> {
    crate::print::condition(status, kind).map(|s| s == "True")
}

/// Sets a condition; its time is that of the last change between True and False.
pub fn set_condition(
    status: &mut Value,
    kind: &str,
    (reason, holds, message): Condition,
    now: Timestamp,
) {
    let shown = if holds { "True" } else { "False" };
    let conditions = match status.get_mut("conditions") {
        Some(Value::Array(list)) => list,
        _ => {
            status["conditions"] = json!([]);
            status["conditions"].as_array_mut().expect("was just made one")
        }
    };
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let new = |since: Value| json!({ "type": kind, "status": shown, "lastTransitionTime": since, "reason": reason, "message": message });
    match conditions.iter_mut().find(|c| c.text("type") == kind) {
        Some(there) => {
            let since = match there.text("status") == shown && there.has("lastTransitionTime") {
                true => there.at("lastTransitionTime").clone(),
                false => time.into(),
            };
            let mut new = new(since);
            if let Some(seen) = there.get("observedGeneration") {
                new["observedGeneration"] = seen.clone();
            }
            *there = new;
        }
        None => conditions.push(new(time.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({ "spec": { "group": "example.com", "names": { "plural": plural, "singular": kind.to_lowercase(),
            "kind": kind, "listKind": format!("{kind}List"), "shortNames": short } },
            "status": { "conditions": null, "acceptedNames": { "plural": "", "kind": "" } } })
    }

    #[test]
    fn names_are_granted_once() {
        let now = Timestamp::UNIX_EPOCH;
        let mut first = definition("as", "A", &["a1"]);
        first["status"] = plan(&first, &Taken::default(), now).expect("a new status");
        assert_eq!(plan(&first, &Taken::default(), now), None, "nothing more to do");
        assert!(crate::custom::definition::is_true(&first, "Established"));
        assert_eq!(first["status"]["acceptedNames"]["kind"], "A");

        let mut taken = Taken::default();
        taken.add(&first);
        let second = definition("bs", "A", &["a1"]);
        let status = plan(&second, &taken, now).expect("a new status");
        let second = json!({ "status": status });
        assert!(!crate::custom::definition::is_true(&second, "NamesAccepted"));
        assert!(!crate::custom::definition::is_true(&second, "Established"));
        assert_eq!(second["status"]["acceptedNames"]["plural"], "bs");
        assert_eq!(second["status"]["acceptedNames"]["kind"], "");
        assert_eq!(second["status"]["conditions"][0]["reason"], "ListKindConflict");
    }
}
