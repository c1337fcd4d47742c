//! Who asks: answers to a registry's challenge. <https://distribution.github.io/distribution/spec/auth/token/>

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::Deserialize;

use super::{ANSWER_BYTES_MAX, Remote, bounded, denied};
use crate::fetch::FetchError;

/// What a registry wants to see (RFC 9110, section 11.6.1).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Who gives tokens; None is a password's challenge.
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// None of a scheme that is not known.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::default());
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut challenge, mut rest) = (Self::default(), parameters);
        while let Some((name, value, after)) = parameter(rest) {
            match name {
                _ if name.eq_ignore_ascii_case("realm") => challenge.realm = Some(value),
                _ if name.eq_ignore_ascii_case("service") => challenge.service = Some(value),
                _ if name.eq_ignore_ascii_case("scope") => challenge.scope = Some(value),
                _ => {}
            }
            rest = after;
        }
        challenge.realm.is_some().then_some(challenge)
    }
}

/// The first of `name="value", name=value`, and what follows it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start_matches([' ', ',']);
    let (name, rest) = text.split_once('=')?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find(',').unwrap_or(rest.len());
        return Some((name.trim(), rest[..end].trim().to_owned(), &rest[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((name.trim(), value, &quoted[at + 1..])),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    None
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The header's value that answers a challenge.
pub(super) async fn answer(
    remote: &Remote<'_>,
    challenge: &Challenge,
) -> Result<String, FetchError> {
    let basic = remote.auth.as_ref().map(|auth| {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", auth.username, auth.password)))
    });
    let Some(realm) = &challenge.realm else {
        return basic.ok_or_else(|| FetchError::Denied(denied("no basic auth credentials")));
    };
    let own = || format!("repository:{}:pull", remote.name.reference.repository());
    let scope = challenge.scope.clone().unwrap_or_else(own);
    let mut query = vec![("scope", scope)];
    query.extend(challenge.service.iter().map(|service| ("service", service.clone())));
    let mut request = remote.client.get(realm).query(&query);
    if let Some(basic) = basic {
        request = request.header(http::header::AUTHORIZATION, basic);
    }
    let unanswered =
        |why: &str| FetchError::Refused(format!("failed to fetch a token from {realm}: {why}"));
    let response = request.send().await.map_err(|e| unanswered(&super::causes(&e)))?;
    match response.status() {
        StatusCode::OK => {}
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let why = format!("authorization failed: {realm} answers {status}");
            return Err(FetchError::Denied(denied(&why)));
        }
        status => return Err(unanswered(&status.to_string())),
    }
    let said = bounded(response, ANSWER_BYTES_MAX).await.unwrap_or_default();
    let token: Token =
        serde_json::from_slice(&said).map_err(|_| unanswered("its answer holds none"))?;
    let token = if token.token.is_empty() { token.access_token } else { token.token };
    // A header of its own making ends here, not in a panic.
    match token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Err(unanswered("its answer holds none")),
        false => Ok(format!("Bearer {token}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        #[track_caller]
        fn check(header: &str, expected: Option<[Option<&str>; 3]>) {
            let own = |text: Option<&str>| text.map(str::to_owned);
            let expected = expected.map(|[realm, service, scope]| Challenge {
                realm: own(realm),
                service: own(service),
                scope: own(scope),
            });
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
        check("Basic realm=\"x\"", Some([None; 3]));
        check("basic", Some([None; 3]));
        check("Negotiate", None);
        check("Bearer", None);
        check("Bearer realm=\"unended", None);
        check(
            "Bearer realm=\"https://a/t\",service=\"s, t\",scope=\"repository:x:pull\"",
            Some([Some("https://a/t"), Some("s, t"), Some("repository:x:pull")]),
        );
        check(
            "bearer Realm=\"a\\\"b\", other=1 , SERVICE=s",
            Some([Some("a\"b"), Some("s"), None]),
        );
    }
}
