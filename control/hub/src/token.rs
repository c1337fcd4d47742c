//! Bootstrap tokens as Secrets of `kube-system`.
//! <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rimward_client::Client;
use rimward_tunnel::BootstrapToken;
use rimward_tunnel::token::same_secret;

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
pub(crate) const NAMESPACE: &str = "kube-system";

/// The Secret that makes a token valid; without `lifetime` for ever.
pub fn secret(token: &BootstrapToken, lifetime: Option<Duration>, now: Timestamp) -> Secret {
    let mut data = BTreeMap::from([
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("description", "lets a node join this cluster".to_owned()),
    ]);
    if let Some(lifetime) = lifetime {
        let whole =
            now.as_second().saturating_add(lifetime.as_secs().try_into().unwrap_or(i64::MAX));
        let expires = Timestamp::from_second(whole).unwrap_or(Timestamp::MAX);
        data.insert("expiration", expires.to_string());
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(BootstrapToken::secret_name(&token.id)),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.into()),
        data: Some(
            data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).collect(),
        ),
        ..Secret::default()
    }
}

/// Makes a token and stores its Secret: what `rimward token create` does.
///
/// # Errors
/// The API server's refusal.
pub async fn create(
    client: &Client,
    ca_hash: &str,
    lifetime: Option<Duration>,
) -> Result<BootstrapToken, rimward_client::Error> {
    let token = BootstrapToken::generate(ca_hash);
    client.create(&secret(&token, lifetime, Timestamp::now())).await?;
    Ok(token)
}

/// Why a token does not let anyone in. What is wrong exactly is for the control plane's log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the Secret is not of type {SECRET_TYPE}")]
    Type,
    #[error("the secret part differs")]
    Secret,
    #[error("it has expired")]
    Expired,
    #[error("its expiration is not an RFC 3339 time")]
    Expiration,
    #[error("usage-bootstrap-authentication is not \"true\"")]
    Usage,
}

/// Whether the stored Secret admits whoever shows this id and secret.
pub fn check(stored: &Secret, id: &str, shown: &str, now: Timestamp) -> Result<(), Invalid> {
    let field = |name: &str| {
        let bytes = stored.data.as_ref().and_then(|data| data.get(name));
        bytes.and_then(|b| std::str::from_utf8(&b.0).ok()).unwrap_or_default()
    };
    if stored.type_.as_deref() != Some(SECRET_TYPE) {
        return Err(Invalid::Type);
    }
    let secret = field("token-secret");
    if secret.is_empty() || field("token-id") != id || !same_secret(secret, shown) {
        return Err(Invalid::Secret);
    }
    match field("expiration") {
        "" => {}
        text => {
            let expires: Timestamp = text.parse().map_err(|_| Invalid::Expiration)?;
            if expires <= now {
                return Err(Invalid::Expired);
            }
        }
    }
    if field("usage-bootstrap-authentication") != "true" {
        return Err(Invalid::Usage);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let token = BootstrapToken::generate(&"ab".repeat(32));
        let stored = secret(&token, Some(Duration::from_secs(60)), at(1000));

        #[track_caller]
        fn verdict(
            stored: &Secret,
            id: &str,
            shown: &str,
            now: Timestamp,
            expect: Result<(), Invalid>,
        ) {
            assert_eq!(check(stored, id, shown, now), expect);
        }
        verdict(&stored, &token.id, &token.secret, at(1059), Ok(()));
        verdict(&stored, &token.id, &token.secret, at(1060), Err(Invalid::Expired));
        verdict(&stored, &token.id, "0123456789abcdef", at(1000), Err(Invalid::Secret));
        verdict(&stored, "aaaaaa", &token.secret, at(1000), Err(Invalid::Secret));
        verdict(&secret(&token, None, at(0)), &token.id, &token.secret, Timestamp::MAX, Ok(()));

        let mut other = stored.clone();
        other.type_ = Some("Opaque".into());
        verdict(&other, &token.id, &token.secret, at(1000), Err(Invalid::Type));
        let mut unusable = stored.clone();
        unusable.data.as_mut().unwrap().remove("usage-bootstrap-authentication");
        verdict(&unusable, &token.id, &token.secret, at(1000), Err(Invalid::Usage));
        let mut empty = stored;
        empty.data = None;
        verdict(&empty, &token.id, "", at(1000), Err(Invalid::Secret));
    }
}
