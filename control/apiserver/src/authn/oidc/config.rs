//! Issuers as an operator describes them: an AuthenticationConfiguration, or the older flags.
//! <https://kubernetes.io/docs/reference/config-api/apiserver-config.v1/#apiserver-config-k8s-io-v1-AuthenticationConfiguration>

use std::collections::HashSet;
use std::str::FromStr as _;

use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::ALGORITHMS;

/// Issuers that a configuration may name.
const ISSUERS_MAX: usize = 64;

/// Who is let in beside those whom the cluster knows itself.
#[derive(Clone, Debug, Default)]
pub struct Authentication {
    pub issuers: Vec<Authenticator>,
    pub anonymous: Anonymous,
}

/// Who comes without credentials.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    /// Where they may come; everywhere when there is none.
    #[serde(default)]
    pub conditions: Vec<PathCondition>,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

impl Anonymous {
    pub fn may(&self, path: &str) -> bool {
        self.enabled
            && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathCondition {
    pub path: String,
}

/// How tokens of one issuer become users: `jwt` of an AuthenticationConfiguration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authenticator {
    pub issuer: IssuerConfig,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimRule>,
    pub claim_mappings: Mappings,
    #[serde(default)]
    pub user_validation_rules: Vec<UserRule>,
    /// The algorithms of its signatures, as JOSE names them; all that are supported when there is none.
    /// Only the flags have it.
    #[serde(skip)]
    pub signing_algorithms: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
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

/// A claim must have a value, or an expression over the claims must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserRule {
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    pub username: Mapping,
    #[serde(default)]
    pub groups: Mapping,
    #[serde(default)]
    pub uid: Mapping,
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// A claim (with a prefix where there may be one), or an expression over the claims; or nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mapping {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Extra {
    pub key: String,
    pub value_expression: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Authenticator>,
    #[serde(default)]
    anonymous: Option<Anonymous>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the authentication configuration is not understood: {0}")]
    Unreadable(#[from] serde_saphyr::Error),
    #[error(
        "the authentication configuration must be an AuthenticationConfiguration of apiserver.config.k8s.io/v1 (or v1beta1), this is a {kind:?} of {version:?}"
    )]
    OtherKind { kind: String, version: String },
    #[error("the authentication configuration names {0} issuers, {ISSUERS_MAX} are possible")]
    TooMany(usize),
    #[error("issuer {url:?}: {what}")]
    Issuer { url: String, what: String },
}

/// Reads an AuthenticationConfiguration.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse(text: &str) -> Result<Authentication, ConfigError> {
    let file: File = serde_saphyr::from_str(text)?;
    let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
    if file.kind != "AuthenticationConfiguration" || !versions.contains(&file.api_version.as_str())
    {
        return Err(ConfigError::OtherKind { kind: file.kind, version: file.api_version });
    }
    if file.jwt.len() > ISSUERS_MAX {
        return Err(ConfigError::TooMany(file.jwt.len()));
    }
    Ok(Authentication { issuers: file.jwt, anonymous: file.anonymous.unwrap_or_default() })
}

/// Refuses issuers that cannot be told apart, from each other or from this server.
///
/// # Errors
/// Names the URL that two have.
pub fn check_apart(all: &[Authenticator], own_url: &str) -> Result<(), ConfigError> {
    let mut seen = HashSet::from([own_url]);
    for issuer in all.iter().map(|a| &a.issuer) {
        let mut urls = vec![issuer.url.as_str()];
        urls.extend(issuer.discovery_url.as_deref());
        if let Some(twice) = urls.into_iter().find(|url| !seen.insert(url)) {
            let what = format!("url and discoveryURL must be its own, {twice:?} is taken already");
            return Err(ConfigError::Issuer { url: issuer.url.clone(), what });
        }
    }
    Ok(())
}

