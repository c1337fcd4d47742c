//! Any bytes as a patch of a pod, in each of the forms.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rimward_control_schema::{builtin, patch};
use serde_json::{Value, json};

static POD: LazyLock<Value> = LazyLock::new(|| {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "x", "labels": { "a": "b" }, "finalizers": ["a.b/c", "d.e/f"] },
        "spec": {
            "containers": [
                { "name": "c", "image": "i", "ports": [{ "containerPort": 80, "protocol": "TCP" }],
                  "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }] },
                { "name": "d", "image": "j" }],
            "tolerations": [{ "key": "k", "operator": "Exists" }],
            "volumes": [{ "name": "v", "emptyDir": {} }] } })
});

fuzz_target!(|bytes: &[u8]| {
    let model = builtin();
    let id = model.expect("io.k8s.api.core.v1.Pod");
    let _refused = patch::strategic_merge_patch(model, id, &POD, bytes);
    let _refused = patch::merge_patch(&POD, bytes);
    let _refused = patch::json_patch(&POD, bytes);
});
