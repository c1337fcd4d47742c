//! Admission policies on a real server: what they refuse, warn of and change.

use rimward_api::UserInfo;
use serde_json::{Value, json};

use crate::cluster::{Answer, CONFIG_MAPS, Client, Cluster, config_map};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn policy(spec: &Value) -> Value {
    let mut whole = json!({ "matchConstraints": { "resourceRules": [
        { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"] },
    ] } });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({ "metadata": { "name": "p" }, "spec": whole })
}

/// Stores a policy and a binding that denies.
async fn bind(c: &Client, spec: &Value, binding: &Value) {
    c.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy(spec)).await.expect(201);
    let mut whole = json!({ "policyName": "p", "validationActions": ["Deny"] });
    whole.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    let binding = json!({ "metadata": { "name": "b" }, "spec": whole });
    c.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.expect(201);
}

/// What a server with one policy answers to a ConfigMap with that value.
async fn answer(spec: Value, binding: Value, value: &str) -> Answer {
    let cluster = Cluster::start().await;
    bind(&cluster.admin, &spec, &binding).await;
    cluster.admin.post(CONFIG_MAPS, &config_map("a", value)).await
}

#[track_caller]
fn refused(answer: &Answer, code: u16, message: &str) {
    assert_eq!(answer.expect(code)["message"], message);
}

#[tokio::test]
async fn a_policy_denies_as_kubernetes_words_it() {
    let spec = || {
        json!({ "validations": [
            { "expression": "object.data.k != 'bad'" },
            { "expression": "object.data.k.size() < 5", "message": "too long", "reason": "Forbidden" },
            { "expression": "!object.data.k.startsWith('x')", "messageExpression": "'no ' + object.data.k" },
        ] })
    };
    answer(spec(), json!({}), "good").await.expect(201);
    let head = "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request:";
    let bad = answer(spec(), json!({}), "bad").await;
    refused(&bad, 422, &format!("{head} failed expression: object.data.k != 'bad'"));
    assert_eq!(bad.json()["reason"], "Invalid");
    refused(&answer(spec(), json!({}), "longer").await, 403, &format!("{head} too long"));
    refused(&answer(spec(), json!({}), "xx").await, 422, &format!("{head} no xx"));
}

#[tokio::test]
async fn failures_follow_the_failure_policy() {
    let spec = |policy: &str| json!({ "failurePolicy": policy, "validations": [{ "expression": "object.data.nope == ''" }] });
    let failed = answer(spec("Fail"), json!({}), "v").await.expect(422);
    assert!(
        failed["message"].as_str().unwrap().ends_with(
            "denied request: expression 'object.data.nope == ''' resulted in error: no such key: nope"
        ),
        "{failed}"
    );
    answer(spec("Ignore"), json!({}), "v").await.expect(201);
    // Whatever an expression costs, the server answers.
    let dear = json!({ "validations": [{ "expression":
        "lists.range(100000).all(a, lists.range(100000).all(b, lists.range(100000).all(c, a + b + c >= 0)))" }] });
    let failed = answer(dear, json!({}), "v").await.expect(422);
    assert!(
        failed["message"].as_str().unwrap().contains("resulted in error: operation"),
        "{failed}"
    );
}

#[tokio::test]
async fn a_binding_warns() {
    let spec = json!({ "validations": [{ "expression": "false", "message": "never" }] });
    let warned = answer(spec, json!({ "validationActions": ["Warn", "Audit"] }), "v").await;
    warned.expect(201);
    assert_eq!(
        warned.warnings(),
        ["299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': never\""]
    );
}

