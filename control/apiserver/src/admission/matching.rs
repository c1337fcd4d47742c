//! Which requests a webhook or a policy is asked about: rules, scope, selectors, and the versions of
//! a resource that count as equivalent.
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-rules>

use std::sync::Arc;

use rimward_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Typed;
use rimward_api::selector::LabelSelector;
use rimward_api::{GroupResource, Status};
use serde_json::Value;

use super::{Operation, Review};
use crate::error;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// What a `ValidatingWebhook`, a `MutatingWebhook` or the `matchConstraints` of a policy ask for.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    pub rules: Vec<Rule>,
    pub excluded: Vec<Rule>,
    /// `matchPolicy: Equivalent`
    pub equivalent: bool,
    pub namespaces: LabelSelector,
    pub objects: LabelSelector,
}

/// `RuleWithOperations`, `NamedRuleWithOperations`
#[derive(Clone, Debug, Default)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    /// Empty means every name.
    names: Vec<String>,
    scope: String,
}

fn strings(value: &Value, field: &str) -> Vec<String> {
    let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A missing selector matches everything. One that does not parse matches nothing; validation has
/// refused it before.
fn selector(holder: &Value, field: &str) -> Option<LabelSelector> {
    let Some(value) = holder.get(field).filter(|v| v.is_object()) else {
        return Some(LabelSelector::default());
    };
    let typed: Typed = serde_json::from_value(value.clone()).ok()?;
    LabelSelector::from_typed(&typed).ok()
}

impl Constraints {
    /// `rules` is the name of the list: `rules` of a webhook, `resourceRules` of a policy. None when a
    /// selector does not parse.
    pub fn parse(holder: &Value, rules: &str) -> Option<Self> {
        let list = |field: &str| {
            let items = holder.get(field).and_then(Value::as_array).into_iter().flatten();
            items.map(Rule::parse).collect()
        };
        Some(Self {
            rules: list(rules),
            excluded: list("excludeResourceRules"),
            equivalent: holder.get("matchPolicy").and_then(Value::as_str) != Some("Exact"),
            namespaces: selector(holder, "namespaceSelector")?,
            objects: selector(holder, "objectSelector")?,
        })
    }

    /// The version of the resource in which the reviewer wants to see the request; None when it does
    /// not want to see it at all.
    ///
    /// # Errors
    /// 404 when the labels of a namespace count that is not there.
    pub async fn matched(
        &self,
        server: &Inner,
        review: &Review<'_>,
    ) -> Result<Option<Arc<Served>>, Status> {
        let Some(found) = self.version(server, review) else { return Ok(None) };
        if !self.objects.is_empty()
            && !selects(&self.objects, review.object)
            && !review.old.is_some_and(|old| selects(&self.objects, old))
        {
            return Ok(None);
        }
        match self.in_namespace(server, review).await? {
            true => Ok(Some(found)),
            false => Ok(None),
        }
    }

    fn version(&self, server: &Inner, review: &Review<'_>) -> Option<Arc<Served>> {
        let asked = review.served;
        if self.excluded.iter().any(|r| r.matches(review, asked)) {
            return None;
        }
        if self.rules.iter().any(|r| r.matches(review, asked)) {
            return Some(asked.clone());
        }
        if !self.equivalent || !self.rules.iter().any(|r| r.may_match(review)) {
            return None;
        }
        let registry = server.registry();
        let all = registry.all();
        let others = || {
            all.iter().filter(|s| s.kind.storage == asked.kind.storage && s.index != asked.index)
        };
        if others().any(|s| self.excluded.iter().any(|r| r.matches(review, s))) {
            return None;
        }
        // Earlier rules count first.
        self.rules.iter().find_map(|r| others().find(|s| r.matches(review, s)).cloned())
    }

    async fn in_namespace(&self, server: &Inner, review: &Review<'_>) -> Result<bool, Status> {
        if self.namespaces.is_empty() {
            return Ok(true);
        }
        let namespaces = review.served.is("", "namespaces");
        if namespaces
            && review.subresource.is_empty()
            && matches!(review.operation, Operation::Create | Operation::Update)
        {
            return Ok(selects(&self.namespaces, review.object));
        }
        let name = review.namespace();
        if name.is_empty() {
            // What is of the cluster is never left out by a selector of namespaces.
            return Ok(true);
        }
        let key = format!("{}{name}", server.namespaces_prefix);
        let entry = server.store.get(&key, None).await.map_err(error::store)?;
        let entry =
            entry.ok_or_else(|| Status::not_found(&GroupResource::new("", "namespaces"), name))?;
        let record = Stored::open(&entry)?.record;
        Ok(self.namespaces.matches_by(|label| record.label(label)))
    }
}

/// Whether an object's labels are selected; what has no metadata never is.
fn selects(selector: &LabelSelector, object: &Value) -> bool {
    let Some(metadata) = object.get("metadata").filter(|m| m.is_object()) else {
        return false;
    };
    selector.matches_by(|label| metadata.get("labels")?.get(label)?.as_str())
}

impl Rule {
    fn parse(value: &Value) -> Self {
        Self {
            operations: strings(value, "operations"),
            groups: strings(value, "apiGroups"),
            versions: strings(value, "apiVersions"),
            resources: strings(value, "resources"),
            names: strings(value, "resourceNames"),
            scope: value.get("scope").and_then(Value::as_str).unwrap_or("*").to_owned(),
        }
    }

    fn matches(&self, review: &Review<'_>, served: &Served) -> bool {
        let kind = &served.kind;
        self.may_match(review)
            && has(&self.groups, &kind.group)
            && has(&self.versions, &kind.version)
            && self.matches_resource(&kind.resource, review.subresource)
    }

    /// What is the same for every version of a resource.
    fn may_match(&self, review: &Review<'_>) -> bool {
        has(&self.operations, review.operation.word())
            && (self.names.is_empty() || self.names.contains(&review.key.name))
            && self.in_scope(review)
    }

    fn in_scope(&self, review: &Review<'_>) -> bool {
        // A Namespace is of the cluster, though requests on it name a namespace.
        let cluster = !review.served.kind.namespaced();
        match self.scope.as_str() {
            "Cluster" => cluster,
            "Namespaced" => !cluster,
            _ => true,
        }
    }

    fn matches_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|wanted| {
            let (parent, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            (parent == "*" || parent == resource) && (sub == "*" || sub == subresource)
        })
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resources() {
        #[track_caller]
        fn check(wanted: &str, resource: &str, subresource: &str, expected: bool) {
            let rule = Rule::parse(&json!({ "resources": [wanted] }));
            assert_eq!(
                rule.matches_resource(resource, subresource),
                expected,
                "{wanted} {resource}/{subresource}"
            );
        }
        check("pods", "pods", "", true);
        check("pods", "pods", "status", false);
        check("pods/*", "pods", "status", true);
        check("pods/*", "services", "status", false);
        check("*", "pods", "", true);
        check("*", "pods", "status", false);
        check("*/*", "pods", "status", true);
        check("*/scale", "deployments", "scale", true);
        check("*/scale", "deployments", "", false);
    }

    #[test]
    fn selectors() {
        let holder = json!({ "objectSelector": { "matchLabels": { "a": "1" } } });
        let constraints = Constraints::parse(&holder, "rules").expect("parses");
        assert!(selects(&constraints.objects, &json!({ "metadata": { "labels": { "a": "1" } } })));
        assert!(!selects(&constraints.objects, &json!({ "metadata": {} })));
        assert!(!selects(&constraints.objects, &Value::Null));
        let broken = json!({ "objectSelector": { "matchExpressions": [{ "key": "a", "operator": "Sometimes" }] } });
        assert!(Constraints::parse(&broken, "rules").is_none());
    }
}
