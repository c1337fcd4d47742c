//! ClusterRole aggregation: a role with an `aggregationRule` says what the roles that it selects say.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use rimward_api::ObjectKey;
use rimward_api::selector::LabelSelector;
use rimward_client::{Cache, Client, Error, Patch};
use serde_json::json;

use crate::driver::{Context, Controller, Keys, Next, synced};

pub const NAME: &str = "clusterrole-aggregation-controller";

struct Aggregation {
    client: Client,
    roles: Cache<ClusterRole>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let roles = context.informers.of::<ClusterRole>();
    // Any role may be selected by any that aggregates; of those there are few.
    let (queue, all) = (keys.clone(), roles.clone());
    roles.on_change(move |_| {
        for (key, role) in all.list() {
            if role.aggregation_rule.is_some() {
                queue.add(key);
            }
        }
    });
    let caches = vec![synced(&roles)];
    let controller = Aggregation { client: context.client.clone(), roles };
    context.run(Arc::new(controller), keys, 1, caches);
}

/// The rules that a role should have; None when it has them, or gathers none. Pure.
pub fn plan<'a>(
    role: &ClusterRole,
    all: impl Iterator<Item = &'a ClusterRole>,
) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref()?;
    let mut others: Vec<&ClusterRole> = all
        .filter(|o| o.metadata.name != role.metadata.name)
        .filter(|o| selectors.iter().any(|s| selects(s, o)))
        .collect();
    others.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in others.iter().flat_map(|o| o.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

fn selects(
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    role: &ClusterRole,
) -> bool {
    let labels = role.metadata.labels.clone().unwrap_or_default();
    LabelSelector::from_typed(selector).is_ok_and(|s| s.matches(&labels))
}

#[async_trait]
impl Controller for Aggregation {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(role) = self.roles.get_key(key) else { return Ok(Next::Change) };
        let all = self.roles.list();
        let Some(rules) = plan(&role, all.iter().map(|(_, r)| &**r)) else {
            return Ok(Next::Change);
        };
        let applied = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": key.name }, "rules": rules,
        });
        let patch = Patch::apply(applied, NAME, true);
        self.client.patch::<ClusterRole>("", &key.name, "", &patch).await?;
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(value: serde_json::Value) -> ClusterRole {
        serde_json::from_value(value).expect("a role")
    }

    #[test]
    fn what_is_gathered() {
        let admin = role(json!({ "metadata": { "name": "admin" },
            "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "to": "admin" } }] } }));
        let rule =
            |verb: &str| json!({ "apiGroups": [""], "resources": ["pods"], "verbs": [verb] });
        let part = |name: &str, to: &str, verb: &str| {
            role(
                json!({ "metadata": { "name": name, "labels": { "to": to } }, "rules": [rule(verb)] }),
            )
        };
        let all = [
            part("b", "admin", "list"),
            part("a", "admin", "get"),
            part("c", "admin", "get"),
            part("d", "view", "delete"),
            admin.clone(),
        ];
        let rules = plan(&admin, all.iter()).expect("it changes");
        let verbs: Vec<&str> = rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
        let done = ClusterRole { rules: Some(rules), ..admin };
        assert_eq!(plan(&done, all.iter()), None);
        let plain = part("x", "admin", "get");
        assert_eq!(plan(&plain, all.iter()), None);
    }
}
