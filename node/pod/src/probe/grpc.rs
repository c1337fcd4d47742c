//! The gRPC health check: one call, whose two messages are small enough to write by hand.
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{Outcome, dial_text};

const SERVING: u64 = 1;
const ANSWER_BYTES: usize = 4 << 10;

pub(crate) async fn check(address: SocketAddr, shown: &str, service: &str) -> Outcome {
    match call(address, shown, service).await {
        Ok(SERVING) => Outcome::Success,
        Ok(status) => {
            Outcome::Failure(format!("service unhealthy (responded with {:?})", name(status)))
        }
        Err(why) => Outcome::Failure(why),
    }
}

fn name(status: u64) -> &'static str {
    match status {
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

async fn call(address: SocketAddr, shown: &str, service: &str) -> Result<u64, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| {
        format!("error: failed to connect service {shown:?}: {}", dial_text(shown, &e))
    })?;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| e.to_string())?;
    let request = Request::post(format!("http://{shown}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(request_frame(service)))
        .map_err(|e| e.to_string())?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let head = response.headers().clone();
        let body = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or(head);
        let code =
            trailers.get("grpc-status").and_then(|v| v.to_str().ok()).unwrap_or("0").to_owned();
        match code.as_str() {
            "0" => serving_status(&body.to_bytes())
                .ok_or_else(|| "malformed health check answer".to_owned()),
            "12" => Err(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .into(),
            ),
            code => Err(format!("rpc error: code = {code}")),
        }
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        closed = &mut connection => match exchange.await {
            Ok(answer) => Ok(answer),
            Err(why) => Err(closed.err().map_or(why, |e| e.to_string())),
        },
    }
}

/// An uncompressed frame with HealthCheckRequest{1: service}.
fn request_frame(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}

/// Field 1 of HealthCheckResponse; absent is UNKNOWN.
fn serving_status(frame: &[u8]) -> Option<u64> {
    match frame.get(5..)? {
        [] => Some(0),
        [0x08, status, ..] if *status < 0x80 => Some((*status).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&request_frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request_frame("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[0, 0]), None);
    }
}
