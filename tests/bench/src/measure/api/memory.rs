//! What the control plane holds in memory when thirty thousand pods are stored.

use super::create::creates;
use crate::Setup;
use crate::cluster::Server;
use crate::process::settled_mib;
use crate::row::{Row, Target};

/// Of kube-apiserver and etcd with 31,700 pods of 4 KB, in MiB.
const PEER: f64 = 2.66 * 1024.0;
const PEER_PODS: f64 = 31_700.0;

pub async fn rows(setup: &Setup, server: &Server) -> anyhow::Result<Vec<Row>> {
    let before = settled_mib(&[server.pid()]).await?;
    let wanted = setup.objects * 3;
    creates(server, 32, setup.objects..wanted).await?;
    let then = settled_mib(&[server.pid()]).await?;
    let each = (then - before) * 1024.0 / (wanted - setup.objects) as f64;
    let share = wanted as f64 / PEER_PODS;
    Ok(vec![Row::new(
        format!("resident with {wanted} pods stored"),
        then,
        "MiB",
        Target::AtMost((PEER * share / 5.0).round()),
        format!("VmRSS, settled; {before:.0} MiB with {}, {each:.1} KiB a pod more", setup.objects),
    )])
}
