//! The real kubectl over TLS, with a client certificate.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rimward_api::UserInfo;
use rimward_control_apiserver::BoxBody;
use rimward_control_apiserver::serve::Extra;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;

/// A CA, and PEMs that it signed.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn sign(&self, names: &[&str], user: Option<(&str, &str)>) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if let Some((name, group)) = user {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

pub fn tls(ca: &Authority) -> Arc<rustls::ServerConfig> {
    let (cert, key) = ca.sign(&["localhost", "127.0.0.1"], None);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

pub struct Kubectl {
    pub dir: tempfile::TempDir,
}

impl Kubectl {
    pub fn new(ca: &Authority, port: u16) -> Self {
        use base64::Engine as _;
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (cert, key) = ca.sign(&[], Some(("kubernetes-admin", "system:masters")));
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority-data: {}}}}}]\nusers: [{{name: u, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            b64(&ca.pem),
            b64(&cert),
            b64(&key)
        );
        std::fs::write(dir.path().join("config"), config).unwrap();
        Self { dir }
    }

    fn command(&self, args: &str) -> Command {
        self.words(&args.split_whitespace().collect::<Vec<_>>())
    }

    pub fn words(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        let path = |name: &str| self.dir.path().join(name);
        command.arg("--kubeconfig").arg(path("config")).arg("--cache-dir").arg(path("cache"));
        command.args(args).stdin(Stdio::null()).kill_on_drop(true).current_dir(self.dir.path());
        command
    }

    pub async fn run(&self, args: &str) -> (bool, String) {
        let run = self.command(args).output();
        let output = tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .expect("kubectl ends")
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    pub async fn check(&self, args: &str, expected: &[&str]) {
        let (ok, text) = self.run(args).await;
        assert!(ok, "kubectl {args}: {text}");
        for wanted in expected {
            assert!(text.contains(wanted), "kubectl {args} lacks {wanted:?}:\n{text}");
        }
    }
}

/// Stands where the image registry does.
struct WhoAmI;

#[async_trait]
impl Extra for WhoAmI {
    async fn handle(
        &self,
        user: &UserInfo,
        request: Request<BoxBody>,
    ) -> Option<http::Response<BoxBody>> {
        if request.uri().path() != "/v2/" {
            return None;
        }
        let text = user.name.clone();
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = http::Response::new(body);
        if user.name == "system:anonymous" {
            *response.status_mut() = http::StatusCode::UNAUTHORIZED;
            let challenge = http::HeaderValue::from_static("Basic realm=\"test\"");
            response.headers_mut().insert("www-authenticate", challenge);
        }
        Some(response)
    }
}

fn basic(pair: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// One HTTP/1.1 request without a client certificate.
pub async fn check_http(
    ca: &Authority,
    port: u16,
    path: &str,
    auth: Option<String>,
    status: &str,
    contains: &str,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = connect(ca, port).await;
    let auth = auth.map_or(String::new(), |a| format!("Authorization: {a}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{auth}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _closed_without_notice_is_fine = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    assert!(answer.contains(contains), "{path}: {answer}");
}

/// A TLS connection without a client certificate, for HTTP/1.1.
pub async fn connect(
    ca: &Authority,
    port: u16,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers: [{name: c, image: 'web:1', ports: [{containerPort: 80}]}]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_with_kubectl() {
    if !["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|d| Path::new(d).join("kubectl").exists())
    {
        panic!("this test needs kubectl: apt-get install kubernetes-client");
    }
    let cluster = Cluster::start().await;
    let ca = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let (server, tls, stop) = (cluster.server.clone(), tls(&ca), shutdown.clone());
    let extra: Option<Arc<dyn Extra>> = Some(Arc::new(WhoAmI));
    let serving = tokio::spawn(async move { server.serve(listener, tls, extra, stop).await });
    let kubectl = Kubectl::new(&ca, port);
    std::fs::write(kubectl.dir.path().join("web.yaml"), DEPLOYMENT).unwrap();

    kubectl.check("version", &["Server Version: v1.36.2+rimward"]).await;
    kubectl.check("api-resources", &["deployments", "deploy", "apps/v1", "ConfigMap"]).await;
    kubectl.check("create namespace shop", &["namespace/shop created"]).await;
    kubectl.check("apply -f web.yaml", &["deployment.apps/web created"]).await;
    kubectl.check("apply -f web.yaml", &["deployment.apps/web unchanged"]).await;
    kubectl
        .check("get deployments -n shop -o wide", &["NAME", "READY", "0/2", "web:1", "app=web"])
        .await;
    kubectl
        .check(
            "get deployment web -n shop -o yaml",
            &["replicas: 2", "progressDeadlineSeconds: 600"],
        )
        .await;
    kubectl
        .check(
            "describe deployment web -n shop",
            &["RollingUpdateStrategy:  25% max unavailable, 25% max surge"],
        )
        .await;
    kubectl
        .check(
            "explain pod.spec.containers",
            &["KIND:       Pod", "FIELD: containers", "imagePullPolicy"],
        )
        .await;

    let mut watch =
        kubectl.command("get configmaps -n shop -w").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    kubectl
        .check("create configmap one -n shop --from-literal=k=v", &["configmap/one created"])
        .await;
    let seen = tokio::time::timeout(Duration::from_secs(30), async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.starts_with("one ") {
                return true;
            }
        }
        false
    });
    assert!(seen.await.expect("the watch shows it in time"));
    watch.kill().await.unwrap();

    kubectl
        .check(
            "patch configmap one -n shop -p {\"data\":{\"k\":\"w\"}}",
            &["configmap/one patched"],
        )
        .await;
    kubectl.check("get configmap one -n shop -o jsonpath={.data.k}", &["w"]).await;
    kubectl.check("label configmap one -n shop tier=x", &["configmap/one labeled"]).await;
    kubectl.check("get configmaps -n shop -l tier=x", &["one"]).await;
    kubectl
        .check("scale deployment web -n shop --replicas=5", &["deployment.apps/web scaled"])
        .await;
    kubectl.check("get deployment web -n shop", &["0/5"]).await;
    kubectl.check("set image deployment/web -n shop c=web:2", &["image updated"]).await;
    kubectl.check("auth can-i create pods", &["yes"]).await;
    let (ok, text) = kubectl.run("auth can-i create pods --as=ann --as-group=dev").await;
    assert!(!ok && text.contains("no"), "{text}");
    kubectl.check("delete configmap one -n shop", &["configmap \"one\" deleted"]).await;
    let (ok, text) = kubectl.run("get configmap one -n shop").await;
    assert!(!ok && text.contains("configmaps \"one\" not found"), "{text}");
    std::fs::write(
        kubectl.dir.path().join("bad.yaml"),
        DEPLOYMENT.replace("replicas: 2", "replcas: 2"),
    )
    .unwrap();
    let (ok, text) = kubectl.run("apply -f bad.yaml").await;
    assert!(!ok && text.contains("unknown field \"spec.replcas\""), "{text}");

    // A ServiceAccount's token, as a bearer token and as the password of an image tool.
    let (ok, token) = kubectl.run("create token default").await;
    assert!(ok, "{token}");
    let token = token.trim();
    let account = "system:serviceaccount:default:default";
    check_http(&ca, port, "/v2/", None, "401 Unauthorized", "Basic realm=").await;
    check_http(&ca, port, "/v2/", Some(format!("Bearer {token}")), "200 OK", account).await;
    check_http(&ca, port, "/v2/", Some(basic(&format!("x:{token}"))), "200 OK", account).await;
    check_http(&ca, port, "/v2/", Some(basic("x:wrong")), "401 Unauthorized", "Basic realm=").await;
    check_http(
        &ca,
        port,
        "/api/v1/pods",
        Some(format!("Bearer {token}")),
        "403 Forbidden",
        account,
    )
    .await;
    check_http(
        &ca,
        port,
        "/api/v1/pods",
        Some(basic(&format!("x:{token}"))),
        "403 Forbidden",
        "system:anonymous",
    )
    .await;
    check_http(
        &ca,
        port,
        "/api/v1/pods",
        Some("Bearer wrong".into()),
        "401 Unauthorized",
        "Unauthorized",
    )
    .await;

    shutdown.cancel();
    cluster.server.stop();
    serving.await.unwrap();
}
