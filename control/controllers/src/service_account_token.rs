//! Tokens in Secrets, the older way: a Secret of type `kubernetes.io/service-account-token` that names an
//! account is given a token of it, and goes when the account goes.
//!
//! The token has no end of its own; the API server honours it as long as the Secret holds it.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use rimward_api::{ObjectKey, Status};
use rimward_client::{Cache, Client, DeleteOptions, Error, Source};

use crate::driver::{Context, Controller, Keys, Next, synced};

pub const NAME: &str = "tokens-controller";

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Who holds the key of ServiceAccount tokens.
pub trait Signer: std::fmt::Debug + Send + Sync + 'static {
    /// A token without an end, for that Secret of the account's namespace to hold.
    ///
    /// # Errors
    /// Says why there is none.
    fn sign(&self, account: &ObjectKey, uid: &str, secret: &str) -> Result<String, String>;
}

struct Tokens {
    client: Client,
    signer: Arc<dyn Signer>,
    ca: String,
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
}

pub fn start(context: &Context) {
    let Some(signer) = context.config.token_signer.clone() else {
        tracing::warn!("no signer of tokens is configured: Secrets are not given any");
        return;
    };
    let keys = Keys::default();
    let source = Source::of_kind::<Secret>().with_field(format!("type={TYPE}"));
    let secrets = context.informers.filtered::<Secret>(source);
    let accounts = context.informers.of::<ServiceAccount>();
    crate::driver::enqueue_changes(&secrets, &keys);
    let (queue, all) = (keys.clone(), secrets.clone());
    accounts.on_change(move |change| {
        for (key, secret) in all.list_in(&change.key.namespace) {
            if account_of(&secret) == Some(change.key.name.as_str()) {
                queue.add(key);
            }
        }
    });
    let caches = vec![synced(&secrets), synced(&accounts)];
    let (client, ca) = (context.client.clone(), context.config.root_ca_pem.clone());
    let tokens = Tokens { client, signer, ca, secrets, accounts };
    context.run(Arc::new(tokens), keys, 2, caches);
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn account_of(secret: &Secret) -> Option<&str> {
    annotation(secret, ACCOUNT).filter(|name| !name.is_empty())
}

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    /// Its account is gone, or another one of that name.
    Delete,
    Fill,
}

/// Decides; touches nothing.
pub fn plan(secret: &Secret, account: Option<&ServiceAccount>, ca: &str) -> Plan {
    if secret.metadata.deletion_timestamp.is_some() || account_of(secret).is_none() {
        return Plan::Nothing;
    }
    let Some(uid) = account.and_then(|a| a.metadata.uid.as_deref()) else { return Plan::Delete };
    match annotation(secret, ACCOUNT_UID).filter(|u| !u.is_empty()) {
        Some(said) if said != uid => return Plan::Delete,
        None => return Plan::Fill,
        Some(_) => {}
    }
    let holds = |field: &str, content: Option<&[u8]>| {
        let found = secret.data.as_ref().and_then(|d| d.get(field)).map(|b| b.0.as_slice());
        found.is_some_and(|f| !f.is_empty() && content.is_none_or(|c| c == f))
    };
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let full = holds("token", None)
        && holds("namespace", Some(namespace.as_bytes()))
        && (ca.is_empty() || holds("ca.crt", Some(ca.as_bytes())));
    if full { Plan::Nothing } else { Plan::Fill }
}

impl Tokens {
    /// The token that a Secret holds already, or a new one.
    fn token(
        &self,
        secret: &Secret,
        key: &ObjectKey,
        account: &ServiceAccount,
    ) -> Result<String, Error> {
        let held = secret.data.as_ref().and_then(|d| d.get("token"));
        let of_this_account = annotation(secret, ACCOUNT_UID).is_some_and(|u| !u.is_empty());
        if let Some(ByteString(token)) = held.filter(|t| of_this_account && !t.0.is_empty()) {
            return Ok(String::from_utf8_lossy(token).into_owned());
        }
        let name = account.metadata.name.clone().unwrap_or_default();
        let uid = account.metadata.uid.as_deref().unwrap_or_default();
        let account = ObjectKey::new(key.namespace.clone(), name);
        self.signer.sign(&account, uid, &key.name).map_err(|why| {
            let status =
                Status::internal(format!("a token for Secret {key} was not signed: {why}"));
            Error::Status(Box::new(status))
        })
    }

