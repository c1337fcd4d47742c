//! Who set which field: the record in `metadata.managedFields`, as creates and updates keep it.
//!
//! The record is half of most objects. Where nobody looks at it between the request and the store, it
//! stays text: objects are parsed, compared and written without it.

use jiff::Timestamp;
use rimward_control_schema as schema;
use schema::managed::Recorded;
use serde_json::Value;

use crate::admission;
use crate::meta;
use crate::rest::write::{Author, Change, Draft};
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// Where the record of an object that is updated is.
pub enum Ownership {
    /// In the two objects.
    InObjects,
    /// Beside them, which say nothing of it. None: nobody manages anything.
    Text { old: String, new: Option<String> },
}

impl Ownership {
    pub fn new_text(&self) -> Option<&str> {
        match self {
            Self::InObjects => None,
            Self::Text { new, .. } => new.as_deref(),
        }
    }

    /// Whether the update changes nothing of the record but times. Of objects that hold it, they say so
    /// themselves.
    pub fn same_but_times(&self) -> bool {
        let Self::Text { old, new } = self else { return true };
        let Some(new) = new else { return false };
        if old == new {
            return true;
        }
        let read = |text: &str| -> Vec<Value> { serde_json::from_str(text).unwrap_or_default() };
        let (old, new) = (read(old), read(new));
        old.len() == new.len() && old.iter().zip(&new).all(|(o, n)| meta::same_but_time(n, o))
    }
}

impl Draft {
    /// Puts the record into the objects, for those who look at them.
    pub fn show_ownership(&mut self) {
        let Ownership::Text { old, new } =
            std::mem::replace(&mut self.ownership, Ownership::InObjects)
        else {
            return;
        };
        for (object, text) in [(&mut self.old, Some(old)), (&mut self.new, new)] {
            let fields = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
            if let Some(fields) = fields {
                meta::metadata(object).insert("managedFields".into(), fields);
            }
        }
    }
}

impl Inner {
    /// Records who makes a new object. As text that joins it only when it is stored, unless somebody
    /// looks at it before.
    pub fn record_creator(
        &self,
        served: &Served,
        new: &mut Value,
        author: &Author<'_>,
        now: Timestamp,
    ) -> Option<String> {
        if says(new) || served.custom.is_some() || admission::looks_on(self) {
            self.record_manager(served, None, new, author, "", now);
            return None;
        }
        let api_version = served.stored.api_version();
        let write = write(served, author, &api_version, "", now);
        schema::managed::created(&served.model, served.stored_definition?, new, &write)
    }

    /// How the record of an object is kept while it is updated.
    pub fn ownership(&self, served: &Served, current: &Stored, change: &Change<'_>) -> Ownership {
        const NAME: &[u8] = b"managedFields";
        let speaks = match change {
            Change::Replace(object) => says(object),
            Change::Patch(_, body) => body.windows(NAME.len()).any(|w| w == NAME),
            Change::Apply(_) => true,
            Change::Rewrite(_) => false,
        };
        let plain = served.custom.is_none()
            && served.kind.conversion.is_none()
            && served.stored_definition.is_some()
            // What is served of them is not what is stored.
            && !served.is("coordination.k8s.io", "leases");
        if speaks || !plain || admission::looks_on(self) {
            return Ownership::InObjects;
        }
        match current.record.managed_fields() {
            Some(text) => Ownership::Text { old: text.to_owned(), new: Some(text.to_owned()) },
            None => Ownership::InObjects,
        }
    }

    /// Records who changes an object.
    pub fn record_updater(
        &self,
        served: &Served,
        draft: &mut Draft,
        author: &Author<'_>,
        subresource: &str,
        now: Timestamp,
    ) {
        if let (Ownership::Text { old: recorded, new: text }, Some(definition)) =
            (&mut draft.ownership, served.stored_definition)
        {
            let api_version = served.stored.api_version();
            let write = write(served, author, &api_version, subresource, now);
            let (model, old, new) = (&served.model, &draft.old, &draft.new);
            let read =
                schema::managed::updated_text(model, definition, old, Some(recorded), new, &write);
            match read {
                Some(Recorded::Same) => return,
                Some(Recorded::New(record)) => return *text = record,
                None => {}
            }
            draft.show_ownership();
            // The new object says nothing of the record; what it was is the old one's.
            meta::metadata(&mut draft.new).remove("managedFields");
        }
        let Draft { old, new, .. } = draft;
        self.record_manager(served, Some(old), new, author, subresource, now);
    }

    fn record_manager(
        &self,
        served: &Served,
        old: Option<&Value>,
        new: &mut Value,
        author: &Author<'_>,
        subresource: &str,
        now: Timestamp,
    ) {
        let Some(definition) = served.stored_definition else { return };
        let api_version = served.stored.api_version();
        let write = write(served, author, &api_version, subresource, now);
        schema::managed::update(&served.model, definition, old, new, &write);
    }
}

/// Whether an object brings a record of its own.
fn says(object: &Value) -> bool {
    object.get("metadata").is_some_and(|m| m.get("managedFields").is_some())
}

fn write<'a>(
    served: &Served,
    author: &'a Author<'_>,
    api_version: &'a str,
    subresource: &'a str,
    now: Timestamp,
) -> schema::managed::Write<'a> {
    let manager = &author.options.manager;
    let ignored = ignored(served, subresource);
    schema::managed::Write { manager, api_version, subresource, now, ignored }
}

/// What a write cannot change and so does not own, by the paths that Kubernetes resets.
pub fn ignored(served: &Served, subresource: &str) -> &'static [&'static str] {
    let has_status = served.kind.subresource("status").is_some();
    match subresource {
        "" if has_status => &["status"],
        "status" if served.custom.is_some() => &["metadata", "spec"],
        "status" => &["spec"],
        _ => &[],
    }
}
