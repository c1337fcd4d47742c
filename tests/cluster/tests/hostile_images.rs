//! Images that are meant to do harm, and registries that lie: each ends in a status on its own pod, and a pod
//! beside it does not notice. As root.

use rimward_tests_cluster::disk::SmallDisk;
use rimward_tests_cluster::hosts::Hosts;
use rimward_tests_cluster::liar::{Answer, Layer, Liar, config, digest, gzip_zeros, zstd_zeros};
use rimward_tests_cluster::{
    Cluster, busybox, condition, eventually, pods, repository, skip_without_root,
};
use serde_json::{Value, json};

/// A tar archive, of which every field may be what no tool writes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, path: &str, kind: u8, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, b'0', "", content)
    }

    /// A header alone, of something of that size.
    fn head(path: &str, kind: u8, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A file of 1 TiB that is one hole.
fn sparse() -> Vec<u8> {
    let mut header = Tar::head("hole", b'S', 0);
    let gnu = header.as_gnu_mut().expect("it was made so");
    gnu.set_real_size(1 << 40);
    gnu.sparse[0].set_offset(1 << 40);
    gnu.sparse[0].set_length(0);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.extend([0; 1024]);
    tar
}

struct Setup {
    cluster: Cluster,
    liar: Liar,
    /// One that takes its time.
    slow: Liar,
    busybox: Layer,
    /// Of the images: a bomb has not far to go.
    _disk: SmallDisk,
    _dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = SmallDisk::at(&dir.path().join("node/images"), 128);
        let hosts = Hosts::new(1);
        let liar = Liar::start(&format!("/run/netns/{}", hosts.name(0)));
        let slow = Liar::start(&format!("/run/netns/{}", hosts.name(0)));
        let plain = ["--plain-http-registry", &liar.host, "--plain-http-registry", &slow.host];
        let mut cluster = Cluster::start_on(hosts, dir.path(), &plain);
        cluster.wait_ready();
        Self { cluster, liar, slow, busybox: Layer::of(&busybox::lower()), _disk: disk, _dir: dir }
    }

    /// One layer over busybox, and what the image says of how it runs.
    fn over_busybox(&self, name: &str, layer: Layer, run: Value) -> String {
        self.liar.serve(name, &[self.busybox.clone(), layer], run)
    }

    fn create(&self, name: &str, image: &str, container: Value) {
        let mut container = container;
        container["image"] = json!(image);
        let pod = pods::pod(name, container, json!({"restartPolicy": "Never"}));
        self.cluster.ok_with(&["create", "-f", "-"], &pod);
    }

    /// Waits until the pod's container waits with this reason and such a message.
    fn waits(&self, name: &str, reason: &str, part: &str) {
        eventually(&format!("{name}: {reason} with {part:?}"), || {
            let waiting = pods::status(&self.cluster, name)["state"]["waiting"].clone();
            let told = waiting["message"].as_str()?.contains(part);
            (waiting["reason"] == *reason && told).then_some(())
        });
    }
}

/// As kubectl shows it after a pull that failed.
const BACK_OFF: &str = "ImagePullBackOff";

