//! OIDC: tokens that other issuers signed, whose keys are read from the issuer.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>
//!
//! Keys are fetched when first needed, kept, and read again when a token names one that is not known. An
//! issuer that cannot be reached lets nobody in.

mod fetch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::RwLock;
use rimward_api::UserInfo;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use fetch::FetchError;
use fetch::Fetcher;

/// Between two looks at an issuer's keys for the sake of unknown ones.
const REFETCH_MIN: Duration = Duration::from_secs(10);
const LEEWAY_SECONDS: u64 = 60;
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

/// How tokens of one issuer become users: `jwt` of an AuthenticationConfiguration, without expressions.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authenticator {
    pub issuer: IssuerConfig,
    #[serde(default)]
    pub claim_validation_rules: Vec<RequiredClaim>,
    pub claim_mappings: Mappings,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerConfig {
    /// `iss` of its tokens: an HTTPS URL.
    pub url: String,
    /// Where its configuration is, when not below the URL.
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    /// PEM; without it the machine's authorities are trusted.
    #[serde(default)]
    pub certificate_authority: Option<String>,
    pub audiences: Vec<String>,
    #[serde(default)]
    pub audience_match_policy: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequiredClaim {
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    pub username: Prefixed,
    #[serde(default)]
    pub groups: Option<Prefixed>,
    #[serde(default)]
    pub uid: Option<Claim>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prefixed {
    pub claim: String,
    pub prefix: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    pub claim: String,
}

/// An AuthenticationConfiguration file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Authenticator>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the authentication configuration is not understood: {0}")]
    Unreadable(#[from] serde_saphyr::Error),
    #[error(
        "the authentication configuration must be an AuthenticationConfiguration of apiserver.config.k8s.io/v1 (or v1beta1), this is a {kind:?} of {version:?}"
    )]
    OtherKind { kind: String, version: String },
    #[error("issuer {url:?}: {what}")]
    Issuer { url: String, what: String },
}