    async fn fill(
        &self,
        secret: &Secret,
        key: &ObjectKey,
        account: &ServiceAccount,
    ) -> Result<(), Error> {
        let token = self.token(secret, key, account)?;
        let mut new = secret.clone();
        let data = new.data.get_or_insert_default();
        data.insert("token".into(), ByteString(token.into_bytes()));
        data.insert("namespace".into(), ByteString(key.namespace.clone().into_bytes()));
        if !self.ca.is_empty() {
            data.insert("ca.crt".into(), ByteString(self.ca.clone().into_bytes()));
        }
        let uid = account.metadata.uid.clone().unwrap_or_default();
        new.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
        self.client.update(&new).await.map(|_| ())
    }
}

#[async_trait]
impl Controller for Tokens {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(secret) = self.secrets.get_key(key) else { return Ok(Next::Change) };
        let account = account_of(&secret).and_then(|a| self.accounts.get(&key.namespace, a));
        match plan(&secret, account.as_deref(), &self.ca) {
            Plan::Nothing => {}
            Plan::Fill => {
                if let Some(account) = account {
                    self.fill(&secret, key, &account).await?;
                }
            }
            Plan::Delete => {
                // A cache may be behind a write to another resource: the API knows.
                let name = account_of(&secret).unwrap_or_default();
                match self.client.get::<ServiceAccount>(&key.namespace, name).await {
                    Ok(found) if plan(&secret, Some(&found), &self.ca) != Plan::Delete => {
                        self.fill(&secret, key, &found).await?;
                        return Ok(Next::Change);
                    }
                    Err(e) if !e.is_not_found() => return Err(e),
                    _ => {}
                }
                let uid = secret.metadata.uid.clone().unwrap_or_default();
                let options = DeleteOptions::uid(uid);
                match self.client.delete::<Secret>(&key.namespace, &key.name, &options).await {
                    Err(e) if !e.is_not_found() && !e.is_conflict() => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn plans() {
        let account = |uid: &str| -> ServiceAccount {
            serde_json::from_value(
                json!({ "metadata": { "name": "a", "namespace": "n", "uid": uid } }),
            )
            .expect("an account")
        };
        #[track_caller]
        fn check(secret: Value, account: Option<&ServiceAccount>, expected: Plan) {
            let secret: Secret = serde_json::from_value(secret).expect("a secret");
            assert_eq!(plan(&secret, account, "CA"), expected, "{secret:?}");
        }
        let named = |uid: &str| json!({ ACCOUNT: "a", ACCOUNT_UID: uid });
        let secret = |annotations: Value, data: Value| json!({ "metadata": { "name": "s", "namespace": "n", "annotations": annotations }, "data": data });
        let one = account("1");
        check(secret(json!({}), json!({})), Some(&one), Plan::Nothing);
        check(secret(json!({ ACCOUNT: "a" }), json!({})), Some(&one), Plan::Fill);
        check(secret(json!({ ACCOUNT: "a" }), json!({})), None, Plan::Delete);
        check(secret(named("2"), json!({})), Some(&one), Plan::Delete);
        check(secret(named("1"), json!({})), Some(&one), Plan::Fill);
        // base64 of t, n, CA
        let full = json!({ "token": "dA==", "namespace": "bg==", "ca.crt": "Q0E=" });
        check(secret(named("1"), full), Some(&one), Plan::Nothing);
        let other_ca = json!({ "token": "dA==", "namespace": "bg==", "ca.crt": "dA==" });
        check(secret(named("1"), other_ca), Some(&one), Plan::Fill);
    }
}
