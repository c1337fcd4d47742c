//! Images in and out by tools that everybody has: `skopeo` at the cluster's own registry, and the
//! distribution's `docker-registry` as one outside, from which nodes pull.

use std::path::{Path, PathBuf};

use rimward_tests_cluster::registry::{Auth, PASSWORD, Registry, USER, skopeo, skopeo_ok};
use rimward_tests_cluster::{Cluster, eventually, repository, text};
use serde_json::{Value, json};

/// A host of its own for each cluster's registry needs one for the cluster.
struct Setup {
    cluster: Cluster,
    dir: tempfile::TempDir,
    /// `127.0.0.1:PORT` of the API, and so of the cluster's registry.
    own: String,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let certs = dir.path().join("certs.d");
        let cluster = Cluster::up_with(&["--registry-certs-dir", certs.to_str().expect("UTF-8")]);
        let view = cluster.ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
        let own = view.trim_start_matches("https://").to_owned();
        let ca = dir.path().join("own-ca");
        std::fs::create_dir(&ca).expect("a directory");
        std::fs::copy(cluster.dir.join("control/pki/ca.crt"), ca.join("ca.crt"))
            .expect("the cluster's CA");
        Self { cluster, dir, own }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn certs(&self) -> PathBuf {
        self.path("certs.d")
    }

    /// A ServiceAccount with these verbs on the images of these repositories (none named: all); answers
    /// `name:token`, as tools want credentials.
    fn account(&self, name: &str, verbs: &[&str], repositories: &[&str]) -> String {
        let mut rule =
            json!({"apiGroups": ["rimward.dev"], "resources": ["images"], "verbs": verbs});
        if !repositories.is_empty() {
            rule["resourceNames"] = json!(repositories);
        }
        let rbac = "rbac.authorization.k8s.io";
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}},
            {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]},
            {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
             "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
             "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}]},
        ]});
        self.cluster.apply(&objects.to_string());
        format!("{name}:{}", self.cluster.ok(&["create", "token", name]).trim())
    }

    /// An OCI layout of the greeter, differing from others by `mark`; answers (`oci:` name, layer digest).
    fn layout(&self, mark: &str) -> (String, String) {
        let mut wasm =
            std::fs::read(repository().join("examples/greeter/greeter.wasm")).expect("the greeter");
        // A custom section: id 0, length, name length, name.
        let name = mark.as_bytes();
        let len = u8::try_from(name.len()).expect("a short mark");
        wasm.extend([0, len + 1, len]);
        wasm.extend(name);
        let file = self.path(&format!("{mark}.wasm"));
        std::fs::write(&file, wasm).expect("a file");
        self.cluster.push(&file, &format!("layouts/{mark}:v1"));
        let admin = self.account("layouts", &["get"], &[]);
        let at = format!("oci:{}:v1", self.path(mark).display());
        let from = format!("docker://{}/layouts/{mark}:v1", self.own);
        let ca = self.path("own-ca");
        let args = ["copy", "--src-cert-dir", ca.to_str().expect("UTF-8"), "--src-creds", &admin];
        skopeo_ok(&self.cluster, &[&args[..], &[from.as_str(), at.as_str()]].concat());
        let raw = skopeo_ok(&self.cluster, &["inspect", "--raw", &at]);
        let manifest: Value = serde_json::from_str(&raw).expect("a manifest");
        (at, manifest["layers"][0]["digest"].as_str().expect("a layer").to_owned())
    }

    /// Copies a layout to a registry as its user.
    fn push_outside(&self, registry: &Registry, layout: &str, name: &str) -> String {
        let to = format!("docker://{}/{name}", registry.host);
        let (certs, creds) = (registry.cert_dir(), format!("{USER}:{PASSWORD}"));
        let certs = certs.to_str().expect("UTF-8");
        let args = ["--dest-cert-dir", certs, "--dest-creds", &creds];
        skopeo_ok(&self.cluster, &[&["copy"][..], &args[..], &[layout, to.as_str()]].concat());
        let args = ["inspect", "--cert-dir", certs, "--creds", &creds, "--raw", &to];
        let manifest = skopeo_ok(&self.cluster, &args);
        let file = self.path("manifest");
        std::fs::write(&file, manifest).expect("a file");
        let digest = ["manifest-digest", file.to_str().expect("UTF-8")];
        skopeo_ok(&self.cluster, &digest).trim().to_owned()
    }

    fn run(&self, name: &str, image: &str, more: Value) {
        let mut spec = json!({"containers": [{"name": "c", "image": image}]});
        for (key, value) in more.as_object().expect("fields") {
            spec[key] = value.clone();
        }
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.cluster.ok_with(&["create", "-f", "-"], &pod.to_string());
    }

    fn ready(&self, name: &str) {
        let pod = format!("pod/{name}");
        self.cluster.ok(&["wait", "--for=condition=Ready", &pod, "--timeout=90s"]);
    }

    /// Waits until the pod has waited for each of these reasons, the last message holding `part`.
    fn waits(&self, name: &str, reasons: &[&str], part: &str) {
        for reason in reasons {
            eventually(&format!("{name}: {reason} with {part:?}"), || {
                let pod = self.cluster.get(&["pod", name]);
                let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                let told = waiting["message"].as_str()?.contains(part);
                (waiting["reason"] == *reason && told).then_some(())
            });
        }
    }
}

