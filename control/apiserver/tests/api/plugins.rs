//! The admission plugins of a default cluster, on a server.

use serde_json::{Value, json};

use crate::cluster::{Cluster, PODS, pod};

const NAMESPACES: &str = "/api/v1/namespaces";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let limits = json!([{ "type": "Container", "max": { "cpu": "1" }, "default": { "cpu": "500m", "memory": "64Mi" }, "defaultRequest": { "cpu": "250m", "memory": "64Mi" } }]);
    let range = json!({ "metadata": { "name": "l" }, "spec": { "limits": limits } });
    let path = "/api/v1/namespaces/default/limitranges";
    c.post(path, &range).await.expect(201);
    let made = c.post(PODS, &pod("a")).await.expect(201);
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({ "limits": { "cpu": "500m", "memory": "64Mi" }, "requests": { "cpu": "250m", "memory": "64Mi" } })
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c; cpu, memory limit for container c"
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let mut big = pod("b");
    big["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "2" } });
    let refused = c.post(PODS, &big).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
    );
    c.delete(&format!("{path}/l"), &Value::Null).await.expect(200);
    let plain = c.post(PODS, &big).await.expect(201);
    assert_eq!(plain["metadata"].get("annotations"), None);
}

#[tokio::test]
async fn pod_security_enforces_warns_and_looks_at_what_is_there() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let label = |mode: &str, level: &str| json!({ "metadata": { "labels": { format!("pod-security.kubernetes.io/{mode}"): level } } });
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = true.into();
    c.post(PODS, &host).await.expect(201);
    let default = format!("{NAMESPACES}/default");
    let told = c.merge(&default, &label("enforce", "baseline")).await;
    told.expect(200);
    assert_eq!(
        told.warnings(),
        [
            r#"299 - "existing pods in namespace \"default\" violate the new PodSecurity enforce level \"baseline:latest\"""#,
            r#"299 - "host: host namespaces""#,
        ]
    );
    host["metadata"]["name"] = "again".into();
    let refused = c.post(PODS, &host).await.expect(403);
    assert_eq!(
        refused["message"],
        r#"pods "again" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)"#
    );
    c.post(PODS, &pod("fine")).await.expect(201);
    c.merge(&default, &label("warn", "restricted")).await.expect(200);
    let deployment = json!({ "metadata": { "name": "d" }, "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": { "metadata": { "labels": { "a": "b" } }, "spec": host["spec"] } } });
    let made = c.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await;
    made.expect(201);
    let warning = made.warnings().join("\n");
    assert!(
        warning.contains(r#"would violate PodSecurity \"restricted:latest\": host namespaces (hostNetwork=true), "#),
        "{warning}"
    );
    let wrong = c.merge(&default, &label("enforce", "tight")).await.expect(422);
    assert_eq!(
        wrong["message"],
        r#"Namespace "default" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "tight": must be one of privileged, baseline, restricted"#
    );
    c.merge(&default, &label("enforce", "privileged")).await.expect(200);
    c.post(PODS, &host).await.expect(201);
}

#[tokio::test]
async fn claims_get_the_default_class_and_grow_where_it_lets_them() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    let class = |name: &str, default: &str, grows: bool| json!({ "metadata": { "name": name, "annotations": { "storageclass.kubernetes.io/is-default-class": default } }, "provisioner": "p", "allowVolumeExpansion": grows });
    c.post(classes, &class("slow", "false", false)).await.expect(201);
    c.post(classes, &class("fast", "true", true)).await.expect(201);
    let claim = |name: &str| json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let made = c.post(CLAIMS, &claim("a")).await.expect(201);
    assert_eq!(made["spec"]["storageClassName"], "fast");
    let mut none = claim("b");
    none["spec"]["storageClassName"] = "".into();
    assert_eq!(c.post(CLAIMS, &none).await.expect(201)["spec"]["storageClassName"], "");
    let mut slow = claim("c");
    slow["spec"]["storageClassName"] = "slow".into();
    c.post(CLAIMS, &slow).await.expect(201);
    let bound = json!({ "status": { "phase": "Bound" } });
    let more = json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } });
    for name in ["a", "c"] {
        c.merge(&format!("{CLAIMS}/{name}/status"), &bound).await.expect(200);
    }
    c.merge(&format!("{CLAIMS}/a"), &more).await.expect(200);
    let refused = c.merge(&format!("{CLAIMS}/c"), &more).await.expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("only dynamically provisioned pvc can be resized"),
        "{refused}"
    );
}

