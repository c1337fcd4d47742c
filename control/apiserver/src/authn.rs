//! Authentication: who asks.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>

use http::HeaderMap;
use rimward_api::{Status, UserInfo};

use crate::server::Inner;
use crate::streams;

pub mod bootstrap_token;
pub mod certificate;
pub mod impersonation;
pub mod oidc;
pub mod tokens;

/// What is known of the asking side before its request is read.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A part of this program: its identity is given, not proved.
    InProcess(UserInfo),
    /// A connection, with the user of its verified client certificate.
    Connection(Option<UserInfo>),
}

/// The user of a request. A certificate that the connection proved comes first; a bearer token that is
/// wrong is refused. `basic` takes a token for a password too.
pub async fn authenticate(
    server: &Inner,
    peer: &Peer,
    headers: &HeaderMap,
    path: &str,
    basic: bool,
) -> Result<UserInfo, Status> {
    let anonymous = || match server.config.authentication.anonymous.may(path) {
        true => Ok(UserInfo::anonymous()),
        false => Err(Status::unauthorized()),
    };
    let certificate = match peer {
        Peer::InProcess(user) => return Ok(user.clone()),
        Peer::Connection(certificate) => certificate,
    };
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let Some(token) = bearer(headers, basic)? else { return anonymous() };
    let audiences = &server.config.api_audiences;
    self::token(server, &token, audiences).await.map(|(user, _)| user).map_err(|e| {
        tracing::debug!(error = %e, "a token was refused");
        Status::unauthorized()
    })
}

/// What a request shows as its token; None shows nothing that is known here.
fn bearer(headers: &HeaderMap, basic: bool) -> Result<Option<String>, Status> {
    let Some(value) = headers.get(http::header::AUTHORIZATION) else {
        return streams::token(headers).map_err(|why| {
            tracing::debug!(why, "a token among sub-protocols was refused");
            Status::unauthorized()
        });
    };
    let value = value.to_str().map_err(|_| Status::unauthorized())?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(token.trim().to_owned()))
        }
        // Image tools know passwords only; a token is what they send as one.
        Some((scheme, pair)) if basic && scheme.eq_ignore_ascii_case("basic") => {
            password(pair.trim()).map(Some)
        }
        _ => Ok(None),
    }
}

/// The user of a bearer token, and which of the asked audiences it is for.
pub async fn token(
    server: &Inner,
    token: &str,
    audiences: &[String],
) -> Result<(UserInfo, Vec<String>), tokens::Refused> {
    let user = match bootstrap_token::parts(token) {
        Some(parts) => bootstrap_token::authenticate(server, parts).await?,
        None => match foreign_issuer(server, token) {
            None => return server.tokens.authenticate(server, token, audiences).await,
            Some(issuer) => Some(issuer.authenticate(token).await?),
        },
    };
    let user = user.ok_or(tokens::Refused::Unknown)?;
    // They say nothing of this server's audiences, and so are for itself alone.
    let ours = |a: &&String| server.config.api_audiences.contains(a);
    let common: Vec<String> = audiences.iter().filter(ours).cloned().collect();
    match common.is_empty() {
        false => Ok((user, common)),
        true => Err(tokens::Refused::Audience(server.config.api_audiences.clone())),
    }
}

/// The configured issuer of a token, if it is not this server's own.
fn foreign_issuer<'a>(server: &'a Inner, token: &str) -> Option<&'a oidc::Issuer> {
    if server.issuers.is_empty() {
        return None;
    }
    let named = oidc::issuer_of(token)?;
    server.issuers.iter().find(|i| i.url() == named && named != server.config.issuer)
}

fn password(pair: &str) -> Result<String, Status> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(pair)
        .map_err(|_| Status::unauthorized())?;
    let text = String::from_utf8(bytes).map_err(|_| Status::unauthorized())?;
    let (_, password) = text.split_once(':').ok_or_else(Status::unauthorized)?;
    Ok(password.to_owned())
}
