//! EndpointSlice: the addresses behind a Service, at most a hundred per object.
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error};
use rimward_control_lean::Pod;

use crate::backends::{self, BATCH, Port, addresses, is_headless, publishes_not_ready};
use crate::claim::controller_reference;
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};
use crate::indexes;
use crate::pods::{is_deleting, is_ready, name, node_name, uid};
use crate::staleness::{OwnWrites, Pace};

pub const NAME: &str = "endpointslice-controller";
const WORKERS: usize = 4;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
const BY_SERVICE: &str = "service";
pub const ENDPOINTS_MAX: usize = 100;

struct Slices {
    client: Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
    own_writes: OwnWrites,
    pace: Pace,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let (services, pods) = (context.informers.of::<Service>(), context.informers.of::<Pod>());
    let (slices, nodes) = (context.informers.of::<EndpointSlice>(), context.informers.of::<Node>());
    indexes::pods_by_label(&pods);
    indexes::services_by_selector(&services);
    slices.add_index(BY_SERVICE, |slice| {
        service_of(slice).map(|key| key.to_string()).into_iter().collect()
    });
    enqueue_changes(&services, &keys);
    backends::wake_services(&pods, &services, &keys);
    let queue = keys.clone();
    slices.on_change(move |change| {
        let both = [change.old, change.new].into_iter().flatten();
        both.filter_map(|slice| service_of(slice)).for_each(|key| queue.add(key));
    });
    let caches = vec![synced(&services), synced(&pods), synced(&slices), synced(&nodes)];
    let controller = Slices {
        client: context.client.clone(),
        services,
        pods,
        nodes,
        slices,
        own_writes: OwnWrites::default(),
        pace: Pace::default(),
    };
    context.run(Arc::new(controller), keys, WORKERS, caches);
}

/// The Service of a slice that is ours to keep.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER);
    let service = labels.get(SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), service.clone()))
}

/// What a Service, its pods and its slices look like now.
pub struct World<'a> {
    pub service: &'a Service,
    pub pods: &'a [Arc<Pod>],
    pub slices: &'a [Arc<EndpointSlice>],
    /// The zone of a node, by name.
    pub zone: &'a dyn Fn(&str) -> Option<String>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Which slices an endpoint may be in: address family and ports must be the same for a whole slice.
type Group = (String, Vec<Port>);

/// Decides; touches nothing. What is right already stays in its slice, so that a change of one pod
/// rewrites one slice.
pub fn plan(world: &World) -> Plan {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    let families = families(world.service);
    for pod in world.pods {
        let ports = backends::ports(world.service, pod);
        for address in addresses(pod) {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            if families.iter().any(|f| f == family) {
                let group = groups.entry((family.to_owned(), ports.clone())).or_default();
                group.push(endpoint(world, pod, address.to_string()));
            }
        }
    }
    let mut existing: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in world.slices.iter().filter(|s| !is_deleting(&s.metadata)) {
        existing.entry(group_of(slice)).or_default().push(slice);
    }
    let mut plan = Plan::default();
    if groups.is_empty() {
        // One empty slice says that nobody is there, rather than that nobody looked.
        let kept = existing.iter().next().map(|(group, _)| group.clone());
        let family = families.first().cloned().unwrap_or_else(|| "IPv4".into());
        groups.insert(kept.unwrap_or((family, Vec::new())), Vec::new());
    }
    for (group, mut slices) in existing {
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        match groups.remove(&group) {
            Some(wanted) => fill(world, &group, wanted, slices, &mut plan),
            None => plan.delete.extend(slices.into_iter().cloned()),
        }
    }
    for (group, wanted) in groups {
        fill(world, &group, wanted, Vec::new(), &mut plan);
    }
    plan
}