#[tokio::test]
async fn every_cluster_ip_is_an_object() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let kubernetes = c.get(&format!("{ADDRESSES}/10.43.0.1")).await.expect(200);
    assert_eq!(
        kubernetes["spec"]["parentRef"],
        json!({ "resource": "services", "namespace": "default", "name": "kubernetes" })
    );
    let range = c.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await.expect(200);
    assert_eq!(range["spec"]["cidrs"], json!(["10.43.0.0/16"]));
    let service = json!({ "metadata": { "name": "s" }, "spec": { "clusterIP": "10.43.0.77", "ports": [{ "port": 80 }] } });
    c.post(SERVICES, &service).await.expect(201);
    let address = format!("{ADDRESSES}/10.43.0.77");
    let made = c.get(&address).await.expect(200);
    assert_eq!(
        made["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"],
        "ipallocator.k8s.io"
    );
    // One that is deleted while its Service holds the address comes back.
    let mut events = c
        .watch(&format!(
            "{ADDRESSES}?watch=1&resourceVersion={}",
            made["metadata"]["resourceVersion"].as_str().unwrap()
        ))
        .await;
    c.delete(&address, &Value::Null).await.expect(200);
    assert_eq!(events.brief().await, ("DELETED".into(), "10.43.0.77".into()));
    assert_eq!(events.brief().await, ("ADDED".into(), "10.43.0.77".into()));
    c.delete(&format!("{SERVICES}/s"), &Value::Null).await.expect(200);
    c.get(&address).await.expect(404);
}

#[tokio::test]
async fn another_range_gives_addresses_when_the_first_is_full() {
    let cluster = Cluster::start_on(rimward_control_store::MemoryStore::new(), |config| {
        config.service_cidr = "10.43.0.0/30".into();
    })
    .await;
    let c = &cluster.admin;
    let service =
        |name: &str| json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
    c.post(SERVICES, &service("a")).await.expect(201);
    c.post(SERVICES, &service("b")).await.expect(422);
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let range = json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["10.44.0.0/24"] } });
    c.post(ranges, &range).await.expect(201);
    let made = c.post(SERVICES, &service("b")).await.expect(201);
    assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10.44.0."));
    let again = Cluster::start_on(cluster.store.clone(), |config| {
        config.service_cidr = "10.43.0.0/30".into();
    })
    .await;
    let mut same = service("c");
    same["spec"]["clusterIP"] = made["spec"]["clusterIP"].clone();
    again.admin.post(SERVICES, &same).await.expect(422);
    c.delete(&format!("{ranges}/more"), &Value::Null).await.expect(200);
    c.post(SERVICES, &service("d")).await.expect(422);
}

#[tokio::test]
async fn bound_pods_know_their_zone() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let node = json!({ "metadata": { "name": "n", "labels": { "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "o" } } });
    c.post("/api/v1/nodes", &node).await.expect(201);
    c.post(PODS, &pod("a")).await.expect(201);
    let binding = json!({ "target": { "kind": "Node", "name": "n" } });
    c.post(&format!("{PODS}/a/binding"), &binding).await.expect(201);
    let labels =
        json!({ "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r" });
    assert_eq!(c.get(&format!("{PODS}/a")).await.expect(200)["metadata"]["labels"], labels);
    let mut own = pod("b");
    own["spec"]["nodeName"] = "n".into();
    assert_eq!(c.post(PODS, &own).await.expect(201)["metadata"]["labels"], labels);
}
