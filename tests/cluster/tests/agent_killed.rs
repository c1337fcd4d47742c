//! kill -9 of agents under load: no request through a Service fails, no task restarts, no node is called not
//! ready. Clients call without pause while the agents of both nodes are killed and started again.
//!
//! Nodes that run as root: there the kernel routes. What an agent itself serves is not there while it is dead: a
//! DNS client must ask again (here one does, from the same socket, and so do guests), and what comes by Ingress is
//! refused meanwhile.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rimward_tests_cluster::fleet::Fleet;
use rimward_tests_cluster::hosts::enter;
use rimward_tests_cluster::{condition, eventually, repository, skip_without_root};
use serde_json::{Value, json};

/// What a client may wait. A packet to another node is lost while there is no agent to carry it, and sent again
/// by the kernel after 1, 3, 7 and 15 seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client in a thread of its own that calls without pause.
struct Client {
    name: &'static str,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    answers: u64,
    /// Who answered since the last look.
    pods: BTreeSet<String>,
    failures: Vec<String>,
}

impl Client {
    /// `call` answers who answered.
    fn start(
        name: &'static str,
        namespace: String,
        stop: &Arc<AtomicBool>,
        mut call: impl FnMut() -> Result<String, String> + Send + 'static,
    ) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (stop, notes) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            enter(&format!("/run/netns/{namespace}"));
            while !stop.load(Ordering::Relaxed) {
                let answer = call();
                let mut seen = notes.lock().expect("nobody panics with it");
                match answer {
                    Ok(pod) => {
                        seen.answers += 1;
                        seen.pods.insert(pod);
                    }
                    Err(failure) => seen.failures.push(failure),
                }
            }
        });
        Self { name, seen, thread: Some(thread) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with it")
    }

    /// Waits for so many answers from now on, and from so many pods.
    fn goes_on(&self, answers: u64, pods: usize) {
        let before = {
            let mut seen = self.seen();
            seen.pods.clear();
            seen.answers
        };
        eventually(&format!("{}: {answers} answers from {pods} pods", self.name), || {
            let seen = self.seen();
            assert!(seen.failures.is_empty(), "{}: {:?}", self.name, seen.failures);
            (seen.answers >= before + answers && seen.pods.len() >= pods).then_some(())
        });
    }
}

/// One request on a connection; answers the pod's name.
fn get(stream: &mut BufReader<TcpStream>, path: &str, then: &str) -> Result<String, String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: greeter\r\nconnection: {then}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes()).map_err(|e| format!("write: {e}"))?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = stream.read_line(&mut head).map_err(|e| format!("read: {e}"))?;
        if read == 0 {
            return Err(format!("closed after {head:?}"));
        }
    }
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(head);
    }
    let body = body(stream, &head.to_lowercase()).map_err(|e| format!("body: {e}"))?;
    let words = body.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let pod = words.into_iter().find(|word| word.starts_with("greeter-"));
    pod.map(str::to_owned).ok_or(body)
}

