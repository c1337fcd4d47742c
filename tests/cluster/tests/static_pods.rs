//! Static pods: files that a node runs, and what the API shows of them. As root.

use std::path::Path;

use rimward_tests_cluster::fleet::Fleet;
use rimward_tests_cluster::{busybox, condition, eventually, skip_without_root};
use serde_json::{Value, json};

/// Whole or not at all, as editors and tools of configuration write.
fn write(dir: &Path, name: &str, text: &str) {
    let hidden = dir.join(format!(".{name}"));
    std::fs::write(&hidden, text).expect("the directory can be written");
    std::fs::rename(hidden, dir.join(name)).expect("the directory can be written");
}

fn manifest(image: &str, host: &Path, says: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{app: web}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: main\n    image: {image}\n    imagePullPolicy: IfNotPresent\n    \
         args: [\"echo {says}; echo {says} >> /host/said; exec sleep 3600\"]\n    \
         volumeMounts: [{{name: host, mountPath: /host}}]\n  volumes: [{{name: host, hostPath: {{path: {}}}}}]\n",
        host.display()
    )
}

#[test]
fn static_pods_follow_their_files() {
    if skip_without_root("static_pods_follow_their_files") {
        return;
    }
    let mut fleet = Fleet::new();
    let config = json!({"Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"]});
    let image = busybox::push(&fleet.cluster, "busybox:v1", config);
    let dir = fleet.dir.path().join("manifests");
    let host = fleet.dir.path().join("host");
    for dir in [&dir, &host] {
        std::fs::create_dir(dir).expect("a new directory");
    }
    let extra = ["--pod-manifest-path", dir.to_str().expect("a path of text")];
    let start = |fleet: &Fleet| fleet.spawn_node_with(1, &fleet.token, "n1", &extra);
    let mut agent = fleet.nodes[0].take().expect("it runs");
    agent.kill();
    let mut agent = {
        drop(agent);
        start(&fleet)
    };
    let said = || std::fs::read_to_string(host.join("said")).unwrap_or_default();
    let mirror =
        |cluster: &rimward_tests_cluster::Cluster, what: &str, is: &dyn Fn(&Value) -> bool| {
            eventually(what, || {
                let pod = cluster.get(&["pod", "web-n1", "--ignore-not-found"]);
                (condition(&pod, "Ready") == "True" && is(&pod)).then_some(pod)
            })
        };

    write(&dir, "web.yaml", &manifest(&image, &host, "one"));
    write(&dir, "broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [}\n");
    let pod = mirror(&fleet.cluster, "the mirror is ready", &|_| true);
    let meta = &pod["metadata"];
    let notes = &meta["annotations"];
    assert_eq!(notes["kubernetes.io/config.source"], "file");
    assert_eq!(notes["kubernetes.io/config.mirror"], notes["kubernetes.io/config.hash"]);
    assert_ne!(notes["kubernetes.io/config.hash"], meta["uid"]);
    assert_eq!(
        (&meta["ownerReferences"][0]["kind"], &meta["ownerReferences"][0]["name"]),
        (&json!("Node"), &json!("n1"))
    );
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["spec"].get("serviceAccountName"), None, "no token of an account is in it");
    assert_eq!(fleet.cluster.ok(&["logs", "web-n1"]), "one\n");
    assert_eq!(fleet.cluster.ok(&["exec", "web-n1", "--", "hostname"]).trim(), "web-n1");
    eventually("the broken file is named", || agent.log().contains("broken.yaml").then_some(()));

    // What is done to the mirror changes nothing of the pod.
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    fleet.cluster.ok(&["delete", "pod", "web-n1", "--timeout=60s"]);
    let again =
        mirror(&fleet.cluster, "there is another mirror", &|p| p["metadata"]["uid"] != meta["uid"]);
    assert_eq!(id(&again), id(&pod));
    // Nor does an agent's end.
    agent.kill();
    drop(agent);
    let mut agent = start(&fleet);
    fleet.cluster.ok(&["delete", "pod", "web-n1", "--timeout=60s"]);
    let again = mirror(&fleet.cluster, "the next agent makes one too", &|p| {
        p["metadata"]["uid"] != again["metadata"]["uid"]
    });
    assert_eq!((id(&again), said().as_str()), (id(&pod), "one\n"));

    // The file says something else, or something that nobody understands.
    write(&dir, "web.yaml", &manifest(&image, &host, "two"));
    let second = mirror(&fleet.cluster, "the second version runs", &|p| id(p) != id(&pod));
    assert_ne!(
        second["metadata"]["annotations"]["kubernetes.io/config.mirror"],
        notes["kubernetes.io/config.mirror"]
    );
    assert_eq!(said(), "one\ntwo\n");
    write(&dir, "web.yaml", "apiVersion: v1\nkind: Pod\nspec: {serviceAccountName: admin}\n");
    eventually("what it refers to is named", || {
        agent.log().contains("spec.serviceAccountName refers to").then_some(())
    });
    assert_eq!(id(&fleet.cluster.get(&["pod", "web-n1"])), id(&second));

    // Without a control plane.
    fleet.cluster.process.kill();
    agent.kill();
    drop(agent);
    write(&dir, "web.yaml", &manifest(&image, &host, "three"));
    let agent = start(&fleet);
    eventually("the third version runs", || said().ends_with("three\n").then_some(()));
    fleet.restart_control();
    mirror(&fleet.cluster, "the API tells of the third", &|p| id(p) != id(&second));

    std::fs::remove_file(dir.join("web.yaml")).expect("it is there");
    eventually("the mirror goes with the file", || {
        fleet.cluster.ok(&["get", "pods", "-o", "name"]).is_empty().then_some(())
    });
    let runs = fleet.dir.path().join("n1/node/run/oci");
    eventually("and the container", || {
        std::fs::read_dir(&runs).is_ok_and(|mut d| d.next().is_none()).then_some(())
    });
    drop(agent);
}
