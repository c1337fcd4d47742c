//! Nodes of one test: their containers have a few commands, their ports echo.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::channel::mpsc::{Receiver, Sender, channel};
use futures::stream::BoxStream;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rimward_control_apiserver::nodes::{
    Duplex, Input, LogOptions, NodeError, Nodes, Output, PodOnNode, Session, SessionOptions,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

/// `both` prints to both outputs, `cat` copies stdin, `exit N` ends so, `size` says a terminal's size,
/// `flood N` prints N MiB, `hang` never ends, `gone` is on a container that does not run.
#[derive(Default)]
pub struct Shell {
    /// Sessions that go on.
    pub running: watch::Sender<usize>,
    /// How many MiB a flood has printed.
    pub flooded: watch::Sender<usize>,
}

impl Shell {
    /// Waits until so many sessions go on.
    pub async fn until_running(&self, count: usize) {
        let mut running = self.running.subscribe();
        let wait = running.wait_for(|n| *n == count);
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("in time").unwrap();
    }
}

struct Counted(watch::Sender<usize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

async fn run(
    options: SessionOptions,
    mut input: Receiver<Input>,
    mut out: Sender<Result<Output, NodeError>>,
    flooded: watch::Sender<usize>,
) -> Option<()> {
    let words: Vec<&str> = options.command.iter().map(String::as_str).collect();
    let stdout = |text: &str| Ok(Output::Stdout(Bytes::copy_from_slice(text.as_bytes())));
    match words.as_slice() {
        [] => {
            out.send(stdout("attached\n")).await.ok()?;
            if options.stdin
                && let Some(Input::Stdin(typed)) = input.next().await
            {
                out.send(Ok(Output::Stdout(typed))).await.ok()?;
            }
            out.send(Ok(Output::Exit(0))).await.ok()
        }
        ["both"] => {
            out.send(stdout("to stdout\n")).await.ok()?;
            out.send(Ok(Output::Stderr("to stderr\n".into()))).await.ok()?;
            out.send(Ok(Output::Exit(0))).await.ok()
        }
        ["exit", code] => out.send(Ok(Output::Exit(code.parse().unwrap()))).await.ok(),
        ["cat"] => {
            while let Some(Input::Stdin(bytes)) = input.next().await {
                out.send(Ok(Output::Stdout(bytes))).await.ok()?;
            }
            out.send(Ok(Output::Exit(0))).await.ok()
        }
        ["size"] => loop {
            match input.next().await? {
                Input::Resize { width, height } => {
                    out.send(stdout(&format!("{width} columns, {height} lines\r\n"))).await.ok()?;
                    return out.send(Ok(Output::Exit(0))).await.ok();
                }
                _ => continue,
            }
        },
        ["flood", mib] => {
            for _ in 0..mib.parse::<usize>().unwrap() {
                for _ in 0..16 {
                    out.send(Ok(Output::Stdout(vec![b'x'; 64 << 10].into()))).await.ok()?;
                }
                flooded.send_modify(|n| *n += 1);
            }
            out.send(Ok(Output::Exit(0))).await.ok()
        }
        ["hang"] => {
            out.send(stdout("hanging\n")).await.ok()?;
            while input.next().await.is_some() {}
            None
        }
        _ => out.send(Ok(Output::Failed("no such command".into()))).await.ok(),
    }
}

#[async_trait]
impl Nodes for Shell {
    async fn logs(
        &self,
        node: &str,
        _namespace: &str,
        _name: &str,
        _uid: &str,
        _options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, NodeError>>, NodeError> {
        if node != "n1" {
            return Err(NodeError::NotConnected(node.to_owned()));
        }
        let lines = ["one\n", "two\n"].map(|line| Ok(Bytes::from_static(line.as_bytes())));
        Ok(futures::stream::iter(lines).boxed())
    }

    fn last_heard(&self, node: &str) -> Option<jiff::Timestamp> {
        (node == "n1").then(jiff::Timestamp::now)
    }

    async fn dial(&self, node: &str, ip: IpAddr, port: u16) -> Result<Box<dyn Duplex>, NodeError> {
        if node != "n1" {
            return Err(NodeError::NotConnected(node.to_owned()));
        }
        if port == 81 {
            return Err(NodeError::Refused(502, "connect: connection refused".into()));
        }
        Ok(web(format!("{ip}:{port}")))
    }

    async fn session(
        &self,
        pod: &PodOnNode,
        options: SessionOptions,
    ) -> Result<Session, NodeError> {
        if pod.node != "n1" {
            return Err(NodeError::NotConnected(pod.node.clone()));
        }
        if options.command == ["gone"] {
            let text = format!("container not found ({:?})", options.container);
            return Err(NodeError::Refused(500, text));
        }
        let (typing, input) = channel(1);
        let (out, output) = channel(1);
        self.running.send_modify(|n| *n += 1);
        let counted = Counted(self.running.clone());
        let flooded = self.flooded.clone();
        tokio::spawn(async move {
            let _counted = counted;
            run(options, input, out, flooded).await
        });
        let gone = |_| NodeError::Refused(500, "the command has ended".into());
        Ok(Session { input: Box::pin(typing.sink_map_err(gone)), output: output.boxed() })
    }

    async fn forward(&self, _pod: &PodOnNode, port: u16) -> Result<Box<dyn Duplex>, NodeError> {
        if port == 81 {
            return Err(NodeError::Refused(502, "connect: connection refused".into()));
        }
        let (near, far) = tokio::io::duplex(4 << 10);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            // Port 82 takes and says nothing.
            if port == 82 {
                return std::future::pending().await;
            }
            tokio::io::copy(&mut read, &mut write).await?;
            write.write_all(b"bye").await?;
            write.shutdown().await
        });
        Ok(Box::new(near))
    }

    async fn api(&self, node: &str) -> Result<Box<dyn Duplex>, NodeError> {
        match node {
            "n1" => Ok(web("the node".into())),
            node => Err(NodeError::NotConnected(node.to_owned())),
        }
    }
}

/// A web server on a byte stream: says what it was asked, redirects, links, echoes upgraded bytes.
fn web(name: String) -> Box<dyn Duplex> {
    let (near, far) = tokio::io::duplex(16 << 10);
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let name = name.clone();
            async move { Ok::<_, Infallible>(page(&name, request).await) }
        });
        let server = hyper::server::conn::http1::Builder::new();
        server.serve_connection(TokioIo::new(far), service).with_upgrades().await
    });
    Box::new(near)
}

async fn page(name: &str, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let text = match path.as_str() {
        "/redirect" => {
            let response = Response::builder().status(302).header("location", "/login?from=here");
            return response.body(Full::default()).unwrap();
        }
        "/page" => {
            let html = r#"<a href="/next">next</a><a href="near">near</a>"#;
            let response = Response::builder()
                .header("content-type", "text/html")
                .header("access-control-allow-origin", "*")
                .header("content-length", html.len());
            return response.body(Full::from(html)).unwrap();
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 4];
                io.read_exact(&mut bytes).await.unwrap();
                io.write_all(&bytes).await.unwrap();
            });
            let response = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "echo");
            return response.body(Full::default()).unwrap();
        }
        _ => {
            let header = |name: &str| {
                request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned()
            };
            format!(
                "{name} {} {} auth={} host={} uri={}",
                request.method(),
                request.uri(),
                header("authorization"),
                header("host"),
                header("x-forwarded-uri")
            )
        }
    };
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Response::new(Full::from(format!("{text} body={}", String::from_utf8_lossy(&body))))
}
