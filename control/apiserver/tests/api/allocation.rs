//! Cluster IPs and node ports.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::cluster::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test]
async fn no_number_is_given_twice() {
    let cluster = Cluster::start().await;
    let creates = (0..200).map(|i| {
        let client = cluster.admin.clone();
        let spec = json!({ "type": "NodePort", "ports": [{ "port": 80 }] });
        tokio::spawn(async move {
            client.post(SERVICES, &service(&format!("s{i}"), spec)).await.expect(201)
        })
    });
    let (mut ips, mut ports) = (HashSet::new(), HashSet::new());
    for create in creates.collect::<Vec<_>>() {
        let made = create.await.unwrap();
        assert!(ips.insert(made["spec"]["clusterIP"].to_string()));
        assert!(ports.insert(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap()));
        assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10.43."));
    }
}

#[tokio::test]
async fn numbers_return_and_survive_a_restart() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let kubernetes = c.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let dns =
        |name: &str| service(name, json!({ "clusterIP": "10.43.0.10", "ports": [{ "port": 53 }] }));
    c.post(SERVICES, &dns("a")).await.expect(201);
    let taken = c.post(SERVICES, &dns("b")).await.expect(422);
    assert!(
        taken["message"].as_str().unwrap().contains("10.43.0.10: provided IP is already allocated"),
        "{taken}"
    );
    c.delete(&format!("{SERVICES}/a"), &Value::Null).await.expect(200);
    let made = c.post(SERVICES, &dns("b")).await.expect(201);

    let again = Cluster::start_on(cluster.store.clone(), |_| {}).await;
    again.admin.post(SERVICES, &dns("c")).await.expect(422);
    // A replacement need not repeat what it was given.
    let replaced = again
        .admin
        .put(
            &format!("{SERVICES}/b"),
            &service("b", json!({ "type": "NodePort", "ports": [{ "port": 54 }] })),
        )
        .await
        .expect(200);
    assert_eq!(replaced["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    let port = replaced["spec"]["ports"][0]["nodePort"].clone();
    let wanted =
        service("d", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] }));
    again.admin.post(SERVICES, &wanted).await.expect(422);
    again
        .admin
        .merge(
            &format!("{SERVICES}/b"),
            &json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 54 }] } }),
        )
        .await
        .expect(200);
    again.admin.post(SERVICES, &wanted).await.expect(201);
}

#[tokio::test]
async fn a_failed_create_takes_nothing() {
    let cluster = Cluster::start().await;
    let bad = service("Bad_Name", json!({ "clusterIP": "10.43.0.77", "ports": [{ "port": 80 }] }));
    cluster.admin.post(SERVICES, &bad).await.expect(422);
    let good = service("good", json!({ "clusterIP": "10.43.0.77", "ports": [{ "port": 80 }] }));
    cluster.admin.post(&format!("{SERVICES}?dryRun=All"), &good).await.expect(201);
    cluster.admin.post(SERVICES, &good).await.expect(201);
}

/// A dry run takes no port, and so does not ask whether the range has it.
#[tokio::test]
async fn health_check_ports_beyond_the_range() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let wanted = |port: i64| {
        let spec = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port, "ports": [{ "port": 80 }],
        });
        service("far", spec)
    };
    let refused = c.post(SERVICES, &wanted(80)).await.expect(500);
    assert_eq!(
        refused["message"],
        "Internal error occurred: failed to allocate requested HealthCheck NodePort 80: \
         provided port is not in the valid range. The range of valid ports is 30000-32767"
    );
    c.post(&format!("{SERVICES}?dryRun=All"), &wanted(80)).await.expect(201);
    c.post(&format!("{SERVICES}?dryRun=All"), &wanted(70_000)).await.expect(422);
    c.get(&format!("{SERVICES}/far")).await.expect(404);
    let made = c.post(SERVICES, &wanted(30_100)).await.expect(201);
    assert_eq!(made["spec"]["healthCheckNodePort"], 30_100);
}
