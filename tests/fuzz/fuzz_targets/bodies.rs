//! Any bytes as the JSON or YAML of a built-in kind: refused with a Status, or decoded to what can be decoded
//! again.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rimward_control_schema::{Expected, FieldValidation, Format, builtin, decode};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    kind: u8,
    yaml: bool,
    strict: bool,
    body: &'a [u8],
}

/// Kinds whose definitions differ most: deep ones, free-form ones, lists of every type.
const KINDS: [(&str, &str, &str, &str); 6] = [
    ("", "v1", "Pod", "io.k8s.api.core.v1.Pod"),
    ("", "v1", "Service", "io.k8s.api.core.v1.Service"),
    ("", "v1", "Secret", "io.k8s.api.core.v1.Secret"),
    ("apps", "v1", "Deployment", "io.k8s.api.apps.v1.Deployment"),
    ("networking.k8s.io", "v1", "Ingress", "io.k8s.api.networking.v1.Ingress"),
    (
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    ),
];

fuzz_target!(|input: Input| {
    let (group, version, kind, name) = KINDS[usize::from(input.kind) % KINDS.len()];
    let model = builtin();
    let definition = model.expect(name);
    let expected = Expected { group, version, kind, definition };
    let format = if input.yaml { Format::Yaml } else { Format::Json };
    let validation = if input.strict { FieldValidation::Strict } else { FieldValidation::Warn };
    let Ok(decoded) = decode::object(model, &expected, input.body, format, validation) else {
        return;
    };
    let text = serde_json::to_vec(&decoded.value).expect("a value is JSON");
    let again = decode::object(model, &expected, &text, Format::Json, FieldValidation::Ignore)
        .unwrap_or_else(|refusal| panic!("what was accepted is refused: {refusal:?}"));
    assert_eq!(again.value, decoded.value, "decoding changes what was decoded");
});
