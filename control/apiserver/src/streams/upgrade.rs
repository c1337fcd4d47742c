//! What a client asked its connection to become, and the answers to that.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::body::{self, Response};
use crate::error;
use crate::request::Call;

pub const PROTOCOL_VERSION: &str = "x-stream-protocol-version";
const ACCEPTED_VERSIONS: &str = "x-accepted-stream-protocol-versions";
/// A sub-protocol that is none: a browser cannot set a header, so it names its token like this.
const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// What a connection is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    WebSocket {
        /// What the handshake's answer is made of.
        key: String,
        /// Sub-protocols, in the client's order.
        protocols: Vec<String>,
    },
    Spdy {
        /// Stream protocols, in the client's order.
        protocols: Vec<String>,
    },
}

/// Reads what a client asked for; None is an ordinary request.
///
/// # Errors
/// The answer to one that asked for it wrongly.
pub fn asked(call: &Call) -> Result<Option<Asked>, Box<Response>> {
    if call.upgrade.lock().is_none() {
        return Ok(None);
    }
    of_headers(&call.headers)
}

/// The bearer token that a WebSocket's client names among its sub-protocols, as browsers must. None without one;
/// an error when it is damaged, or when it is the only sub-protocol: a server may not choose it.
pub fn token(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    use base64::Engine as _;
    let to = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !is_upgrade(headers) || !to.eq_ignore_ascii_case("websocket") {
        return Ok(None);
    }
    let (mut token, mut others) = (None, false);
    for protocol in listed(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str()) {
        match protocol.strip_prefix(TOKEN) {
            Some(_) if token.is_some() => {
                return Err("multiple base64.bearer.authorization tokens specified");
            }
            Some(text) => token = Some(text),
            None => others = true,
        }
    }
    let Some(token) = token else { return Ok(None) };
    if !others {
        return Err("missing additional subprotocol");
    }
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token);
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.map(Some).ok_or("invalid base64.bearer.authorization token encoding")
}

/// A `Connection` header that lists `upgrade`.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    listed(headers, header::CONNECTION.as_str()).any(|w| w.eq_ignore_ascii_case("upgrade"))
}

fn of_headers(headers: &HeaderMap) -> Result<Option<Asked>, Box<Response>> {
    if !is_upgrade(headers) {
        return Ok(None);
    }
    let to = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if to.eq_ignore_ascii_case("websocket") {
        return web_socket(headers).map(Some);
    }
    if to.to_ascii_lowercase().contains("spdy/3.1") {
        let protocols = listed(headers, PROTOCOL_VERSION).map(str::to_owned).collect();
        return Ok(Some(Asked::Spdy { protocols }));
    }
    Err(bad("unable to upgrade: the connection can become a WebSocket or SPDY/3.1"))
}

/// RFC 6455, section 4.2.1.
fn web_socket(headers: &HeaderMap) -> Result<Asked, Box<Response>> {
    if listed(headers, header::SEC_WEBSOCKET_VERSION.as_str()).all(|v| v != "13") {
        let mut response = *bad("unable to upgrade: Sec-WebSocket-Version must be 13");
        let version = HeaderValue::from_static("13");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
        return Err(Box::new(response));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|v| v.to_str().ok());
    let key = key.filter(|key| key.len() == 24);
    let key =
        key.ok_or_else(|| bad("unable to upgrade: Sec-WebSocket-Key is missing or damaged"))?;
    let protocols = listed(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
    let protocols = protocols.filter(|protocol| !protocol.starts_with(TOKEN));
    Ok(Asked::WebSocket { key: key.to_owned(), protocols: protocols.map(str::to_owned).collect() })
}

/// The words of a header that is a list, over all lines of it.
fn listed<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn bad(text: &str) -> Box<Response> {
    Box::new(error::text(400, format!("{text}\n")))
}

/// The first of the client's protocols that is ours too; "" when the client names none and may.
///
/// # Errors
/// The answer to a client with none of ours.
pub fn negotiate(
    client: &[String],
    ours: &[&'static str],
    unnamed: bool,
) -> Result<&'static str, Box<Response>> {
    if client.is_empty() && unnamed {
        return Ok("");
    }
    let both = client.iter().find_map(|c| ours.iter().find(|o| *o == c));
    both.copied().ok_or_else(|| {
        let mut response = error::text(
            403,
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]\n",
                client.join(" "),
                ours.join(" ")
            ),
        );
        for protocol in ours {
            let value = HeaderValue::from_static(protocol);
            response.headers_mut().append(ACCEPTED_VERSIONS, value);
        }
        Box::new(response)
    })
}

