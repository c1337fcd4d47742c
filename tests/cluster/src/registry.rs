//! The distribution's `docker-registry` as a registry outside the cluster: TLS by a CA of its own, users by
//! htpasswd or by tokens. And `skopeo`, which pushes to it and to the cluster's.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use serde_json::json;

use crate::{Cluster, Process, eventually, text};

/// Who may use the registry, with the password below.
pub const USER: &str = "puller";
pub const PASSWORD: &str = "open sesame";
/// `PASSWORD` by bcrypt: what the registry takes in an htpasswd file.
const HTPASSWD: &str = "puller:$2b$04$vYwOC7UNcjzHm8RhKUR8vuwSsG2gsYb/.RUpfoC.dpmcjsSAkXH06\n";

/// How the registry learns who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    Basic,
    /// A Bearer challenge that leads to a token server, which takes the same user and password.
    Token,
}

pub struct Registry {
    _process: Process,
    dir: PathBuf,
    /// `127.0.0.1:PORT`, on the cluster's host.
    pub host: String,
}

impl Registry {
    /// Starts one on the cluster's host; its files go to `dir`.
    pub fn start(cluster: &Cluster, dir: &Path, auth: Auth) -> Self {
        std::fs::create_dir_all(dir.join("storage")).expect("a directory");
        certificates(dir);
        let auth = match auth {
            Auth::Basic => {
                std::fs::write(dir.join("htpasswd"), HTPASSWD).expect("the htpasswd file");
                json!({"htpasswd": {"realm": "outside", "path": dir.join("htpasswd")}})
            }
            Auth::Token => {
                let realm = serve_tokens(cluster, dir);
                let bundle = dir.join("server.crt");
                json!({"token": {"realm": realm, "service": "outside", "issuer": "tests", "rootcertbundle": bundle}})
            }
        };
        let config = json!({
            "version": "0.1", "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": dir.join("storage")}},
            "http": {
                "addr": "127.0.0.1:0", "secret": "not one",
                "tls": {"certificate": dir.join("server.crt"), "key": dir.join("server.key")},
            },
            "auth": auth,
        });
        // JSON is YAML.
        std::fs::write(dir.join("config.yml"), config.to_string()).expect("the configuration");
        let mut words = cluster.wrap().to_vec();
        words.extend(["docker-registry".into(), "serve".into()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(dir.join("config.yml"));
        let process = Process::start("docker-registry", dir, command);
        let port = eventually("the registry listens", || {
            let log = process.log();
            let after = log.split("listening on 127.0.0.1:").nth(1)?;
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            (!digits.is_empty()).then_some(digits)
        });
        Self { _process: process, dir: dir.to_owned(), host: format!("127.0.0.1:{port}") }
    }

    /// Lets nodes that look for certificates in `certs_dir` trust the registry.
    pub fn trusted_in(&self, certs_dir: &Path) {
        let dir = certs_dir.join(&self.host);
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::copy(self.dir.join("ca/ca.crt"), dir.join("ca.crt")).expect("the certificate");
    }

    /// Where `skopeo` finds the CA.
    pub fn cert_dir(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// Alters one byte in the middle of a blob.
    pub fn tamper(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").expect("a digest");
        let blobs = self.dir.join("storage/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let mut content = std::fs::read(&path).expect("the blob's file");
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&path, content).expect("the blob's file");
    }

    /// A Secret of type kubernetes.io/dockerconfigjson for this registry.
    pub fn pull_secret(&self, name: &str, password: &str) -> String {
        let auths = json!({"auths": {&self.host: {"username": USER, "password": password}}});
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": auths.to_string()},
        })
        .to_string()
    }
}

fn openssl(dir: &Path, line: &str) {
    let output =
        Command::new("openssl").args(line.split(' ')).current_dir(dir).output().expect("openssl");
    assert!(output.status.success(), "openssl {line}: {}", text(&output.stderr));
}

/// `ca/ca.crt` (alone, as tools want it) and `server.crt`, signed by it for 127.0.0.1.
fn certificates(dir: &Path) {
    std::fs::create_dir_all(dir.join("ca")).expect("a directory");
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=outside-ca -keyout ca.key -out ca/ca.crt",
    );
    openssl(
        dir,
        "req -newkey rsa:2048 -nodes -subj /CN=outside -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.csr",
    );
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca/ca.crt -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out server.crt",
    );
}

/// Serves tokens over plain HTTP on the cluster's host, for as long as the test runs; answers the realm.
/// <https://distribution.github.io/distribution/spec/auth/token/>
fn serve_tokens(cluster: &Cluster, dir: &Path) -> String {
    let namespace = cluster.wrap().iter().find_map(|w| w.strip_prefix("--net=")).map(str::to_owned);
    let key = std::fs::read(dir.join("server.key")).expect("the key");
    let certificate = std::fs::read_to_string(dir.join("server.crt")).expect("the certificate");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // A socket belongs to the namespace in which it was made.
        if let Some(namespace) = namespace {
            crate::hosts::enter(&namespace);
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        tell.send(listener.local_addr().expect("its address")).expect("the test waits");
        for stream in listener.incoming() {
            answer(stream.expect("a connection"), &key, &certificate);
        }
    });
    format!("http://{}/token", told.recv().expect("the token server's address"))
}

fn answer(mut stream: TcpStream, key: &[u8], certificate: &str) {
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    let mut line = || lines.next().and_then(Result::ok).unwrap_or_default();
    let request = line();
    let mut authorization = String::new();
    loop {
        let header = line();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            value.clone_into(&mut authorization);
        }
    }
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let (status, body) = match authorization == format!("Basic {basic}") {
        true => ("200 OK", json!({"token": token(&request, key, certificate)}).to_string()),
        false => ("401 Unauthorized", json!({"details": "wrong user or password"}).to_string()),
    };
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _the_client_may_have_gone = stream.write_all(response.as_bytes());
}

/// A token for the scopes that the request line asks for.
fn token(request: &str, key: &[u8], certificate: &str) -> String {
    let query = request.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("", |q| q.1);
    let decode = |text: &str| text.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope=")).map(decode);
    let access: Vec<_> = scopes
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let actions: Vec<&str> = actions.split(',').collect();
            Some(json!({"type": kind, "name": name, "actions": actions}))
        })
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let claims = json!({
        "iss": "tests", "sub": USER, "aud": "outside", "jti": "1", "access": access,
        "iat": now.as_secs(), "nbf": (now - Duration::from_secs(60)).as_secs(),
        "exp": (now + Duration::from_secs(600)).as_secs(),
    });
    let der: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
    header.x5c = Some(vec![der]);
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(key).expect("an RSA key");
    jsonwebtoken::encode(&header, &claims, &key).expect("the claims are plain")
}

/// `skopeo` on the cluster's host.
pub fn skopeo(cluster: &Cluster, args: &[&str]) -> Output {
    let skopeo = ["timeout", "120", "skopeo", "--insecure-policy"];
    let mut words = cluster.wrap().iter().map(String::as_str).chain(skopeo);
    let mut command = Command::new(words.next().expect("at least skopeo"));
    command.args(words).args(args).env("HOME", &cluster.dir).output().expect("skopeo is installed")
}

/// The same, which must succeed; answers its standard output.
#[track_caller]
pub fn skopeo_ok(cluster: &Cluster, args: &[&str]) -> String {
    let output = skopeo(cluster, args);
    assert!(output.status.success(), "skopeo {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