#[tokio::test]
async fn what_expressions_see() {
    for (expression, holds) in [
        (
            "request.operation == 'CREATE' && request.name == 'a' && request.namespace == 'default'",
            true,
        ),
        (
            "request.resource.resource == 'configmaps' && request.kind.kind == 'ConfigMap' && !request.dryRun",
            true,
        ),
        (
            "request.userInfo.username == 'admin' && 'system:masters' in request.userInfo.groups",
            true,
        ),
        (
            "namespaceObject.metadata.name == 'default' && namespaceObject.status.phase == 'Active'",
            true,
        ),
        ("oldObject == null && object.kind == 'ConfigMap' && object.apiVersion == 'v1'", true),
        (
            "authorizer.group('').resource('pods').namespace('default').check('create').allowed()",
            true,
        ),
        (
            "authorizer.serviceAccount('default', 'x').group('').resource('pods').check('create').allowed()",
            false,
        ),
        (
            "authorizer.path('/metrics').check('get').allowed() && authorizer.requestResource.check('update').allowed()",
            true,
        ),
        ("variables.twice == 'vv' && variables.once == 'v'", true),
    ] {
        let spec = json!({
            "variables": [
                { "name": "once", "expression": "object.data.k" },
                { "name": "twice", "expression": "variables.once + variables.once" },
                { "name": "never", "expression": "object.data.nope" },
            ],
            "validations": [{ "expression": expression }],
        });
        let got = answer(spec, json!({}), "v").await;
        assert_eq!(got.code, if holds { 201 } else { 422 }, "{expression}: {}", got.text());
    }
}

#[tokio::test]
async fn only_matching_requests_are_asked_about() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let spec = json!({
        "matchConditions": [{ "name": "not-exempt", "expression": "!has(object.metadata.labels) || !('exempt' in object.metadata.labels)" }],
        "validations": [{ "expression": "false" }],
    });
    let selects = json!({ "matchResources": { "namespaceSelector": { "matchLabels": { "strict": "yes" } } } });
    bind(c, &spec, &selects).await;
    c.post(CONFIG_MAPS, &config_map("a", "v")).await.expect(201);
    c.merge(
        "/api/v1/namespaces/default",
        &json!({ "metadata": { "labels": { "strict": "yes" } } }),
    )
    .await
    .expect(200);
    c.post(CONFIG_MAPS, &config_map("b", "v")).await.expect(422);
    c.put(&format!("{CONFIG_MAPS}/a"), &config_map("a", "w")).await.expect(422);
    let mut exempt = config_map("c", "v");
    exempt["metadata"]["labels"] = json!({ "exempt": "" });
    c.post(CONFIG_MAPS, &exempt).await.expect(201);
    // Not of these resources, not of these operations.
    c.post("/api/v1/namespaces/default/secrets", &json!({ "metadata": { "name": "s" } }))
        .await
        .expect(201);
    c.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(200);
    // Gone is gone, at once.
    c.delete(&format!("{GROUP}/validatingadmissionpolicybindings/b"), &Value::Null)
        .await
        .expect(200);
    c.post(CONFIG_MAPS, &config_map("b", "v")).await.expect(201);
}

#[tokio::test]
async fn policies_have_parameters() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let spec = json!({
        "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
        "validations": [{ "expression": "object.data.k.size() <= int(params.data.max)", "messageExpression": "'at most ' + params.data.max" }],
    });
    let reference = json!({ "paramRef": { "name": "limits", "namespace": "kube-system", "parameterNotFoundAction": "Deny" } });
    bind(c, &spec, &reference).await;
    let missing = c.post(CONFIG_MAPS, &config_map("a", "v")).await.expect(422);
    assert!(
        missing["message"].as_str().unwrap().ends_with("denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"),
        "{missing}"
    );
    let limits = json!({ "metadata": { "name": "limits", "labels": { "l": "1" } }, "data": { "max": "3", "k": "" } });
    // The parameters are ConfigMaps too: they are themselves let in before the binding.
    c.delete(&format!("{GROUP}/validatingadmissionpolicybindings/b"), &Value::Null)
        .await
        .expect(200);
    c.post("/api/v1/namespaces/kube-system/configmaps", &limits).await.expect(201);
    for reference in [
        json!({ "name": "limits", "namespace": "kube-system", "parameterNotFoundAction": "Deny" }),
        json!({ "selector": { "matchLabels": { "l": "1" } }, "namespace": "kube-system", "parameterNotFoundAction": "Deny" }),
    ] {
        let binding = json!({ "metadata": { "name": "b" }, "spec": { "policyName": "p", "validationActions": ["Deny"], "paramRef": reference } });
        c.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.expect(201);
        c.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", "abc")).await.expect(201);
        let refused = c.post(CONFIG_MAPS, &config_map("a", "abcd")).await.expect(422);
        assert!(refused["message"].as_str().unwrap().ends_with("at most 3"), "{refused}");
        c.delete(&format!("{GROUP}/validatingadmissionpolicybindings/b"), &Value::Null)
            .await
            .expect(200);
    }
}

