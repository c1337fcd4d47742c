//! `rimward token create`

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rimward_client::Client;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::cli::{Token, TokenCommand};
use crate::kubeconfig::Kubeconfig;
use crate::remote::Remote;

pub async fn run(args: Token) -> anyhow::Result<()> {
    let TokenCommand::Create { hours, cluster } = args.command;
    let kubeconfig = Kubeconfig::load(cluster.kubeconfig.as_deref())?;
    let ca = CertificateDer::from_pem_slice(&kubeconfig.ca).context("the cluster's CA")?;
    let hash =
        rimward_tunnel::token::ca_hash(&ca).context("the cluster's CA has no readable key")?;
    let client = Client::new(Arc::new(Remote::new(&kubeconfig)?));
    let lifetime = (hours > 0).then(|| Duration::from_secs(hours * 3600));
    let token = rimward_control_hub::token::create(&client, &hash, lifetime).await?;
    println!("{token}");
    Ok(())
}