fn arg(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn skopeo_pushes_to_the_clusters_registry() {
    let setup = Setup::new();
    let (layout, _) = setup.layout("pushed");
    let (ca, cluster) = (setup.path("own-ca"), &setup.cluster);
    let to = format!("docker://{}/team/app:v1", setup.own);
    let push = |creds: &str| {
        let args = ["--dest-cert-dir", arg(&ca), "--dest-creds", creds, &layout, &to];
        skopeo(cluster, &[&["copy"][..], &args[..]].concat())
    };
    let pusher = setup.account("pusher", &["get", "list", "create", "delete"], &[]);
    let reader = setup.account("reader", &["get"], &["team/app"]);
    for (creds, part) in [("pusher:nonsense", "nauthorized"), (reader.as_str(), "denied")] {
        let refused = push(creds);
        assert!(!refused.status.success(), "{part}");
        let said = text(&refused.stderr);
        assert!(said.contains(part), "{said}");
    }
    let pushed = push(&pusher);
    assert!(pushed.status.success(), "{}", text(&pushed.stderr));

    let read = |command: &[&str], creds: &str, name: &str| {
        let from = format!("docker://{}/{name}", setup.own);
        let args = ["--cert-dir", arg(&ca), "--creds", creds, &from];
        skopeo(cluster, &[command, &args[..]].concat())
    };
    let tags = read(&["list-tags"], &reader, "team/app");
    let tags: Value = serde_json::from_slice(&tags.stdout).expect("JSON");
    assert_eq!(tags["Tags"], json!(["v1"]));
    assert!(
        !read(&["list-tags"], &reader, "layouts/pushed").status.success(),
        "not its repository"
    );
    setup.run("app", "team/app:v1", json!({}));
    setup.ready("app");

    // A second copy mounts what is there; deleting one leaves the other.
    let again = format!("docker://{}/team/copy:v1", setup.own);
    let args = ["--src-cert-dir", arg(&ca), "--dest-cert-dir", arg(&ca)];
    let creds = ["--src-creds", &pusher, "--dest-creds", &pusher];
    skopeo_ok(
        cluster,
        &[&["copy"][..], &args[..], &creds[..], &[to.as_str(), again.as_str()]].concat(),
    );
    let deleted = read(&["delete"], &pusher, "team/app:v1");
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    assert!(!read(&["inspect", "--raw"], &pusher, "team/app:v1").status.success());
    assert!(read(&["inspect", "--raw"], &pusher, "team/copy:v1").status.success());
    let back = format!("oci:{}:v1", setup.path("back").display());
    let args = ["--src-cert-dir", arg(&ca), "--src-creds", &pusher, &again, &back];
    skopeo_ok(cluster, &[&["copy"][..], &args[..]].concat());
}

#[test]
fn nodes_pull_from_a_registry_with_passwords() {
    let setup = Setup::new();
    let registry = Registry::start(&setup.cluster, &setup.path("registry"), Auth::Basic);
    let (layout, _) = setup.layout("outside");
    let digest = setup.push_outside(&registry, &layout, "team/greeter:v1");
    let image = format!("{}/team/greeter:v1", registry.host);

    // Before its CA is known; what helps is told by the cause. Then without a restart.
    setup.run("untrusted", &image, json!({}));
    setup.waits("untrusted", &["ErrImagePull", "ImagePullBackOff"], "certificate");
    registry.trusted_in(&setup.certs());
    setup.run("nobody", &image, json!({}));
    setup.waits("nobody", &["ErrImagePull", "ImagePullBackOff"], "pull access denied");

    let cluster = &setup.cluster;
    cluster.apply(&registry.pull_secret("wrong", "guessed"));
    cluster.apply(&registry.pull_secret("right", PASSWORD));
    let secrets = |names: &[&str]| {
        let named: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"imagePullSecrets": named})
    };
    setup.run("wrong", &image, secrets(&["wrong", "not-there"]));
    setup.waits("wrong", &["ErrImagePull"], "pull access denied");
    eventually("the missing secret is told", || {
        let told = cluster.ok(&["describe", "pod", "wrong"]);
        told.contains("FailedToRetrieveImagePullSecret").then_some(())
    });
    setup.run("second-fits", &image, secrets(&["wrong", "right"]));
    setup.ready("second-fits");

    // That it is here now makes it nobody's who has no secret, and does not ask again of who has.
    setup.run("freeloader", &image, json!({}));
    setup.waits("freeloader", &["ErrImagePull"], "pull access denied");
    let never = json!({"containers": [{"name": "c", "image": image, "imagePullPolicy": "Never"}]});
    setup.run("blind", &image, never);
    setup.waits("blind", &["ErrImageNeverPull"], "is not present with pull policy of Never");
    setup.run("again", &image, secrets(&["right"]));
    setup.ready("again");
    let told = cluster.ok(&["describe", "pod", "again"]);
    assert!(told.contains("already present on machine and can be accessed by the pod"), "{told}");

    // The older type, for a part of the registry only; of two that fit the longer goes first.
    let part = |path: &str, password: &str| json!({format!("https://{}/v2/{path}", registry.host): {"username": USER, "password": password}});
    let older = |name: &str, config: Value| {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockercfg", "stringData": {".dockercfg": config.to_string()}});
        cluster.apply(&secret.to_string());
    };
    older("other-part", part("other/", PASSWORD));
    older("part", part("team/", PASSWORD));
    let always = |names: &[&str]| {
        let mut spec = secrets(names);
        spec["containers"] = json!([{"name": "c", "image": image, "imagePullPolicy": "Always"}]);
        spec
    };
    setup.run("other-part", &image, always(&["other-part"]));
    setup.waits("other-part", &["ErrImagePull"], "no basic auth credentials");
    setup.run("part", &image, always(&["part", "wrong"]));
    setup.ready("part");

    // By hand: what comes so is everybody's.
    let (layout, _) = setup.layout("by-hand");
    setup.push_outside(&registry, &layout, "team/by-hand:v1");
    let by_hand = format!("{}/team/by-hand:v1", registry.host);
    let pull = |more: &[&str], input: &str| {
        let binary = rimward_tests_cluster::binary("rimward");
        let args = ["image", "pull", &by_hand, "--data-dir", arg(&cluster.dir)];
        let words = cluster.wrap().iter().map(String::as_str);
        let mut words = words.chain([arg(&binary)]).chain(args).chain(more.iter().copied());
        let mut command = std::process::Command::new(words.next().expect("at least the binary"));
        command.args(words).stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut stdin, input.as_bytes()).expect("a short line");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    };
    let refused = pull(&[], "");
    assert!(text(&refused.stderr).contains("no basic auth credentials"), "{refused:?}");
    let refused = pull(&["--creds-stdin"], "puller:guessed\n");
    assert!(text(&refused.stderr).contains("pull access denied"), "{refused:?}");
    let pulled = pull(&["--creds-stdin"], &format!("{USER}:{PASSWORD}\n"));
    assert!(pulled.status.success(), "{pulled:?}");
    let file = setup.path("auth.json");
    let auths = json!({"auths": {&registry.host: {"username": USER, "password": PASSWORD}}});
    std::fs::write(&file, auths.to_string()).expect("a file");
    let pulled = pull(&["--auth-file", arg(&file)], "");
    assert!(pulled.status.success(), "{pulled:?}");
    setup.run("by-hand", &by_hand, json!({}));
    setup.ready("by-hand");

    // By the ServiceAccount, pinned by digest.
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "with-secret"},
            "imagePullSecrets": [{"name": "right"}]})
        .to_string(),
    );
    let pinned = format!("{}/team/greeter@{digest}", registry.host);
    setup.run("by-account", &pinned, json!({"serviceAccountName": "with-secret"}));
    setup.ready("by-account");
    let pod = cluster.get(&["pod", "by-account"]);
    let id = pod["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default();
    assert!(id.ends_with(&digest), "{id}");

    // Content that is not what its digest says.
    let (layout, layer) = setup.layout("tampered");
    setup.push_outside(&registry, &layout, "team/tampered:v1");
    registry.tamper(&layer);
    let image = format!("{}/team/tampered:v1", registry.host);
    setup.run("tampered", &image, secrets(&["right"]));
    setup.waits("tampered", &["ErrImagePull", "ImagePullBackOff"], "digest");
    let events = cluster.ok(&["get", "events", "--field-selector", "involvedObject.name=tampered"]);
    assert!(events.contains("Failed to pull image"), "{events}");
}

#[test]
fn nodes_pull_from_a_registry_with_tokens() {
    let setup = Setup::new();
    let registry = Registry::start(&setup.cluster, &setup.path("registry"), Auth::Token);
    registry.trusted_in(&setup.certs());
    let (layout, _) = setup.layout("by-token");
    setup.push_outside(&registry, &layout, "team/greeter:v1");
    let image = format!("{}/team/greeter:v1", registry.host);
    setup.run("nobody", &image, json!({}));
    setup.waits("nobody", &["ErrImagePull"], "pull access denied");
    setup.cluster.apply(&registry.pull_secret("right", PASSWORD));
    setup.run("with-secret", &image, json!({"imagePullSecrets": [{"name": "right"}]}));
    setup.ready("with-secret");
}
