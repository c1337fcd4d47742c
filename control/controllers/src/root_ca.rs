//! Root CA publisher: every namespace has the ConfigMap `kube-root-ca.crt`, with which pods verify
//! the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error, Source};

use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::namespace::is_terminating;

pub const NAME: &str = "root-ca-cert-publisher";
pub const CONFIG_MAP: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
/// What a user sees who asks what this is.
const DESCRIPTION_TEXT: &str = "The certificate authority of this cluster's API server. For use by pods that call the API server by its in-cluster addresses; nothing else is promised.";

struct RootCa {
    client: Client,
    ca: String,
    namespaces: Cache<Namespace>,
    published: Cache<ConfigMap>,
}

pub fn start(context: &Context) {
    if context.config.root_ca_pem.is_empty() {
        tracing::warn!("no root CA is configured: pods will not find {CONFIG_MAP}");
        return;
    }
    let keys = Keys::default();
    let namespaces = context.informers.of::<Namespace>();
    let source = Source::of_kind::<ConfigMap>().with_field(format!("metadata.name={CONFIG_MAP}"));
    let published = context.informers.filtered::<ConfigMap>(source);
    let queue = keys.clone();
    namespaces.on_change(move |change| queue.add(change.key.clone()));
    let queue = keys.clone();
    published.on_change(move |change| queue.add(ObjectKey::new("", change.key.namespace.clone())));
    let caches = vec![synced(&namespaces), synced(&published)];
    let ca = context.config.root_ca_pem.clone();
    let controller = RootCa { client: context.client.clone(), ca, namespaces, published };
    context.run(Arc::new(controller), keys, 2, caches);
}

#[derive(Debug, PartialEq)]
pub enum Plan {
    Nothing,
    Create(ConfigMap),
    Update(ConfigMap),
}

/// Decides; touches nothing.
pub fn plan(namespace: &Namespace, ca: &str, published: Option<&ConfigMap>) -> Plan {
    if is_terminating(namespace) {
        return Plan::Nothing;
    }
    let data = BTreeMap::from([(FILE.to_owned(), ca.to_owned())]);
    let annotations = BTreeMap::from([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())]);
    match published {
        Some(map) if map.data.as_ref() == Some(&data) => Plan::Nothing,
        Some(map) => Plan::Update(ConfigMap { data: Some(data), ..map.clone() }),
        None => Plan::Create(ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.into()),
                namespace: namespace.metadata.name.clone(),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        }),
    }
}

#[async_trait]
impl Controller for RootCa {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get_key(key) else { return Ok(Next::Change) };
        let published = self.published.get(&key.name, CONFIG_MAP);
        let written = match plan(&namespace, &self.ca, published.as_deref()) {
            Plan::Nothing => return Ok(Next::Change),
            Plan::Create(map) => self.client.create(&map).await,
            Plan::Update(map) => self.client.update(&map).await,
        };
        match written {
            Err(e) if !e.is_already_exists() && !e.is_namespace_terminating() => Err(e),
            _ => Ok(Next::Change),
        }
    }
}