#[tokio::test]
async fn what_does_not_compile_is_refused_when_written() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let path = format!("{GROUP}/validatingadmissionpolicies");
    let wrong = policy(&json!({
        "validations": [{ "expression": "object.x >", "messageExpression": "1" }],
        "variables": [{ "name": "v", "expression": "nope" }],
        "matchConditions": [{ "name": "c", "expression": "'text'" }],
    }));
    let status = c.post(&path, &wrong).await.expect(422);
    let causes = status["details"]["causes"].as_array().unwrap();
    let fields: Vec<&str> = causes.iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.matchConditions[0].expression",
            "spec.variables[0].expression",
            "spec.validations[0].expression",
            "spec.validations[0].messageExpression",
        ]
    );
    let text = |i: usize| causes[i]["message"].as_str().unwrap().to_owned();
    assert_eq!(text(0), "Invalid value: \"'text'\": must evaluate to bool but got string");
    assert!(
        text(1).contains("compilation failed: ERROR: <input>:1:1: undeclared reference to 'nope'"),
        "{}",
        text(1)
    );
    // Parameters are not declared without a paramKind.
    let wrong = policy(&json!({ "validations": [{ "expression": "params.x == 1" }] }));
    let status = c.post(&path, &wrong).await.expect(422);
    assert!(
        status["message"].as_str().unwrap().contains("undeclared reference to 'params'"),
        "{status}"
    );
}

async fn mutating(c: &Client, name: &str, rules: Value, spec: Value) {
    let mut whole = json!({
        "matchConstraints": { "resourceRules": [rules] },
        "reinvocationPolicy": "Never",
    });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let policy = json!({ "metadata": { "name": name }, "spec": whole });
    c.post(&format!("{GROUP}/mutatingadmissionpolicies"), &policy).await.expect(201);
    let binding = json!({ "metadata": { "name": name }, "spec": { "policyName": name } });
    c.post(&format!("{GROUP}/mutatingadmissionpolicybindings"), &binding).await.expect(201);
}

