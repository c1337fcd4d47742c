//! A greeter: answers HTTP requests with a greeting that its operator chose.
//!
//! The greeting is the file /etc/greeter/greeting (a mounted ConfigMap), read at every request, so
//! that a changed ConfigMap shows without a restart. POD_NAME tells who answered.

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Greeter;

impl wasip2::exports::http::incoming_handler::Guest for Greeter {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (status, text) = match path.split('?').next() {
            Some("/healthz") => (200, "ok\n".to_owned()),
            Some("/version") => (200, concat!("greeter ", env!("CARGO_PKG_VERSION"), "\n").to_owned()),
            Some("/") | None => greeting(),
            Some(other) => (404, format!("greeter has no {other}\n")),
        };
        if status >= 500 {
            eprintln!("{path}: {}", text.trim_end());
        } else {
            println!("{path} {status}");
        }
        respond(out, status, text.as_bytes());
    }
}

fn greeting() -> (u16, String) {
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "an unnamed pod".into());
    match std::fs::read_to_string("/etc/greeter/greeting") {
        Ok(greeting) => (200, format!("{} from {pod}\n", greeting.trim_end())),
        Err(error) => (500, format!("/etc/greeter/greeting: {error}\n")),
    }
}

fn respond(out: ResponseOutparam, status: u16, content: &[u8]) {
    let headers = Fields::new();
    headers
        .append("content-type", b"text/plain; charset=utf-8")
        .expect("the header is well-formed");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("the status is a valid one");
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

wasip2::http::proxy::export!(Greeter);
