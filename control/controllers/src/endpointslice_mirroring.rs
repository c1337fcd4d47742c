//! EndpointSlice mirroring: Endpoints that a user wrote for a Service without a selector are also
//! told as EndpointSlices, which is what everybody reads.
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#endpointslice-mirroring>

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error, EventType, Recorder};

use crate::claim::controller_reference;
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::pods::{is_deleting, name, uid};
use crate::staleness::OwnWrites;

pub const NAME: &str = "endpointslicemirroring-controller";
const WORKERS: usize = 2;
pub const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The most addresses of a subset that are mirrored; a slice holds no more.
const ADDRESSES_MAX: usize = 1000;

struct Mirroring {
    client: Client,
    recorder: Recorder,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
    own_writes: OwnWrites,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let services = context.informers.of::<Service>();
    let endpoints = context.informers.of::<Endpoints>();
    let slices = context.informers.of::<EndpointSlice>();
    slices.add_index(MANAGED_BY, |slice| mirrored_service(slice).into_iter().collect());
    enqueue_changes(&services, &keys);
    enqueue_changes(&endpoints, &keys);
    let queue = keys.clone();
    slices.on_change(move |change| {
        for slice in [change.old, change.new].into_iter().flatten() {
            if let Some(service) = label(slice, SERVICE_LABEL).filter(|_| is_ours(slice)) {
                queue.add(ObjectKey::new(change.key.namespace.clone(), service));
            }
        }
    });
    let caches = vec![synced(&services), synced(&endpoints), synced(&slices)];
    let controller = Mirroring {
        client: context.client.clone(),
        recorder: context.recorder(),
        services,
        endpoints,
        slices,
        own_writes: OwnWrites::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    label(slice, MANAGED_BY_LABEL) == Some(MANAGED_BY)
}

/// The key of the Service that a slice of ours mirrors.
fn mirrored_service(slice: &EndpointSlice) -> Option<String> {
    let service = label(slice, SERVICE_LABEL).filter(|_| is_ours(slice))?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), service).to_string())
}

/// Whether Endpoints are a user's own words about a Service that selects no pods. Pure.
pub fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let skipped =
        meta.labels.as_ref().is_some_and(|l| l.get(SKIP_LABEL).is_some_and(|v| v == "true"));
    let elects = meta.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    let selects = |s: &Service| s.spec.as_ref().is_some_and(|s| s.selector.is_some());
    !skipped && !elects && !is_deleting(meta) && service.is_some_and(|s| !selects(s))
}

/// The slices that mirror Endpoints: one per family of addresses and set of ports. Pure.
pub fn slices_of(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    // Ports as text: they have no order, and equal ones belong together.
    type Found = BTreeMap<(&'static str, String), (Vec<EndpointPort>, Vec<Endpoint>)>;
    let mut found = Found::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: port.protocol.clone(),
            })
            .collect();
        let id = serde_json::to_string(&ports).unwrap_or_default();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        let mut added = 0;
        for (address, ready) in ready.chain(unready) {
            if added == ADDRESSES_MAX {
                break;
            }
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            added += 1;
            let (_, all) =
                found.entry((family, id.clone())).or_insert_with(|| (ports.clone(), Vec::new()));
            if all.len() < ADDRESSES_MAX {
                all.push(endpoint(address, ready));
            }
        }
    }
    let slices = found.into_iter().map(|((family, _), (ports, all))| EndpointSlice {
        metadata: metadata(endpoints),
        address_type: family.into(),
        endpoints: Some(all),
        ports: Some(ports),
    });
    slices.collect()
}

/// What of Endpoints is not mirrored, as Events tell it: reason and message. Pure.
pub fn skipped(endpoints: &Endpoints) -> Vec<(&'static str, String)> {
    let (mut invalid, mut beyond) = (0, 0);
    for subset in endpoints.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten();
        let all: Vec<_> = ready.chain(subset.not_ready_addresses.iter().flatten()).collect();
        let is_ip = |a: &&&EndpointAddress| a.ip.parse::<IpAddr>().is_ok();
        let valid = all.iter().filter(is_ip).count();
        invalid += all.len() - valid;
        beyond += valid.saturating_sub(ADDRESSES_MAX);
    }
    let mut events = Vec::new();
    if invalid > 0 {
        let text =
            format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        events.push(("InvalidIPAddress", text));
    }
    if beyond > 0 {
        let all = invalid + beyond;
        events.push(("TooManyAddressesToMirror", format!(
            "A max of {ADDRESSES_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {all} addresses were skipped"
        )));
    }
    events
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let meta = &endpoints.metadata;
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.into(), name(meta).into());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != LAST_APPLIED && key != TRIGGER_TIME);
    ObjectMeta {
        generate_name: Some(format!("{}-", name(meta))),
        namespace: meta.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations).filter(|a| !a.is_empty()),
        owner_references: Some(vec![controller_reference(endpoints)]),
        ..ObjectMeta::default()
    }
}

/// What is to be done so that there are the wanted slices.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

/// Decides; touches nothing. A slice keeps its name as long as its family and ports are wanted.
pub fn plan(wanted: Vec<EndpointSlice>, existing: Vec<EndpointSlice>) -> Plan {
    let mut plan = Plan { delete: existing, ..Plan::default() };
    for slice in wanted {
        let same = |old: &EndpointSlice| {
            old.address_type == slice.address_type && old.ports == slice.ports
        };
        let Some(i) = plan.delete.iter().position(same) else {
            plan.create.push(slice);
            continue;
        };
        let old = plan.delete.swap_remove(i);
        let told = old.endpoints == slice.endpoints
            && old.metadata.labels == slice.metadata.labels
            && old.metadata.annotations == slice.metadata.annotations
            && old.metadata.owner_references == slice.metadata.owner_references;
        if !told {
            let metadata = ObjectMeta {
                labels: slice.metadata.labels,
                annotations: slice.metadata.annotations,
                owner_references: slice.metadata.owner_references,
                ..old.metadata
            };
            plan.update.push(EndpointSlice { metadata, ..slice });
        }
    }
    plan
}

#[async_trait]
impl Controller for Mirroring {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if !self.own_writes.seen(key, &self.slices) {
            return Ok(Next::Change);
        }
        let existing = self.slices.indexed(MANAGED_BY, &key.to_string());
        let existing: Vec<EndpointSlice> = existing.iter().map(|s| (**s).clone()).collect();
        let service = self.services.get_key(key);
        let endpoints = self.endpoints.get_key(key).filter(|e| is_mirrored(e, service.as_deref()));
        if let Some(endpoints) = endpoints.as_deref() {
            for (reason, text) in skipped(endpoints) {
                self.recorder.event(endpoints, EventType::Warning, reason, text);
            }
        }
        let wanted = endpoints.as_deref().map(slices_of).unwrap_or_default();
        let plan = plan(wanted, existing);
        for slice in &plan.create {
            match self.client.create(slice).await {
                Err(e) if e.is_namespace_terminating() => return Ok(Next::Change),
                created => self.own_writes.note(key, &created?),
            }
        }
        for slice in &plan.update {
            self.own_writes.note(key, &self.client.update(slice).await?);
        }
        for slice in &plan.delete {
            let options = DeleteOptions::uid(uid(&slice.metadata));
            let name = name(&slice.metadata);
            match self.client.delete::<EndpointSlice>(&key.namespace, name, &options).await {
                Err(e) if !e.is_not_found() && !e.is_conflict() => return Err(e),
                _ => {}
            }
        }
        Ok(Next::Change)
    }
}
