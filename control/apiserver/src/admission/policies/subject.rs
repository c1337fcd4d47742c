//! A request as expressions see it.

use rimward_api::{GroupResource, Status};
use rimward_control_cel::Bindings;
use rimward_control_cel::authorizer::{Asked, Authorizer, Decision};
use rimward_control_cel::policy::Input;
use serde_json::Value;

use super::policy::Variables;
use crate::admission::{Review, form, webhooks};
use crate::error;
use crate::request::{Attributes, Resource};
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

/// The JSON of a request, in one version of its resource.
pub struct Subject {
    pub object: Value,
    pub old_object: Value,
    request: Value,
    namespace: Value,
}

impl Subject {
    pub async fn of(server: &Inner, review: &Review<'_>, served: &Served) -> Result<Self, Status> {
        Ok(Self {
            object: form::shown(server, review, served, review.object).await?,
            old_object: match review.old {
                Some(old) => form::shown(server, review, served, old).await?,
                None => Value::Null,
            },
            request: webhooks::request(review, served),
            namespace: namespace(server, review).await?,
        })
    }

    pub fn bindings<'a>(
        &'a self,
        params: &'a Value,
        authorizer: &'a dyn Authorizer,
    ) -> Bindings<'a> {
        let input = Input {
            object: &self.object,
            old_object: &self.old_object,
            request: &self.request,
            namespace: &self.namespace,
            params,
        };
        input.bindings(authorizer)
    }

    pub fn bindings_with<'a>(
        &'a self,
        params: &'a Value,
        authorizer: &'a dyn Authorizer,
        variables: &'a Variables,
    ) -> Bindings<'a> {
        self.bindings(params, authorizer).with_variables(variables)
    }
}

/// The namespace that a request is in; null for what is of the cluster, a Namespace itself included.
async fn namespace(server: &Inner, review: &Review<'_>) -> Result<Value, Status> {
    let name = review.key.namespace.as_str();
    if name.is_empty() || review.served.is("", "namespaces") {
        return Ok(Value::Null);
    }
    let key = format!("{}{name}", server.namespaces_prefix);
    let entry = server.store.get(&key, None).await.map_err(error::store)?;
    let missing = || Status::not_found(&GroupResource::new("", "namespaces"), name);
    let stored = Stored::open(&entry.ok_or_else(missing)?)?;
    let mut object: Value =
        serde_json::from_slice(stored.record.body()).map_err(Status::internal)?;
    object["metadata"]["resourceVersion"] = stored.revision.to_string().into();
    Ok(object)
}

/// Asks the server's own authorization, for the request's user or a service account.
pub struct Asking<'a> {
    pub server: &'a Inner,
    pub user: &'a rimward_api::UserInfo,
}

impl Authorizer for Asking<'_> {
    fn check(&self, asked: &Asked) -> Decision {
        let account = asked
            .service_account
            .as_ref()
            .map(|(namespace, name)| rimward_api::UserInfo::service_account(namespace, name));
        let resource = asked.path.is_empty().then(|| Resource {
            group: asked.group.clone(),
            version: "*".into(),
            namespace: asked.namespace.clone(),
            resource: asked.resource.clone(),
            subresource: asked.subresource.clone(),
            name: asked.name.clone(),
            rest: String::new(),
        });
        let attributes =
            Attributes { verb: asked.verb.clone(), path: asked.path.clone(), resource };
        let allowed = self.server.rbac.allows(account.as_ref().unwrap_or(self.user), &attributes);
        Decision { allowed, ..Decision::default() }
    }
}
