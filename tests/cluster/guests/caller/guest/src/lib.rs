//! A caller: asks others on behalf of a test and answers with what they said.
//!
//! `/lookup?NAME` resolves a name, `/fetch?URL` gets a page, `/api?PATH` asks the cluster's API with the
//! pod's own token. The first line of an answer is the status or the error, the rest the body.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, IncomingResponse, OutgoingBody, OutgoingRequest,
    OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::{ErrorCode, resolve_addresses};
use wasip2::sockets::network::IpAddress;

const API: &str = "https://kubernetes.default.svc";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const ANSWER_BYTES_MAX: usize = 64 << 10;

struct Caller;

impl wasip2::exports::http::incoming_handler::Guest for Caller {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let asked = request.path_with_query().unwrap_or_default();
        let (path, argument) = asked.split_once('?').unwrap_or((&asked, ""));
        let answer = match path {
            "/lookup" => lookup(argument),
            "/fetch" => fetch(argument, None),
            "/api" => api(argument),
            _ => Ok("ready\n".to_owned()),
        };
        let text = answer.unwrap_or_else(|error| format!("error: {error}\n"));
        respond(out, text.as_bytes());
    }
}

fn lookup(name: &str) -> Result<String, String> {
    let network = instance_network();
    let stream = resolve_addresses(&network, name).map_err(|code| format!("{code:?}"))?;
    let mut lines = vec!["found".to_owned()];
    loop {
        match stream.resolve_next_address() {
            Ok(Some(IpAddress::Ipv4((a, b, c, d)))) => lines.push(format!("{a}.{b}.{c}.{d}")),
            Ok(Some(IpAddress::Ipv6(parts))) => lines.push(format!("{parts:x?}")),
            Ok(None) => return Ok(lines.join("\n") + "\n"),
            Err(ErrorCode::WouldBlock) => stream.subscribe().block(),
            Err(code) => return Err(format!("{code:?}")),
        }
    }
}

fn api(path: &str) -> Result<String, String> {
    let token = std::fs::read_to_string(TOKEN).map_err(|error| format!("{TOKEN}: {error}"))?;
    fetch(&format!("{API}{path}"), Some(token.trim()))
}

fn fetch(url: &str, token: Option<&str>) -> Result<String, String> {
    let (scheme, rest) = url.split_once("://").ok_or("not a URL")?;
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let headers = Fields::new();
    if let Some(token) = token {
        let value = format!("Bearer {token}");
        headers.append("authorization", value.as_bytes()).map_err(|error| error.to_string())?;
    }
    let request = OutgoingRequest::new(headers);
    request.set_scheme(Some(&scheme)).map_err(|()| "a bad scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "a bad authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "a bad path")?;
    let pending = outgoing_handler::handle(request, None).map_err(|code| code.to_string())?;
    loop {
        match pending.get() {
            Some(Ok(Ok(response))) => return read(&response),
            Some(Ok(Err(code))) => return Err(code.to_string()),
            Some(Err(())) => return Err("the answer was taken before".into()),
            None => pending.subscribe().block(),
        }
    }
}

fn read(response: &IncomingResponse) -> Result<String, String> {
    let body: IncomingBody = response.consume().map_err(|()| "no body")?;
    let stream = body.stream().map_err(|()| "no stream")?;
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX {
        match stream.blocking_read(16 << 10) {
            Ok(chunk) => bytes.extend(chunk),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
    Ok(format!("{}\n{}", response.status(), String::from_utf8_lossy(&bytes)))
}

fn respond(out: ResponseOutparam, content: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the stream is taken once");
    // The client may have gone; there is nobody to tell.
    for chunk in content.chunks(4096) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            break;
        }
    }
    drop(stream);
    let _client_gone_is_fine = OutgoingBody::finish(body, None);
}

wasip2::http::proxy::export!(Caller);
