//! ServiceAccount tokens: signed here, and good only while what they are bound to lives.
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>
//!
//! There are two kinds: those that a TokenRequest is answered with, for an audience and a time; and
//! [`legacy`] ones, which end only with the Secret that holds them.

pub mod legacy;
pub mod tracking;

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use rimward_api::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::record::Record;
use crate::server::Inner;

/// Tokens whose signature was checked lately.
const VERIFIED_MAX: usize = 4096;
const LEEWAY_SECONDS: u64 = 60;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the token key is not a P-256 private key in PKCS #8 PEM: {0}")]
    Unusable(String),
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the token does not verify: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    #[error("the token is for other audiences: {0:?}")]
    Audience(Vec<String>),
    #[error("the token's {0} {1} is gone or another one")]
    Gone(&'static str, String),
    #[error("the token is not the one that Secret {0} holds")]
    NotHeld(String),
    #[error(
        "the token in Secret {0} has been marked invalid; use tokens from the TokenRequest API or remove the label \"kubernetes.io/legacy-token-invalid-since\" from the Secret to allow use of this token for a while"
    )]
    MarkedInvalid(String),
    #[error("invalid bearer token")]
    Unknown,
    #[error(transparent)]
    Foreign(#[from] super::oidc::Refused),
    #[error("the store failed: {0}")]
    Store(#[from] rimward_control_store::Error),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// When its holder should have read a newer one; it ends later, for those that never look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    /// The public point, for the key set.
    point: Vec<u8>,
    issuer: String,
    /// Claims of verified tokens by the token's hash: a signature need not be checked at every request.
    verified: Cache<[u8; 32], Verified>,
}

/// What a token whose signature is good says.
#[derive(Clone)]
enum Verified {
    Bound(Arc<Claims>),
    Legacy(Arc<legacy::Claims>),
}

impl Tokens {
    pub fn new(key_pem: &str, issuer: &str) -> Result<Self, KeyError> {
        let wrong = |e: &dyn std::fmt::Display| KeyError::Unusable(e.to_string());
        let signing = EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(|e| wrong(&e))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, signing.as_bytes())
            .map_err(|e| wrong(&e))?;
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = coordinates(&point);
        let verifying = DecodingKey::from_ec_components(&x, &y).map_err(|e| wrong(&e))?;
        Ok(Self {
            signing,
            verifying,
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(&point)),
            point,
            issuer: issuer.to_owned(),
            verified: Cache::new(VERIFIED_MAX),
        })
    }

    /// Signs a token; answers it with the time at which it ends.
    pub fn issue(
        &self,
        bound: Bound,
        audiences: Vec<String>,
        seconds: i64,
        now: Timestamp,
    ) -> Result<(String, Timestamp), jsonwebtoken::errors::Error> {
        let now = now.as_second();
        let claims = Claims {
            aud: audiences,
            exp: now + seconds,
            iat: now,
            nbf: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            bound,
        };
        let token = self.sign(&claims)?;
        let ends = Timestamp::from_second(claims.exp).unwrap_or(Timestamp::MAX);
        Ok((token, ends))
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        let header =
            Header { kid: Some(self.key_id.clone()), typ: None, ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    fn verify(&self, token: &str) -> Result<Verified, Refused> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        match self.verified.get(&hash) {
            Some(Verified::Bound(claims)) => {
                let now = Timestamp::now().as_second();
                if claims.exp + LEEWAY_SECONDS as i64 > now {
                    return Ok(Verified::Bound(claims));
                }
            }
            Some(legacy) => return Ok(legacy),
            None => {}
        }
        let mut validation = Validation::new(Algorithm::ES256);
        // Audiences differ from request to request, so they are compared by who asks.
        validation.validate_aud = false;
        let verified = if super::oidc::issuer_of(token).as_deref() == Some(legacy::ISSUER) {
            validation.validate_exp = false;
            validation.required_spec_claims.clear();
            validation.set_issuer(&[legacy::ISSUER]);
            let claims = jsonwebtoken::decode(token, &self.verifying, &validation)?.claims;
            Verified::Legacy(Arc::new(claims))
        } else {
            validation.leeway = LEEWAY_SECONDS;
            validation.validate_nbf = true;
            validation.set_issuer(&[&self.issuer]);
            let claims = jsonwebtoken::decode(token, &self.verifying, &validation)?.claims;
            Verified::Bound(Arc::new(claims))
        };
        self.verified.insert(hash, verified.clone());
        Ok(verified)
    }

    /// The user of a token, and the audiences that both it and the asked ones have.
    pub async fn authenticate(
        &self,
        server: &Inner,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), Refused> {
        let claims = match self.verify(token)? {
            Verified::Bound(claims) => claims,
            Verified::Legacy(claims) => {
                return legacy::authenticate(server, token, &claims, audiences).await;
            }
        };
        let common: Vec<String> =
            audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(Refused::Audience(claims.aud.clone()));
        }
        let bound = &claims.bound;
        let account = &bound.serviceaccount;
        let own = |prefix: &str, name: &str| format!("{prefix}{}/{name}", bound.namespace);
        lives(
            server,
            "ServiceAccount",
            own(&server.service_accounts_prefix, &account.name),
            account,
        )
        .await?;
        let mut user = UserInfo::service_account(&bound.namespace, &account.name);
        user.uid = account.uid.clone();
        let extra = |user: &mut UserInfo, key: &str, value: &str| {
            user.extra
                .insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        extra(&mut user, "credential-id", &format!("JTI={}", claims.jti));
        if let Some(pod) = &bound.pod {
            lives(server, "Pod", own(&server.pods_prefix, &pod.name), pod).await?;
            extra(&mut user, "pod-name", &pod.name);
            extra(&mut user, "pod-uid", &pod.uid);
        }
        if let Some(secret) = &bound.secret {
            lives(server, "Secret", own(&server.secrets_prefix, &secret.name), secret).await?;
        }
        if let Some(node) = &bound.node {
            // A token of a pod only tells where the pod runs; one of a node ends with it.
            if bound.pod.is_none() {
                lives(server, "Node", format!("{}{}", server.nodes_prefix, node.name), node)
                    .await?;
            }
            extra(&mut user, "node-name", &node.name);
            extra(&mut user, "node-uid", &node.uid);
        }
        Ok((user, common))
    }

    /// The public key set: `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let (x, y) = coordinates(&self.point);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y,
        }] })
    }
}

