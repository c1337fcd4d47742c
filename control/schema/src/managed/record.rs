//! `metadata.managedFields` as a table of managers.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::set::{self, Part, Set};

/// Entries of updates beyond this are merged, oldest first.
const UPDATERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Who manages: an applier is the same manager at every version, an updater is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    pub name: String,
    pub operation: Operation,
    /// Empty for an applier.
    pub api_version: String,
    pub subresource: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// What a manager manages.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    pub manager: Manager,
    pub api_version: String,
    pub time: Option<String>,
    pub set: Set<'a>,
}

/// The record of an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record<'a> {
    pub entries: Vec<Entry<'a>>,
}

impl Manager {
    pub fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        Self {
            name: if name.is_empty() { "unknown".to_owned() } else { name.to_owned() },
            operation,
            api_version: if operation == Operation::Apply {
                String::new()
            } else {
                api_version.to_owned()
            },
            subresource: subresource.to_owned(),
        }
    }

    /// As conflicts name it.
    pub fn shown(&self) -> String {
        let mut shown = crate::decode::quote(&self.name);
        if !self.subresource.is_empty() {
            shown += &format!(" with subresource {}", crate::decode::quote(&self.subresource));
        }
        if self.operation == Operation::Update {
            shown += &format!(" using {}", self.api_version);
        }
        shown
    }
}

impl<'a> Record<'a> {
    /// Reads `managedFields`; the error says which entry is not one.
    pub fn decode(fields: Option<&'a Value>) -> Result<Self, String> {
        let list = match fields {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err("managedFields must be a list".to_owned()),
        };
        let entries = list.iter().enumerate().map(|(i, entry)| Entry::decode(i, entry));
        Ok(Self { entries: entries.collect::<Result<_, _>>()? })
    }

    /// Reads the text of `managedFields` as the server wrote it. None for one that says anything else than
    /// [`Record::encode_text`] would.
    pub fn decode_text(fields: &'a str) -> Option<Self> {
        let list: Vec<EntryText<'a>> = serde_json::from_str(fields).ok()?;
        let entries = list.into_iter().map(EntryText::entry);
        Some(Self { entries: entries.collect::<Option<_>>()? })
    }

    pub fn get(&self, manager: &Manager) -> Option<&Entry<'a>> {
        self.entries.iter().find(|e| e.manager == *manager)
    }

    pub fn position(&self, manager: &Manager) -> Option<usize> {
        self.entries.iter().position(|e| e.manager == *manager)
    }

    /// Merges the oldest updaters of a version into one, until there are few enough.
    pub fn cap(&mut self) {
        let is_updater = |e: &Entry<'_>| e.manager.operation == Operation::Update;
        let mut excess =
            self.entries.iter().filter(|e| is_updater(e)).count().saturating_sub(UPDATERS_MAX);
        if excess == 0 {
            return;
        }
        self.entries.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.manager.cmp(&b.manager)));
        let mut kept: Vec<Entry<'a>> = Vec::with_capacity(self.entries.len());
        for entry in std::mem::take(&mut self.entries) {
            let bucket =
                kept.iter_mut().find(|k| is_updater(k) && k.api_version == entry.api_version);
            match bucket {
                Some(bucket) if excess > 0 && is_updater(&entry) => {
                    bucket.manager =
                        Manager::new(ANCIENT, Operation::Update, &entry.api_version, "");
                    bucket.set = std::mem::take(&mut bucket.set).union(entry.set);
                    bucket.time = entry.time;
                    excess -= 1;
                }
                _ => kept.push(entry),
            }
        }
        self.entries = kept;
    }

    /// Writes `managedFields`, in Kubernetes' order; None when nobody manages anything.
    pub fn encode(mut self) -> Option<Value> {
        self.sort();
        let list: Vec<Value> = self.entries.iter().map(Entry::encode).collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }

    /// The same as JSON text.
    pub fn encode_text(mut self) -> Option<String> {
        self.sort();
        let mut out = String::with_capacity(1024);
        for entry in &self.entries {
            out.push(if out.is_empty() { '[' } else { ',' });
            entry.write(&mut out);
        }
        (!out.is_empty()).then(|| out + "]")
    }

    fn sort(&mut self) {
        let seconds = |e: &Entry<'_>| e.time.clone().unwrap_or_default();
        self.entries.sort_by(|a, b| {
            let key = |e: &Entry<'_>| {
                (e.manager.operation, seconds(e), e.manager.name.clone(), e.api_version.clone())
            };
            key(a).cmp(&key(b)).then_with(|| a.manager.subresource.cmp(&b.manager.subresource))
        });
    }
}

