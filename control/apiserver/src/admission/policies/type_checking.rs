//! `status.typeChecking` of ValidatingAdmissionPolicies: what in their expressions cannot work with the
//! resources that they are about. A warning to whoever wrote them; it keeps nothing from being stored.
//! <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/#type-checking>
//!
//! Kubernetes has a controller for it. Here it is the server's own: the types are what it serves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_cel::policy::environment;
use rimward_control_cel::{Environment, Type};
use rimward_control_schema::FieldValidation;
use rimward_control_store::ListRequest;
use serde_json::{Value, json};

use super::policy::{declared, scope};
use super::types;
use crate::error;
use crate::options::WriteOptions;
use crate::rest::write::{Author, Change};
use crate::served::{Registry, Served};
use crate::server::Inner;
use crate::views::Stored;

const MANAGER: &str = "validatingadmissionpolicy-status-controller";
/// Resources that one policy is checked against.
const TYPES_MAX: usize = 10;
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long policies are left alone after a change. A status that is written at once gets in the way of
/// whoever goes on writing with the version of the last answer.
const SETTLES_AFTER: Duration = Duration::from_millis(300);

/// Checks every policy whose status is of an earlier generation, whenever policies change.
pub async fn keep_statuses(server: Arc<Inner>) {
    loop {
        if let Err(e) = look(&server).await {
            tracing::warn!(error = %e, "the types of policies are checked later");
            tokio::time::sleep(RETRY_AFTER).await;
            continue;
        }
        server.admission_policies.validating.changed.notified().await;
        tokio::time::sleep(SETTLES_AFTER).await;
    }
}

async fn look(server: &Arc<Inner>) -> Result<(), Status> {
    let served =
        server.registry().resource("admissionregistration.k8s.io", "validatingadmissionpolicies");
    let served = served.expect("a built-in kind");
    let request = ListRequest { prefix: served.prefix(""), ..ListRequest::default() };
    let page = server.store.list(request).await.map_err(error::store)?;
    for entry in &page.entries {
        let policy = Stored::open(entry)?.stored_value(&served)?;
        if !is_checked(&policy) {
            check(server, &served, &policy).await?;
        }
    }
    Ok(())
}

fn is_checked(policy: &Value) -> bool {
    let status = &policy["status"];
    status["observedGeneration"] == policy["metadata"]["generation"]
        && status["typeChecking"].is_object()
}

async fn check(server: &Arc<Inner>, served: &Arc<Served>, policy: &Value) -> Result<(), Status> {
    let warnings = super::reckon(|| warnings(&server.registry(), &policy["spec"]));
    let checked = match warnings.is_empty() {
        true => json!({}),
        false => json!({ "expressionWarnings": warnings }),
    };
    let generation = &policy["metadata"]["generation"];
    let rewrite = move |mut object: Value| {
        // One that was changed meanwhile is looked at again.
        if object["metadata"]["generation"] == *generation {
            object["status"]["typeChecking"] = checked.clone();
            object["status"]["observedGeneration"] = generation.clone();
        }
        Ok(object)
    };
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions {
        dry_run: false,
        manager: MANAGER.to_owned(),
        sent: Default::default(),
        validation: FieldValidation::Ignore,
        force: false,
    };
    let author = Author { user: &user, options: &options };
    let (key, change) = (ObjectKey::of(policy), Change::Rewrite(&rewrite));
    match server.update(served, &key, "status", change, &author, &mut Vec::new()).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// What is wrong, expression by expression.
fn warnings(registry: &Registry, spec: &Value) -> Vec<Value> {
    let environments: Vec<(String, Environment)> =
        resources(registry, spec).iter().map(|s| environment_of(registry, spec, s)).collect();
    let mut found = Vec::new();
    let validations = spec.get("validations").and_then(Value::as_array).into_iter().flatten();
    for (i, validation) in validations.enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = validation.get(field).and_then(Value::as_str).unwrap_or_default();
            let wrong: Vec<String> = environments
                .iter()
                .filter(|_| !text.is_empty())
                .filter_map(|(name, environment)| {
                    let why = environment.compile(text).err()?.to_string();
                    Some(format!("{name}: {}", why.trim_start_matches("compilation failed: ")))
                })
                .collect();
            if !wrong.is_empty() {
                let at = format!("spec.validations[{i}].{field}");
                found.push(json!({ "fieldRef": at, "warning": wrong.join("\n") }));
            }
        }
    }
    found
}

