//! Controllers: each looks at the world and makes it what its objects ask for.
//!
//! One file is one controller; [`ALL`] is the one list of them; [`driver`] runs them and knows none.
//! Each splits into a pure `plan` and an `act` that only does what the plan says. Each acts under its
//! own identity, through the API only: they never see the store.
//!
//! They share the caches of one [`Informers`] set. That set must read as an identity that may list
//! and watch everything (`system:kube-controller-manager`).

pub mod endpointslice_mirroring;
pub mod ephemeral_volume;
pub mod finalizers;
pub mod local_storage_class;
pub mod persistent_volume_binder;
pub mod pv_protection;
pub mod pvc_protection;
pub mod replicationcontroller;
pub mod resourcequota;
pub mod service_cidrs;
pub mod ttl_after_finished;

pub mod backends;
pub mod claim;
pub mod cronjob;
pub mod csr_approving;
pub mod csr_cleaner;
pub mod csr_signing;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod driver;
pub mod endpoints;
pub mod endpointslice;
pub mod garbage;
pub mod hash;
pub mod history;
pub mod indexes;
pub mod ingress;
pub mod job;
pub mod legacy_token_cleaner;
pub mod namespace;
pub mod node_lifecycle;
pub mod pod_control;
pub mod pod_gc;
pub mod pods;
pub mod publish;
pub mod replicaset;
pub mod role_aggregation;
pub mod root_ca;
pub mod service_account_token;
pub mod serviceaccount;
pub mod shares;
pub mod staleness;
pub mod statefulset;
pub mod taint_eviction;
pub mod token_cleaner;

use std::sync::Arc;
use std::time::Duration;

use rimward_client::{Client, Informers, Queues, Transport};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use driver::Context;

#[derive(Clone, Debug)]
pub struct Config {
    /// What pods verify the API server with, in PEM; empty publishes nothing.
    pub root_ca_pem: String,
    /// How long nothing may be heard of a node before it is Unknown.
    pub node_monitor_grace: Duration,
    /// How long a node object must be gone before its pods are removed.
    pub node_gone_quarantine: Duration,
    /// How many ended pods are kept; 0 keeps all.
    pub terminated_pods_max: usize,
    /// Signs what CertificateSigningRequests ask for; without it nothing is signed.
    pub authority: Option<Arc<dyn csr_signing::Authority>>,
    /// Signs the tokens that Secrets hold; without it they get none.
    pub token_signer: Option<Arc<dyn service_account_token::Signer>>,
    /// Where the controllers' work queues are told of.
    pub queues: Queues,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            node_monitor_grace: Duration::from_secs(40),
            node_gone_quarantine: Duration::from_secs(40),
            terminated_pods_max: 12_500,
            authority: None,
            token_signer: None,
            queues: Queues::default(),
        }
    }
}

/// One controller: its name, the ServiceAccount in kube-system that it acts as, how it starts.
pub struct Entry {
    pub name: &'static str,
    pub identity: &'static str,
    start: fn(&Context),
}

const fn entry(name: &'static str, start: fn(&Context)) -> Entry {
    Entry { name, identity: name, start }
}

/// Every controller there is.
pub const ALL: &[Entry] = &[
    entry(namespace::NAME, namespace::start),
    entry(serviceaccount::NAME, serviceaccount::start),
    entry(root_ca::NAME, root_ca::start),
    entry(garbage::NAME, garbage::start),
    entry(replicaset::NAME, replicaset::start),
    entry(replicationcontroller::NAME, replicationcontroller::start),
    entry(resourcequota::NAME, resourcequota::start),
    entry(deployment::NAME, deployment::start),
    entry(statefulset::NAME, statefulset::start),
    entry(job::NAME, job::start),
    entry(cronjob::NAME, cronjob::start),
    Entry { name: daemonset::NAME, identity: daemonset::IDENTITY, start: daemonset::start },
    entry(disruption::NAME, disruption::start),
    entry(endpointslice::NAME, endpointslice::start),
    entry(endpoints::NAME, endpoints::start),
    entry(endpointslice_mirroring::NAME, endpointslice_mirroring::start),
    entry(service_cidrs::NAME, service_cidrs::start),
    entry(persistent_volume_binder::NAME, persistent_volume_binder::start),
    entry(ephemeral_volume::NAME, ephemeral_volume::start),
    Entry {
        name: local_storage_class::NAME,
        identity: local_storage_class::IDENTITY,
        start: local_storage_class::start,
    },
    entry(pvc_protection::NAME, pvc_protection::start),
    entry(pv_protection::NAME, pv_protection::start),
    entry(ttl_after_finished::NAME, ttl_after_finished::start),
    entry(node_lifecycle::NAME, node_lifecycle::start),
    Entry {
        name: taint_eviction::NAME,
        identity: node_lifecycle::NAME,
        start: taint_eviction::start,
    },
    entry(pod_gc::NAME, pod_gc::start),
    entry(role_aggregation::NAME, role_aggregation::start),
    entry(service_account_token::NAME, service_account_token::start),
    entry(token_cleaner::NAME, token_cleaner::start),
    entry(legacy_token_cleaner::NAME, legacy_token_cleaner::start),
    Entry {
        name: csr_approving::NAME,
        identity: csr_signing::IDENTITY,
        start: csr_approving::start,
    },
    Entry { name: csr_signing::NAME, identity: csr_signing::IDENTITY, start: csr_signing::start },
    Entry { name: csr_cleaner::NAME, identity: csr_signing::IDENTITY, start: csr_cleaner::start },
    entry(ingress::NAME, ingress::start),
];

/// The running controllers.
pub struct Handle {
    tasks: TaskTracker,
}

impl Handle {
    /// Waits until all have ended, after the shutdown token was cancelled.
    pub async fn join(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Starts every controller of [`ALL`]. `clients` gives a transport that acts as a ServiceAccount of
/// kube-system. Must be called within a tokio runtime.
pub fn start(
    clients: impl Fn(&str) -> Arc<dyn Transport>,
    informers: Informers,
    config: Config,
    shutdown: CancellationToken,
) -> Handle {
    let (tasks, config) = (TaskTracker::new(), Arc::new(config));
    for entry in ALL {
        (entry.start)(&Context {
            name: entry.name,
            client: Client::new(clients(entry.identity)),
            informers: informers.clone(),
            config: config.clone(),
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
    }
    Handle { tasks }
}
