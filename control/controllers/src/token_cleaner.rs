//! Bootstrap tokens go when their time is over.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error, Source};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};

pub const NAME: &str = "token-cleaner";

const TYPE: &str = "bootstrap.kubernetes.io/token";
const HOME: &str = "kube-system";

struct Cleaner {
    client: Client,
    tokens: Cache<Secret>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let source = Source::of_kind::<Secret>().with_field(format!("type={TYPE}"));
    let tokens = context.informers.filtered::<Secret>(source);
    enqueue_changes(&tokens, &keys);
    let caches = vec![synced(&tokens)];
    context.run(Arc::new(Cleaner { client: context.client.clone(), tokens }), keys, 1, caches);
}

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Keep,
    /// It is good until then.
    LookAgain(Duration),
    Delete,
}

/// Decides. A time that cannot be read is one that is over: nobody can log in with it anyway.
pub fn plan(secret: &Secret, now: Timestamp) -> Plan {
    let ends = secret.data.as_ref().and_then(|d| d.get("expiration"));
    let Some(ends) = ends.filter(|e| !e.0.is_empty()) else { return Plan::Keep };
    let ends = std::str::from_utf8(&ends.0).ok().and_then(|t| t.parse::<Timestamp>().ok());
    match ends {
        Some(ends) if ends > now => {
            let left = ends.duration_since(now);
            // Rounded up: a look a moment too early would find it good.
            Plan::LookAgain(Duration::from_secs(left.as_secs().unsigned_abs() + 1))
        }
        _ => Plan::Delete,
    }
}

#[async_trait]
impl Controller for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(token) = self.tokens.get_key(key).filter(|_| key.namespace == HOME) else {
            return Ok(Next::Change);
        };
        match plan(&token, Timestamp::now()) {
            Plan::Keep => Ok(Next::Change),
            Plan::LookAgain(after) => Ok(Next::After(after)),
            Plan::Delete => {
                let options = DeleteOptions::uid(token.metadata.uid.clone().unwrap_or_default());
                match self.client.delete::<Secret>(&key.namespace, &key.name, &options).await {
                    Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
                    _ => Ok(Next::Change),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn plans() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let check = |ends: Option<&str>, expected: Plan| {
            let data = ends.map(|e| [("expiration".to_owned(), ByteString(e.into()))].into());
            assert_eq!(plan(&Secret { data, ..Secret::default() }, now), expected, "{ends:?}");
        };
        check(None, Plan::Keep);
        check(Some("2025-12-31T23:59:59Z"), Plan::Delete);
        check(Some("2026-01-01T00:00:10Z"), Plan::LookAgain(Duration::from_secs(11)));
        check(Some("soon"), Plan::Delete);
    }
}
