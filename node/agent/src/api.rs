//! The node's own API, as `nodes/NAME/proxy` reaches it: what of the kubelet's read-only endpoints there is,
//! and the node's images. HTTP/1.1 on a tunnel stream, or on a socket in the node's directory; no port
//! listens for it.

mod images;

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming as Body};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rimward_node_pod::{LogError, LogRequest};
use rimward_tunnel::call::Incoming;
use rimward_tunnel::wire::{ObjectKind, Reply};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;

use crate::{Core, Parts, stats};

/// How long the control plane may take to send a request's head.
const HEAD_WAIT: Duration = Duration::from_secs(30);

type Answer = Response<UnsyncBoxBody<Bytes, LogError>>;

pub(crate) async fn serve(core: &Core, parts: &Parts, incoming: Incoming) {
    let Ok(stream) = incoming.begin(Reply { code: 200, ..Reply::default() }).await else { return };
    connection(core, parts, stream).await;
}

/// Where commands on the same machine reach the node, below its directory.
pub(crate) const SOCKET: &str = "api.sock";

pub(crate) async fn serve_local(core: Arc<Core>) -> std::io::Result<()> {
    let path = core.config.data_dir.join(SOCKET);
    let named =
        |e: std::io::Error| std::io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    // Of an agent before.
    let _none_is_fine = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(named)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(named)?;
    loop {
        let accepted = core.shutdown.run_until_cancelled(listener.accept()).await;
        let Some(accepted) = accepted else { return Ok(()) };
        let (stream, _) = accepted?;
        let core = core.clone();
        tokio::spawn(async move {
            let parts = core.parts.borrow().clone();
            if let Some(parts) = parts {
                connection(&core, &parts, stream).await;
            }
        });
    }
}

async fn connection(
    core: &Core,
    parts: &Parts,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let answer = |request: Request<Body>| async move {
        Ok::<_, Infallible>(answer(core, parts, request).await)
    };
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    if let Err(cause) = served.await {
        tracing::debug!(%cause, "a request to the node's API broke off");
    }
}

async fn answer(core: &Core, parts: &Parts, request: Request<Body>) -> Answer {
    if request.uri().path().starts_with(images::PREFIX) {
        return images::answer(core, parts, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    }
    let path = request.uri().path().to_owned();
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        ["healthz"] => text(StatusCode::OK, "ok"),
        ["pods"] => pods(core).await,
        ["stats", "summary"] => {
            let query = request.uri().query().unwrap_or_default();
            let brief = query.split('&').any(|pair| pair == "only_cpu_and_memory=true");
            json(&stats::summary(core, parts, brief).await)
        }
        ["metrics"] => metrics(stats::volume_metrics(parts).await),
        ["metrics", "resource"] => metrics(stats::resource_metrics(core, parts).await),
        ["metrics", "cadvisor"] => metrics(stats::container_metrics(core, parts).await),
        ["rimward", "usage"] => json(&stats::usage(core, parts).await),
        ["containerLogs", namespace, pod, container] => {
            let wanted = match log_request(container, request.uri().query().unwrap_or_default()) {
                Ok(wanted) => wanted,
                Err(why) => return text(StatusCode::BAD_REQUEST, &why),
            };
            logs(parts, namespace, pod, wanted).await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn text(code: StatusCode, text: &str) -> Answer {
    typed(code, "text/plain; charset=utf-8", text.to_owned())
}

fn typed(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    let content_type = header::HeaderValue::from_static(content_type);
    answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
    answer
}

fn json(value: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(value).expect("it has only string keys");
    typed(StatusCode::OK, "application/json", bytes)
}

/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
fn metrics(text: String) -> Answer {
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// The pods that are bound to this node, as the control plane told them: the ledger's bytes, since nothing
/// else keeps them in a form to read.
async fn pods(core: &Core) -> Answer {
    let ledger = core.desired.ledger().clone();
    let stored = tokio::task::spawn_blocking(move || ledger.objects()).await;
    let stored = match stored.expect("reading the ledger does not panic") {
        Ok(stored) => stored,
        Err(cause) => return text(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    };
    let pods = stored.iter().filter(|object| object.kind == ObjectKind::Pod);
    // What cannot be read was left out, with a warning, when it came.
    let items: Vec<&RawValue> =
        pods.filter_map(|pod| serde_json::from_slice(&pod.json).ok()).collect();
    let list = PodList { kind: "PodList", api_version: "v1", metadata: json!({}), items };
    let list = serde_json::to_vec(&list).expect("it is JSON already");
    typed(StatusCode::OK, "application/json", list)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    items: Vec<&'a RawValue>,
}

fn log_request(container: &str, query: &str) -> Result<LogRequest, String> {
    let mut wanted = LogRequest { container: container.to_owned(), ..LogRequest::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || {
            value.parse::<u64>().map_err(|_| format!("{name} must be a number, it is {value:?}"))
        };
        let flag = !matches!(value, "false" | "0");
        match name {
            "follow" => wanted.follow = flag,
            "previous" => wanted.previous = flag,
            "timestamps" => wanted.timestamps = flag,
            "tailLines" => wanted.tail_lines = Some(number()?),
            "limitBytes" => wanted.limit_bytes = Some(number()?),
            "sinceSeconds" => wanted.since = Some(Duration::from_secs(number()?)),
            _ => {}
        }
    }
    Ok(wanted)
}

async fn logs(parts: &Parts, namespace: &str, pod: &str, wanted: LogRequest) -> Answer {
    match parts.pods.logs(namespace, pod, "", wanted).await {
        Ok(lines) => {
            let body = StreamBody::new(lines.map_ok(Frame::data).boxed());
            let mut answer = Response::new(body.boxed_unsync());
            let plain = header::HeaderValue::from_static("text/plain");
            answer.headers_mut().insert(header::CONTENT_TYPE, plain);
            answer
        }
        Err(LogError::NotFound(why)) => text(StatusCode::NOT_FOUND, &why),
        Err(LogError::BadRequest(why)) => text(StatusCode::BAD_REQUEST, &why),
        Err(LogError::Io(why)) => text(StatusCode::INTERNAL_SERVER_ERROR, &why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options() {
        let wanted = log_request("c", "follow=true&tailLines=5&timestamps=0").unwrap();
        let expected = LogRequest {
            container: "c".into(),
            follow: true,
            tail_lines: Some(5),
            ..LogRequest::default()
        };
        assert_eq!(wanted, expected);
        assert_eq!(
            log_request("c", "tailLines=x").unwrap_err(),
            "tailLines must be a number, it is \"x\""
        );
    }
}