/// Reads an AuthenticationConfiguration. Expressions are not supported, and refused.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Authenticator>, ConfigError> {
    let file: File = serde_saphyr::from_str(text)?;
    let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
    if file.kind != "AuthenticationConfiguration" || !versions.contains(&file.api_version.as_str())
    {
        return Err(ConfigError::OtherKind { kind: file.kind, version: file.api_version });
    }
    Ok(file.jwt)
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("oidc: verify token: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    #[error("oidc: the token is signed with a key that its issuer does not have")]
    UnknownKey,
    #[error("oidc: algorithm {0:?} is not supported")]
    Algorithm(Algorithm),
    #[error("oidc: {0}")]
    Claims(String),
    #[error("oidc: the issuer's keys cannot be read: {0}")]
    Fetch(#[from] FetchError),
}

/// One issuer at work.
pub struct Issuer {
    config: Authenticator,
    fetcher: Fetcher,
    keys: RwLock<Option<(Arc<JwkSet>, Instant)>>,
    /// One look at the issuer at a time.
    looking: tokio::sync::Mutex<()>,
}

impl Issuer {
    /// # Errors
    /// The URL, the audiences or the certificates are unusable.
    pub fn new(config: Authenticator) -> Result<Self, ConfigError> {
        let url = config.issuer.url.clone();
        let wrong = |what: &str| ConfigError::Issuer { url: url.clone(), what: what.to_owned() };
        if !url.starts_with("https://") {
            return Err(wrong("its URL must be https"));
        }
        if config.issuer.audiences.is_empty() {
            return Err(wrong("it needs at least one audience"));
        }
        if config.claim_mappings.username.claim.is_empty() {
            return Err(wrong("claimMappings.username.claim is missing"));
        }
        let fetcher = Fetcher::new(config.issuer.certificate_authority.as_deref())
            .map_err(|e| wrong(&e.to_string()))?;
        Ok(Self {
            config,
            fetcher,
            keys: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    pub fn url(&self) -> &str {
        &self.config.issuer.url
    }

    /// The user of a token of this issuer.
    pub async fn authenticate(&self, token: &str) -> Result<UserInfo, Refused> {
        let header = jsonwebtoken::decode_header(token)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Refused::Algorithm(header.alg));
        }
        let key = self.key(header.kid.as_deref()).await?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[self.url()]);
        validation.set_audience(&self.config.issuer.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims: Map<String, Value> = jsonwebtoken::decode(token, &key, &validation)?.claims;
        user(&self.config, &claims).map_err(Refused::Claims)
    }

    async fn key(&self, id: Option<&str>) -> Result<DecodingKey, Refused> {
        if let Some(key) = self.known(id)? {
            return Ok(key);
        }
        let _one = self.looking.lock().await;
        if let Some(key) = self.known(id)? {
            return Ok(key);
        }
        let lately = self.keys.read().as_ref().is_some_and(|(_, at)| at.elapsed() < REFETCH_MIN);
        if lately {
            return Err(Refused::UnknownKey);
        }
        let issuer = &self.config.issuer;
        let own = format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
        let set = self.fetcher.keys(issuer.discovery_url.as_deref().unwrap_or(&own), &issuer.url);
        *self.keys.write() = Some((Arc::new(set.await?), Instant::now()));
        self.known(id)?.ok_or(Refused::UnknownKey)
    }

    fn known(&self, id: Option<&str>) -> Result<Option<DecodingKey>, Refused> {
        let keys = self.keys.read();
        let Some((set, _)) = &*keys else { return Ok(None) };
        let found = match id {
            Some(id) => set.find(id),
            None => set.keys.first().filter(|_| set.keys.len() == 1),
        };
        Ok(found.map(DecodingKey::from_jwk).transpose()?)
    }
}

/// The user that verified claims name. Pure.
fn user(config: &Authenticator, claims: &Map<String, Value>) -> Result<UserInfo, String> {
    for rule in &config.claim_validation_rules {
        let found = claims.get(&rule.claim).and_then(Value::as_str);
        if found != Some(rule.required_value.as_str()) {
            return Err(format!("required claim {} is not {:?}", rule.claim, rule.required_value));
        }
    }
    let mapping = &config.claim_mappings.username;
    let name = claims.get(&mapping.claim).and_then(Value::as_str).filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| format!("claim {:?} is missing", mapping.claim))?;
    if mapping.claim == "email" && claims.get("email_verified").is_some_and(|v| v != true) {
        return Err("the email address is not verified".to_owned());
    }
    let mut groups = Vec::new();
    if let Some(mapping) = &config.claim_mappings.groups {
        match claims.get(&mapping.claim) {
            None | Some(Value::Null) => {}
            Some(Value::String(one)) => groups.push(format!("{}{one}", mapping.prefix)),
            Some(Value::Array(list)) => {
                for group in list {
                    let group = group.as_str().ok_or("a group is not a string")?;
                    groups.push(format!("{}{group}", mapping.prefix));
                }
            }
            Some(_) => return Err(format!("claim {:?} is no list of groups", mapping.claim)),
        }
    }
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut user = UserInfo::authenticated(format!("{}{name}", mapping.prefix), &groups);
    if let Some(uid) = &config.claim_mappings.uid {
        let found = claims.get(&uid.claim).and_then(Value::as_str);
        user.uid = found.ok_or_else(|| format!("claim {:?} is missing", uid.claim))?.to_owned();
    }
    if let Some(id) = claims.get("jti").and_then(Value::as_str) {
        let key = "authentication.kubernetes.io/credential-id".to_owned();
        user.extra.insert(key, vec![format!("JTI={id}")]);
    }
    Ok(user)
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
    use serde_json::json;

    const FILE: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://issuer.example
    audiences: [rimward]
  claimValidationRules:
  - {claim: hd, requiredValue: example.com}
  claimMappings:
    username: {claim: email, prefix: "oidc:"}
    groups: {claim: groups, prefix: "oidc:"}
"#;

    #[test]
    fn users() {
        let config = parse(FILE).expect("reads").remove(0);
        let check = |claims: Value, expected: Result<(&str, &[&str]), &str>| {
            let claims = claims.as_object().cloned().expect("an object");
            let found = user(&config, &claims);
            match (found, expected) {
                (Ok(user), Ok((name, groups))) => {
                    assert_eq!(
                        (user.name.as_str(), user.groups),
                        (name, groups.iter().map(|g| (*g).to_owned()).collect())
                    );
                }
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        };
        check(
            json!({ "hd": "example.com", "email": "a@x", "groups": ["g"] }),
            Ok(("oidc:a@x", &["oidc:g", "system:authenticated"])),
        );
        check(
            json!({ "hd": "example.com", "email": "a@x" }),
            Ok(("oidc:a@x", &["system:authenticated"])),
        );
        check(json!({ "hd": "other", "email": "a@x" }), Err("required claim hd"));
        check(json!({ "hd": "example.com" }), Err("claim \"email\" is missing"));
        check(
            json!({ "hd": "example.com", "email": "a@x", "email_verified": false }),
            Err("not verified"),
        );
        check(json!({ "hd": "example.com", "email": "a@x", "groups": [1] }), Err("not a string"));
    }

    #[test]
    fn what_is_no_configuration() {
        assert!(parse("kind: x").is_err());
        assert!(parse(&FILE.replace("claim: email", "expression: claims.email")).is_err());
        let plain = parse(&FILE.replace("https:", "http:")).expect("reads").remove(0);
        assert!(Issuer::new(plain).is_err());
    }
}
