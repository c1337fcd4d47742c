//! Wasm HTTP requests a second through a Service, in both network modes, against `wasmtime serve` on the
//! same cores with the same guest. `wrk` makes the load, one run after the other.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rimward_tests_cluster::{Process, is_root};
use serde_json::json;

use crate::Setup;
use crate::api::{Api, condition};
use crate::cluster::{PATIENCE, Server, within};
use crate::row::{Row, Target};

const CONNECTIONS: u32 = 32;

pub async fn rows(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let peer = match &setup.peer {
        Some(wasmtime) => Some(peer(setup, wasmtime).await?),
        None => None,
    };
    let mut rows = Vec::new();
    if let Some(load) = &peer {
        let how = "a fresh instance a request, pooling allocator";
        rows.push(Row::new("wasmtime serve", load.rate, "req/s", Target::None, load.how(how)));
    }
    if is_root() {
        let modes = through_service(setup, &[], "nft").await?;
        rows.extend(compared("Service, root mode (nft)", &modes.service, peer.as_ref(), 1.0));
        rows.push(Row::new(
            "… to the pod's own address",
            modes.pod.rate,
            "req/s",
            Target::None,
            modes.pod.how("no Service"),
        ));
    }
    let modes = through_service(setup, &["--user-mode"], "user").await?;
    rows.extend(compared("Service, user mode (proxy)", &modes.service, peer.as_ref(), 0.8));
    rows.push(Row::new(
        "… to the pod's own address",
        modes.pod.rate,
        "req/s",
        Target::None,
        modes.pod.how("no Service"),
    ));
    Ok(rows)
}

fn compared(what: &str, ours: &Load, peer: Option<&Load>, target: f64) -> Vec<Row> {
    let mut rows =
        vec![Row::new(what, ours.rate, "req/s", Target::None, ours.how("memory limit set"))];
    rows.extend(peer.map(|peer| {
        let ratio = ours.rate / peer.rate;
        Row::new(
            format!("{what} ÷ wasmtime serve"),
            ratio,
            "×",
            Target::AtLeast(target),
            "the same run",
        )
    }));
    rows
}

struct Loads {
    service: Load,
    pod: Load,
}

async fn through_service(setup: &Setup, options: &[&str], mode: &str) -> anyhow::Result<Loads> {
    let server = Server::up(setup, options).await?;
    let api = server.door.connect().await?;
    server.prepare_guest(setup, &api).await?;
    // The pod of the preparation is the one behind the Service.
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "guest" },
        "spec": { "selector": { "app": "first" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    api.create("/api/v1/namespaces/default/services", service.to_string().into()).await?;
    let (ip, pod_ip) =
        within("the Service's endpoint", addresses(&api), || server.process.log()).await?;
    let (url, pod) = match mode {
        "nft" => (format!("http://{ip}/"), format!("http://{pod_ip}:8080/")),
        // Without kernel rules, 10.x.y.z:80 is reached at 127.x.y.z:8080.
        _ => {
            let [ip, pod_ip] = [&ip, &pod_ip].map(|ip| ip.replacen("10.", "127.", 1));
            (format!("http://{ip}:8080/"), format!("http://{pod_ip}:8080/"))
        }
    };
    answers(&url).await.map_err(|e| e.context(format!("mode {mode}")))?;
    Ok(Loads { service: load(setup, &url).await?, pod: load(setup, &pod).await? })
}

async fn addresses(api: &Api) -> anyhow::Result<(String, String)> {
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?watch=true\
                &labelSelector=kubernetes.io%2Fservice-name%3Dguest";
    let mut watch = api.watch(path).await?;
    let pod_ip = loop {
        let event = watch.event().await?;
        if let Some(ip) = event["object"]["endpoints"][0]["addresses"][0].as_str() {
            break ip.to_owned();
        }
    };
    let pod = api.get("/api/v1/namespaces/default/pods/first").await?;
    ensure!(condition(&pod, "Ready"), "the pod is not Ready");
    let service = api.get("/api/v1/namespaces/default/services/guest").await?;
    let ip = service["spec"]["clusterIP"].as_str().context("the Service has no clusterIP")?;
    Ok((ip.to_owned(), pod_ip))
}

/// `wasmtime serve`, with what makes it quickest while every request has an instance of its own.
async fn peer(setup: &Setup, wasmtime: &std::path::Path) -> anyhow::Result<Load> {
    let dir = tempfile::tempdir()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new(wasmtime);
    command.args([
        "serve",
        "-S",
        "cli",
        "-O",
        "pooling-allocator",
        "--max-instance-reuse-count",
        "1",
    ]);
    command.args(["--addr", &format!("127.0.0.1:{port}")]).arg(&setup.guest);
    let _process = Process::start("wasmtime", dir.path(), command);
    let url = format!("http://127.0.0.1:{port}/");
    answers(&url).await?;
    load(setup, &url).await
}

async fn answers(url: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let curl = tokio::process::Command::new("curl")
            .args(["-fsS", "--max-time", "2", url])
            .output()
            .await?;
        if curl.status.success() {
            return Ok(());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{url} does not answer: {}",
            String::from_utf8_lossy(&curl.stderr).trim()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `wrk` saw.
struct Load {
    rate: f64,
    p50: String,
    p99: String,
}

impl Load {
    fn how(&self, more: &str) -> String {
        format!("wrk, {CONNECTIONS} connections: p50 {}, p99 {}; {more}", self.p50, self.p99)
    }
}

async fn load(setup: &Setup, url: &str) -> anyhow::Result<Load> {
    // A second of warm-up that is not counted.
    wrk(url, 1).await?;
    wrk(url, setup.seconds).await
}

async fn wrk(url: &str, seconds: u64) -> anyhow::Result<Load> {
    let output = tokio::process::Command::new("wrk")
        .args([
            "-t",
            "1",
            "-c",
            &CONNECTIONS.to_string(),
            "-d",
            &format!("{seconds}s"),
            "--latency",
            url,
        ])
        .output()
        .await
        .context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk {url}: {}{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    read_wrk(&text).with_context(|| format!("wrk {url}"))
}

/// Errors in the answers are no load: they fail the measurement.
fn read_wrk(text: &str) -> anyhow::Result<Load> {
    let after = |label: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(label));
        line.map(|rest| rest.trim().to_owned())
            .with_context(|| format!("no line {label:?} in: {text}"))
    };
    for bad in ["Non-2xx", "Socket errors"] {
        ensure!(!text.contains(bad), "there were errors: {text}");
    }
    Ok(Load { rate: after("Requests/sec:")?.parse()?, p50: after("50%")?, p99: after("99%")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 1s test @ http://127.0.0.1:1/\n  Latency Distribution\n     50%    1.22ms\n     \
                        75%    1.60ms\n     99%    4.10ms\n  25000 requests in 1.00s\nRequests/sec:  24987.12\n";

    #[test]
    fn the_load_generators_words_are_read() {
        let load = read_wrk(GOOD).expect("it reads");
        assert_eq!(
            (load.rate, load.p50.as_str(), load.p99.as_str()),
            (24987.12, "1.22ms", "4.10ms")
        );
    }

    #[test]
    fn errors_are_no_load() {
        assert!(read_wrk(&format!("{GOOD}  Non-2xx or 3xx responses: 5\n")).is_err());
        assert!(read_wrk("nothing").is_err());
    }
}
