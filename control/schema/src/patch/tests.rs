use serde_json::json;

use super::*;
use crate::builtin;

#[test]
fn json_patches() {
    #[track_caller]
    fn check(patch: Value, expected: Result<Value, (u16, &str)>) {
        let object = json!({"a": {"b": [1, 2, 3]}, "c~d": {"e/f": null}});
        let result = json_patch(&object, patch.to_string().as_bytes());
        assert_eq!(
            result.as_ref().map_err(|s| (s.code, s.message.as_str())),
            expected.as_ref().map_err(|e| *e),
            "{patch}"
        );
    }
    const NO: Result<Value, (u16, &str)> =
        Err((422, "the server rejected our request due to an error in our request"));
    let rest = json!({"e/f": null});
    check(
        json!([{"op": "add", "path": "/a/b/1", "value": 9}]),
        Ok(json!({"a": {"b": [1, 9, 2, 3]}, "c~d": rest})),
    );
    check(
        json!([{"op": "add", "path": "/a/b/-", "value": 9}]),
        Ok(json!({"a": {"b": [1, 2, 3, 9]}, "c~d": rest})),
    );
    check(json!([{"op": "add", "path": "/a/b/4", "value": 9}]), NO);
    check(
        json!([{"op": "remove", "path": "/a/b/-1"}]),
        Ok(json!({"a": {"b": [1, 2]}, "c~d": rest})),
    );
    check(
        json!([{"op": "replace", "path": "/c~0d/e~1f", "value": 1}]),
        Ok(json!({"a": {"b": [1, 2, 3]}, "c~d": {"e/f": 1}})),
    );
    check(json!([{"op": "replace", "path": "/nope/x", "value": 1}]), NO);
    check(json!([{"op": "remove", "path": "/nope"}]), NO);
    check(
        json!([{"op": "move", "from": "/a/b", "path": "/b"}]),
        Ok(json!({"a": {}, "b": [1, 2, 3], "c~d": rest})),
    );
    check(
        json!([{"op": "copy", "from": "/a/b/0", "path": "/b"}]),
        Ok(json!({"a": {"b": [1, 2, 3]}, "b": 1, "c~d": rest})),
    );
    check(
        json!([{"op": "test", "path": "/a/b/0", "value": 1.0}, {"op": "remove", "path": "/a"}]),
        Ok(json!({"c~d": rest})),
    );
    check(json!([{"op": "test", "path": "/a/b/0", "value": 2}]), NO);
    check(
        json!([{"op": "test", "path": "/nope", "value": null}, {"op": "remove", "path": "/a"}]),
        Ok(json!({"c~d": rest})),
    );
    check(json!([{"op": "add", "path": "", "value": {}}]), NO);
    check(json!([{"op": "jump", "path": "/a"}]), NO);
    check(
        json!({}),
        Err((400, "json: cannot unmarshal object into Go value of type jsonpatch.Patch")),
    );
    check(
        json!([{"op": "test", "path": "/nope"}]),
        Ok(json!({"a": {"b": [1, 2, 3]}, "c~d": rest})),
    );
    let many = Value::Array(vec![json!({"op": "test", "path": "/nope"}); 10_001]);
    check(
        many,
        Err((
            413,
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001",
        )),
    );
    // Doubling an object forty times stops at the limit of copied bytes.
    let double: Vec<Value> =
        (0..40).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/x{i}")})).collect();
    check(Value::Array(double), NO);
    assert_eq!(
        json_patch(&json!({}), b"[{").expect_err("broken").message,
        "unexpected end of JSON input"
    );
}

#[test]
fn merge_patches() {
    #[track_caller]
    fn check(object: Value, patch: Value, expected: Value) {
        assert_eq!(merge_patch(&object, patch.to_string().as_bytes()), Ok(expected), "{patch}");
    }
    check(
        json!({"a": 1, "b": {"c": 1, "d": 2}}),
        json!({"a": null, "b": {"c": null, "e": {"f": null, "g": 1}}}),
        json!({"b": {"d": 2, "e": {"g": 1}}}),
    );
    check(json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]}));
    check(json!({"a": "x"}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}}));
    assert_eq!(merge_patch(&json!({}), b"[]").expect_err("a list").message, "Invalid JSON Patch");
}

