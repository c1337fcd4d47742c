//! Images of Linux containers, made here: an OCI layout with Debian's busybox-static in it, which any OCI
//! tool can push. <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::registry::skopeo_ok;
use crate::{Cluster, text};

const BUSYBOX: &str = "/usr/bin/busybox";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Pushes an image to the cluster's own registry: an index with an entry for this machine's
/// architecture and one for another, two layers of which the upper hides a file of the lower. Answers the name
/// by which pods know it.
pub fn push(cluster: &Cluster, name: &str, run: Value) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let layout = Layout::new(dir.path());
    let own = layout.image(machine(), run.clone());
    let other = layout.image("s390x", run);
    layout.index(&[(machine(), own), ("s390x", other)]);
    let view = cluster.ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let to = format!("docker://{}/{name}", view.trim_start_matches("https://"));
    let from = format!("oci:{}:latest", dir.path().display());
    let creds = format!("image-pusher:{}", pusher(cluster));
    skopeo_ok(
        cluster,
        &["copy", "--all", "--dest-tls-verify=false", "--dest-creds", &creds, &from, &to],
    );
    name.to_owned()
}

/// Writes the image into one file, as `oci-archive` or `docker-archive`, by a tool that is not ours.
pub fn archive(kind: &str, file: &Path, name: &str, run: Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let layout = Layout::new(dir.path());
    let own = layout.image(machine(), run);
    layout.index(&[(machine(), own)]);
    let from = format!("oci:{}:latest", dir.path().display());
    let to = format!("{kind}:{}:{name}", file.display());
    let copied = Command::new("skopeo").args(["copy", "--quiet", &from, &to]).output();
    let copied = copied.expect("skopeo is on the PATH: scripts/bootstrap --tests");
    assert!(copied.status.success(), "{}", text(&copied.stderr));
}

/// A token of somebody who may push.
fn pusher(cluster: &Cluster) -> String {
    let rbac = "rbac.authorization.k8s.io";
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "image-pusher", "namespace": "default"}},
        {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "image-pusher"},
         "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
         "subjects": [{"kind": "ServiceAccount", "name": "image-pusher", "namespace": "default"}]},
    ]});
    cluster.apply(&objects.to_string());
    cluster.ok(&["create", "token", "image-pusher"]).trim().to_owned()
}

/// This machine's architecture, as images call it.
pub fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Layout<'a>(&'a Path);

impl<'a> Layout<'a> {
    fn new(dir: &'a Path) -> Self {
        std::fs::create_dir_all(dir.join("blobs/sha256")).expect("a directory");
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("a file");
        Self(dir)
    }

    fn blob(&self, kind: &str, content: &[u8]) -> Value {
        let digest = hex(content);
        std::fs::write(self.0.join("blobs/sha256").join(&digest), content).expect("a blob");
        json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len()})
    }

    fn json(&self, kind: &str, value: &Value) -> Value {
        self.blob(kind, value.to_string().as_bytes())
    }

    /// A manifest's descriptor.
    fn image(&self, architecture: &str, run: Value) -> Value {
        let layers = [lower(), upper()];
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| format!("sha256:{}", hex(l))).collect::<Vec<_>>()},
        });
        let layers: Vec<Value> = layers.iter().map(|tar| self.blob(LAYER, &gzip(tar))).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.json(CONFIG, &config),
            "layers": layers,
        });
        self.json(MANIFEST, &manifest)
    }

    fn index(&self, images: &[(&str, Value)]) {
        let entries: Vec<Value> = images
            .iter()
            .map(|(architecture, image)| {
                let mut entry = image.clone();
                entry["platform"] = json!({"os": "linux", "architecture": architecture});
                entry
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let mut entry = self.json(INDEX, &index);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let top = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        std::fs::write(self.0.join("index.json"), top.to_string()).expect("the index");
    }
}

pub(crate) fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).expect("memory takes it");
    gzip.finish().expect("memory takes it")
}

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        owned_by_root(&mut header);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).expect("memory takes it");
    }

    fn link(&mut self, path: &str, to: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        owned_by_root(&mut header);
        header.set_size(0);
        self.0.append_link(&mut header, path, to).expect("memory takes it");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes it")
    }
}

fn owned_by_root(header: &mut tar::Header) {
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
}

/// A layer with busybox in it, a tar archive.
pub fn lower() -> Vec<u8> {
    let busybox = std::fs::read(BUSYBOX).expect("busybox-static: scripts/bootstrap --tests");
    let applets = Command::new(BUSYBOX).arg("--list").output().expect("busybox runs");
    let mut tar = Tar::new();
    for dir in ["bin/", "etc/", "root/"] {
        tar.entry(dir, tar::EntryType::Directory, 0o755, b"");
    }
    tar.entry("tmp/", tar::EntryType::Directory, 0o1777, b"");
    tar.entry("bin/busybox", tar::EntryType::Regular, 0o755, &busybox);
    for applet in text(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        tar.link(&format!("bin/{applet}"), "busybox");
    }
    tar.entry(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0::/root:/bin/sh\nweb:x:1001:1001::/tmp:/bin/sh\n",
    );
    tar.entry("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nweb:x:1001:\n");
    tar.entry("etc/hidden", tar::EntryType::Regular, 0o644, b"not to be seen\n");
    tar.finish()
}

fn upper() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.entry("etc/.wh.hidden", tar::EntryType::Regular, 0o644, b"");
    tar.entry("etc/release", tar::EntryType::Regular, 0o644, b"from the upper layer\n");
    tar.finish()
}
