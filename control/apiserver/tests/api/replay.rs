//! Thousands of single changes to objects, created and updated through the whole pipeline, get the
//! code and the causes that a real API server gave.
//!
//! Cases that are known to differ stand in `testdata/known-misses.txt`; the list may only shrink.
//! Running with `REWRITE_MISSES=1` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster};

#[derive(Deserialize)]
struct Changes {
    bases: Vec<Base>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Base {
    path: String,
    object: Value,
}

#[derive(Deserialize)]
struct Row {
    base: usize,
    at: Vec<Value>,
    to: Value,
    code: u16,
    #[serde(default)]
    causes: Option<Vec<(String, String)>>,
}

type Outcome = (u16, BTreeSet<(String, String)>);

fn outcome(answer: &Answer) -> Outcome {
    let body: Value = serde_json::from_slice(&answer.bytes).unwrap_or_default();
    let causes = body["details"]["causes"].as_array().into_iter().flatten();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    (answer.code, causes.map(|c| (text(&c["field"]), text(&c["reason"]))).collect())
}

/// The changed object: `__del__` removes, `__dup__` appends a copy, `__x300__` is 300 letters. None
/// when the object has no such place.
fn changed(base: &Value, at: &[Value], to: &Value) -> Option<Value> {
    let mut object = base.clone();
    let (last, parents) = at.split_last()?;
    let mut place = &mut object;
    for step in parents {
        place = match step {
            Value::String(key) => place.get_mut(key)?,
            index => place.get_mut(index.as_u64()? as usize)?,
        };
    }
    let long = json!("x".repeat(300));
    let value = if to == "__x300__" { &long } else { to };
    match place {
        Value::Array(list) => {
            let index = last.as_u64()? as usize;
            let present = list.get(index)?.clone();
            match to.as_str() {
                Some("__del__") => drop(list.remove(index)),
                Some("__dup__") => list.push(present),
                _ => list[index] = value.clone(),
            }
        }
        Value::Object(map) => {
            let key = last.as_str()?;
            match to.as_str() {
                Some("__del__") => drop(map.remove(key)?),
                _ => drop(map.insert(key.to_owned(), value.clone())),
            }
        }
        _ => return None,
    }
    Some(object)
}

fn name_of(operation: &str, base: &Base, row: &Row) -> String {
    let at: Vec<String> =
        row.at.iter().map(|s| s.as_str().map_or(s.to_string(), str::to_owned)).collect();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&base.object["kind"]), text(&base.object["metadata"]["name"]));
    format!("{operation} {kind} {name} {} {}", at.join("/"), row.to)
}

#[tokio::test]
async fn single_changes() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let mut misses = BTreeMap::new();
    let (mut good, mut all) = (0, 0);
    for (operation, text) in [
        ("create", include_str!("../../../kinds/testdata/mutations.json")),
        ("update", include_str!("../../../kinds/testdata/update-mutations.json")),
    ] {
        let changes: Changes = serde_json::from_str(text).unwrap();
        let mut stored = Vec::new();
        if operation == "update" {
            for base in &changes.bases {
                let made = c.post(&base.path, &base.object).await;
                let mut object = made.json();
                object.as_object_mut().unwrap().remove("status");
                if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    meta.remove("managedFields");
                    meta.remove("resourceVersion");
                }
                stored.push((made.code, object));
            }
        }
        for row in &changes.rows {
            let base = &changes.bases[row.base];
            let options = "dryRun=All&fieldValidation=Strict";
            let answer = match operation {
                "create" => {
                    let Some(body) = changed(&base.object, &row.at, &row.to) else { continue };
                    c.post(&format!("{}?{options}", base.path), &body).await
                }
                _ => {
                    let (code, object) = &stored[row.base];
                    let Some(body) = changed(object, &row.at, &row.to).filter(|_| *code == 201)
                    else {
                        continue;
                    };
                    let name = base.object["metadata"]["name"].as_str().unwrap();
                    c.put(&format!("{}/{name}?{options}", base.path), &body).await
                }
            };
            let ours = outcome(&answer);
            let theirs: Outcome = (row.code, row.causes.iter().flatten().cloned().collect());
            all += 1;
            if ours == theirs {
                good += 1;
            } else {
                let text: String = answer.text().chars().take(400).collect();
                misses.insert(
                    name_of(operation, base, row),
                    format!("wanted {theirs:?}, got {text}"),
                );
            }
        }
    }
    println!("{good} of {all}");
    assert!(all > 5500, "only {all} cases could be tried");
    ratchet(&misses);
}

fn ratchet(misses: &BTreeMap<String, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/known-misses.txt");
    if std::env::var_os("REWRITE_MISSES").is_some() {
        let lines: String = misses.keys().map(|name| format!("{name}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        misses.iter().for_each(|(name, why)| println!("{name} => {why}"));
        return;
    }
    let known = std::fs::read_to_string(&path).unwrap();
    let known: BTreeSet<&str> = known.lines().collect();
    let new: Vec<String> = misses
        .iter()
        .filter(|(n, _)| !known.contains(n.as_str()))
        .map(|(n, why)| format!("{n} => {why}"))
        .collect();
    let healed: Vec<&&str> = known.iter().filter(|n| !misses.contains_key(**n)).collect();
    assert!(new.is_empty(), "{} cases differ that did not:\n{}", new.len(), new.join("\n"));
    assert!(healed.is_empty(), "these agree now, take them off the list: {healed:?}");
}
