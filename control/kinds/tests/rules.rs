//! What the kinds refuse, one rule a case, in the tables of `tests/rules`. A table reads:
//!
//! ```text
//! base GROUP/VERSION KIND OBJECT   the smallest object of the kind, which is accepted
//! create KIND PATCH                the object with a merge patch laid over it is created
//! update KIND PATCH                the stored object is replaced by a patched one
//! SUBRESOURCE KIND PATCH           the same, through one of the kind's subresources
//!   FIELD REASON                   what is refused, a line a cause, in order
//! default KIND PATCH               the object is completed
//!   POINTER VALUE                  what stands at a place then
//! ```

#![allow(clippy::unwrap_used, reason = "test data that is not as expected fails the test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rimward_api::FieldError;
use rimward_control_kinds::{Catalog, Kind, Write};
use serde_json::{Value, json};

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(key)),
            value => merge(&mut target[key.as_str()], value),
        }
    }
}

fn refusals(errors: Vec<FieldError>) -> Vec<String> {
    let line = |e: FieldError| {
        let reason = json!(e.reason).as_str().unwrap_or_default().to_owned();
        format!("{} {}", e.field, reason.trim_start_matches("FieldValue"))
    };
    errors.into_iter().map(line).collect()
}

fn create(kind: &Kind, mut object: Value) -> (Value, Vec<String>) {
    kind.hooks.default(&mut object);
    if let Some(conversion) = &kind.conversion {
        object = conversion.to_stored(object);
    }
    kind.hooks.prepare_create(&mut object);
    let errors = kind.hooks.validate_create(&object);
    (object, refusals(errors))
}

fn update(kind: &Kind, write: Write<'_>, mut new: Value, old: &Value) -> Vec<String> {
    kind.hooks.default(&mut new);
    if let Some(conversion) = &kind.conversion {
        new = conversion.to_stored(new);
    }
    kind.hooks.prepare_update(write, &mut new, old);
    refusals(kind.hooks.validate_update(write, &new, old))
}

#[track_caller]
fn check(table: &str) {
    let catalog = Catalog::builtin();
    let mut bases: BTreeMap<&str, (&Kind, Value)> = BTreeMap::new();
    let (mut wrong, mut seen) = (String::new(), 0);
    let mut lines = table.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        let (what, rest) = line.split_once(' ').unwrap();
        if what == "base" {
            let mut words = rest.splitn(3, ' ');
            let (group, version) = words.next().unwrap().rsplit_once('/').unwrap();
            let (name, text) = (words.next().unwrap(), words.next().unwrap());
            let kind = catalog.by_kind(group, version, name).unwrap();
            let object: Value = serde_json::from_str(text).expect(text);
            assert_eq!(create(kind, object.clone()).1, Vec::<String>::new(), "base {name}");
            bases.insert(name, (kind, object));
            continue;
        }
        let (name, patch) = rest.split_once(' ').unwrap();
        let (kind, base) = bases.get(name).expect(name);
        let patch = serde_json::from_str(patch).expect(patch);
        let patched = |mut object: Value| {
            merge(&mut object, &patch);
            object
        };
        let mut expected = Vec::new();
        while let Some(cause) = lines.next_if(|l| l.starts_with(' ')) {
            expected.push(cause.trim());
        }
        let found = match what {
            "default" => {
                let mut object = patched(base.clone());
                kind.hooks.default(&mut object);
                let there = |line: &&str| {
                    let at = line.split(' ').next().unwrap_or_default();
                    format!("{at} {}", object.pointer(at).unwrap_or(&Value::Null))
                };
                expected.iter().map(there).collect()
            }
            "create" => create(kind, patched(base.clone())).1,
            write => {
                let stored = create(kind, base.clone()).0;
                let served = match &kind.conversion {
                    Some(conversion) => conversion.from_stored(stored.clone()),
                    None => stored.clone(),
                };
                let write = if write == "update" { Write::Main } else { Write::Sub(write) };
                update(kind, write, patched(served), &stored)
            }
        };
        if found != expected {
            writeln!(wrong, "{line}\n  expected {expected:#?}\n  found {found:#?}").unwrap();
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(seen > 10, "{seen} cases");
}

#[test]
fn defaults() {
    check(include_str!("rules/defaults.txt"));
}

#[test]
fn pods() {
    check(include_str!("rules/pod.txt"));
}

#[test]
fn services() {
    check(include_str!("rules/service.txt"));
}

#[test]
fn storage() {
    check(include_str!("rules/storage.txt"));
}

#[test]
fn workloads() {
    check(include_str!("rules/workload.txt"));
}

#[test]
fn networks() {
    check(include_str!("rules/network.txt"));
}

#[test]
fn clusters() {
    check(include_str!("rules/cluster.txt"));
}

#[test]
fn devices() {
    check(include_str!("rules/device.txt"));
}

#[test]
fn policies() {
    check(include_str!("rules/policy.txt"));
}
