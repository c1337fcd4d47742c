//! Authentication: who asks.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>

use http::HeaderMap;
use rimward_api::{Status, UserInfo};

use crate::server::Inner;

pub mod certificate;
pub mod impersonation;
pub mod tokens;

/// What is known of the asking side before its request is read.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A part of this program: its identity is given, not proved.
    InProcess(UserInfo),
    /// A connection, with the user of its verified client certificate.
    Connection(Option<UserInfo>),
}

/// The user of a request. A bearer token that is wrong is refused, also when a certificate came along.
pub async fn authenticate(
    server: &Inner,
    peer: &Peer,
    headers: &HeaderMap,
    basic: bool,
) -> Result<UserInfo, Status> {
    let certificate = match peer {
        Peer::InProcess(user) => return Ok(user.clone()),
        Peer::Connection(certificate) => certificate,
    };
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let Some(value) = headers.get(http::header::AUTHORIZATION) else {
        return Ok(UserInfo::anonymous());
    };
    let value = value.to_str().map_err(|_| Status::unauthorized())?;
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim().to_owned(),
        // Image tools know passwords only; a token is what they send as one.
        Some((scheme, pair)) if basic && scheme.eq_ignore_ascii_case("basic") => {
            password(pair.trim())?
        }
        _ => return Ok(UserInfo::anonymous()),
    };
    let audiences = &server.config.api_audiences;
    server.tokens.authenticate(server, &token, audiences).await.map(|(user, _)| user).map_err(|e| {
        tracing::debug!(error = %e, "a token was refused");
        Status::unauthorized()
    })
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
