//! Linux containers beside a bare `runc`: starts, commands in them, what they print, and many at once.
//!
//! The peer gets the bundle that our own runtime made for a pod (the same root file system, mounts, limits and
//! program) without what takes a cluster: it makes its namespaces itself, has no network and no filter of system
//! calls. Both are measured in turn, so that whatever else the machine does happens to both.

mod commands;
mod logs;
mod many;
mod runc;
mod starts;

use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;
use http::Method;
use rimward_tests_cluster::{busybox, is_root};
use serde_json::{Value, json};

use crate::Setup;
use crate::api::{Api, Watch, condition};
use crate::cluster::{Server, default_account, within};
use crate::row::Row;

const PODS: &str = "/api/v1/namespaces/default/pods";
const IMAGE: &str = "docker.io/library/bench-busybox:v1";

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    if !is_root() {
        eprintln!("containers take root: left out");
        return Ok(Vec::new());
    }
    let max = (setup.containers + 110).to_string();
    let server = Server::up(setup, &["--max-pods", &max]).await?;
    let api = server.door.connect().await?;
    default_account(&api).await?;
    import_image(setup, &server)?;
    let bed = Bed { setup, server, api };
    // The image is unpacked by a first pod, whose bundle the peer gets.
    bed.start("first", sleeper()).await?;
    let peer = runc::Peer::of(&bed.run_dir("first").await?)?;

    let mut rows = starts::rows(&bed, &peer).await?;
    rows.extend(commands::rows(&bed, &peer).await?);
    rows.extend(logs::rows(&bed, &peer).await?);
    rows.extend(many::rows(&bed).await?);
    bed.end("first").await?;
    Ok(rows)
}

/// What all of it is measured on.
struct Bed<'a> {
    setup: &'a Setup,
    server: Server,
    api: Api,
}

impl Bed<'_> {
    async fn watch(&self, name: &str) -> anyhow::Result<Watch> {
        self.api.watch(&format!("{PODS}?watch=true&fieldSelector=metadata.name%3D{name}")).await
    }

    /// Makes a pod; comes back when it is Ready.
    async fn start(&self, name: &str, container: Value) -> anyhow::Result<()> {
        let mut watch = self.watch(name).await?;
        self.api.create(PODS, pod(name, container)).await?;
        let ready = async {
            while !condition(&watch.event().await?["object"], "Ready") {}
            anyhow::Ok(())
        };
        within(&format!("pod {name} Ready"), ready, || self.server.process.log()).await
    }

    /// Deletes a pod; comes back when it is gone.
    async fn end(&self, name: &str) -> anyhow::Result<()> {
        let mut watch = self.watch(name).await?;
        self.api.send(Method::DELETE, &format!("{PODS}/{name}"), &[], "".into()).await?;
        let gone = async {
            while watch.event().await?["type"] != "DELETED" {}
            anyhow::Ok(())
        };
        within(&format!("pod {name} gone"), gone, || self.server.process.log()).await
    }

    /// Where the runtime keeps the pod's one container.
    async fn run_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let pod = self.api.get(&format!("{PODS}/{name}")).await?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        Ok(self.server.dir().join("node/run/oci").join(format!("{uid}.main.0")))
    }
}

/// Nothing but a program that waits.
fn sleeper() -> Value {
    json!({ "command": ["/bin/sleep", "36000"] })
}

/// A pod of one container, with the limits that a user would give it.
fn pod(name: &str, container: Value) -> bytes::Bytes {
    let mut main = json!({
        "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "resources": { "requests": { "cpu": "0", "memory": "0" }, "limits": { "memory": "64Mi" } },
    });
    for (key, value) in container.as_object().into_iter().flatten() {
        main[key] = value.clone();
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "containers" } },
        "spec": { "terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [main] },
    });
    pod.to_string().into()
}

fn import_image(setup: &Setup, server: &Server) -> anyhow::Result<()> {
    let file = server.dir().join("busybox.tar");
    busybox::archive("oci-archive", &file, IMAGE, json!({ "Env": ["PATH=/bin"] }));
    let mut import = Command::new(&setup.rimward);
    import.args(["image", "import", "--name", IMAGE]).arg(&file);
    let imported = import.arg("--data-dir").arg(server.dir()).output()?;
    let said = String::from_utf8_lossy(&imported.stderr).into_owned();
    ensure!(imported.status.success(), "image import: {said}");
    Ok(())
}
