//! `wasi:http` handlers: listeners, and one fresh instance a request.
//!
//! A request's guest is polled inside its connection's task, first for the response's head, then
//! each time more of the body is wanted: no task and no channel wake-up of its own, a client that
//! reads slowly slows its guest, and one that goes away drops it. What a guest still does after its
//! last byte goes on in the background, for a while.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime::{Engine, PoolConcurrencyLimitError};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p3};

use super::cpu::{Metered, Ticker};
use super::guest::{Container, over_limit};
use super::program::Program;
use super::slots::{Slot, Turns};
use crate::address::unprivileged_port;

const BACKLOG: u32 = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// From the request's head to the response's.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(300);
/// For what a guest does after its response.
const AFTER_TIMEOUT: Duration = Duration::from_secs(60);
/// For a component's start function.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between tries when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const DEFAULT_PORT: u16 = 8080;

/// Takes a reason and a message.
type Notice = Box<dyn Fn(&Container, &str, String) + Send + Sync>;

/// What all connections of one container share.
pub(crate) struct Handler {
    pub container: Arc<Container>,
    pub program: Arc<Program>,
    pub engine: Engine,
    pub ticker: Arc<Ticker>,
    pub turns: Turns,
    /// Tells the agent of a request that was refused for memory.
    pub notice: Notice,
}

/// Binds every port before anything runs; an error names the address.
pub(crate) fn bind(container: &Container, ports: &[u16]) -> Result<Vec<TcpListener>, String> {
    let ports = if ports.is_empty() { &[DEFAULT_PORT] } else { ports };
    let mut unique = ports.to_vec();
    unique.sort_unstable();
    unique.dedup();
    unique.into_iter().map(|port| bind_one(container, port)).collect()
}

fn bind_one(container: &Container, port: u16) -> Result<TcpListener, String> {
    let addresses = &container.addresses;
    let ip = addresses.of_servers();
    let listen = |port: u16| -> std::io::Result<TcpListener> {
        let address = SocketAddr::new(ip, port);
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    // The other side of the rule is in `address`: who connects goes there too. It is a rule of the mode, not
    // of what this process could bind, so that everybody on the node agrees.
    let bound = listen(unprivileged_port(port, addresses.first_free_port));
    bound.map_err(|error| format!("cannot listen on {ip}:{port}: {error}"))
}

impl Handler {
    /// Makes one instance and drops it: a component that cannot start says so now, not per request.
    pub async fn probe(&self) -> wasmtime::Result<()> {
        let (container, program, engine) =
            (self.container.clone(), self.program.clone(), self.engine.clone());
        let instantiate = async move {
            let mut store = container.store(&engine)?;
            match &*program {
                Program::Handler(program) => program.instantiate_async(&mut store).await.map(drop),
                Program::HandlerP3(program) => {
                    program.instantiate_async(&mut store).await.map(drop)
                }
                _ => unreachable!("only handlers are served"),
            }
        };
        let instantiate =
            Metered::new(instantiate, self.container.cpu.clone(), self.ticker.clone());
        match tokio::time::timeout(PROBE_TIMEOUT, instantiate).await {
            Ok(result) => result,
            Err(_) => Err(wasmtime::Error::msg("its start function does not return")),
        }
    }

    /// Serves until `stop`, then finishes what was begun, until `kill`.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<TcpListener>,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        let tracker = TaskTracker::new();
        for listener in listeners {
            let (this, stop, kill, connections) =
                (self.clone(), stop.clone(), kill.clone(), tracker.clone());
            tracker.spawn(async move { this.accept(listener, connections, stop, kill).await });
        }
        tracker.close();
        tracker.wait().await;
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        connections: TaskTracker,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(self.clone().connection(stream, stop.clone(), kill.clone()));
                }
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                    ) =>
                {
                    tracing::warn!("{}: cannot accept a connection: {error}", self.container.id);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // A client that was gone before it was greeted.
                Err(_) => {}
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .pipeline_flush(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HEADER_TIMEOUT)
            .max_concurrent_streams(256);
        let service = service_fn(move |request| {
            let this = self.clone();
            async move { Ok::<_, Infallible>(this.request(request).await) }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                () = kill.cancelled() => return,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                // Errors are the client's: resets, bad requests.
                _ = connection.as_mut() => return,
            }
        }
    }

    async fn request(self: Arc<Self>, request: Request<Incoming>) -> Response<Reply> {
        let Some(slot) = self.turns.soon().await else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "no instance is free\n");
        };
        let head_only = request.method() == Method::HEAD;
        let (cpu, ticker) = (self.container.cpu.clone(), self.ticker.clone());
        let (sender, receiver) = oneshot::channel();
        let guest = Metered::new(self.clone().call(request, sender, slot), cpu, ticker);
        match (Answer { guest: Some(guest), receiver, timer: None }).await {
            Ok((response, rest)) => {
                response.map(|body| Reply::guest(body, rest, head_only, self.container.clone()))
            }
            Err(failure) => self.failed(failure),
        }
    }

    /// One instance's life: its store is dropped, and its memory given back, when this ends.
    async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        answer: oneshot::Sender<Head>,
        _slot: Slot,
    ) -> wasmtime::Result<()> {
        let mut store = self.container.store(&self.engine)?;
        match &*self.program {
            Program::Handler(program) => {
                let request =
                    store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
                let out =
                    store.data_mut().http().new_response_outparam_from_callback(move |head| {
                        let _ = answer.send(head.map_err(|code| format!("{code:?}")));
                    })?;
                let proxy = program.instantiate_async(&mut store).await?;
                proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
            }
            Program::HandlerP3(program) => {
                let service = program.instantiate_async(&mut store).await?;
                let (request, processed) =
                    p3::Request::from_http(store.data_mut().http().hooks, request);
                let called = store.run_concurrent(async |accessor| -> wasmtime::Result<()> {
                    let head = match service.handle(accessor, request).await? {
                        Ok(response) => {
                            Ok(accessor.with(|store| response.into_http(store, processed))?)
                        }
                        Err(code) => Err(format!("{code:?}")),
                    };
                    let _ = answer.send(head);
                    // The body's writer is a task of the guest's that outlives the call.
                    std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    Ok(())
                });
                called.await?
            }
            _ => unreachable!("only handlers are served"),
        }
    }

    fn failed(&self, failure: Failure) -> Response<Reply> {
        let error = match failure {
            Failure::TimedOut => {
                self.container
                    .log
                    .note(&format!("rimward: no response within {} s", RESPONSE_TIMEOUT.as_secs()));
                return refuse(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the handler did not respond in time\n",
                );
            }
            Failure::Refused(code) => {
                self.container.log.note(&format!("rimward: the handler answered with {code}"));
                return refuse(StatusCode::BAD_GATEWAY, "the handler answered with an error\n");
            }
            Failure::Silent => wasmtime::Error::msg("the handler returned without a response"),
            Failure::Guest(error) => error,
        };
        // An image of many modules fills the pool with fewer instances than there are slots.
        if error.is::<PoolConcurrencyLimitError>() {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "no instance is free\n");
        }
        if let Some(over) = over_limit(&error) {
            self.container.log.note(&format!("rimward: a request failed: {over}"));
            if self.container.may_notice() {
                (self.notice)(
                    &self.container,
                    "OOMRequest",
                    format!("a request was ended: {over}"),
                );
            }
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the handler exceeded its memory limit\n",
            );
        }
        self.container
            .log
            .note(&format!("rimward: a request failed: {}", super::task::describe(&error)));
        refuse(StatusCode::INTERNAL_SERVER_ERROR, "the handler failed\n")
    }
}