fn switching(to: &'static str) -> Response {
    let mut response = http::Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

pub fn to_spdy(protocol: &'static str) -> Response {
    let mut response = switching("SPDY/3.1");
    if !protocol.is_empty() {
        response.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    }
    response
}

/// A `protocol` that no header can hold is left out.
pub fn to_web_socket(key: &str, protocol: &str) -> Response {
    let mut response = switching("websocket");
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let accept = HeaderValue::try_from(accept).expect("base64 is a header's value");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty()
        && let Ok(protocol) = HeaderValue::from_str(protocol)
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[(&str, &str)]) -> Result<Option<Asked>, u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        of_headers(&headers).map_err(|response| response.status().as_u16())
    }

    #[test]
    fn what_clients_ask() {
        assert_eq!(read(&[("upgrade", "websocket")]), Ok(None));
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let socket = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", key),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ];
        let protocols = ["v5.channel.k8s.io", "v4.channel.k8s.io"].map(str::to_owned).to_vec();
        let asked = Asked::WebSocket { key: key.into(), protocols };
        assert_eq!(read(&socket), Ok(Some(asked)));
        assert_eq!(read(&socket[..3]), Err(400));
        assert_eq!(read(&socket[..2]), Err(400));
        let spdy = [
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            (PROTOCOL_VERSION, "v4.channel.k8s.io"),
            (PROTOCOL_VERSION, "channel.k8s.io"),
        ];
        let protocols = ["v4.channel.k8s.io", "channel.k8s.io"].map(str::to_owned).to_vec();
        assert_eq!(read(&spdy), Ok(Some(Asked::Spdy { protocols })));
        assert_eq!(read(&[("connection", "upgrade"), ("upgrade", "h2c")]), Err(400));
    }

    #[test]
    fn tokens_of_browsers() {
        let check = |protocols: &str, expected: Result<Option<&str>, ()>| {
            let mut headers = HeaderMap::new();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-protocol", protocols.parse().unwrap());
            let seen = token(&headers).map_err(drop);
            assert_eq!(seen, expected.map(|token| token.map(str::to_owned)), "{protocols}");
        };
        check("v5.channel.k8s.io", Ok(None));
        check(&format!("{TOKEN}YS5iLmM, v5.channel.k8s.io"), Ok(Some("a.b.c")));
        check(&format!("{TOKEN}YS5iLmM"), Err(()));
        check(&format!("{TOKEN}YS5iLmM, {TOKEN}YS5iLmM, x"), Err(()));
        check(&format!("{TOKEN}#, x"), Err(()));
        assert_eq!(token(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn the_handshake_is_that_of_the_rfc() {
        let response = to_web_socket("dGhlIHNhbXBsZSBub25jZQ==", "v5.channel.k8s.io");
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    }

    #[test]
    fn protocols_that_both_have() {
        let client = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let chosen = |words: &[&str], unnamed| {
            negotiate(&client(words), &["v4", "v3"], unnamed).map_err(|r| r.status().as_u16())
        };
        assert_eq!(chosen(&["v5", "v3", "v4"], false), Ok("v3"));
        assert_eq!(chosen(&["v9"], true), Err(403));
        assert_eq!(chosen(&[], true), Ok(""));
        assert_eq!(chosen(&[], false), Err(403));
        let refused = negotiate(&[], &["v4", "v3"], false).unwrap_err();
        assert_eq!(refused.headers().get_all(ACCEPTED_VERSIONS).iter().count(), 2);
    }
}
