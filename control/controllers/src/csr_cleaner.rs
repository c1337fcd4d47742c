//! Removes CertificateSigningRequests that nobody waits for any more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};

pub const NAME: &str = "certificatesigningrequest-cleaner-controller";

/// How long a request is kept that was decided.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// How long one waits for a decision.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

struct Cleaner {
    client: Client,
    requests: Cache<CertificateSigningRequest>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let requests = context.informers.of::<CertificateSigningRequest>();
    enqueue_changes(&requests, &keys);
    let caches = vec![synced(&requests)];
    let cleaner = Cleaner { client: context.client.clone(), requests };
    context.run(Arc::new(cleaner), keys, 1, caches);
}

/// When the request goes. Pure.
pub fn ends(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref().map(|t| t.0)?;
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_deref());
    let decided: Vec<Timestamp> = conditions
        .unwrap_or_default()
        .iter()
        .filter(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed"))
        .map(|c| c.last_update_time.as_ref().map_or(created, |Time(t)| *t))
        .collect();
    match decided.into_iter().max() {
        Some(at) => at.checked_add(DECIDED).ok(),
        None => created.checked_add(PENDING).ok(),
    }
}

#[async_trait]
impl Controller for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.requests.get_key(key) else { return Ok(Next::Change) };
        let Some(ends) = ends(&request) else { return Ok(Next::Change) };
        let left = ends.duration_since(Timestamp::now());
        if left > SignedDuration::ZERO {
            return Ok(Next::After(Duration::from_secs(left.as_secs().unsigned_abs() + 1)));
        }
        let options = DeleteOptions::uid(request.metadata.uid.clone().unwrap_or_default());
        match self.client.delete::<CertificateSigningRequest>("", &key.name, &options).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
            _ => Ok(Next::Change),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn when_they_go() {
        let check = |conditions: Value, expected: &str| {
            let request = serde_json::from_value(json!({
                "metadata": { "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "request": "", "signerName": "x/y" },
                "status": { "conditions": conditions },
            }))
            .expect("a request");
            assert_eq!(ends(&request), expected.parse().ok());
        };
        check(json!([]), "2026-01-02T00:00:00Z");
        let approved = json!({ "type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T03:00:00Z" });
        check(json!([approved]), "2026-01-01T04:00:00Z");
    }
}
