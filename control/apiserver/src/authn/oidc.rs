//! OIDC: tokens that other issuers signed, whose keys are read from the issuer.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>
//!
//! Keys are fetched when first needed, kept, and read again when a token is signed with one that is not
//! among them. An issuer that cannot be reached lets nobody in.

pub mod config;
mod fetch;
mod mapping;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::RwLock;
use rimward_api::UserInfo;
use serde_json::{Map, Value};

pub use config::{
    Anonymous, Authentication, Authenticator, ClaimRule, ConfigError, IssuerConfig, Mapping,
    Mappings, parse,
};
pub use fetch::FetchError;
use fetch::Fetcher;
use mapping::Mapper;

/// Between two looks at an issuer's keys for the sake of unknown ones.
const REFETCH_MIN: Duration = Duration::from_secs(10);
const LEEWAY_SECONDS: u64 = 300;
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
];

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("oidc: verify token: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    #[error("oidc: the token is signed with a key that its issuer does not have")]
    UnknownKey,
    #[error("oidc: algorithm {0:?} is not one of the issuer's")]
    Algorithm(Algorithm),
    #[error("oidc: {0}")]
    Claims(String),
    #[error("oidc: the issuer's keys cannot be read: {0}")]
    Fetch(Arc<FetchError>),
}

/// What was learnt of an issuer's keys.
#[derive(Default)]
struct Known {
    keys: Option<Arc<JwkSet>>,
    /// The last look that failed, or that was for the sake of a key that is not among these.
    looked: Option<Instant>,
    failure: Option<Arc<FetchError>>,
}

/// One issuer at work.
pub struct Issuer {
    config: Authenticator,
    algorithms: Vec<Algorithm>,
    mapper: Mapper,
    fetcher: Fetcher,
    known: RwLock<Known>,
    /// One look at the issuer at a time.
    looking: tokio::sync::Mutex<()>,
}

impl Issuer {
    /// # Errors
    /// Something of the configuration is unusable.
    pub fn new(config: Authenticator) -> Result<Self, ConfigError> {
        let url = config.issuer.url.clone();
        let wrong = |what: String| ConfigError::Issuer { url: url.clone(), what };
        config.check().map_err(wrong)?;
        let fetcher = Fetcher::new(config.issuer.certificate_authority.as_deref())
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            algorithms: config.algorithms().map_err(wrong)?,
            mapper: Mapper::new(&config).map_err(wrong)?,
            config,
            fetcher,
            known: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    pub fn url(&self) -> &str {
        &self.config.issuer.url
    }

    /// The user of a token of this issuer.
    pub async fn authenticate(&self, token: &str) -> Result<UserInfo, Refused> {
        let header = jsonwebtoken::decode_header(token)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(Refused::Algorithm(header.alg));
        }
        let mut validation = Validation::new(header.alg);
        // A clock may lag when a token begins, but none may make it live longer.
        validation.leeway = LEEWAY_SECONDS;
        validation.reject_tokens_expiring_in_less_than = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[self.url()]);
        validation.set_audience(&self.config.issuer.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims = self.verified(token, header.kid.as_deref(), &validation).await?;
        self.mapper.user(&claims).map_err(Refused::Claims)
    }

    /// The claims, if one of the issuer's keys signed them. A token that names no key may be of any.
    async fn verified(
        &self,
        token: &str,
        id: Option<&str>,
        validation: &Validation,
    ) -> Result<Map<String, Value>, Refused> {
        let mut keys = self.keys(None).await?;
        loop {
            let mut refused = Refused::UnknownKey;
            for key in keys.keys.iter().filter(|k| id.is_none_or(|id| has_id(k, id))) {
                let key = DecodingKey::from_jwk(key)?;
                match jsonwebtoken::decode(token, &key, validation) {
                    Ok(decoded) => return Ok(decoded.claims),
                    Err(e) => refused = e.into(),
                }
            }
            // It may have been signed by a key that is younger than the last look.
            let unsigned = match &refused {
                Refused::UnknownKey => true,
                Refused::Invalid(e) => {
                    use jsonwebtoken::errors::ErrorKind;
                    matches!(e.kind(), ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm)
                }
                _ => false,
            };
            let newer = match unsigned {
                true => self.keys(Some(&keys)).await?,
                false => return Err(refused),
            };
            if Arc::ptr_eq(&newer, &keys) {
                return Err(refused);
            }
            keys = newer;
        }
    }

    /// The issuer's keys; others than `unfit`, unless there was a look for others lately.
    async fn keys(&self, unfit: Option<&Arc<JwkSet>>) -> Result<Arc<JwkSet>, Refused> {
        if let Some(held) = self.held(unfit) {
            return held;
        }
        let _one = self.looking.lock().await;
        if let Some(held) = self.held(unfit) {
            return held;
        }
        let issuer = &self.config.issuer;
        let own = format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
        let place = issuer.discovery_url.as_deref().unwrap_or(&own);
        let found = self.fetcher.keys(place, &issuer.url).await;
        let mut known = self.known.write();
        if unfit.is_some() || found.is_err() {
            known.looked = Some(Instant::now());
        }
        match found {
            Ok(keys) => Ok(known.keys.insert(Arc::new(keys)).clone()),
            Err(e) => Err(Refused::Fetch(known.failure.insert(Arc::new(e)).clone())),
        }
    }

    /// What is to be answered without another look.
    fn held(&self, unfit: Option<&Arc<JwkSet>>) -> Option<Result<Arc<JwkSet>, Refused>> {
        let known = self.known.read();
        let lately = known.looked.is_some_and(|at| at.elapsed() < REFETCH_MIN);
        match &known.keys {
            Some(keys) => {
                let fits = unfit.is_none_or(|unfit| !Arc::ptr_eq(unfit, keys));
                (fits || lately).then(|| Ok(keys.clone()))
            }
            None => known.failure.clone().filter(|_| lately).map(|e| Err(Refused::Fetch(e))),
        }
    }
}

fn has_id(key: &Jwk, id: &str) -> bool {
    key.common.key_id.as_deref() == Some(id)
}

/// The issuer that an unverified token names: whose rules to ask.
pub fn issuer_of(token: &str) -> Option<String> {
    use base64::Engine as _;
    let claims = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions: [{path: /livez}]
jwt:
- issuer:
    url: https://issuer.example
    audiences: [rimward]
  claimMappings:
    username: {claim: sub, prefix: "oidc:"}
"#;

    #[test]
    fn configurations() {
        let read = |text: &str| {
            let config = parse(text)?;
            config::check_apart(&config.issuers, "https://kubernetes.default.svc")?;
            config.issuers.into_iter().map(Issuer::new).collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(read(FILE).map(|all| all.len()).expect("is good"), 1);
        let anonymous = parse(FILE).expect("is good").anonymous;
        assert!(anonymous.may("/livez") && !anonymous.may("/version"));
        let check = |from: &str, to: &str, part: &str| {
            let wrong = read(&FILE.replace(from, to)).err().expect(to).to_string();
            assert!(wrong.contains(part), "{wrong}");
        };
        check("AuthenticationConfiguration", "Other", "this is a \"Other\"");
        check("https://issuer.example", "http://issuer.example", "must be https");
        check("https://issuer.example", "https://kubernetes.default.svc", "taken already");
        check("[rimward]", "[]", "at least one");
        check("[rimward]", "[a, b]", "MatchAny");
        check("claim: sub", "claims: sub", "not understood");
    }
}