fn body(stream: &mut BufReader<TcpStream>, head: &str) -> std::io::Result<String> {
    let mut body = Vec::new();
    let mut take = |stream: &mut BufReader<TcpStream>, len: usize| {
        let start = body.len();
        body.resize(start + len, 0);
        stream.read_exact(&mut body[start..])
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    if let Some(length) = length {
        take(stream, length.trim().parse().expect("a length"))?;
    } else {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
            take(stream, size)?;
            stream.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn connect(to: &str) -> Result<BufReader<TcpStream>, String> {
    let to = to.parse().expect("an address");
    let stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    Ok(BufReader::new(stream))
}

/// Each request on a new connection. The server ends it: a client that did would run out of ports.
fn anew(to: String, path: &'static str) -> impl FnMut() -> Result<String, String> {
    move || {
        let mut stream = connect(&to)?;
        let pod = get(&mut stream, path, "close")?;
        stream.read_to_end(&mut Vec::new()).map_err(|e| format!("end: {e}"))?;
        Ok(pod)
    }
}

/// All requests on one connection.
fn on_one_connection(to: String) -> impl FnMut() -> Result<String, String> {
    let mut open = None;
    move || {
        let stream = match &mut open {
            Some(stream) => stream,
            None => open.insert(connect(&to)?),
        };
        get(stream, "/", "keep-alive")
    }
}

/// A DNS client that asks again, from one socket, as stub resolvers do. An answer that denies the name is a
/// failure.
fn lookups(name: &'static str) -> impl FnMut() -> Result<String, String> {
    let mut socket = None;
    let mut id = 0u16;
    move || {
        let socket = socket.get_or_insert_with(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
            socket.connect("10.43.0.10:53").expect("a route");
            socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
            socket
        });
        id = id.wrapping_add(1);
        let mut question = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
        for label in name.split('.') {
            question.push(label.len() as u8);
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        let start = Instant::now();
        let mut buffer = [0; 512];
        while start.elapsed() < PATIENCE {
            let _refused_without_an_agent = socket.send(&question);
            match socket.recv(&mut buffer) {
                Ok(len) if len > 12 && buffer[..2] == id.to_be_bytes() => {
                    let (code, answers) = (buffer[3] & 15, buffer[7]);
                    let found = code == 0 && answers == 1;
                    return found
                        .then(String::new)
                        .ok_or(format!("code {code}, {answers} answers"));
                }
                // Nobody there, or an answer to an earlier question.
                _ => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
        Err("no answer".into())
    }
}

fn service(fleet: &Fleet, name: &str, more: Value) -> Value {
    let mut spec =
        json!({"selector": {"app": "greeter"}, "ports": [{"port": 80, "targetPort": 8080}]});
    for (key, value) in more.as_object().expect("fields") {
        spec[key] = value.clone();
    }
    let object =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    fleet.cluster.apply(&object.to_string());
    fleet.cluster.get(&["service", name])["spec"].clone()
}

/// A pod on the first node whose guest calls others; where it answers.
fn caller(fleet: &Fleet) -> String {
    fleet.push(&repository().join("tests/cluster/guests/caller/caller.wasm"), "caller:v1");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "caller"}, "spec": {
        "nodeName": "n1",
        "containers": [{"name": "caller", "image": "caller:v1", "ports": [{"containerPort": 8080}]}]}});
    fleet.cluster.apply(&pod.to_string());
    fleet.cluster.ok(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=90s"]);
    let pod = fleet.cluster.get(&["pod", "caller"]);
    format!("{}:8080", pod["status"]["podIP"].as_str().expect("an address"))
}

/// When each node's Ready condition last changed.
fn ready_since(fleet: &Fleet) -> Vec<String> {
    let nodes = fleet.cluster.get(&["nodes"]);
    let since = |node: &Value| {
        assert_eq!(condition(node, "Ready"), "True");
        let conditions = node["status"]["conditions"].as_array().expect("conditions");
        let ready = conditions.iter().find(|c| c["type"] == "Ready").expect("Ready");
        ready["lastTransitionTime"].to_string()
    };
    nodes["items"].as_array().expect("nodes").iter().map(since).collect()
}

fn connections(fleet: &Fleet, node: usize) -> usize {
    let log = fleet.nodes[node - 1].as_ref().expect("it runs").log();
    log.matches("connected to the control plane").count()
}

#[test]
fn kill_9_of_agents_fails_no_request() {
    if skip_without_root("kill_9_of_agents_fails_no_request") {
        return;
    }
    let mut fleet = Fleet::new();
    fleet.greeter();
    let all = format!("{}:80", fleet.service_ip());
    let address = |spec: &Value| format!("{}:80", spec["clusterIP"].as_str().expect("an address"));
    let near = json!({"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    let near = service(&fleet, "near", near);
    let sticky = service(&fleet, "sticky", json!({"sessionAffinity": "ClientIP"}));
    let node_port = near["ports"][0]["nodePort"].as_u64().expect("a node port");
    let from_outside = format!("{}:{node_port}", fleet.hosts.address(1));
    let (near, sticky) = (address(&near), address(&sticky));

    let caller = caller(&fleet);

    let stop: Arc<AtomicBool> = Arc::default();
    let (outside, host) = (fleet.hosts.name(0), fleet.hosts.name(1));
    // Rules reach the nodes a moment after the Services are written.
    for to in [&all, &near, &sticky] {
        eventually("the Service answers", || {
            fleet.hosts.within(1, || anew(to.clone(), "/")().ok())
        });
    }
    eventually("the node port answers", || {
        fleet.hosts.within(0, || anew(from_outside.clone(), "/")().ok())
    });
    let everywhere = Client::start("all pods", host.clone(), &stop, anew(all.clone(), "/"));
    let again = Client::start("all pods, another client", host.clone(), &stop, anew(all, "/"));
    let here = Client::start("pods of the node", host.clone(), &stop, anew(near.clone(), "/"));
    let lasting = Client::start("one connection", host.clone(), &stop, on_one_connection(near));
    let faithful = Client::start("a client that stays", host.clone(), &stop, anew(sticky, "/"));
    let stranger = Client::start("the node port", outside, &stop, anew(from_outside, "/"));
    let name = "greeter.default.svc.cluster.local";
    let names = Client::start("names", host.clone(), &stop, lookups(name));
    let path = "/fetch?http://near.default.svc/";
    let guest = Client::start("a guest that calls by name", host, &stop, anew(caller, path));
    let local = [&here, &lasting, &stranger];

    everywhere.goes_on(50, 4);
    faithful.goes_on(20, 1);
    let since = ready_since(&fleet);
    let pods = fleet.placed();
    for node in [1, 2, 1] {
        let before = connections(&fleet, node);
        fleet.nodes[node - 1].as_mut().expect("it runs").kill();
        if node == 1 {
            // Without any agent.
            local.iter().for_each(|client| client.goes_on(20, 1));
        }
        // One that dies as soon as it has begun changes nothing.
        fleet.start_node(node);
        fleet.nodes[node - 1].as_mut().expect("it runs").kill();
        fleet.start_node(node);
        eventually("the agent is connected", || (connections(&fleet, node) > before).then_some(()));
        [&everywhere, &again].iter().for_each(|client| client.goes_on(50, 4));
        names.goes_on(20, 1);
        guest.goes_on(5, 1);
    }
    stop.store(true, Ordering::Relaxed);
    for mut client in [everywhere, again, here, lasting, faithful, stranger, names, guest] {
        client.thread.take().expect("once").join().expect("a client does not panic");
        let seen = client.seen();
        println!("{}: {} answers, failures: {:?}", client.name, seen.answers, seen.failures);
        assert!(seen.failures.is_empty(), "{}: {:?}", client.name, seen.failures);
        if client.name == "a client that stays" {
            assert_eq!(seen.pods.len(), 1, "it kept its pod: {:?}", seen.pods);
        }
    }
    assert_eq!(ready_since(&fleet), since, "no node was called not ready");
    assert_eq!(fleet.placed(), pods, "the same pods");
    let pods = fleet.cluster.get(&["pods", "-l", "app=greeter"]);
    for pod in pods["items"].as_array().expect("pods") {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "nothing restarted");
    }
}
