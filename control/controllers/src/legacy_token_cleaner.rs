//! Tokens that were once made for ServiceAccounts by themselves, and that nobody uses: marked as no longer
//! good after a year, removed after another.
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#legacy-serviceaccount-token-cleaner>
//!
//! The API server writes on a token's Secret when it was last used, and in a ConfigMap since when it does
//! so. Only Secrets that their ServiceAccount lists were made by the cluster; others are somebody's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, DeleteOptions, Error, Patch, Source};
use rimward_control_lean::Pod;
use serde_json::json;

use crate::driver::{Context, Controller, Keys, Next, synced};
use crate::pods::{is_deleting, name, uid};

pub const NAME: &str = "legacy-service-account-token-cleaner";

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: (&str, &str) =
    ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");

const EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long a token is unused before it is marked, and marked before it goes.
const UNUSED: SignedDuration = SignedDuration::from_hours(365 * 24);

struct Cleaner {
    client: Client,
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
    pods: Cache<Pod>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let source = Source::of_kind::<Secret>().with_field(format!("type={TYPE}"));
    let secrets = context.informers.filtered::<Secret>(source);
    let accounts = context.informers.of::<ServiceAccount>();
    let pods = context.informers.of::<Pod>();
    let caches = vec![synced(&secrets), synced(&accounts), synced(&pods)];
    // One look at everything, once a day.
    keys.add(ObjectKey::new("", "all"));
    let cleaner = Cleaner { client: context.client.clone(), secrets, accounts, pods };
    context.run(Arc::new(cleaner), keys, 1, caches);
}

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Keep,
    /// As no longer good, as of today.
    Mark,
    Delete,
}

/// Decides. `used` is asked whether a pod of the namespace names the Secret.
pub fn plan(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    used: impl FnOnce() -> bool,
    now: Timestamp,
) -> Plan {
    let Ok(limit) = now.checked_sub(UNUSED) else { return Plan::Keep };
    let created = secret.metadata.creation_timestamp.as_ref().map(|t| t.0);
    if is_deleting(&secret.metadata) || created.is_none_or(|c| c >= limit) {
        return Plan::Keep;
    }
    let limit = limit.to_zoned(TimeZone::UTC).date();
    match label(secret, LAST_USED).map(str::parse::<Date>) {
        None => {}
        Some(Ok(day)) if day < limit => {}
        // What cannot be read says nothing.
        Some(_) => return Plan::Keep,
    }
    let lists = |a: &ServiceAccount| {
        let listed =
            a.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(name(&secret.metadata)));
        let said = annotation(secret, ACCOUNT_UID).unwrap_or_default();
        listed && (said.is_empty() || said == uid(&a.metadata))
    };
    if !account.is_some_and(lists) || used() {
        return Plan::Keep;
    }
    match label(secret, INVALID_SINCE).and_then(|day| day.parse::<Date>().ok()) {
        None => Plan::Mark,
        Some(day) if day < limit => Plan::Delete,
        Some(_) => Plan::Keep,
    }
}

/// Whether uses were written down for long enough. The day on which that began does not count.
pub fn tracked(config: &ConfigMap, now: Timestamp) -> bool {
    let since = config.data.as_ref().and_then(|d| d.get("since")?.parse::<Date>().ok());
    let whole = since.and_then(|day| day.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok());
    whole.is_some_and(|day| now.duration_since(day.timestamp()) >= UNUSED)
}

fn label<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

impl Cleaner {
    fn used(&self, secret: &ObjectKey) -> bool {
        let pods = self.pods.list_in(&secret.namespace);
        pods.iter().any(|(_, pod)| pod.secrets().any(|name| name == secret.name))
    }