/// Puts `wanted` into `slices`, moving as little as possible.
fn fill(
    world: &World,
    group: &Group,
    wanted: Vec<Endpoint>,
    slices: Vec<&Arc<EndpointSlice>>,
    plan: &mut Plan,
) {
    let identity = |e: &Endpoint| {
        let pod = e.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default();
        (pod, e.addresses.first().cloned().unwrap_or_default())
    };
    let order: Vec<(String, String)> = wanted.iter().map(identity).collect();
    let mut wanted: HashMap<(String, String), Endpoint> =
        order.iter().cloned().zip(wanted).collect();
    let mut contents: Vec<Vec<Endpoint>> = Vec::new();
    for slice in &slices {
        let kept = slice.endpoints.iter().flatten().filter_map(|e| wanted.remove(&identity(e)));
        contents.push(kept.collect());
    }
    let mut left = order.iter().filter_map(|id| wanted.remove(id));
    let mut next = left.next();
    // First into slices that must be written anyway, then into any with room, then into new ones.
    let touched = |slice: &EndpointSlice, content: &[Endpoint]| {
        slice.endpoints.as_deref().unwrap_or_default() != content
    };
    let mut turns: Vec<usize> = (0..slices.len()).collect();
    turns.sort_by_key(|i| !touched(slices[*i], &contents[*i]));
    for i in turns {
        while contents[i].len() < ENDPOINTS_MAX
            && let Some(endpoint) = next.take()
        {
            contents[i].push(endpoint);
            next = left.next();
        }
    }
    while let Some(endpoint) = next.take() {
        let mut content = vec![endpoint];
        content.extend(left.by_ref().take(ENDPOINTS_MAX - 1));
        plan.create.push(new_slice(world, group, content));
        next = left.next();
    }
    let mut kept_one = !plan.create.is_empty();
    for (slice, content) in slices.iter().zip(contents) {
        if content.is_empty() && (kept_one || !order.is_empty()) {
            plan.delete.push((*slice).clone());
            continue;
        }
        kept_one = true;
        let (labels, owners) = (labels(world.service), vec![controller_reference(world.service)]);
        let same_labels = slice.metadata.labels.as_ref() == Some(&labels);
        if touched(slice, &content) || !same_labels {
            let mut changed = (***slice).clone();
            changed.endpoints = Some(content);
            changed.metadata.labels = Some(labels);
            changed.metadata.owner_references = Some(owners);
            plan.update.push(changed);
        }
    }
    if !kept_one {
        plan.create.push(new_slice(world, group, Vec::new()));
    }
}

fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".into()] } else { families }
}

fn endpoint(world: &World, pod: &Pod, address: String) -> Endpoint {
    let serving = is_ready(pod);
    let terminating = is_deleting(&pod.metadata);
    let ready = publishes_not_ready(world.service) || (serving && !terminating);
    let node = Some(node_name(pod).to_owned()).filter(|n| !n.is_empty());
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: backends::hostname(world.service, pod),
        zone: node.as_deref().and_then(world.zone),
        node_name: node,
        target_ref: Some(backends::pod_reference(pod)),
        ..Endpoint::default()
    }
}

fn group_of(slice: &EndpointSlice) -> Group {
    let ports = slice.ports.iter().flatten().map(|p| Port {
        name: p.name.clone().unwrap_or_default(),
        protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port: p.port.unwrap_or(0),
        app_protocol: p.app_protocol.clone(),
    });
    let mut ports: Vec<Port> = ports.collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), name(&service.metadata).into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn new_slice(world: &World, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = group.1.iter().map(|p| EndpointPort {
        name: Some(p.name.clone()),
        protocol: Some(p.protocol.clone()),
        port: Some(p.port),
        app_protocol: p.app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&world.service.metadata))),
            namespace: world.service.metadata.namespace.clone(),
            labels: Some(labels(world.service)),
            owner_references: Some(vec![controller_reference(world.service)]),
            ..ObjectMeta::default()
        },
        address_type: group.0.clone(),
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
    }
}

#[async_trait]
impl Controller for Slices {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        // The slices of a Service that is gone go by its owner reference.
        let Some(service) = self.services.get_key(key) else { return Ok(Next::Change) };
        if backends::selector(&service).is_none() || is_deleting(&service.metadata) {
            return Ok(Next::Change);
        }
        if !self.own_writes.seen(key, &self.slices) {
            return Ok(Next::Change);
        }
        let wait = self.pace.wait(key, BATCH);
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        let zone = |node: &str| {
            let node = self.nodes.get("", node)?;
            node.metadata.labels.as_ref()?.get(ZONE).cloned()
        };
        let (pods, slices) = (
            backends::selected(&service, &self.pods),
            self.slices.indexed(BY_SERVICE, &key.to_string()),
        );
        let plan = plan(&World { service: &service, pods: &pods, slices: &slices, zone: &zone });
        if plan == Plan::default() {
            return Ok(Next::Change);
        }
        self.pace.mark(key);
        for slice in &plan.create {
            match self.client.create(slice).await {
                Ok(written) => self.own_writes.note(key, &written),
                Err(e) if e.is_namespace_terminating() => return Ok(Next::Change),
                Err(e) => return Err(e),
            }
        }
        for slice in &plan.update {
            let written = self.client.update(slice).await?;
            self.own_writes.note(key, &written);
        }
        for slice in &plan.delete {
            let options = DeleteOptions::uid(uid(&slice.metadata));
            match self
                .client
                .delete::<EndpointSlice>(&key.namespace, name(&slice.metadata), &options)
                .await
            {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        Ok(Next::Change)
    }
}