#[test]
fn strategic_merge_patches() {
    #[track_caller]
    fn check(spec: Value, patch: Value, expected: Result<Value, &str>) {
        let id = builtin().expect("io.k8s.api.core.v1.Pod");
        let object = json!({"spec": spec});
        let result = strategic_merge_patch(
            builtin(),
            id,
            &object,
            json!({"spec": patch}).to_string().as_bytes(),
        );
        assert_eq!(
            result.as_ref().map(|o| &o["spec"]).map_err(|s| s.message.as_str()),
            expected.as_ref().map_err(|e| *e),
            "{patch}"
        );
    }
    let containers = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]});
    check(
        containers.clone(),
        json!({"containers": [{"name": "b", "image": "9"}]}),
        Ok(
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "9"}, {"name": "c", "image": "3"}]}),
        ),
    );
    check(
        containers.clone(),
        json!({"containers": [{"name": "z"}, {"name": "b", "image": null}]}),
        Ok(
            json!({"containers": [{"name": "z"}, {"name": "a", "image": "1"}, {"name": "b"}, {"name": "c", "image": "3"}]}),
        ),
    );
    check(
        containers.clone(),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "c", "$patch": "delete"}]}),
        Ok(json!({"containers": [{"name": "b", "image": "2"}]})),
    );
    check(
        containers.clone(),
        json!({"containers": [{"$patch": "replace"}, {"name": "q"}]}),
        Ok(json!({"containers": [{"name": "q"}]})),
    );
    check(
        containers.clone(),
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}),
        Ok(
            json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
        ),
    );
    check(
        containers.clone(),
        json!({"$setElementOrder/containers": [{"name": "c"}], "containers": [{"name": "a"}]}),
        Err("invalid patch format of setElementOrder list"),
    );
    check(
        containers.clone(),
        json!({"containers": [{"image": "x"}]}),
        Err(r#"map: {"image":"x"} does not contain declared merge key: name"#),
    );
    check(
        containers.clone(),
        json!({"containers": [{"name": "a", "$patch": "smile"}]}),
        Err("unknown patch type [smile] in map"),
    );
    check(containers.clone(), json!({"containers": null}), Ok(json!({})));
    check(containers, json!({"$patch": "replace", "nodeName": "n"}), Ok(json!({"nodeName": "n"})));
    check(
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b"}]}),
        Ok(json!({"tolerations": [{"key": "b"}]})),
    );
    check(
        json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"securityContext": {"fsGroup": null}}),
        Ok(json!({"securityContext": {"runAsUser": 1}})),
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
        Ok(json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]})),
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "configMap": {}}]}),
        Err("invalid patch format of retainKeys"),
    );
    check(
        json!({}),
        json!({"affinity": {"nodeAffinity": null, "podAffinity": {"$patch": "delete"}}, "nodeSelector": {"a": "b", "c": null}}),
        Ok(json!({"affinity": {}, "nodeSelector": {"a": "b"}})),
    );
}

#[test]
fn primitive_lists() {
    let id = builtin().expect("io.k8s.api.core.v1.Pod");
    let object = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let check = |patch: Value, expected: Value| {
        let patched = strategic_merge_patch(
            builtin(),
            id,
            &object,
            json!({"metadata": patch}).to_string().as_bytes(),
        );
        assert_eq!(patched.expect("applies")["metadata"]["finalizers"], expected, "{patch}");
    };
    check(json!({"finalizers": ["d", "a"]}), json!(["d", "a", "b", "c"]));
    check(json!({"$deleteFromPrimitiveList/finalizers": ["b"]}), json!(["a", "c"]));
    check(
        json!({"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"]}),
        json!(["c", "b"]),
    );
}

#[test]
fn a_wrong_outcome_is_invalid() {
    let expected = Expected {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        definition: builtin().expect("io.k8s.api.core.v1.ConfigMap"),
    };
    let patched = json!({"data": {"a": 1}});
    let status =
        decode_patched(builtin(), &expected, &patched, Vec::new(), FieldValidation::Strict)
            .expect_err("a wrong type");
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            422,
            r#" "" is invalid: patch: Invalid value: "{\"data\":{\"a\":1}}": json: cannot unmarshal number into Go struct field ConfigMap.data of type string"#
        )
    );
}

#[test]
fn what_cannot_be_restored() {
    let pod = builtin().of_kind("", "v1", "Pod").unwrap();
    let expected = Expected { group: "", version: "v1", kind: "Pod", definition: pod };
    let check = |patch: serde_json::Value, why: &str| {
        let object = serde_json::json!({ "metadata": { "name": "x", "labels": { "a": "b" } } });
        let body = patch.to_string();
        let patched = strategic_merge_patch(builtin(), pod, &object, body.as_bytes()).unwrap();
        let status = decode_strategic(
            builtin(),
            &expected,
            &patched,
            body.as_bytes(),
            Vec::new(),
            FieldValidation::Strict,
        )
        .unwrap_err();
        assert_eq!(status.code, 422);
        assert_eq!(status.message, format!(" \"\" is invalid: patch: Invalid value: {why}"));
    };
    use serde_json::json;
    check(
        json!({ "metadata": { "labels": "invalid" } }),
        "\"map[metadata:map[labels:invalid]]\": cannot restore map from string",
    );
    check(
        json!({ "spec": { "hostNetwork": "yes" } }),
        "\"map[spec:map[hostNetwork:yes]]\": unrecognized type: bool",
    );
    check(
        json!({ "spec": { "nodeName": 7 } }),
        "\"map[spec:map[nodeName:7]]\": cannot convert int64 to string",
    );
    check(json!({ "spec": "x" }), "\"map[spec:x]\": cannot restore struct from: string");
    check(
        json!({ "spec": { "bogus": 1 } }),
        "\"map[spec:map[bogus:1]]\": strict decoding error: unknown field \"spec.bogus\"",
    );
}

#[test]
fn what_is_wrong_with_a_patch_itself() {
    let twice = br#"{"spec":{"x":1,"x":2,"list":[{"a":1},{"a":1,"a":2}]},"y":1}"#;
    assert_eq!(
        super::strict_errors(twice),
        [r#"duplicate field "spec.x""#, r#"duplicate field "spec.list[1].a""#]
    );
    let operations = br#"[{"op":"add","path":"/a","value":1,"foo":1,"foo":2},
        {"op":"add","path":"/b","path":"/c","value":{"x":1,"x":2}}, 7]"#;
    assert_eq!(
        super::strict_errors_of_operations(operations),
        [
            r#"json patch unknown field "[0].foo""#,
            r#"json patch duplicate field "[1].path""#,
            r#"json patch duplicate field "[1].value.x""#
        ]
    );
    for hostile in [&b"["[..], b"{}", b"[[[", b"[{\"op\"", b""] {
        assert_eq!(super::strict_errors_of_operations(hostile), [""; 0]);
    }
}
