//! Plugins of a default cluster that go by what the namespace, its limits and its labels say.

pub mod certificates;
pub mod limit_ranger;
pub mod pod_security;
pub mod storage_class;
pub mod topology;

use std::sync::Arc;

use rimward_api::Status;
use rimward_control_store::{Error, Store};
use tokio_util::sync::CancellationToken;

use super::{Operation, Review};
use crate::metrics::admission::Timed;
use crate::mirror::Mirrors;
use crate::pools::Pools;
use crate::quotas::{self, Counted, Quotas};
use crate::server::Inner;
use limit_ranger::LimitRanges;
use pod_security::Policies;

/// What they look up at every write, kept in memory.
#[derive(Default)]
pub struct Plugins {
    pub quotas: Arc<Quotas>,
    pub limit_ranges: Arc<LimitRanges>,
    pub pod_security: Arc<Policies>,
}

impl Plugins {
    /// Reads what is stored, and follows it until `stop`. `prefix` tells where a resource is kept.
    pub async fn follow(
        &self,
        mirrors: &mut Mirrors,
        store: &Arc<dyn Store>,
        prefix: &impl Fn(&str, &str) -> String,
        pools: &Pools,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let core = |resource: &str| prefix("", resource);
        mirrors.add(store, &core("resourcequotas"), self.quotas.clone(), stop.clone()).await?;
        mirrors.add(store, &core("limitranges"), self.limit_ranges.clone(), stop.clone()).await?;
        mirrors.add(store, &core("namespaces"), self.pod_security.clone(), stop.clone()).await?;
        let ranges = prefix("networking.k8s.io", "servicecidrs");
        mirrors.add(store, &ranges, Arc::new(pools.clone()), stop.clone()).await
    }
}

/// What an object is given that does not say it itself.
pub async fn fill_in(
    server: &Inner,
    review: &mut Review<'_>,
    timed: Timed<'_>,
) -> Result<(), Status> {
    if review.creates("", "pods") {
        timed.filled("LimitRanger", || limit_ranger::fill_in(server, review));
        timed.plugin("PodTopologyLabels", topology::admit(server, review)).await?;
    }
    if review.creates("", "persistentvolumeclaims") {
        timed.plugin("DefaultStorageClass", storage_class::fill_in(server, review)).await?;
    }
    Ok(())
}

/// What is refused, or warned about.
pub async fn check(
    server: &Inner,
    review: &mut Review<'_>,
    timed: Timed<'_>,
) -> Result<(), Status> {
    if !matches!(review.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    timed.at_once("LimitRanger", || limit_ranger::check(server, review))?;
    timed.plugin("PodSecurity", pod_security::check(server, review)).await?;
    if let Some(plugin) = certificates::plugin(review) {
        timed.at_once(plugin, || certificates::check(server, review))?;
    }
    if review.served.is("", "persistentvolumeclaims") && review.subresource.is_empty() {
        let check = storage_class::check_growth(server, review);
        timed.plugin("PersistentVolumeClaimResize", check).await?;
    }
    Ok(())
}

/// A rehearsed write is refused as the real one would be. (The real one is charged when it is
/// committed: see [`crate::quotas`].)
pub async fn rehearse_quota(
    server: &Inner,
    review: &Review<'_>,
    timed: Timed<'_>,
) -> Result<(), Status> {
    if !review.options.dry_run() {
        return Ok(());
    }
    let counted = match (review.operation, review.old) {
        (Operation::Create, _) => Counted::create(review.served, review.object),
        (Operation::Update, Some(old)) => {
            Counted::update(review.served, review.subresource, old, Some(review.object))
        }
        _ => return Ok(()),
    };
    timed.plugin("ResourceQuota", quotas::charge(server, &counted)).await.map(|_| ())
}