/// An uncompressed point: a byte 4, then 32 bytes each of x and y.
fn coordinates(point: &[u8]) -> (String, String) {
    let half = |at: usize| URL_SAFE_NO_PAD.encode(point.get(at..at + 32).unwrap_or_default());
    (half(1), half(33))
}

/// Checks that what a token is bound to is there, the same one, and not past its deletion.
async fn lives(
    server: &Inner,
    kind: &'static str,
    key: String,
    bound: &Reference,
) -> Result<(), Refused> {
    let gone = || Refused::Gone(kind, bound.name.clone());
    let entry = server.store.get(&key, None).await?.ok_or_else(gone)?;
    let record = Record::open(&entry.value).map_err(|_| gone())?;
    if record.uid() != bound.uid {
        return Err(gone());
    }
    if record.deleting() {
        // What is being deleted may finish its work until its time is over, and a little longer.
        let object: Value = serde_json::from_slice(record.body()).map_err(|_| gone())?;
        let when = object["metadata"]["deletionTimestamp"]
            .as_str()
            .and_then(|t| t.parse::<Timestamp>().ok());
        let now = Timestamp::now().as_second();
        if when.is_none_or(|w| w.as_second() + (LEEWAY_SECONDS as i64) < now) {
            return Err(gone());
        }
    }
    Ok(())
}
