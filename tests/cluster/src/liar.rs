//! A registry that serves what no registry should, over plain HTTP. Names that are not lied about it serves as it
//! should.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::busybox::{gzip, hex, machine};

/// What is answered to a path.
#[derive(Clone)]
pub enum Answer {
    Content(Vec<u8>),
    Status(u16, &'static str),
    /// Says that it has so many bytes more than it sends.
    Short(Vec<u8>, usize),
    /// Sends so many bytes, then nothing, and keeps the connection.
    Stalls(Vec<u8>, usize),
    /// A byte a second.
    Drips(Vec<u8>),
    /// To itself.
    Circle,
    /// Wants a token, gives one, and wants a token.
    NeverSatisfied,
    /// Has no end.
    Endless,
}

/// A layer as a registry has it.
#[derive(Clone)]
pub struct Layer {
    pub packed: Vec<u8>,
    /// What it unpacks to.
    pub diff_id: String,
}

impl Layer {
    pub fn of(tar: &[u8]) -> Self {
        Self { packed: gzip(tar), diff_id: digest(tar) }
    }

    /// As it is; the config calls it by its own digest.
    pub fn raw(packed: Vec<u8>) -> Self {
        Self { diff_id: digest(&packed), packed }
    }
}

pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(content))
}

#[derive(Clone)]
pub struct Liar {
    /// `127.0.0.1:PORT`.
    pub host: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
}

impl Liar {
    /// Serves in a network namespace, for as long as the test runs.
    pub fn start(namespace: &str) -> Self {
        let answers = Arc::<Mutex<HashMap<String, Answer>>>::default();
        let (tell, told) = std::sync::mpsc::channel();
        let (namespace, served) = (namespace.to_owned(), answers.clone());
        std::thread::spawn(move || {
            crate::hosts::enter(&namespace);
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            tell.send(listener.local_addr().expect("its address")).expect("the test waits");
            for stream in listener.incoming().flatten() {
                let answers = served.clone();
                std::thread::spawn(move || answer(stream, &answers));
            }
        });
        Self { host: told.recv().expect("the liar's address").to_string(), answers }
    }

    /// What is answered to a path below `/v2/`.
    pub fn answers(&self, path: &str, answer: Answer) {
        self.answers.lock().expect("no holder panics").insert(format!("/v2/{path}"), answer);
    }

    /// The descriptor of a blob that it has.
    pub fn blob(&self, repository: &str, content: &[u8]) -> Value {
        let digest = digest(content);
        let path = format!("{repository}/blobs/{digest}");
        self.answers(&path, Answer::Content(content.to_vec()));
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": content.len()})
    }

    /// The descriptor of a manifest that it has, by its digest and by a tag.
    pub fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> Value {
        let content = manifest.to_string().into_bytes();
        let digest = digest(&content);
        for version in [tag, &digest] {
            let path = format!("{repository}/manifests/{version}");
            self.answers(&path, Answer::Content(content.clone()));
        }
        json!({"mediaType": manifest["mediaType"], "digest": digest, "size": content.len()})
    }

    /// A manifest of layers and a config (see [`config`]), not served.
    pub fn image(&self, repository: &str, layers: &[Layer], config: &Value) -> Value {
        let layers: Vec<Value> = layers.iter().map(|l| self.blob(repository, &l.packed)).collect();
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob(repository, config.to_string().as_bytes()),
            "layers": layers,
        })
    }

    /// The same, served as `v1`; answers the image's name.
    pub fn serve(&self, repository: &str, layers: &[Layer], run: Value) -> String {
        let manifest = self.image(repository, layers, &config(layers, run));
        self.manifest(repository, "v1", &manifest);
        self.name(repository)
    }

    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:v1", self.host)
    }
}

/// Of an image that runs on this machine.
pub fn config(layers: &[Layer], run: Value) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
    json!({"architecture": machine(), "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

/// Members of a gzip file may follow one another: as many zeros as one likes, in little time.
pub fn gzip_zeros(start: &[u8], mib: usize) -> Vec<u8> {
    let one = gzip(&vec![0; 1 << 20]);
    [gzip(start), one.repeat(mib)].concat()
}

/// The same by zstd (RFC 8878, section 3.1.1): a frame of one raw block, then blocks of one byte, repeated.
pub fn zstd_zeros(start: &[u8], mib: usize) -> Vec<u8> {
    const RAW: usize = 0;
    const REPEATED: usize = 1;
    const BLOCK_BYTES: usize = 128 << 10;
    let block = |kind: usize, size: usize, last: bool| {
        ((size << 3) | (kind << 1) | usize::from(last)).to_le_bytes()[..3].to_vec()
    };
    // No dictionary, no size, a window of 1 MiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50];
    frame.extend(block(RAW, start.len(), false));
    frame.extend(start);
    let blocks = mib * 8;
    for number in 1..=blocks {
        frame.extend(block(REPEATED, BLOCK_BYTES, number == blocks));
        frame.push(0);
    }
    frame
}

fn answer(mut stream: TcpStream, answers: &Mutex<HashMap<String, Answer>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    let mut line = || lines.next().and_then(Result::ok).unwrap_or_default();
    let request = line();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    while !line().is_empty() {}
    let host = stream.local_addr().expect("its address");
    if path.starts_with("/token") {
        return send(&mut stream, "200 OK", "", br#"{"token":"anything"}"#);
    }
    let found = answers.lock().expect("no holder panics").get(&path).cloned();
    let head = |len: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n")
    };
    match found {
        None => send(&mut stream, "404 Not Found", "", b""),
        Some(Answer::Content(content)) => send(&mut stream, "200 OK", "", &content),
        Some(Answer::Status(code, body)) => {
            send(&mut stream, &format!("{code} Told so"), "", body.as_bytes());
        }
        Some(Answer::Short(content, lacking)) => {
            write(&mut stream, head(content.len() + lacking).as_bytes());
            write(&mut stream, &content);
        }
        Some(Answer::Stalls(content, sent)) => {
            write(&mut stream, head(content.len()).as_bytes());
            write(&mut stream, &content[..sent]);
            let _until_the_client_goes = std::io::copy(&mut stream, &mut std::io::sink());
        }
        Some(Answer::Drips(content)) => {
            write(&mut stream, head(content.len()).as_bytes());
            for byte in content {
                if !write(&mut stream, &[byte]) {
                    return;
                }
                std::thread::park_timeout(Duration::from_secs(1));
            }
        }
        Some(Answer::Circle) => {
            send(&mut stream, "302 Found", &format!("Location: {path}\r\n"), b"");
        }
        Some(Answer::NeverSatisfied) => {
            let realm = format!("http://{host}/token");
            let wants = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"liar\"\r\n");
            send(&mut stream, "401 Unauthorized", &wants, b"");
        }
        Some(Answer::Endless) => {
            write(&mut stream, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            while write(&mut stream, &[b' '; 64 << 10]) {}
        }
    }
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let len = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {len}\r\nConnection: close\r\n\r\n");
    if write(stream, head.as_bytes()) {
        write(stream, body);
    }
}

/// Whether the client is still there.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).and_then(|()| stream.flush()).is_ok()
}