/// The environment of a policy's expressions for one resource, under the name of that.
fn environment_of(registry: &Registry, spec: &Value, served: &Served) -> (String, Environment) {
    let kind = &served.kind;
    let name = format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind);
    let object = types::of(served);
    let mut base =
        environment(scope(spec, false)).with("object", object.clone()).with("oldObject", object);
    if spec.get("paramKind").is_some_and(Value::is_object) {
        base = base.with("params", params(registry, &spec["paramKind"]));
    }
    (name, declared(spec, base).0)
}

fn params(registry: &Registry, kind: &Value) -> Type {
    let text = |field: &str| kind.get(field).and_then(Value::as_str).unwrap_or_default();
    let all = registry.all().iter();
    let found = all
        .filter(|s| s.kind.kind == text("kind") && s.kind.api_version() == text("apiVersion"))
        .find(|s| !s.kind.resource.contains('/'));
    found.map_or(Type::Dyn, |served| types::of(served))
}

/// The resources that the rules name one by one, in the order of their kinds. What a wildcard covers is
/// not looked at.
fn resources(registry: &Registry, spec: &Value) -> Vec<Arc<Served>> {
    let rules = spec.pointer("/matchConstraints/resourceRules").and_then(Value::as_array);
    let mut wanted = BTreeSet::new();
    for rule in rules.into_iter().flatten() {
        let texts = |field: &str| -> Vec<&str> {
            let items = rule.get(field).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).collect()
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        for resource in texts("resources").into_iter().filter(|r| !r.contains(['*', '/'])) {
            for group in &groups {
                wanted.extend(versions.iter().map(|version| (*group, *version, resource)));
            }
        }
    }
    let is_wanted = |s: &&Arc<Served>| {
        let kind = &s.kind;
        wanted.contains(&(kind.group.as_str(), kind.version.as_str(), kind.resource.as_str()))
    };
    let mut found: Vec<Arc<Served>> = registry.all().iter().filter(is_wanted).cloned().collect();
    found.sort_by_cached_key(|s| {
        (s.kind.group.clone(), s.kind.version.clone(), s.kind.kind.clone())
    });
    found.truncate(TYPES_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(resource: (&str, &str, &str), expression: &str, expected: &str) {
        let spec = json!({
            "matchConstraints": { "resourceRules": [{
                "apiGroups": [resource.0], "apiVersions": [resource.1], "resources": [resource.2],
            }] },
            "variables": [{ "name": "n", "expression": "object.metadata.name" }],
            "validations": [{ "expression": expression }],
        });
        let found = warnings(&Registry::builtin(), &spec);
        let shown: Vec<&str> = found.iter().filter_map(|w| w["warning"].as_str()).collect();
        assert_eq!(shown.join("\n"), expected, "{expression}");
    }

    #[test]
    fn expressions_meet_the_types_of_resources() {
        let deployments = ("apps", "v1", "deployments");
        check(deployments, "object.spec.replicas > 1", "");
        check(
            deployments,
            "object.spec.template.spec.containers.all(c, c.image.startsWith(variables.n))",
            "",
        );
        check(deployments, "object.metadata.labels['a'] == oldObject.metadata.namespace", "");
        check(
            deployments,
            "object.spec.replicas > '1'",
            "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^",
        );
        check(
            deployments,
            "object.replicas > 1",
            "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^",
        );
        check(("", "v1", "pods"), "object.spec.containers[0].resources.limits['cpu'] != null", "");
        // Nothing is known of what a wildcard covers.
        check(("*", "v1", "pods"), "object.nothing > 1", "");
        check(("apps", "v1", "deployments/scale"), "object.nothing > 1", "");
    }
}
