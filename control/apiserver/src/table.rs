//! `meta.k8s.io/v1` Tables: what `kubectl get` shows.
//!
//! The cells of a row are made once per revision and kept as text, with a hole where the age of the
//! object stands, since that changes without the object. Rows with other texts of time in them (when
//! a container last restarted) are made anew each time. The metadata beside the cells are stored bytes.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rimward_api::Status;
use rimward_control_kinds::{Kind, print};
use rimward_control_schema::metadata_description;
use serde_json::{Value, json};

use crate::negotiate::{Encoding, Form, Shape};
use crate::request::Query;
use crate::served::Served;
use crate::server::Inner;
use crate::views::{ListMeta, SharedKey, Stored};

/// `includeObject` of a Table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

pub fn include(query: &Query) -> Result<Include, Status> {
    match query.get("includeObject").unwrap_or_default() {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}

impl Inner {
    /// The Table of records, as JSON.
    pub fn table(
        &self,
        served: &Served,
        rows: &[Stored],
        include: Include,
        meta: &ListMeta,
        columns: bool,
    ) -> Result<Vec<u8>, Status> {
        let columns = if columns { columns_of(&served.kind) } else { Value::Null };
        let mut out = format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":{columns},"rows":["#,
            meta.to_value()
        )
        .into_bytes();
        let now = Timestamp::now();
        for (i, stored) in rows.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            self.push_row(served, stored, include, now, &mut out)?;
        }
        out.extend_from_slice(b"]}");
        Ok(out)
    }

    fn push_row(
        &self,
        served: &Served,
        stored: &Stored,
        include: Include,
        now: Timestamp,
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        out.extend_from_slice(br#"{"cells":"#);
        self.cells(served, stored, now)?.push(now, out);
        out.extend_from_slice(br#","object":"#);
        match include {
            Include::None => out.extend_from_slice(b"null"),
            Include::Metadata => self.push_object(
                served,
                stored,
                Form::of(Encoding::Json, Shape::Metadata),
                true,
                out,
            )?,
            Include::Object => self.push_object(
                served,
                stored,
                Form::of(Encoding::Json, Shape::Object),
                true,
                out,
            )?,
        }
        out.push(b'}');
        Ok(())
    }

    fn cells(&self, served: &Served, stored: &Stored, now: Timestamp) -> Result<Cells, Status> {
        let key = SharedKey {
            key: stored.key.clone(),
            revision: stored.revision,
            served: served.index,
            form: Form::of(Encoding::Json, Shape::Table),
            event: "",
        };
        if stored.kept
            && let Some(kept) = self.shared.get(&key)
        {
            return Ok(Cells::open(kept));
        }
        let object = self.lean_value(served, stored)?;
        let (cells, keeps) = Cells::make(&object, now, |now| served.kind.hooks.cells(&object, now));
        if keeps && stored.kept {
            self.shared.insert(key, cells.bytes.clone());
        }
        Ok(cells)
    }
}

/// The cells of a row: `u32 place of the hole │ i64 second of creation │ JSON text`. The place is
/// [`NO_HOLE`] when no cell is an age.
struct Cells {
    bytes: Bytes,
}

const NO_HOLE: u32 = u32::MAX;
const HEADER: usize = 12;
/// Far enough for every text of an age to become another one.
const LATER: SignedDuration = SignedDuration::from_hours(3 * 366 * 24);

impl Cells {
    fn open(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// Makes the cells at `now`; also whether they hold for other times. What a time changes is found
    /// by asking for the cells of another time, so that printers need not tell.
    fn make(
        object: &Value,
        now: Timestamp,
        cells: impl Fn(Timestamp) -> Vec<Value>,
    ) -> (Self, bool) {
        let later = now.saturating_add(LATER).unwrap_or(now);
        let (ours, theirs) = (cells(now), cells(later));
        let created = object.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
        let created = created.and_then(|t| t.parse::<Timestamp>().ok());
        let is_age = |at: usize| {
            let says = |cells: &[Value], when| {
                created.is_some_and(|c| cells.get(at) == Some(&age(c, when).into()))
            };
            says(&ours, now) && says(&theirs, later)
        };
        let changing: Vec<usize> =
            (0..ours.len()).filter(|i| theirs.get(*i) != Some(&ours[*i])).collect();
        let (hole, keeps) = match changing.as_slice() {
            [] => (None, true),
            [at] if is_age(*at) => (Some(*at), true),
            _ => (None, false),
        };
        let mut out = vec![0; HEADER];
        out[..4].copy_from_slice(&NO_HOLE.to_le_bytes());
        out.push(b'[');
        for (i, cell) in ours.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            if hole == Some(i) {
                let place = (out.len() - HEADER) as u32;
                out[..4].copy_from_slice(&place.to_le_bytes());
                let second = created.map_or(0, Timestamp::as_second);
                out[4..HEADER].copy_from_slice(&second.to_le_bytes());
            } else {
                serde_json::to_writer(&mut out, cell).expect("a Value is JSON");
            }
        }
        out.push(b']');
        (Self { bytes: out.into() }, keeps)
    }

    fn push(&self, now: Timestamp, out: &mut Vec<u8>) {
        let (header, text) = self.bytes.split_at(HEADER);
        let (place, second) = header.split_at(4);
        let place = u32::from_le_bytes(place.try_into().expect("four bytes"));
        if place == NO_HOLE {
            return out.extend_from_slice(text);
        }
        let second = i64::from_le_bytes(second.try_into().expect("eight bytes"));
        let created = Timestamp::from_second(second).expect("it was a time before");
        let (before, after) = text.split_at(place as usize);
        out.extend_from_slice(before);
        out.push(b'"');
        out.extend_from_slice(age(created, now).as_bytes());
        out.push(b'"');
        out.extend_from_slice(after);
    }
}

fn age(created: Timestamp, now: Timestamp) -> String {
    print::human_duration(print::seconds_between(created, now))
}

fn columns_of(kind: &Kind) -> Value {
    let column = |c: &rimward_control_kinds::Column| {
        let description = match (c.name.as_str(), c.description.as_str()) {
            ("Name", "") if c.format == "name" => metadata_description("name"),
            ("Age", "") => metadata_description("creationTimestamp"),
            (_, text) => text,
        };
        json!({ "name": c.name, "type": c.kind, "format": c.format, "description": description, "priority": c.priority })
    };
    kind.columns.iter().map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    /// Cells made at one time and shown at another are those made at the other, or are not kept.
    #[track_caller]
    fn check(cells: impl Fn(Timestamp) -> Vec<Value>, kept: bool) {
        let object = json!({ "metadata": { "creationTimestamp": "2024-01-01T00:00:00Z" } });
        let made = at("2024-01-01T00:00:07Z");
        let (row, keeps) = Cells::make(&object, made, &cells);
        assert_eq!(keeps, kept);
        for shown in [made, at("2024-01-01T00:00:08Z"), at("2026-07-01T00:00:00Z")] {
            if !kept && shown != made {
                continue;
            }
            let mut out = Vec::new();
            row.push(shown, &mut out);
            let text: Value = serde_json::from_slice(&out).expect("is JSON");
            assert_eq!(text, Value::from(cells(shown)), "at {shown}");
        }
    }

    #[test]
    fn rows_outlive_their_second() {
        let created = at("2024-01-01T00:00:00Z");
        check(|_| vec!["a".into(), 1.into(), Value::Null], true);
        check(|now| vec!["a\"b".into(), age(created, now).into(), "z".into()], true);
        check(|now| vec![age(created, now).into()], true);
        check(|now| vec!["a".into(), format!("1 ({} ago)", age(created, now)).into()], false);
        check(|now| vec![age(created, now).into(), age(created, now).into()], false);
        check(|_| vec![], true);
    }
}