/// An entry as it stands in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EntryText<'a> {
    api_version: String,
    fields_type: String,
    #[serde(borrow)]
    fields_v1: Part<'a>,
    #[serde(default)]
    manager: String,
    operation: String,
    #[serde(default)]
    subresource: String,
    time: Option<String>,
}

impl<'a> EntryText<'a> {
    fn entry(self) -> Option<Entry<'a>> {
        let operation = match self.operation.as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if self.api_version.is_empty() || self.fields_type != "FieldsV1" {
            return None;
        }
        let manager = Manager {
            name: self.manager,
            ..Manager::new("", operation, &self.api_version, &self.subresource)
        };
        let (api_version, time) = (self.api_version, self.time);
        Some(Entry { manager, api_version, time, set: self.fields_v1.children })
    }
}

impl<'a> Entry<'a> {
    fn decode(index: usize, entry: &'a Value) -> Result<Self, String> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
            other => {
                return Err(format!(
                    "invalid fieldsType {other:?} in managed fields entry {index}"
                ));
            }
        }
        let set = Set::decode(entry.get("fieldsV1").unwrap_or(&Value::Null));
        Ok(Self {
            manager: Manager {
                name: text("manager").to_owned(),
                ..Manager::new("", operation, api_version, text("subresource"))
            },
            api_version: api_version.to_owned(),
            time: entry.get("time").and_then(Value::as_str).map(str::to_owned),
            set: set
                .ok_or_else(|| format!("error decoding set of managed fields entry {index}"))?,
        })
    }

    /// Members in the order that a Value has them in.
    fn write(&self, out: &mut String) {
        let manager = &self.manager;
        out.push_str("{\"apiVersion\":");
        set::push_text(out, &self.api_version);
        out.push_str(",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":");
        self.set.write(false, out);
        if !manager.name.is_empty() {
            out.push_str(",\"manager\":");
            set::push_text(out, &manager.name);
        }
        let operation = if manager.operation == Operation::Apply { "Apply" } else { "Update" };
        out.push_str(",\"operation\":");
        set::push_text(out, operation);
        if !manager.subresource.is_empty() {
            out.push_str(",\"subresource\":");
            set::push_text(out, &manager.subresource);
        }
        if let Some(time) = &self.time {
            out.push_str(",\"time\":");
            set::push_text(out, time);
        }
        out.push('}');
    }

    fn encode(&self) -> Value {
        let mut entry = Map::new();
        if !self.manager.name.is_empty() {
            entry.insert("manager".into(), json!(self.manager.name));
        }
        let operation = if self.manager.operation == Operation::Apply { "Apply" } else { "Update" };
        entry.insert("operation".into(), operation.into());
        entry.insert("apiVersion".into(), json!(self.api_version));
        if let Some(time) = &self.time {
            entry.insert("time".into(), json!(time));
        }
        entry.insert("fieldsType".into(), "FieldsV1".into());
        entry.insert("fieldsV1".into(), self.set.encode());
        if !self.manager.subresource.is_empty() {
            entry.insert("subresource".into(), json!(self.manager.subresource));
        }
        Value::Object(entry)
    }
}
