//! Several hosts on one machine: network namespaces joined by a bridge that lives in a namespace of its
//! own, so that nothing of the test shows on the machine's own network. Needs root.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Namespaces `<prefix>0…` with addresses 192.168.77.1…, removed when dropped. They reach each other and nobody
/// else: none has a default route.
pub struct Hosts {
    prefix: String,
    count: usize,
}

impl Hosts {
    pub fn new(count: usize) -> Self {
        let prefix =
            format!("rwt{}x{}h", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { prefix, count };
        let switch = hosts.switch();
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add bridge type bridge"));
        ip(&format!("-n {switch} link set bridge up"));
        for i in 0..count {
            let (name, address) = (hosts.name(i), hosts.address(i));
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} link add eth0 type veth peer name port{i} netns {switch}"));
            ip(&format!("-n {switch} link set port{i} master bridge up"));
            ip(&format!("-n {name} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name} link set eth0 up"));
        }
        hosts
    }

    fn switch(&self) -> String {
        format!("{}s", self.prefix)
    }

    pub fn name(&self, i: usize) -> String {
        format!("{}{i}", self.prefix)
    }

    pub fn address(&self, i: usize) -> String {
        format!("192.168.77.{}", i + 1)
    }

    /// The words that run a command on a host. `nsenter`, since `ip netns exec` hides cgroups.
    pub fn on(&self, i: usize) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.name(i))]
    }

    /// Does something in a thread of its own whose sockets are this host's.
    pub fn within<T: Send>(&self, i: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/run/netns/{}", self.name(i));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&namespace);
                work()
            });
            thread.join().expect("the work ends well")
        })
    }

    pub fn command(&self, i: usize, program: &std::path::Path) -> Command {
        let words = self.on(i);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for i in 0..self.count {
            try_ip(&format!("netns del {}", self.name(i)));
        }
        try_ip(&format!("netns del {}", self.switch()));
    }
}

/// Moves this thread into a network namespace: the sockets that it makes from now on are there.
pub fn enter(namespace: &str) {
    let file = std::fs::File::open(namespace).expect("the namespace is there");
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may do this");
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn try_ip(line: &str) {
    let _a_test_that_failed_may_have_left_less = Command::new("ip").args(line.split(' ')).output();
}
