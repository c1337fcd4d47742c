//! Tokens that Secrets of type `kubernetes.io/service-account-token` hold: without an end of their own,
//! good as long as the Secret holds them.
//! <https://kubernetes.io/docs/concepts/security/service-accounts/#get-a-token>
//!
//! That a token is used is written on its Secret once a day, so that those which nobody uses can be found.

use jiff::Timestamp;
use rimward_api::meta::str_at;
use rimward_api::{ObjectKey, UserInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Reference, Refused, lives};
use crate::decode::PatchKind;
use crate::options::WriteOptions;
use crate::record::Record;
use crate::request::Query;
use crate::rest::write::{Author, Change};
use crate::server::{ApiServer, Inner};

pub const ISSUER: &str = "kubernetes/serviceaccount";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

impl ApiServer {
    /// Signs a token for a Secret to hold: of the ServiceAccount of that namespace, name and uid.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn legacy_token(
        &self,
        account: &ObjectKey,
        uid: &str,
        secret: &str,
    ) -> Result<String, String> {
        let ObjectKey { namespace, name } = account;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            namespace: namespace.clone(),
            secret: secret.to_owned(),
            account: name.clone(),
            uid: uid.to_owned(),
            sub: subject(namespace, name),
        };
        self.inner.tokens.sign(&claims).map_err(|e| e.to_string())
    }
}

fn subject(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

/// The user of a token whose signature is good. Such a token is for this server alone.
pub(super) async fn authenticate(
    server: &Inner,
    token: &str,
    claims: &Claims,
    audiences: &[String],
) -> Result<(UserInfo, Vec<String>), Refused> {
    let Claims { namespace, account, .. } = claims;
    if claims.sub != subject(namespace, account) {
        return Err(Refused::Unknown);
    }
    let ours = &server.config.api_audiences;
    let common: Vec<String> = audiences.iter().filter(|a| ours.contains(a)).cloned().collect();
    if common.is_empty() {
        return Err(Refused::Audience(ours.clone()));
    }
    let secret = held(server, token, claims).await?;
    let reference = Reference { name: account.clone(), uid: claims.uid.clone() };
    let key = format!("{}{namespace}/{account}", server.service_accounts_prefix);
    lives(server, "ServiceAccount", key, &reference).await?;
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    if secret["metadata"]["labels"].get(LAST_USED) != Some(&json!(today)) {
        // A boxed future: a write passes all of admission, whose size would be every request's.
        Box::pin(note_use(server, claims, &today)).await;
    }
    let mut user = UserInfo::service_account(namespace, account);
    user.uid = claims.uid.clone();
    Ok((user, common))
}

/// The Secret, if it holds this token and may.
async fn held(server: &Inner, token: &str, claims: &Claims) -> Result<Value, Refused> {
    let name = format!("{}/{}", claims.namespace, claims.secret);
    let gone = || Refused::Gone("Secret", name.clone());
    let key = format!("{}{name}", server.secrets_prefix);
    let entry = server.store.get(&key, None).await?.ok_or_else(gone)?;
    let record = Record::open(&entry.value).map_err(|_| gone())?;
    if record.deleting() {
        return Err(gone());
    }
    let secret: Value = serde_json::from_slice(record.body()).map_err(|_| gone())?;
    let is = str_at(&secret, &["data", "token"]).is_some_and(|stored| {
        use base64::Engine as _;
        let stored = base64::engine::general_purpose::STANDARD.decode(stored).unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(&stored, token.as_bytes()).is_ok()
    });
    if !is {
        return Err(Refused::NotHeld(name));
    }
    match secret["metadata"]["labels"].get(INVALID_SINCE) {
        Some(_) => Err(Refused::MarkedInvalid(name)),
        None => Ok(secret),
    }
}

/// Failing to note is no reason to refuse: the next use tries again.
async fn note_use(server: &Inner, claims: &Claims, today: &str) {
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions::parse(&Query::default(), "PatchOptions", "kube-apiserver", false);
    let Ok(options) = options else { return };
    let served = server.registry().resource("", "secrets").expect("a built-in kind");
    let patch = json!({ "metadata": { "labels": { LAST_USED: today } } }).to_string().into();
    let key = ObjectKey::new(claims.namespace.clone(), claims.secret.clone());
    let author = Author { user: &user, options: &options };
    let change = Change::Patch(PatchKind::Merge, &patch);
    let noted = server.update(&served, &key, "", change, &author, &mut Vec::new()).await;
    if let Err(status) = noted {
        tracing::warn!(secret = %key, %status, "the use of its token could not be noted");
    }
}