#[test]
fn hostile_images_harm_their_own_pods_only() {
    if skip_without_root("hostile_images_harm_their_own_pods_only") {
        return;
    }
    let s = Setup::new();
    let (liar, run) = (&s.liar, json!({"Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"]}));
    s.cluster.push(&repository().join("examples/greeter/greeter.wasm"), "greeter:v1");
    s.cluster.ok_with(
        &["create", "-f", "-"],
        &pods::pod("neighbour", json!({"image": "greeter:v1"}), json!({})),
    );
    s.cluster.ok(&["wait", "--for=condition=Ready", "pod/neighbour", "--timeout=90s"]);

    let outside = tempfile::tempdir().expect("a directory");
    let target = outside.path().to_str().expect("UTF-8");
    let mut expected: Vec<(String, &str)> = Vec::new();
    let mut layer = |name: &str, layer: Layer, part: &'static str| {
        s.over_busybox(name, layer, run.clone());
        expected.push((name.to_owned(), part));
    };
    // Ways out.
    let up = Tar::default().file("../escaped", b"x").end();
    layer("upwards", Layer::of(&up), "may lead out of the layer");
    let hard = Tar::default().entry("passwd", b'1', "/etc/shadow", b"").end();
    layer("hard-link", Layer::of(&hard), "entry \"passwd\": ");
    // Bombs.
    let zeros = Tar::head("zeros", b'0', 1 << 45).as_bytes().to_vec();
    let gzip = Layer { packed: gzip_zeros(&zeros, 256), diff_id: digest(b"gzip") };
    layer("gzip", gzip, "it unpacks to more than this node takes");
    let zstd = Layer { packed: zstd_zeros(&zeros, 256), diff_id: digest(b"zstd") };
    layer("zstd", zstd, "it unpacks to more than this node takes");
    layer("hole", Layer::of(&sparse()), "it unpacks to more than this node takes");
    let attributes = Tar::head("x", b'x', 1 << 40).as_bytes().to_vec();
    let attributes = Layer { packed: zstd_zeros(&attributes, 64), diff_id: digest(b"x") };
    layer("attributes", attributes, "the name and attributes of an entry have more than");
    let name = Tar::head("x", b'L', 1 << 40).as_bytes().to_vec();
    let name = Layer { packed: gzip_zeros(&name, 64), diff_id: digest(b"L") };
    layer("long-name", name, "the name and attributes of an entry have more than");
    // What is not what it is called.
    layer("no-tar", Layer::raw(vec![7; 4096]), "not an archive that can be read");
    let file = Tar::default().file("a", b"x").end();
    let other = Layer { diff_id: digest(b"another"), ..Layer::of(&file) };
    layer("other-layer", other, "as the image's config says");
    let odd = Layer { diff_id: "sha256:../../../../etc".into(), ..Layer::of(&file) };
    layer("odd-diff-id", odd, "is not sha256 and 64 hex digits");

    let mut manifest = |name: &str, manifest: Value, part: &'static str| {
        liar.manifest(name, "v1", &manifest);
        expected.push((name.to_owned(), part));
    };
    // Each its own: of a layer that is there nothing is fetched.
    let own_layers = |name: &str| [Layer::of(&Tar::default().file(name, b"x").end())];
    let good = |name: &str| {
        let layers = own_layers(name);
        liar.image(name, &layers, &config(&layers, run.clone()))
    };
    for (name, lie, part) in [
        ("longer", 1_i64, "as its descriptor says"),
        ("shorter", -1, "as its descriptor says"),
        ("enormous", 1 << 50, "larger than the 4294967296 bytes that this node takes"),
    ] {
        let mut image = good(name);
        let size = image["layers"][0]["size"].as_i64().expect("a size");
        image["layers"][0]["size"] = json!(size + lie);
        manifest(name, image, part);
    }
    let mut image = good("negative");
    image["config"]["size"] = json!(-1);
    manifest("negative", image, "the manifest is not valid");
    let mut image = good("wrong-digest");
    image["layers"][0]["digest"] = json!(digest(b"another"));
    let path = format!("wrong-digest/blobs/{}", digest(b"another"));
    liar.answers(&path, Answer::Content(own_layers("wrong-digest")[0].packed.clone()));
    manifest("wrong-digest", image, "not sha256:");
    let mut image = good("odd-digest");
    image["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd");
    manifest("odd-digest", image, "is not sha256 and 64 hex digits");
    let mut image = good("no-json");
    image["config"] = liar.blob("no-json", b"<html>");
    manifest("no-json", image, "is not valid: expected value at line 1");
    let mut image = good("too-few");
    image["config"] = liar.blob("too-few", config(&[], run.clone()).to_string().as_bytes());
    manifest("too-few", image, "mismatched image rootfs and manifest layers");
    let many: Vec<Value> = vec![good("many")["layers"][0].clone(); 600];
    let mut image = good("many");
    image["layers"] = json!(many);
    manifest("many", image, "the image has 600 layers");
    let index = |entries: Vec<Value>| json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
    let own = json!({"os": "linux", "architecture": busybox::machine()});
    manifest("cyclic", index(vec![json!({"digest": "v1", "platform": own})]), "is not sha256");
    let mut entry = liar.manifest("deep", "inner", &good("deep"));
    for level in 0..20 {
        entry = liar.manifest("deep", &format!("level{level}"), &index(vec![entry]));
    }
    manifest("deep", index(vec![entry]), "its indexes lead to more than 16 manifests");
    let far = json!({"os": "linux", "architecture": "arm", "variant": "v7"});
    let entry = json!({"digest": digest(b""), "platform": far});
    manifest("elsewhere", index(vec![entry]), "no match for platform");
    manifest("page", json!("<html>"), "the manifest is not valid");
    let huge = json!({"schemaVersion": 2, "annotations": {"a": "x".repeat(5 << 20)}});
    manifest("huge", huge, "the manifest exceeds 4194304 bytes");

    // Registries.
    let mut registry = |name: &str, answer: Answer, part: &'static str| {
        liar.answers(&format!("{name}/manifests/v1"), answer);
        expected.push((name.to_owned(), part));
    };
    registry("endless", Answer::Endless, "the manifest exceeds 4194304 bytes");
    registry("busy", Answer::Status(429, ""), "429 Too Many Requests");
    registry("broken", Answer::Status(500, "<html>"), "500 Internal Server Error");
    registry("circle", Answer::Circle, "too many redirects");
    registry("unsatisfied", Answer::NeverSatisfied, "pull access denied");
    registry("html", Answer::Content(b"<html>".to_vec()), "the manifest is not valid");
    let torn = own_layers("torn");
    liar.serve("torn", &torn, run.clone());
    let path = format!("torn/blobs/{}", digest(&torn[0].packed));
    liar.answers(&path, Answer::Short(torn[0].packed[..20].to_vec(), 5));
    let layers = [s.busybox.clone()];
    expected.push(("torn".into(), "the transfer broke"));
    // These hold on for longer than a test, with what all the others want as well: they hold up nobody.
    let slow = |name: &str, answer: Answer| {
        let image = s.slow.serve(name, &layers, run.clone());
        s.slow.answers(&format!("{name}/blobs/{}", digest(&s.busybox.packed)), answer);
        s.create(name, &image, json!({}));
    };
    slow("stalls", Answer::Stalls(s.busybox.packed.clone(), 5000));
    slow("drips", Answer::Drips(s.busybox.packed.clone()));
    for (name, _) in &expected {
        s.create(name, &liar.name(name), json!({}));
    }
    let pinned = format!("{}/html@{}", liar.host, digest(b"what nobody has"));
    liar.answers(
        &format!("html/manifests/{}", digest(b"what nobody has")),
        Answer::Content(b"{}".to_vec()),
    );
    s.create("pinned", &pinned, json!({}));
    expected.push(("pinned".into(), "the manifest has digest sha256:"));
    for (name, part) in &expected {
        s.waits(name, BACK_OFF, part);
    }

    // What is only odd runs as it would elsewhere.
    let links = Tar::default()
        .entry("out", b'2', target, b"")
        .file("out/file", b"inside\n")
        .entry("way", b'2', "/real", b"")
        .entry("real", b'5', "", b"")
        .file("way/in", b"through the link\n")
        .end();
    let odd = s.over_busybox("links", Layer::of(&links), run.clone());
    s.create("links", &odd, json!({"args": ["cat /out/file /real/in"]}));
    assert_eq!(pods::terminated(&s.cluster, "links")["exitCode"], 0);
    assert_eq!(pods::printed(&s.cluster, "links"), "inside\nthrough the link\n");
    assert_eq!(std::fs::read_dir(outside.path()).expect("it is there").count(), 0);
    let image = liar.image("nested", &layers, &config(&layers, run.clone()));
    let entry = liar.manifest("nested", "inner", &image);
    let entry = liar.manifest("nested", "middle", &index(vec![entry]));
    liar.manifest("nested", "v1", &index(vec![entry]));
    s.create("nested", &liar.name("nested"), json!({"args": ["echo nested"]}));
    assert_eq!(pods::terminated(&s.cluster, "nested")["exitCode"], 0);

    // What images say of how they run.
    for (name, run, reason, part) in [
        ("nothing", json!({}), "CreateContainerError", "no command specified"),
        (
            "nobody",
            json!({"Entrypoint": ["/bin/true"], "User": "nosuch"}),
            "CreateContainerError",
            "unable to find user nosuch",
        ),
        (
            "everybody",
            json!({"Entrypoint": ["/bin/true"], "User": "99999999999"}),
            "CreateContainerError",
            "99999999999",
        ),
    ] {
        let image = liar.serve(name, &layers, run);
        s.create(name, &image, json!({}));
        s.waits(name, reason, part);
    }

    let neighbour = s.cluster.get(&["pod", "neighbour"]);
    assert_eq!(condition(&neighbour, "Ready"), "True");
    assert_eq!(neighbour["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(condition(&s.cluster.get(&["nodes"])["items"][0], "Ready"), "True");
    for name in ["stalls", "drips"] {
        let state = pods::status(&s.cluster, name)["state"]["waiting"]["reason"].clone();
        assert!(state == "ContainerCreating" || state == BACK_OFF, "{name}: {state}");
    }
}
