//! Any JSON as a schema with rules, and any JSON as an object of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rimward_control_cel::limits::PER_CALL;
use rimward_control_cel::{Budget, Rules};
use serde_json::Value;

fuzz_target!(|texts: (&str, &str, &str)| {
    let Ok(schema) = serde_json::from_str::<Value>(texts.0) else { return };
    let Ok(rules) = Rules::compile(&schema, "schema") else { return };
    let Ok(new) = serde_json::from_str::<Value>(texts.1) else { return };
    let old = serde_json::from_str::<Value>(texts.2).ok();
    let _ = rules.validate(&new, old.as_ref(), &mut Budget::new(PER_CALL));
});
