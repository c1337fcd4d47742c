//! ServiceCIDR: says that a range of cluster IPs is ready, and keeps it while addresses of it are in
//! use that no other range has.
//! <https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/>

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::finalizers;
use crate::pods::{is_deleting, name};

pub const NAME: &str = "service-cidrs-controller";
const WORKERS: usize = 1;
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

struct ServiceCidrs {
    client: Client,
    cidrs: Cache<ServiceCIDR>,
    addresses: Cache<IPAddress>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let cidrs = context.informers.of::<ServiceCIDR>();
    let addresses = context.informers.of::<IPAddress>();
    // Another range that comes or goes may free one that waits.
    let (queue, known) = (keys.clone(), cidrs.clone());
    let wake_leaving = move || {
        let leaving = known.list().into_iter().filter(|(_, c)| is_deleting(&c.metadata));
        leaving.for_each(|(key, _)| queue.add(key));
    };
    enqueue_changes(&cidrs, &keys);
    let wake = wake_leaving.clone();
    cidrs.on_change(move |_| wake());
    addresses.on_change(move |change| {
        if change.new.is_none() {
            wake_leaving();
        }
    });
    let caches = vec![synced(&cidrs), synced(&addresses)];
    let controller = ServiceCidrs { client: context.client.clone(), cidrs, addresses };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// Whether a network in CIDR notation has an address.
pub fn contains(network: &str, address: IpAddr) -> bool {
    let Some((base, prefix)) = network.split_once('/') else { return false };
    let (Ok(base), Ok(prefix)) = (base.parse::<IpAddr>(), prefix.parse::<u32>()) else {
        return false;
    };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) if prefix <= 32 => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            u32::from(base) & mask == u32::from(address) & mask
        }
        (IpAddr::V6(base), IpAddr::V6(address)) if prefix <= 128 => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            u128::from(base) & mask == u128::from(address) & mask
        }
        _ => false,
    }
}

fn networks(cidr: &ServiceCIDR) -> impl Iterator<Item = &str> {
    let cidrs = cidr.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
    cidrs.map(String::as_str)
}

/// Whether addresses of a range are in use that no range has which stays. Pure.
pub fn is_needed(cidr: &ServiceCIDR, others: &[Arc<ServiceCIDR>], addresses: &[IpAddr]) -> bool {
    let has = |cidr: &ServiceCIDR, address| networks(cidr).any(|n| contains(n, address));
    let stays = |other: &&Arc<ServiceCIDR>| {
        !is_deleting(&other.metadata) && name(&other.metadata) != name(&cidr.metadata)
    };
    addresses
        .iter()
        .filter(|a| has(cidr, **a))
        .any(|a| !others.iter().filter(stays).any(|other| has(other, *a)))
}

/// The status that says whether the range is ready; None when it says so already. Pure.
pub fn status(cidr: &ServiceCIDR, needed: bool, now: Timestamp) -> Option<ServiceCIDRStatus> {
    const READY: &str = "Ready";
    let mut conditions =
        cidr.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let leaving = is_deleting(&cidr.metadata) && needed;
    let (says, reason, message) = match leaving {
        true => (
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        ),
        false => ("True", "", "Kubernetes Service CIDR is ready"),
    };
    let known = conditions.iter().find(|c| c.type_ == READY);
    if known.is_some_and(|c| c.status == says) || (is_deleting(&cidr.metadata) && !needed) {
        return None;
    }
    conditions.retain(|c| c.type_ != READY);
    conditions.push(Condition {
        type_: READY.into(),
        status: says.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(now),
        observed_generation: None,
    });
    Some(ServiceCIDRStatus { conditions: Some(conditions) })
}

#[async_trait]
impl Controller for ServiceCidrs {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cidr) = self.cidrs.get_key(key) else { return Ok(Next::Change) };
        let needed = is_deleting(&cidr.metadata) && {
            let others: Vec<Arc<ServiceCIDR>> =
                self.cidrs.list().into_iter().map(|(_, c)| c).collect();
            let addresses: Vec<IpAddr> =
                self.addresses.list().iter().filter_map(|(key, _)| key.name.parse().ok()).collect();
            is_needed(&cidr, &others, &addresses)
        };
        if let Some(changed) = finalizers::plan(&*cidr, FINALIZER, needed) {
            finalizers::act(&self.client, &changed).await?;
            return Ok(Next::Change);
        }
        if let Some(status) = status(&cidr, needed, Timestamp::now()) {
            let changed = ServiceCIDR { status: Some(status), ..(*cidr).clone() };
            match self.client.update_status(&changed).await {
                Err(e) if e.is_not_found() => {}
                other => other.map(|_| ())?,
            }
        }
        Ok(Next::Change)
    }
}