fn on(group: &str, resource: &str) -> Value {
    json!({ "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource] })
}

#[tokio::test]
async fn a_deployment_is_changed() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let apply = "Object{ metadata: Object.metadata{ annotations: {'by': 'policy'} }, \
        spec: Object.spec{ template: Object.spec.template{ spec: Object.spec.template.spec{ \
        containers: [Object.spec.template.spec.containers{ name: 'side', image: 'side:1' }] } } } }";
    let patch = "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/team'), value: variables.team}] \
        + (object.spec.replicas > 5 ? [JSONPatch{op: 'replace', path: '/spec/replicas', value: 5}] : [])";
    let spec = json!({
        "variables": [{ "name": "team", "expression": "'blue'" }],
        "mutations": [
            { "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": apply } },
            { "patchType": "JSONPatch", "jsonPatch": { "expression": patch } },
        ],
    });
    mutating(c, "m", on("apps", "deployments"), spec).await;
    let deployment = json!({
        "metadata": { "name": "d", "labels": { "a": "b" } },
        "spec": { "replicas": 9, "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    });
    let made = c.post(DEPLOYMENTS, &deployment).await.expect(201);
    assert_eq!(made["metadata"]["annotations"], json!({ "by": "policy" }));
    assert_eq!(made["metadata"]["labels"], json!({ "a": "b", "example.com/team": "blue" }));
    assert_eq!(made["spec"]["replicas"], 5);
    let containers = made["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let names: Vec<&str> = containers.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "side"]);
    assert_eq!(containers[1]["imagePullPolicy"], "IfNotPresent", "what is added gets defaults");
}

#[tokio::test]
async fn policies_see_what_others_changed() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let step = |expression: &str| json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } });
    // The first wants to see what the second does.
    let first = "Object{ data: {'seen': has(object.data.second) ? 'yes' : 'no'} }";
    mutating(
        c,
        "a",
        on("", "configmaps"),
        json!({ "reinvocationPolicy": "IfNeeded", "mutations": [step(first)] }),
    )
    .await;
    mutating(
        c,
        "b",
        on("", "configmaps"),
        json!({ "mutations": [step("Object{ data: {'second': 'v'} }")] }),
    )
    .await;
    // A validating policy sees the outcome.
    let spec = json!({ "validations": [{ "expression": "object.data.second == 'v'" }] });
    bind(c, &spec, &json!({})).await;
    let made = c.post(CONFIG_MAPS, &config_map("x", "v")).await.expect(201);
    assert_eq!(made["data"], json!({ "k": "v", "second": "v", "seen": "yes" }));
}

#[tokio::test]
async fn mutations_that_fail() {
    for (expression, why) in [
        (
            "Object{ nope: 1 }",
            "error applying patch: failed to convert patch object to typed object: .nope: field not declared in schema",
        ),
        (
            "Object{ data: Object.wrong{ a: 'b' } }",
            "type mismatch: unexpected type name \"Object.wrong\", expected \"Object.data\"",
        ),
        ("Object{ data: {'a': object.data.nope} }", "resulted in error: no such key: nope"),
    ] {
        let cluster = Cluster::start().await;
        let step = json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": expression } });
        mutating(&cluster.admin, "m", on("", "configmaps"), json!({ "mutations": [step] })).await;
        let status = cluster.admin.post(CONFIG_MAPS, &config_map("x", "v")).await.expect(403);
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with("policy 'm' with binding 'm' denied request: "), "{message}");
        assert!(message.contains(why), "{message}");
    }
}

#[tokio::test]
async fn a_service_account_is_asked_as_it_is() {
    let cluster = Cluster::start().await;
    let spec = json!({ "validations": [{ "expression": "authorizer.requestResource.check('escape').allowed()", "message": "not you" }] });
    bind(&cluster.admin, &spec, &json!({})).await;
    cluster.admin.post(CONFIG_MAPS, &config_map("a", "v")).await.expect(201);
    let role = json!({ "metadata": { "name": "r" }, "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"] }] });
    cluster
        .admin
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", &role)
        .await
        .expect(201);
    let bound = json!({ "metadata": { "name": "r" }, "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r" },
        "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": "default" }] });
    cluster
        .admin
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &bound)
        .await
        .expect(201);
    let account = cluster.client(UserInfo::service_account("default", "default"));
    account.post(CONFIG_MAPS, &config_map("b", "v")).await.expect(422);
}

