//! ServiceAccount: every namespace has one called `default`.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error, Source};

use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::namespace::is_terminating;

pub const NAME: &str = "service-account-controller";
const DEFAULT: &str = "default";

struct DefaultAccounts {
    client: Client,
    namespaces: Cache<Namespace>,
    accounts: Cache<ServiceAccount>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let namespaces = context.informers.of::<Namespace>();
    // Only the default ones: the others are no business of ours, nor worth their memory.
    let source = Source::of_kind::<ServiceAccount>().with_field(format!("metadata.name={DEFAULT}"));
    let accounts = context.informers.filtered::<ServiceAccount>(source);
    let queue = keys.clone();
    namespaces.on_change(move |change| queue.add(change.key.clone()));
    let queue = keys.clone();
    accounts.on_change(move |change| {
        if change.new.is_none() {
            queue.add(ObjectKey::new("", change.key.namespace.clone()));
        }
    });
    let caches = vec![synced(&namespaces), synced(&accounts)];
    let controller = DefaultAccounts { client: context.client.clone(), namespaces, accounts };
    context.run(Arc::new(controller), keys, 2, caches);
}

/// The account to create, if one is missing. Pure.
pub fn plan(namespace: &Namespace, exists: bool) -> Option<ServiceAccount> {
    let missing = !exists && !is_terminating(namespace);
    missing.then(|| ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT.into()),
            namespace: namespace.metadata.name.clone(),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    })
}

#[async_trait]
impl Controller for DefaultAccounts {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get_key(key) else { return Ok(Next::Change) };
        let exists = self.accounts.get(&key.name, DEFAULT).is_some();
        if let Some(account) = plan(&namespace, exists) {
            match self.client.create(&account).await {
                Err(e) if !e.is_already_exists() && !e.is_namespace_terminating() => return Err(e),
                _ => {}
            }
        }
        Ok(Next::Change)
    }
}
