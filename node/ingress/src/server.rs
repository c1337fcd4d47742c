//! The listener, and the task that keeps the routes in step with the objects.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use rimward_client::{Cache, Deltas};
use rimward_node_network::{Backends, Dial};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::proxy::Proxy;
use crate::routes::Routes;

/// A client that has not sent its headers by then is let go.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);

pub struct Config {
    pub ingresses: Cache<Ingress>,
    pub services: Cache<Service>,
    pub backends: Backends,
    pub dial: Arc<dyn Dial>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve Ingress on {address}: {source}; is another server there? Choose another port with --ingress-http-port"
)]
pub struct BindError {
    pub address: SocketAddr,
    source: std::io::Error,
}

/// A bound listener, not yet served.
pub struct Server {
    listener: TcpListener,
    ingresses: Cache<Ingress>,
    proxy: Arc<Proxy>,
}

impl Server {
    /// Binds the listener; port 0 picks a free one.
    ///
    /// # Errors
    /// Names the address, and the option that changes it.
    pub async fn bind(address: SocketAddr, config: Config) -> Result<Self, BindError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
        let proxy = Arc::new(Proxy::new(config.services, config.backends, config.dial));
        Ok(Self { listener, ingresses: config.ingresses, proxy })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until shutdown; requests under way then get what is left of the process's life.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, ingresses, proxy } = self;
        let changes = ingresses.subscribe();
        // What is known is routed from the first request on.
        proxy.routes.store(Arc::new(Routes::new(&ingresses.list())));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow(&proxy, &ingresses, changes) => {}
            () = accept(listener, &proxy) => {}
        }
    }
}

async fn follow(proxy: &Proxy, ingresses: &Cache<Ingress>, mut deltas: Deltas) {
    while deltas.next().await.is_some() {
        // However many changed at once, the table is built once.
        while deltas.try_next().is_some() {}
        proxy.routes.store(Arc::new(Routes::new(&ingresses.list())));
    }
}

async fn accept(listener: TcpListener, proxy: &Arc<Proxy>) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: give the open ones time to close.
                tracing::warn!(%error, "accepting an Ingress client failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _a_slow_start_is_all_that_is_lost = stream.set_nodelay(true);
        let proxy = proxy.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let proxy = proxy.clone();
                async move {
                    Ok::<_, std::convert::Infallible>(proxy.handle(request, client.ip()).await)
                }
            });
            let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
            let served = http.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                tracing::debug!(%client, %error, "an Ingress connection ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use rimward_api::ObjectKey;
    use rimward_node_network::Slices;
    use rimward_node_network::dial::Duplex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// Every pod address leads to one local listener.
    struct ToOne(SocketAddr);

    #[async_trait]
    impl Dial for ToOne {
        async fn dial(&self, _pod: SocketAddr) -> std::io::Result<Box<dyn Duplex>> {
            Ok(Box::new(TcpStream::connect(self.0).await?))
        }
    }

    fn parse<T: k8s_openapi::serde::de::DeserializeOwned>(value: serde_json::Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).expect("an object"))
    }

    /// A server whose one backend is a listener that the test answers from by hand.
    async fn start() -> (SocketAddr, TcpListener, CancellationToken) {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ingresses, services, slices) = (Cache::new(), Cache::new(), Cache::new());
        let key = ObjectKey::new("a", "web");
        let at = |path: &str| {
            serde_json::json!({"path": path, "pathType": "Prefix",
            "backend": {"service": {"name": if path == "/none" { "none" } else { "web" }, "port": {"number": 80}}}})
        };
        ingresses.apply(
            key.clone(),
            parse(serde_json::json!({"metadata": {}, "spec": {"rules": [
            {"host": "web.test", "http": {"paths": [at("/"), at("/none")]}}]}})),
        );
        services.apply(
            key.clone(),
            parse(serde_json::json!({"metadata": {}, "spec": {"ports": [{"port": 80}]}})),
        );
        slices.apply(
            key,
            parse::<EndpointSlice>(serde_json::json!({
            "metadata": {"namespace": "a", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": ["10.42.0.1"]}]})),
        );
        let backends = Backends::new();
        let mut changed = backends.subscribe();
        tokio::spawn(backends.clone().follow(Slices::new(slices)));
        changed.recv().await.unwrap();
        let dial = Arc::new(ToOne(backend.local_addr().unwrap()));
        let config = Config { ingresses, services, backends, dial };
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), config).await.unwrap();
        let (address, stop) = (server.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        (address, backend, stop)
    }

    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        while !text.contains(end) {
            let mut chunk = [0; 1024];
            let len = stream.read(&mut chunk).await.unwrap();
            assert_ne!(len, 0, "closed after {text:?}");
            text += &String::from_utf8_lossy(&chunk[..len]);
        }
        text
    }

    #[tokio::test]
    async fn proxies_with_forwarded_headers() {
        let (server, backend, _stop) = start().await;
        let answered = async {
            let (mut stream, _) = backend.accept().await.unwrap();
            let request = read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            request
        };
        let ask = async {
            let mut client = send(server, "GET /x?y HTTP/1.1\r\nhost: WEB.test:80\r\n\r\n").await;
            let head = read_until(&mut client, "\n").await;
            head + &read_until(&mut client, "").await
        };
        let (request, response) = tokio::join!(answered, ask);
        let request = request.to_lowercase();
        assert!(request.starts_with("get /x?y http/1.1"), "{request}");
        for header in ["host: web.test:80", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"]
        {
            assert!(request.contains(header), "{header} in {request}");
        }
        assert!(response.contains("200"), "{response}");
        let mut none = send(server, "GET /none HTTP/1.1\r\nhost: web.test\r\n\r\n").await;
        assert!(read_until(&mut none, "\n").await.contains("503"));
        let mut unknown = send(server, "GET / HTTP/1.1\r\nhost: other.test\r\n\r\n").await;
        assert!(read_until(&mut unknown, "\n").await.contains("404"));
    }

    #[tokio::test]
    async fn upgrades_join_the_connections() {
        let (server, backend, _stop) = start().await;
        let echo = async {
            let (mut stream, _) = backend.accept().await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await;
            let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let text = read_until(&mut stream, "ping").await;
            stream.write_all(text.replace("ping", "pong").as_bytes()).await.unwrap();
            stream
        };
        let ask = async {
            let head = "GET /ws HTTP/1.1\r\nhost: web.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
            let mut client = send(server, head).await;
            let answer = read_until(&mut client, "\r\n\r\n").await;
            assert!(answer.contains("101"), "{answer}");
            client.write_all(b"ping").await.unwrap();
            read_until(&mut client, "pong").await
        };
        tokio::join!(echo, ask);
    }
}
