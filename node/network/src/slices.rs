//! Which EndpointSlices a Service has: the one index that Service routing and DNS read.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Deltas};

/// The label by which an EndpointSlice names its Service.
/// <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#ownership>
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

const BY_SERVICE: &str = "by-service";

/// EndpointSlices by their Service. Clones are handles.
#[derive(Clone)]
pub struct Slices(Cache<EndpointSlice>);

impl Slices {
    pub fn new(slices: Cache<EndpointSlice>) -> Self {
        slices.add_index(BY_SERVICE, |slice| {
            owner(slice).map(|service| service.to_string()).into_iter().collect()
        });
        Self(slices)
    }

    /// A Service's slices in the order of their names.
    pub fn of(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let mut found = self.0.indexed(BY_SERVICE, &service.to_string());
        found.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        found
    }

    /// The Services whose slices change, from now on.
    pub fn subscribe(&self) -> Deltas {
        self.0.subscribe_to(owner)
    }

    /// The Services that have slices; one for each slice, so some repeatedly.
    pub fn services(&self) -> impl Iterator<Item = ObjectKey> {
        self.0.list().into_iter().filter_map(|(_, slice)| owner(&slice))
    }

    /// Waits for the first full state.
    pub async fn synced(&self) {
        self.0.synced().await;
    }
}

fn owner(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}
