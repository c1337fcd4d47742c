//! Between the form that a custom resource is stored in and the one that it is served in.

use std::sync::Arc;

use bytes::Bytes;
use rimward_api::Status;
use rimward_control_kinds::custom::defaulting;
use rimward_control_kinds::custom::embedded::Wrong;
use rimward_control_kinds::custom::version::Version;
use serde_json::Value;

use super::body::normalize;
use super::{Custom, conversion};
use crate::error;
use crate::record::{Record, TooLong};
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// A record as it goes into the store, and as it is answered.
pub struct Encoded {
    pub bytes: Bytes,
    pub answer: Record,
}

impl Custom {
    /// Whether a record can be served as it is.
    pub fn is_current(&self, record: &Record) -> bool {
        record.mark() == Custom::mark(&self.version)
    }

    /// Whether a record is in the form in which it would be written now.
    pub fn is_newest(&self, record: &Record) -> bool {
        self.is_current(record) && self.version.name == self.definition.storage.name
    }

    /// The version that a record is in.
    fn version_of(&self, record: &Record) -> &Arc<Version> {
        let name = record.mark().split('#').next().unwrap_or_default();
        self.definition.version(name).unwrap_or(&self.definition.storage)
    }
}

impl Inner {
    /// Records in the form that `served` serves; those of built-in kinds are in it.
    pub async fn present(
        &self,
        served: &Served,
        stored: Vec<Stored>,
    ) -> Result<Vec<Stored>, Status> {
        let Some(custom) = &served.custom else { return Ok(stored) };
        if stored.iter().all(|s| custom.is_current(&s.record)) {
            return Ok(stored);
        }
        let mut stored = stored;
        let mut old = Vec::new();
        for (i, record) in stored.iter().enumerate() {
            if !custom.is_current(&record.record) {
                old.push((i, self.as_stored(custom, record)?));
            }
        }
        let (places, objects): (Vec<usize>, Vec<Value>) = old.into_iter().unzip();
        let converted = conversion::convert(self, custom, &custom.version, objects).await?;
        for (place, object) in places.into_iter().zip(converted) {
            let mark = Custom::mark(&custom.version);
            let bytes = Record::encode_marked(&object, &served.kind, &mark).map_err(too_long)?;
            stored[place].record = Record::open(&bytes).expect("was just encoded");
        }
        Ok(stored)
    }

    pub async fn present_one(&self, served: &Served, stored: Stored) -> Result<Stored, Status> {
        let mut all = self.present(served, vec![stored]).await?;
        Ok(all.pop().expect("as many as were given"))
    }

    /// The object as its own version has it now: pruned and defaulted by the schema of today.
    fn as_stored(&self, custom: &Custom, stored: &Stored) -> Result<Value, Status> {
        let version = custom.version_of(&stored.record);
        let kind = custom.definition.kind_of(version);
        let mut object =
            stored.record.to_value(&kind, stored.revision).map_err(error::damaged(&stored.key))?;
        if let Err(why) = normalize(&mut object, &version.schema, Wrong::Drop, None) {
            tracing::warn!(key = %stored.key, why, "a stored custom resource is not well formed");
        }
        defaulting::default(&mut object, &version.schema);
        Ok(object)
    }

    /// The record of an object of a built-in kind, whose managedFields are this text.
    pub fn encode_managed(
        &self,
        served: &Served,
        object: &Value,
        fields: &str,
    ) -> Result<Encoded, Status> {
        let bytes = Record::encode_managed(object, &served.stored, fields).map_err(too_long)?;
        let answer = Record::open(&bytes).expect("was just encoded");
        Ok(Encoded { bytes, answer })
    }

    /// The record of an object that is in the served form.
    pub async fn encode(&self, served: &Served, object: &Value) -> Result<Encoded, Status> {
        let Some(custom) = &served.custom else {
            let bytes = Record::encode(object, &served.stored).map_err(too_long)?;
            let answer = Record::open(&bytes).expect("was just encoded");
            return Ok(Encoded { bytes, answer });
        };
        let mark = Custom::mark(&custom.version);
        let bytes = Record::encode_marked(object, &served.kind, &mark).map_err(too_long)?;
        let answer = Record::open(&bytes).expect("was just encoded");
        let storage = &custom.definition.storage;
        if storage.name == custom.version.name {
            return Ok(Encoded { bytes, answer });
        }
        let mut converted =
            conversion::convert(self, custom, storage, vec![object.clone()]).await?;
        let object = converted.pop().expect("as many as were given");
        // Without a fingerprint: its defaults are those of another version.
        let mark = format!("{}#", storage.name);
        let bytes = Record::encode_marked(&object, &custom.storage, &mark).map_err(too_long)?;
        Ok(Encoded { bytes, answer })
    }
}

fn too_long(e: TooLong) -> Status {
    Status::bad_request(e.to_string())
}