impl Authenticator {
    /// What is wrong, but for its expressions and certificates.
    pub(super) fn check(&self) -> Result<(), String> {
        self.issuer.check()?;
        for rule in &self.claim_validation_rules {
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => {
                    return Err("a claimValidationRule needs a claim or an expression".into());
                }
                ("", _) if !rule.required_value.is_empty() => {
                    return Err("claimValidationRules: requiredValue goes with a claim, not with an expression".into());
                }
                (_, "") if !rule.message.is_empty() => {
                    return Err(
                        "claimValidationRules: message goes with an expression, not with a claim"
                            .into(),
                    );
                }
                ("", _) | (_, "") => {}
                _ => {
                    return Err(
                        "claimValidationRules: claim and expression exclude each other".into()
                    );
                }
            }
        }
        let mappings = &self.claim_mappings;
        mappings.username.check("username", true)?;
        mappings.groups.check("groups", true)?;
        mappings.uid.check("uid", false)?;
        if mappings.username.is_nothing() {
            return Err("claimMappings.username needs a claim or an expression".into());
        }
        mappings.check_email(&self.claim_validation_rules)?;
        let mut keys = HashSet::new();
        for Extra { key, value_expression } in &mappings.extra {
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            let reserved = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
            if domain.is_empty() || key.to_lowercase() != *key {
                return Err(format!(
                    "claimMappings.extra: key {key:?} must be a lower-case path with a domain, like example.com/foo"
                ));
            }
            if reserved("kubernetes.io") || reserved("k8s.io") {
                return Err(format!(
                    "claimMappings.extra: key {key:?}: k8s.io, kubernetes.io and what is below them are reserved for Kubernetes"
                ));
            }
            if !keys.insert(key) {
                return Err(format!("claimMappings.extra: key {key:?} stands twice"));
            }
            if value_expression.is_empty() {
                return Err(format!("claimMappings.extra: {key:?} needs a valueExpression"));
            }
        }
        Ok(())
    }

    /// The algorithms that its signatures may have.
    pub(super) fn algorithms(&self) -> Result<Vec<Algorithm>, String> {
        if self.signing_algorithms.is_empty() {
            return Ok(ALGORITHMS.to_vec());
        }
        let named = self.signing_algorithms.iter().map(|name| {
            Algorithm::from_str(name)
                .ok()
                .filter(|a| ALGORITHMS.contains(a))
                .ok_or_else(|| format!("signing algorithm {name:?} is none of {ALGORITHMS:?}"))
        });
        named.collect()
    }
}

impl IssuerConfig {
    fn check(&self) -> Result<(), String> {
        let https = |field: &str, text: &str| {
            let url = url::Url::parse(text).map_err(|e| format!("{field} {text:?}: {e}"))?;
            let plain = url.scheme() == "https"
                && url.host_str().is_some()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none();
            match plain {
                true => Ok(()),
                false => Err(format!(
                    "{field} {text:?} must be https://, without a user, a query or a fragment"
                )),
            }
        };
        https("url", &self.url)?;
        if let Some(discovery) = &self.discovery_url {
            https("discoveryURL", discovery)?;
        }
        let mut seen = HashSet::new();
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err("audiences: at least one is needed, and none may be empty".into());
        }
        if let Some(twice) = self.audiences.iter().find(|a| !seen.insert(a.as_str())) {
            return Err(format!("audiences: {twice:?} stands twice"));
        }
        match (self.audiences.len(), self.audience_match_policy.as_deref().unwrap_or_default()) {
            (_, "MatchAny") | (1, "") => Ok(()),
            (_, other) => Err(format!(
                "audienceMatchPolicy must be MatchAny where there are several audiences, it is {other:?}"
            )),
        }
    }
}

impl Mapping {
    pub(super) fn is_nothing(&self) -> bool {
        self.claim.is_empty() && self.expression.is_empty()
    }

    fn check(&self, name: &str, may_have_prefix: bool) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("claimMappings.{name}{what}"));
        match (self.claim.is_empty(), self.expression.is_empty(), self.prefix.is_some()) {
            (false, false, _) => wrong(": claim and expression exclude each other"),
            (_, _, true) if !may_have_prefix => wrong(" has no prefix"),
            (true, false, true) => wrong(".prefix goes with a claim, not with an expression"),
            (false, true, false) if may_have_prefix => {
                wrong(".prefix is required with a claim; it may be the empty text")
            }
            _ => Ok(()),
        }
    }
}

impl Mappings {
    /// An expression that makes a name of the email address must look at whether it was verified: here, in
    /// an extra or in a validation.
    fn check_email(&self, rules: &[ClaimRule]) -> Result<(), String> {
        if !self.username.expression.contains("claims.email") {
            return Ok(());
        }
        let looks = |expression: &str| expression.contains("claims.email_verified");
        let looked = looks(&self.username.expression)
            || self.extra.iter().any(|e| looks(&e.value_expression))
            || rules.iter().any(|r| looks(&r.expression));
        match looked {
            true => Ok(()),
            false => Err("claimMappings.username: claims.email_verified must be used in it, in an extra or in a claimValidationRule when claims.email is used".into()),
        }
    }
}
