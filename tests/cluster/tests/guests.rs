//! Guests that call others from inside a cluster: names, a Service, the API with their own token.

use rimward_tests_cluster::{Cluster, curl, eventually, is_root, repository};

fn pod(name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{serviceAccountName: caller, {more} \
         containers: [{{name: caller, image: \"caller:v1\", ports: [{{containerPort: 8080}}]}}]}}\n"
    )
}

struct Callers {
    cluster: Cluster,
    user_mode: bool,
}

impl Callers {
    fn new(cluster: Cluster, user_mode: bool) -> Self {
        let root = repository();
        cluster.push(&root.join("tests/cluster/guests/caller/caller.wasm"), "caller:v1");
        let greeter = root.join("examples/greeter");
        cluster.push(&greeter.join("greeter.wasm"), "greeter:v1");
        cluster.apply(&std::fs::read_to_string(greeter.join("manifest.yaml")).expect("a manifest"));
        cluster.ok(&["create", "serviceaccount", "caller"]);
        let alone = "dnsPolicy: None, dnsConfig: {nameservers: [\"10.43.0.10\"], searches: [svc.cluster.local]}, \
             hostAliases: [{ip: 192.0.2.9, hostnames: [db.test]}],";
        let manifest = pod("caller", "")
            + &pod("alone", alone)
            + &pod("tokenless", "automountServiceAccountToken: false,");
        cluster.apply(&manifest);
        cluster.ok(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"]);
        cluster.ok(&["rollout", "status", "deployment/greeter", "--timeout=90s"]);
        Self { cluster, user_mode }
    }

    /// What a pod's guest says to a path.
    fn ask(&self, pod: &str, path: &str) -> String {
        let found = self.cluster.get(&["pod", pod]);
        let ip = found["status"]["podIP"].as_str().expect("an address");
        let ip = if self.user_mode { ip.replacen("10.", "127.", 1) } else { ip.to_owned() };
        curl(self.cluster.wrap(), &[&format!("http://{ip}:8080{path}")])
    }

    #[track_caller]
    fn check(&self, pod: &str, path: &str, begins: &str, contains: &str) {
        let answer = self.ask(pod, path);
        assert!(answer.starts_with(begins) && answer.contains(contains), "{pod} {path}: {answer}");
    }

    fn names(&self) {
        let service = self.cluster.get(&["service", "greeter"]);
        let greeter = service["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned();
        self.check(
            "caller",
            "/lookup?kubernetes.default.svc.cluster.local",
            "found\n10.43.0.1\n",
            "",
        );
        self.check("caller", "/lookup?kubernetes.default", "found\n10.43.0.1\n", "");
        self.check("caller", "/lookup?greeter", "found\n", &greeter);
        self.check(
            "caller",
            "/lookup?nobody.default.svc.cluster.local",
            "error: ",
            "name-unresolvable",
        );
        // A policy of its own: another search list, names of its own.
        self.check("alone", "/lookup?greeter.default", "found\n", &greeter);
        self.check("alone", "/lookup?db.test", "found\n192.0.2.9\n", "");
        self.check(
            "alone",
            "/lookup?nobody.default.svc.cluster.local",
            "error: ",
            "name-unresolvable",
        );
    }

    fn services(&self) {
        self.check("caller", "/fetch?http://greeter/", "200\nHello from greeter-", "");
        self.check("caller", "/fetch?http://greeter.default.svc/version", "200\ngreeter ", "");
        self.check("caller", "/fetch?http://greeter:81/", "error: ", "");
    }

    fn api(&self) {
        // The token says who it is, and the API answers that one.
        let user = "system:serviceaccount:default:caller";
        let path = "/api?/api/v1/namespaces/default/pods/caller";
        self.check("caller", path, "403\n", user);
        self.cluster.ok(&["create", "role", "reader", "--verb=get", "--resource=pods"]);
        self.cluster.ok(&[
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            "--serviceaccount=default:caller",
        ]);
        eventually("the role counts", || {
            let answer = self.ask("caller", path);
            (answer.starts_with("200\n") && answer.contains("\"name\":\"caller\"")).then_some(())
        });
        // Without the mounted CA nobody vouches for the API server.
        let path = "/fetch?https://kubernetes.default.svc/version";
        self.check("tokenless", path, "error: ", "TlsCertificateError");
        self.check("tokenless", "/api?/version", "error: ", "token");
    }
}

fn calls(cluster: Cluster, user_mode: bool) {
    let callers = Callers::new(cluster, user_mode);
    callers.names();
    callers.services();
    callers.api();
}

#[test]
fn guests_call_names_services_and_the_api() {
    calls(Cluster::up(), !is_root());
}

#[test]
fn the_same_calls_in_user_mode() {
    calls(Cluster::up_with(&["--user-mode"]), true);
}