#[tokio::test]
async fn policies_are_checked_beyond_their_expressions() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let binding = |spec: Value| json!({ "metadata": { "name": "b" }, "spec": spec });
    for (resource, object, why) in [
        (
            "validatingadmissionpolicybindings",
            binding(json!({ "policyName": "p", "validationActions": ["Deny", "Warn"] })),
            "must not contain both Deny and Warn",
        ),
        (
            "validatingadmissionpolicybindings",
            binding(json!({ "policyName": "p" })),
            "spec.validationActions: Required value: at least one validation action is required",
        ),
        (
            "mutatingadmissionpolicybindings",
            binding(json!({ "policyName": "p", "paramRef": { "name": "x" } })),
            "spec.paramRef.parameterNotFoundAction: Required value",
        ),
        (
            "validatingadmissionpolicies",
            policy(
                &json!({ "validations": [{ "expression": "true" }], "variables": [{ "name": "a-b", "expression": "1" }] }),
            ),
            "spec.variables[0].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
        ),
        (
            "mutatingadmissionpolicies",
            policy(
                &json!({ "reinvocationPolicy": "Never", "mutations": [{ "patchType": "JSONPatch" }] }),
            ),
            "spec.mutations[0].jsonPatch: Required value",
        ),
        (
            "mutatingadmissionpolicies",
            policy(
                &json!({ "reinvocationPolicy": "Never", "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression": "[JSONPatch{op: 1}]" } }] }),
            ),
            "expected type of field 'op' is 'string' but provided type is 'int'",
        ),
    ] {
        let status = c.post(&format!("{GROUP}/{resource}"), &object).await.expect(422);
        assert!(status["message"].as_str().unwrap().contains(why), "{status}");
    }
}

/// The server is asked about its own kinds in the words of `kubectl create`: the status is of its own.
#[tokio::test]
async fn a_policy_has_a_status() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let path = format!("{GROUP}/validatingadmissionpolicies");
    let spec = json!({ "validations": [{ "expression": "true" }] });
    let made = c.post(&path, &policy(&spec)).await;
    assert_eq!(made.warnings(), [] as [String; 0]);
    assert_eq!(made.expect(201)["metadata"]["generation"], 1);
    let status = json!({ "status": { "conditions": [{ "type": "T", "status": "True", "reason": "R", "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } });
    let after = c.merge(&format!("{path}/p/status"), &status).await.expect(200);
    assert_eq!(after["status"]["conditions"][0]["type"], "T");
}

#[tokio::test]
async fn types_are_checked_after_a_policy_is_written() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let path = format!("{GROUP}/validatingadmissionpolicies");
    let about_deployments = |validations: Value| {
        policy(&json!({
            "matchConstraints": { "resourceRules": [
                { "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"] },
            ] },
            "validations": validations,
        }))
    };
    let confused = json!([{
        "expression": "object.spec.replicas > '1'",
        "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas",
    }]);
    c.post(&path, &about_deployments(confused)).await.expect(201);
    let checked =
        |generation: i64| wait_for(c, format!("{GROUP}/validatingadmissionpolicies/p"), generation);
    let status = checked(1).await["status"].clone();
    let warnings = status["typeChecking"]["expressionWarnings"].as_array().unwrap().clone();
    let at = |i: usize| warnings[i]["fieldRef"].as_str().unwrap();
    assert_eq!(
        (warnings.len(), at(0), at(1)),
        (2, "spec.validations[0].expression", "spec.validations[0].messageExpression")
    );
    let says = |i: usize, what: &str| {
        let text = warnings[i]["warning"].as_str().unwrap();
        assert!(text.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:"), "{text}");
        assert!(text.contains(what), "{text}");
    };
    says(0, "found no matching overload for '_>_' applied to '(int, string)'");
    says(1, "found no matching overload for '_+_' applied to '(string, int)'");
    // Looked at again when it changes.
    let good = json!([{ "expression": "object.spec.replicas > 1" }]);
    let change = json!({ "spec": about_deployments(good)["spec"] });
    c.merge(&format!("{path}/p"), &change).await.expect(200);
    let status = checked(2).await["status"].clone();
    assert_eq!(status["typeChecking"], json!({}));
}

/// The policy once its status is of that generation.
async fn wait_for(c: &Client, path: String, generation: i64) -> Value {
    crate::crd::wait_for(c, &path, |_, p| p["status"]["observedGeneration"] == generation).await
}
