//! What a mutation made, applied to the object: merged into it as server-side apply would, or as the
//! instructions of a JSON patch.

use rimward_control_schema::{managed, patch};
use serde_json::{Value, json};

use super::mutating::Form;
use crate::served::Served;

/// The object after a step, in the form in which the policy sees it.
pub fn applied(served: &Served, form: Form, object: &Value, made: Value) -> Result<Value, String> {
    match form {
        Form::ApplyConfiguration => apply(served, object, made),
        Form::JsonPatch => json_patch(object, made),
    }
}

fn apply(served: &Served, object: &Value, made: Value) -> Result<Value, String> {
    let definition = served.definition.ok_or("the kind has no schema to merge by")?;
    managed::overlay(&served.model, definition, object, &made)
        .map_err(|e| format!("error applying patch: {e}"))
}

/// One instruction after the other, so that a test that fails can be told from one that does not
/// apply: it leaves the object as it is.
fn json_patch(object: &Value, made: Value) -> Result<Value, String> {
    let mut patched = object.clone();
    for instruction in made.as_array().into_iter().flatten() {
        let alone = json!([instruction]).to_string();
        match patch::json_patch(&patched, alone.as_bytes()) {
            Ok(next) => patched = next,
            Err(_) if instruction["op"] == "test" => return Ok(object.clone()),
            Err(e) => return Err(format!("JSON Patch: {}", e.message)),
        }
    }
    Ok(patched)
}
