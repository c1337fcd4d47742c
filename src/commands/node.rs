//! `rimward node`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use rimward_node_agent::node::{
    Config, GcPolicy, LowLevel, NoRunc, Node, RemoteConfig, Runc, Swap,
};
use rimward_node_agent::{Config as AgentConfig, EvictionSoft};

use crate::cli::{self, ContainerRuntime, NodeOptions};
use crate::{memory, shutdown};

pub async fn run(args: cli::Node) -> anyhow::Result<()> {
    let shutdown = shutdown::on_signals()?;
    let token =
        args.token.map(|t| t.parse().map_err(|e| anyhow::anyhow!("--token: {e}"))).transpose()?;
    let mut config = config(&args.data_dir.path()?, &args.node, args.server.clone())?;
    config.agent.token = token;
    // The control plane's API has the same host; people push images there.
    if let Some((host, _)) = args.server.rsplit_once(':') {
        config.registry_hosts.push(format!("{host}:6443"));
    }
    match Node::start(config, shutdown.clone()).await? {
        Some(node) => {
            memory::release_when_settled();
            let outcome = node.ended().await;
            if args.stop_pods {
                node.take_down().await;
            }
            outcome
        }
        None => Ok(()),
    }
}

/// A node's configuration from its options.
pub fn config(data_dir: &Path, options: &NodeOptions, server: String) -> anyhow::Result<Config> {
    let mut labels = BTreeMap::new();
    for label in &options.labels {
        let (key, value) = label
            .split_once('=')
            .with_context(|| format!("--node-label {label:?} is not KEY=VALUE"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    anyhow::ensure!(
        options.image_gc_low_threshold < options.image_gc_high_threshold,
        "--image-gc-low-threshold {} must be below --image-gc-high-threshold {}",
        options.image_gc_low_threshold,
        options.image_gc_high_threshold
    );
    let user_mode = options.user_mode || !cli::is_root();
    let runc = runc(options, user_mode)?;
    let low_level = match (options.container_runtime, &runc) {
        (ContainerRuntime::Runc, Some(runc)) => LowLevel::Runc(runc.clone()),
        _ => LowLevel::Libcontainer,
    };
    let port = options.ingress_http_port.unwrap_or(if user_mode { 8080 } else { 80 });
    Ok(Config {
        agent: AgentConfig {
            data_dir: data_dir.join("node"),
            name: node_name(options)?,
            server,
            token: None,
            labels,
            node_ip: None,
            pods_max: options.max_pods,
            eviction_hard: options.eviction_hard,
            // The node's assembly adds them.
            handlers: Vec::new(),
            eviction_soft: EvictionSoft::parse(
                &options.eviction_soft,
                &options.eviction_soft_grace_period,
            )
            .context("--eviction-soft")?,
            eviction_max_pod_grace_seconds: options.eviction_max_pod_grace_period,
            static_pods: options.pod_manifest_path.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        user_mode,
        ingress_http_port: port,
        registry_hosts: Vec::new(),
        remote_registries: RemoteConfig {
            ca_files: options.registry_ca.clone(),
            certs_dir: Some(options.registry_certs_dir.clone()),
            plain_http: options.plain_http_registry.clone(),
        },
        image_gc: GcPolicy {
            high_percent: options.image_gc_high_threshold,
            low_percent: options.image_gc_low_threshold,
            ..GcPolicy::default()
        },
        guest_ca: options.guest_ca.clone(),
        pod_pids_max: options.pod_max_pids,
        swap: match options.limited_swap {
            true => Swap::Limited,
            false => Swap::None,
        },
        low_level,
        runc,
        exe: std::env::current_exe().context("cannot find this program's own file")?,
    })
}

/// The machine's runc. One that nobody asked for need not be there.
fn runc(options: &NodeOptions, user_mode: bool) -> anyhow::Result<Option<Runc>> {
    let flag = match (options.container_runtime, &options.runc_path) {
        (_, Some(path)) => format!("--runc-path {}", path.display()),
        (ContainerRuntime::Runc, None) => "--container-runtime runc".into(),
        (ContainerRuntime::Libcontainer, None) => String::new(),
    };
    if user_mode {
        anyhow::ensure!(
            flag.is_empty(),
            "{flag}: a node in user mode runs no Linux containers: start it as root and without --user-mode"
        );
        return Ok(None);
    }
    match Runc::find(options.runc_path.as_deref()) {
        Ok(runc) => Ok(Some(runc)),
        Err(error) if !flag.is_empty() => anyhow::bail!(
            "{flag}: {error}; install it (`apt install runc`), or say where it is with --runc-path"
        ),
        Err(NoRunc::NotInPath { .. }) => Ok(None),
        Err(error) => {
            tracing::warn!(%error, "pods with RuntimeClass runc cannot run on this node");
            Ok(None)
        }
    }
}

fn node_name(options: &NodeOptions) -> anyhow::Result<String> {
    let name = match &options.node_name {
        Some(name) => name.clone(),
        None => {
            let host =
                std::fs::read_to_string("/proc/sys/kernel/hostname").context("the host name")?;
            host.trim().to_lowercase().replace('_', "-")
        }
    };
    anyhow::ensure!(
        !name.is_empty(),
        "this machine has no host name: name the node with --node-name"
    );
    Ok(name)
}