    async fn act(&self, key: &ObjectKey, secret: &Secret, now: Timestamp) -> Result<(), Error> {
        let account =
            annotation(secret, ACCOUNT).and_then(|a| self.accounts.get(&key.namespace, a));
        match plan(secret, account.as_deref(), || self.used(key), now) {
            Plan::Keep => Ok(()),
            Plan::Mark => {
                let today = now.strftime("%Y-%m-%d").to_string();
                let uid = uid(&secret.metadata);
                let body =
                    json!({ "metadata": { "uid": uid, "labels": { INVALID_SINCE: today } } });
                let patch = Patch::merge(body);
                self.client.patch::<Secret>(&key.namespace, &key.name, "", &patch).await.map(drop)
            }
            Plan::Delete => {
                let mut options = DeleteOptions::uid(uid(&secret.metadata));
                // Not one that was used this moment.
                if let Some(preconditions) = &mut options.preconditions {
                    preconditions.resource_version = secret.metadata.resource_version.clone();
                }
                self.client.delete::<Secret>(&key.namespace, &key.name, &options).await
            }
        }
    }
}

#[async_trait]
impl Controller for Cleaner {
    async fn reconcile(&self, _: &ObjectKey) -> Result<Next, Error> {
        let now = Timestamp::now();
        match self.client.get::<ConfigMap>(TRACKING.0, TRACKING.1).await {
            Ok(config) if tracked(&config, now) => {}
            Ok(_) => return Ok(Next::After(EVERY)),
            Err(e) if e.is_not_found() => return Ok(Next::After(EVERY)),
            Err(e) => return Err(e),
        }
        for (key, secret) in self.secrets.list() {
            match self.act(&key, &secret, now).await {
                Err(e) if !e.is_not_found() && !e.is_conflict() => return Err(e),
                _ => {}
            }
        }
        Ok(Next::After(EVERY))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn plans() {
        let now = "2026-06-01T12:00:00Z".parse().expect("a time");
        let account: ServiceAccount = serde_json::from_value(json!({
            "metadata": { "name": "a", "namespace": "n", "uid": "1" }, "secrets": [{ "name": "s" }] }))
        .expect("an account");
        #[track_caller]
        fn of(now: Timestamp, account: &ServiceAccount, change: Value, used: bool) -> Plan {
            let mut meta = json!({ "name": "s", "namespace": "n", "creationTimestamp": "2024-01-01T00:00:00Z",
                "annotations": { ACCOUNT: "a", ACCOUNT_UID: "1" } });
            for (field, value) in change.as_object().expect("fields") {
                meta[field] = value.clone();
            }
            let secret = serde_json::from_value(json!({ "metadata": meta })).expect("a secret");
            plan(&secret, Some(account), || used, now)
        }
        let check = |change: Value, used: bool, expected: Plan| {
            assert_eq!(of(now, &account, change.clone(), used), expected, "{change}");
        };
        let labels = |used: &str, invalid: &str| {
            let all = [(LAST_USED, used), (INVALID_SINCE, invalid)];
            let set: serde_json::Map<String, Value> = all
                .into_iter()
                .filter(|(_, v)| !v.is_empty())
                .map(|(k, v)| (k.to_owned(), v.into()))
                .collect();
            json!({ "labels": set })
        };
        check(json!({}), false, Plan::Mark);
        check(json!({}), true, Plan::Keep);
        check(json!({ "creationTimestamp": "2025-12-01T00:00:00Z" }), false, Plan::Keep);
        check(json!({ "name": "mine" }), false, Plan::Keep);
        check(json!({ "annotations": { ACCOUNT: "a", ACCOUNT_UID: "2" } }), false, Plan::Keep);
        check(labels("2025-05-31", ""), false, Plan::Mark);
        check(labels("2025-06-01", ""), false, Plan::Keep);
        check(labels("yesterday", ""), false, Plan::Keep);
        check(labels("", "2025-05-31"), false, Plan::Delete);
        check(labels("", "2025-06-01"), false, Plan::Keep);
        check(labels("", "then"), false, Plan::Mark);
    }

    #[test]
    fn tracked_for_long_enough() {
        let now = "2026-06-01T12:00:00Z".parse().expect("a time");
        let check = |since: &str, expected: bool| {
            let config =
                serde_json::from_value(json!({ "data": { "since": since } })).expect("data");
            assert_eq!(tracked(&config, now), expected, "{since}");
        };
        check("2025-05-31", true);
        check("2025-06-01", false);
        check("once", false);
        assert!(!tracked(&ConfigMap::default(), now));
    }
}
