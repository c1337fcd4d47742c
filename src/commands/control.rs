//! `rimward control`

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rimward_control_plane::{AuditConfig, Build, Config, LogConfig, Plane, oidc};

use crate::cli::{AuditOptions, Control, ControlPorts, OidcOptions};
use crate::{memory, shutdown};

pub fn config(
    data_dir: std::path::PathBuf,
    ports: &ControlPorts,
    audit: &AuditOptions,
    oidc: &OidcOptions,
) -> anyhow::Result<Config> {
    Ok(Config {
        data_dir,
        api: SocketAddr::new(ports.listen, ports.api_port),
        tunnel: SocketAddr::new(ports.listen, ports.tunnel_port),
        advertise: ports.advertise_address,
        node_grace: Duration::from_secs(ports.node_grace_seconds),
        audit: audit_config(audit),
        authentication: authentication(oidc)?,
        build: Build::of(
            env!("RIMWARD_GIT_COMMIT"),
            env!("RIMWARD_GIT_TREE_STATE"),
            env!("RIMWARD_BUILD_EPOCH"),
        ),
    })
}

/// Who is let in beside whom the cluster knows itself: as a file or the flags say.
fn authentication(options: &OidcOptions) -> anyhow::Result<oidc::Authentication> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    if let Some(path) = &options.authentication_config {
        let text = read(path)?;
        return oidc::parse(&text).with_context(|| format!("{}", path.display()));
    }
    let (Some(url), Some(audience)) = (&options.oidc_issuer_url, &options.oidc_client_id) else {
        return Ok(oidc::Authentication::default());
    };
    let claim = options.oidc_username_claim.clone();
    let prefix = match options.oidc_username_prefix.as_deref() {
        Some("-") => String::new(),
        Some(prefix) => prefix.to_owned(),
        None if claim == "email" => String::new(),
        None => format!("{url}#"),
    };
    let rule = |pair: &String| {
        let (claim, value) =
            pair.split_once('=').with_context(|| format!("{pair:?} is not KEY=VALUE"))?;
        let (claim, required_value) = (claim.to_owned(), value.to_owned());
        Ok(oidc::ClaimRule { claim, required_value, ..oidc::ClaimRule::default() })
    };
    let mapping = |claim: String, prefix: String| oidc::Mapping {
        claim,
        prefix: Some(prefix),
        ..oidc::Mapping::default()
    };
    let groups = options.oidc_groups_claim.clone();
    let issuer = oidc::Authenticator {
        issuer: oidc::IssuerConfig {
            url: url.clone(),
            certificate_authority: options.oidc_ca_file.as_deref().map(read).transpose()?,
            audiences: vec![audience.clone()],
            ..oidc::IssuerConfig::default()
        },
        claim_validation_rules: options
            .oidc_required_claim
            .iter()
            .map(rule)
            .collect::<anyhow::Result<_>>()?,
        claim_mappings: oidc::Mappings {
            username: mapping(claim, prefix),
            groups: groups
                .map(|claim| mapping(claim, options.oidc_groups_prefix.clone()))
                .unwrap_or_default(),
            ..oidc::Mappings::default()
        },
        signing_algorithms: options.oidc_signing_algs.clone(),
        ..oidc::Authenticator::default()
    };
    Ok(oidc::Authentication { issuers: vec![issuer], ..oidc::Authentication::default() })
}

fn audit_config(options: &AuditOptions) -> Option<AuditConfig> {
    Some(AuditConfig {
        policy: options.audit_policy_file.clone()?,
        log: LogConfig {
            path: options.audit_log_path.clone()?,
            bytes_max: options.audit_log_maxsize << 20,
            backups_max: options.audit_log_maxbackup,
            age_max: Duration::from_secs(options.audit_log_maxage * 86_400),
        },
    })
}

pub async fn run(args: Control) -> anyhow::Result<()> {
    let shutdown = shutdown::on_signals()?;
    let config = config(args.data_dir.path()?, &args.ports, &args.audit, &args.oidc)?;
    let plane = Plane::start(config, shutdown.clone()).await?;
    memory::release_when_settled();
    shutdown.cancelled().await;
    plane.stopped().await;
    Ok(())
}