/// A response, or the guest's own error code in its place.
type Head = Result<Response<WasiBody>, String>;

enum Failure {
    TimedOut,
    Refused(String),
    Silent,
    Guest(wasmtime::Error),
}

type Rest = Metered<wasmtime::Result<()>>;

/// Polls a guest until it has set its response's head. The head can only come from within a poll of
/// the guest, so the receiver is looked at, not waited on.
struct Answer {
    guest: Option<Rest>,
    receiver: oneshot::Receiver<Head>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Future for Answer {
    type Output = Result<(Response<WasiBody>, Option<Rest>), Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let guest = this.guest.as_mut().expect("it is polled until it answers");
        let ended = match Pin::new(guest).poll(cx) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        };
        match this.receiver.try_recv() {
            Ok(Ok(response)) => {
                let rest = this.guest.take().filter(|_| ended.is_none());
                // A guest that failed after its head: the body ends in an error, as it should.
                return Poll::Ready(match ended {
                    Some(Err(error)) => Err(Failure::Guest(error)),
                    _ => Ok((response, rest)),
                });
            }
            Ok(Err(code)) => return Poll::Ready(Err(Failure::Refused(code))),
            Err(_) => {}
        }
        match ended {
            Some(Ok(())) => Poll::Ready(Err(Failure::Silent)),
            Some(Err(error)) => Poll::Ready(Err(Failure::Guest(error))),
            None => {
                let timer = this
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(RESPONSE_TIMEOUT)));
                timer.as_mut().poll(cx).map(|()| Err(Failure::TimedOut))
            }
        }
    }
}

/// A response's body.
pub(crate) enum Reply {
    Text(Option<Bytes>),
    Guest(Box<Streaming>),
}

pub(crate) struct Streaming {
    body: WasiBody,
    rest: Option<Rest>,
    /// The client has, or wants, no more: the guest may go on without it.
    ended: bool,
    container: Arc<Container>,
}

fn refuse(status: StatusCode, text: &'static str) -> Response<Reply> {
    let mut response = Response::new(Reply::Text(Some(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

impl Reply {
    fn guest(
        body: WasiBody,
        rest: Option<Rest>,
        head_only: bool,
        container: Arc<Container>,
    ) -> Self {
        Self::Guest(Box::new(Streaming { body, rest, ended: head_only, container }))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Guest(streaming) => streaming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Guest(streaming) => streaming.rest.is_none() && streaming.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Guest(streaming) => streaming.body.size_hint(),
        }
    }
}

impl Streaming {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, wasmtime_wasi_http::Error>>> {
        loop {
            if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
                self.ended |= frame.is_none()
                    || frame
                        .as_ref()
                        .is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
                return Poll::Ready(frame);
            }
            let Some(rest) = &mut self.rest else { return Poll::Pending };
            match Pin::new(rest).poll(cx) {
                Poll::Ready(Ok(())) => self.rest = None,
                Poll::Ready(Err(error)) => {
                    self.rest = None;
                    self.container.log.note(&format!(
                        "rimward: a response broke off: {}",
                        super::task::describe(&error)
                    ));
                    return Poll::Ready(Some(Err(
                        wasmtime_wasi_http::Error::HttpResponseIncomplete,
                    )));
                }
                Poll::Pending => {
                    // It may have written before it had to wait.
                    let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
                    self.ended |= frame.is_none();
                    return Poll::Ready(frame);
                }
            }
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let ended = self.ended || self.body.is_end_stream();
        if let Some(rest) = self.rest.take().filter(|_| ended)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(AFTER_TIMEOUT, rest));
        }
    }
}
