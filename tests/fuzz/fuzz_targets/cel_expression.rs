//! Any text as an expression: it is refused, or it is evaluated within its budget, and in time.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use rimward_control_cel::limits::PER_CALL;
use rimward_control_cel::{Bindings, Budget, Environment, Type, Value};
use serde_json::json;

fuzz_target!(|text: &str| {
    let environment = Environment::new().with("o", Type::Dyn).with_patches();
    let Ok(program) = environment.compile(text) else { return };
    let object = json!({ "a": 1, "b": [1, 2.5, "x", null], "c": { "d": { "e": true } } });
    let bindings = Bindings::new().with("o", Value::of(&object, None));
    let mut budget = Budget::new(PER_CALL);
    let began = Instant::now();
    let _ = program.eval_json(&bindings, &mut budget);
    assert!(began.elapsed() < Duration::from_secs(10), "{text}");
});
