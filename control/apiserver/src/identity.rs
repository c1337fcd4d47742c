//! The Lease by which each API server of a cluster is known while it is there, and for an hour after:
//! what `kubectl -n kube-system get lease -l apiserver.kubernetes.io/identity=kube-apiserver` lists.
//! <https://kubernetes.io/docs/concepts/architecture/leases/#api-server-identity>
//!
//! Kubernetes renews it every ten seconds. A heartbeat is no write here, and whoever reads this Lease goes
//! by its hour, so it is renewed six times in that.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rimward_api::meta::str_at;
use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_store::ListRequest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::bootstrap;
use crate::error;
use crate::options::{DeleteOptions, WriteOptions};
use crate::request::Query;
use crate::rest::write::{Author, Change};
use crate::server::Inner;
use crate::views::Stored;

const NAMESPACE: &str = "kube-system";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const KIND: &str = "kube-apiserver";
const LASTS: Duration = Duration::from_secs(3600);
const RENEWED_EVERY: Duration = Duration::from_secs(600);
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Who this server is.
pub struct Identity {
    hostname: String,
    name: String,
    /// A server that starts anew holds the same Lease, as another holder.
    holder: String,
}

impl Identity {
    pub fn own() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hostname = hostname.trim().to_owned();
        let name = name(&hostname);
        Self { holder: format!("{name}_{}", uuid::Uuid::new_v4()), hostname, name }
    }

    /// Renews the Lease, and ends those of servers that are gone. Answers after how long that is to be
    /// done again.
    pub async fn tell(&self, server: &Arc<Inner>) -> Duration {
        let now = Timestamp::now();
        let told = async {
            renew(server, &lease(&self.name, &self.holder, &self.hostname, now)).await?;
            sweep(server, &self.name, now).await
        };
        match told.await {
            Ok(()) => RENEWED_EVERY,
            Err(e) => {
                tracing::warn!(lease = %self.name, error = %e, "the API server's own Lease is renewed a little later");
                RETRY_AFTER
            }
        }
    }

    /// Goes on with it, first after `wait`.
    pub async fn keep(self, server: Arc<Inner>, mut wait: Duration) {
        loop {
            tokio::time::sleep(wait).await;
            wait = self.tell(&server).await;
        }
    }
}

/// `apiserver-` and a hash of the host's name, as kube-apiserver makes it.
fn name(hostname: &str) -> String {
    let hash = Sha256::digest(hostname.as_bytes());
    format!("apiserver-{}", base32(&hash[..16]))
}

/// In small letters and without padding (RFC 4648, section 6).
fn base32(bytes: &[u8]) -> String {
    data_encoding::BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn lease(name: &str, holder: &str, hostname: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": { LABEL: KIND, "kubernetes.io/hostname": hostname },
        },
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": LASTS.as_secs(),
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        },
    })
}

async fn renew(server: &Arc<Inner>, lease: &Value) -> Result<(), Status> {
    let served = server.registry().resource("coordination.k8s.io", "leases");
    let served = served.expect("a built-in kind");
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions::parse(&Query::default(), "UpdateOptions", KIND, false)?;
    let author = Author { user: &user, options: &options };
    let key = ObjectKey::of(lease);
    let rewrite = |mut object: Value| {
        object["spec"] = lease["spec"].clone();
        for (label, value) in lease["metadata"]["labels"].as_object().into_iter().flatten() {
            object["metadata"]["labels"][label] = value.clone();
        }
        Ok(object)
    };
    let mut warnings = Vec::new();
    let change = Change::Rewrite(&rewrite);
    match server.update(&served, &key, "", change, &author, &mut warnings).await {
        Err(e) if e.is_not_found() => bootstrap::make(server, &served, &key, lease, &author).await,
        done => done.map(|_| ()),
    }
}

/// Deletes the Leases of servers that have not renewed theirs for the time that it lasts.
async fn sweep(server: &Arc<Inner>, own: &str, now: Timestamp) -> Result<(), Status> {
    let served = server.registry().resource("coordination.k8s.io", "leases");
    let served = served.expect("a built-in kind");
    let request = ListRequest { prefix: served.prefix(NAMESPACE), ..ListRequest::default() };
    let page = server.store.list(request).await.map_err(error::store)?;
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    for entry in &page.entries {
        let lease = Stored::open(entry)?.stored_value(&served)?;
        let key = ObjectKey::of(&lease);
        if key.name != own && is_over(&lease, now) {
            let options = DeleteOptions::default();
            match server.delete(&served, &key, &options, &user, &mut Vec::new()).await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => tracing::info!(lease = %key.name, "an API server is gone"),
            }
        }
    }
    Ok(())
}

/// Whether it is an API server's and nobody's any more.
fn is_over(lease: &Value, now: Timestamp) -> bool {
    let seconds = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or_default();
    let renewed = str_at(lease, &["spec", "renewTime"]).and_then(|t| t.parse::<Timestamp>().ok());
    let until =
        renewed.and_then(|at| at.checked_add(jiff::SignedDuration::from_secs(seconds)).ok());
    str_at(lease, &["metadata", "labels", LABEL]) == Some(KIND) && until.is_none_or(|at| at < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kubernetes_own() {
        // RFC 4648, section 10, in small letters and without padding.
        for (bytes, text) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
            ("foobar", "mzxw6ytboi"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        assert_eq!(name("a").len(), "apiserver-".len() + 26);
    }

    #[test]
    fn leases_end_after_their_hour() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let at =
            |renewed: &str| lease("apiserver-x", "h", "host", renewed.parse().expect("a time"));
        assert!(!is_over(&at("2026-01-01T11:00:00.000001Z"), now));
        assert!(is_over(&at("2026-01-01T10:59:59Z"), now));
        let mut another = at("2026-01-01T01:00:00Z");
        another["metadata"]["labels"][LABEL] = "something-else".into();
        assert!(!is_over(&another, now), "not an API server's");
    }
}
