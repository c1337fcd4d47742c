//! Ingress: where the node's own ingress answers, in `status.loadBalancer`, and the class that means it.
//!
//! Every Ready node serves every Ingress of the class. A fleet is large and its nodes come and go, so a
//! status names the first few nodes by name and not all: a change further back rewrites nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressClassSpec, IngressLoadBalancerIngress, IngressLoadBalancerStatus,
    IngressStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::node_lifecycle::ready_status;
use crate::publish;

pub const NAME: &str = "ingress-controller";
/// The class that nodes serve; an Ingress without a class is served too.
pub const CLASS: &str = "rimward";
const CONTROLLER: &str = "rimward.dev/ingress";
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";
/// Nodes that a status names.
const ADDRESSES_MAX: usize = 16;

struct IngressStatuses {
    client: Client,
    ingresses: Cache<Ingress>,
    serving: Arc<Mutex<BTreeMap<String, String>>>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let ingresses = context.informers.of::<Ingress>();
    let nodes = context.informers.of::<Node>();
    enqueue_changes(&ingresses, &keys);
    let serving: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let (queue, known, set) = (keys.clone(), ingresses.clone(), serving.clone());
    nodes.on_change(move |change| {
        let address = change.new.and_then(|node| serving_address(node));
        let mut set = set.lock();
        if set.get(&change.key.name) == address.as_ref() {
            return;
        }
        let before = named(&set);
        match address {
            Some(address) => set.insert(change.key.name.clone(), address),
            None => set.remove(&change.key.name),
        };
        if before != named(&set) {
            known.list().into_iter().for_each(|(key, _)| queue.add(key));
        }
    });
    let caches = vec![synced(&ingresses), synced(&nodes)];
    let (client, shutdown) = (context.client.clone(), context.shutdown.clone());
    context.tasks.spawn(publish::once(client, class(), shutdown));
    let controller = IngressStatuses { client: context.client.clone(), ingresses, serving };
    context.run(Arc::new(controller), keys, 2, caches);
}

/// Where a node that is Ready is called from outside.
pub fn serving_address(node: &Node) -> Option<String> {
    if ready_status(node) != Some("True") {
        return None;
    }
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let of = |kind: &str| addresses.iter().find(|a| a.type_ == kind).map(|a| a.address.clone());
    of("ExternalIP").or_else(|| of("InternalIP"))
}

fn named(serving: &BTreeMap<String, String>) -> Vec<String> {
    let mut addresses: Vec<String> = serving.values().take(ADDRESSES_MAX).cloned().collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// The status to write; None when it is as it should be, or another controller's.
pub fn plan(ingress: &Ingress, addresses: &[String]) -> Option<IngressStatus> {
    let class = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_deref());
    let legacy = || ingress.metadata.annotations.as_ref()?.get(LEGACY_CLASS).map(String::as_str);
    if ingress.metadata.deletion_timestamp.is_some()
        || class.or_else(legacy).is_some_and(|class| class != CLASS)
    {
        return None;
    }
    let at = |ip: &String| IngressLoadBalancerIngress {
        ip: Some(ip.clone()),
        ..IngressLoadBalancerIngress::default()
    };
    let wanted: Vec<_> = addresses.iter().map(at).collect();
    let current = ingress.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    if current.and_then(|b| b.ingress.as_deref()).unwrap_or_default() == wanted {
        return None;
    }
    let ingress = (!wanted.is_empty()).then_some(wanted);
    Some(IngressStatus { load_balancer: Some(IngressLoadBalancerStatus { ingress }) })
}

#[async_trait]
impl Controller for IngressStatuses {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(ingress) = self.ingresses.get_key(key) else { return Ok(Next::Change) };
        let addresses = named(&self.serving.lock());
        let Some(status) = plan(&ingress, &addresses) else { return Ok(Next::Change) };
        let written = Ingress { status: Some(status), ..(*ingress).clone() };
        match self.client.update_status(&written).await {
            Err(e) if e.is_not_found() => Ok(Next::Change),
            other => other.map(|_| Next::Change),
        }
    }
}

/// The class is there at each start; what an operator changed about it stays.
fn class() -> IngressClass {
    IngressClass {
        metadata: ObjectMeta {
            name: Some(CLASS.into()),
            annotations: Some(BTreeMap::from([(IS_DEFAULT.into(), "true".into())])),
            ..ObjectMeta::default()
        },
        spec: Some(IngressClassSpec {
            controller: Some(CONTROLLER.into()),
            ..IngressClassSpec::default()
        }),
    }
}
