//! The API server: what it holds, how it starts, and its handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use parking_lot::RwLock;
use rimward_api::{Status, UserInfo};
use rimward_client::Transport;
use rimward_control_store::Store;
use tokio_util::sync::CancellationToken;

use crate::admission::plugins::Plugins;
use crate::admission::policies::{Policies, type_checking};
use crate::admission::priority::Classes;
use crate::admission::webhooks::Webhooks;
use crate::aggregation::{self, Aggregation, register::CustomGroups};
use crate::authn::oidc::config::check_apart;
use crate::authn::oidc::{ConfigError, Issuer};
use crate::authn::tokens::{KeyError, Tokens, tracking};
use crate::config::Config;
use crate::definitions::{Definitions, keeper};
use crate::flow::{self, Flow};
use crate::health::{Part as Started, Parts};
use crate::identity::Identity;
use crate::in_process::InProcess;
use crate::metrics::Metrics;
use crate::mirror::Mirrors;
use crate::nodes::Nodes;
use crate::outbound::{Outbound, Reach};
use crate::pools::{NotACidr, Pools};
use crate::rbac::{Part, Rbac};
use crate::request::{Attributes, Resource};
use crate::rest::components::Component;
use crate::rest::usage::Usages;
use crate::served::Registry;
use crate::views::{self, Shared};
use crate::{bootstrap, sweep};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Issuer(#[from] ConfigError),
    #[error("service_cidr: {0}")]
    ServiceCidr(#[from] NotACidr),
    #[error("node_port_range: {0}-{1} is empty or reaches below 1")]
    NodePorts(u16, u16),
    #[error("api_audiences: at least one is needed")]
    NoAudience,
    #[error(transparent)]
    Store(#[from] rimward_control_store::Error),
    #[error("the stored Services cannot be read: {0}")]
    Services(Status),
    #[error("{kind} {name:?} of a fresh cluster cannot be stored: {status}")]
    Bootstrap { kind: String, name: String, status: Status },
}

/// A running API server; clones are handles to the same one.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub store: Arc<dyn Store>,
    /// What is served at the moment; see [`Inner::registry`].
    pub served: ArcSwap<Registry>,
    pub tokens: Tokens,
    pub issuers: Vec<Issuer>,
    pub rbac: Rbac,
    pub priorities: Arc<Classes>,
    pub admission_policies: Policies,
    pub mutating_webhooks: Arc<Webhooks>,
    pub validating_webhooks: Arc<Webhooks>,
    pub aggregation: Arc<Aggregation>,
    pub custom_groups: Arc<CustomGroups>,
    pub mirrors: Mirrors,
    pub pools: Pools,
    pub flow: Arc<Flow>,
    pub metrics: Metrics,
    pub nodes: Arc<RwLock<Option<Arc<dyn Nodes>>>>,
    /// Calls to webhooks, converters and extension API servers.
    pub outbound: Outbound,
    pub shared: Shared,
    pub ready: AtomicBool,
    pub stop: CancellationToken,
    /// How far the start is, and what of it still runs.
    pub parts: Parts,
    pub plugins: Plugins,
    pub components: RwLock<Vec<Component>>,
    pub usages: Usages,
    // Prefixes that every pod or token asks for.
    pub namespaces_prefix: String,
    pub service_accounts_prefix: String,
    pub pods_prefix: String,
    pub secrets_prefix: String,
    pub nodes_prefix: String,
}

impl Inner {
    /// What is served at this moment: a look that costs no more than a pointer. Take out of it what a
    /// request needs, and let it go before waiting for anything.
    pub fn registry(&self) -> Guard<Arc<Registry>> {
        self.served.load()
    }
}

impl ApiServer {
    /// Reads what is stored, makes what a fresh cluster holds, and starts to keep house. Answers
    /// when requests can be served.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let ports = config.node_port_range.clone();
        if ports.is_empty() || *ports.start() == 0 {
            return Err(StartError::NodePorts(*ports.start(), *ports.end()));
        }
        if config.api_audiences.is_empty() {
            return Err(StartError::NoAudience);
        }
        let registry = Registry::builtin();
        let prefix = |group: &str, resource: &str| {
            registry.resource(group, resource).expect("a built-in kind").kind.storage.clone()
        };
        let metrics = Metrics::new();
        let store = metrics.storage.measure(config.store.clone());
        let tokens = Tokens::new(&config.token_key, &config.issuer)?;
        let issuers = &config.authentication.issuers;
        check_apart(issuers, &config.issuer)?;
        let issuers = issuers.iter().cloned().map(Issuer::new).collect::<Result<_, _>>()?;
        let pools = Pools::new(config.service_cidr.parse()?, ports);
        pools.rebuild(&store, &prefix("", "services")).await.map_err(StartError::Services)?;

        let stop = CancellationToken::new();
        let (rbac, priorities, mut mirrors) =
            (Rbac::default(), Arc::new(Classes::default()), Mirrors::default());
        for (resource, part, namespaced) in [
            ("clusterroles", Part::Roles, false),
            ("roles", Part::Roles, true),
            ("clusterrolebindings", Part::Bindings, false),
            ("rolebindings", Part::Bindings, true),
        ] {
            let prefix = prefix("rbac.authorization.k8s.io", resource);
            mirrors.add(&store, &prefix, rbac.part(part, namespaced), stop.clone()).await?;
        }
        let plugins = Plugins::default();
        plugins.follow(&mut mirrors, &store, &prefix, &pools, &stop).await?;
        let classes = prefix("scheduling.k8s.io", "priorityclasses");
        mirrors.add(&store, &classes, priorities.clone(), stop.clone()).await?;
        let flow = Flow::new(config.reads_max + config.writes_max);
        for (resource, part) in [
            ("prioritylevelconfigurations", flow::Part::levels(&flow)),
            ("flowschemas", flow::Part::schemas(&flow)),
        ] {
            let prefix = prefix("flowcontrol.apiserver.k8s.io", resource);
            mirrors.add(&store, &prefix, part, stop.clone()).await?;
        }
        let definitions = Arc::new(Definitions::default());
        let prefix_of_definitions = prefix("apiextensions.k8s.io", "customresourcedefinitions");
        let mirror = definitions.clone();
        mirrors.add(&store, &prefix_of_definitions, mirror, stop.clone()).await?;

        let (mutating_webhooks, validating_webhooks) =
            (Arc::new(Webhooks::default()), Arc::new(Webhooks::default()));
        for (resource, webhooks) in [
            ("mutatingwebhookconfigurations", &mutating_webhooks),
            ("validatingwebhookconfigurations", &validating_webhooks),
        ] {
            let prefix = prefix("admissionregistration.k8s.io", resource);
            mirrors.add(&store, &prefix, webhooks.clone(), stop.clone()).await?;
        }

        let policies = Policies::default();
        for (resource, part) in policies.parts() {
            let prefix = prefix("admissionregistration.k8s.io", resource);
            mirrors.add(&store, &prefix, part, stop.clone()).await?;
        }

        let aggregation = Arc::new(Aggregation::default());
        let services = prefix("apiregistration.k8s.io", "apiservices");
        mirrors.add(&store, &services, aggregation.clone(), stop.clone()).await?;
        let custom_groups = Arc::new(CustomGroups::default());
        mirrors.add(&store, &prefix_of_definitions, custom_groups.clone(), stop.clone()).await?;

        let nodes: Arc<RwLock<Option<Arc<dyn Nodes>>>> = Arc::default();
        let reach = Reach {
            store: store.clone(),
            services_prefix: prefix("", "services"),
            endpoints_prefix: prefix("", "endpoints"),
            slices_prefix: prefix("discovery.k8s.io", "endpointslices"),
            nodes: nodes.clone(),
        };
        let identity = config.front_proxy.as_ref().map(|f| f.identity.clone());
        let outbound = Outbound::new(reach, identity);
        let inner = Arc::new(Inner {
            namespaces_prefix: prefix("", "namespaces"),
            service_accounts_prefix: prefix("", "serviceaccounts"),
            pods_prefix: prefix("", "pods"),
            secrets_prefix: prefix("", "secrets"),
            nodes_prefix: prefix("", "nodes"),
            flow,
            metrics,
            outbound,
            nodes,
            shared: views::shared(),
            ready: AtomicBool::new(false),
            store,
            served: ArcSwap::from_pointee(registry),
            tokens,
            issuers,
            rbac,
            priorities,
            admission_policies: policies,
            mutating_webhooks,
            validating_webhooks,
            aggregation,
            custom_groups,
            mirrors,
            pools,
            stop,
            parts: Parts::default(),
            plugins,
            components: RwLock::default(),
            usages: Usages::default(),
            config,
        });
        definitions.attach(&inner);
        inner.parts.done(Started::Mirrors);
        bootstrap::run(&inner).await?;
        let identity = Identity::own();
        let again = identity.tell(&inner).await;
        let (parts, stop) = (&inner.parts, &inner.stop);
        parts.run(Started::Identity, stop, identity.keep(inner.clone(), again));
        sweep::start(&inner);
        crate::cluster_ips::start(&inner);
        parts.run(Started::Definitions, stop, keeper::run(inner.clone(), definitions));
        parts.run(Started::FlowStatuses, stop, flow::keep_statuses(inner.clone()));
        let of_seats = inner.clone();
        parts.run(Started::FlowSeats, stop, async move { of_seats.flow.balance().await });
        let of_types = inner.clone();
        parts.run(Started::PolicyStatuses, stop, type_checking::keep_statuses(of_types));
        parts.run(Started::TokenTracking, stop, tracking::keep(inner.clone()));
        aggregation::availability::start(&inner);
        aggregation::register::start(&inner);
        inner.ready.store(true, Ordering::Release);
        Ok(Self { inner })
    }

    /// A client inside this process: the same pipeline under an identity of its own.
    pub fn client(&self, user: UserInfo, user_agent: &str) -> Arc<dyn Transport> {
        Arc::new(InProcess::new(self.inner.clone(), user, user_agent))
    }

    /// Tells how nodes are reached; until then logs answer 503.
    pub fn set_nodes(&self, nodes: Arc<dyn Nodes>) {
        *self.inner.nodes.write() = Some(nodes);
    }

    /// Whether a user may do that to a resource: for endpoints beside the API (the image registry).
    pub fn authorize(
        &self,
        user: &UserInfo,
        verb: &str,
        (group, resource, subresource): (&str, &str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let asked = Attributes {
            verb: verb.into(),
            path: String::new(),
            resource: Some(Resource {
                group: group.into(),
                version: "*".into(),
                namespace: namespace.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                name: name.into(),
                rest: String::new(),
            }),
        };
        self.inner.rbac.authorize(user, &asked)
    }

    /// From now on `/metrics` shows what this adds, in the text format of Prometheus: of parts of the
    /// process that are not the API server's.
    pub fn add_metrics(&self, source: impl Fn(&mut String) + Send + Sync + 'static) {
        self.inner.metrics.add(Box::new(source));
    }

    /// The newest durable revision.
    pub fn revision(&self) -> u64 {
        self.inner.store.revision()
    }

    /// Ends watches and background work. Requests that run are finished.
    pub fn stop(&self) {
        self.inner.ready.store(false, Ordering::Release);
        self.inner.stop.cancel();
    }
}
