//! What a node is told, and that it is no more than it needs.

use std::collections::BTreeSet;

use super::*;
use rimward_tunnel::wire::{Digest, ObjectKind};

const POD: &str = "/api/v1/namespaces/a/pods/web";
const SETTINGS: &str = "/api/v1/namespaces/a/configmaps/settings";

#[tokio::test]
async fn a_node_registers() {
    let world = World::new();
    let _first = world.node("edge-1").await;
    let _second = world.node("edge-2").await;
    let node = world.api.get("/api/v1/nodes/edge-1").unwrap();
    assert_eq!(node["spec"]["podCIDR"], "10.42.0.0/24");
    assert_eq!(world.api.get("/api/v1/nodes/edge-2").unwrap()["spec"]["podCIDR"], "10.42.1.0/24");
    assert_eq!(node["metadata"]["labels"], json!({"kubernetes.io/os": "linux"}));
    assert_eq!(node["status"]["capacity"]["cpu"], "2");
    assert_eq!(node["status"]["conditions"][0]["status"], "True");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
    world
        .api
        .until(lease, |lease| lease.is_some_and(|l| l["spec"]["holderIdentity"] == "edge-1"))
        .await;
    use rimward_control_apiserver::nodes::Nodes as _;
    assert!(world.hub.last_heard("edge-1").is_some());
    assert!(world.hub.last_heard("edge-3").is_none());
}

#[tokio::test]
async fn a_lease_is_written_when_a_node_goes() {
    let world = World::new();
    let tunnel = world.node("edge-1").await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";
    world.api.until(lease, |lease| lease.is_some()).await;
    let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
    let before = version(&world.api.get(lease).unwrap());
    rimward_tunnel::close::close(&tunnel.connection, CloseCode::Stopping, "test");
    world.api.until(lease, |lease| lease.is_some_and(|l| version(l) != before)).await;
    assert!(world.hub.connected().is_empty());
}

#[tokio::test]
async fn pods_come_with_what_they_reference() {
    let world = World::new();
    world.api.put(SETTINGS, config_map("1"));
    world.api.put("/api/v1/namespaces/a/configmaps/other", config_map("1"));
    world.api.put("/api/v1/namespaces/a/services/s", json!({"metadata": {}, "spec": {}}));
    let mut here = world.node("edge-1").await;
    let mut there = world.node("edge-2").await;

    world.api.put(POD, pod("edge-1"));
    let mut told = [delta(&mut here).await, delta(&mut here).await];
    told.sort_by(|a, b| a.kind.cmp(&b.kind));
    assert_eq!(
        (told[0].kind.as_str(), names(&told[0])),
        ("ConfigMap", vec!["settings".to_owned()])
    );
    assert_eq!((told[1].kind.as_str(), names(&told[1])), ("Pod", vec!["web".to_owned()]));

    // A change of what is referenced comes too, of what is not does not.
    world.api.put("/api/v1/namespaces/a/configmaps/other", config_map("2"));
    world.api.put(SETTINGS, config_map("2"));
    let changed = delta(&mut here).await;
    assert_eq!(
        (changed.kind.as_str(), names(&changed)),
        ("ConfigMap", vec!["settings".to_owned()])
    );

    // The other node hears of Services alone.
    world.api.put("/api/v1/namespaces/a/services/t", json!({"metadata": {}, "spec": {}}));
    let first = delta(&mut there).await;
    assert_eq!((first.kind.as_str(), names(&first)), ("Service", vec!["t".to_owned()]));

    // The pod goes, and with it what only it referenced.
    world.api.delete(POD);
    let mut removed = Vec::new();
    while removed.len() < 2 {
        let delta = delta(&mut here).await;
        removed.extend(delta.removes.into_iter().map(|(_, name)| (delta.kind.clone(), name)));
    }
    removed.sort();
    assert_eq!(removed, [("ConfigMap".into(), "settings".into()), ("Pod".into(), "web".into())]);
}

#[tokio::test]
async fn what_a_node_holds_is_not_sent_again() {
    let world = World::new();
    let stored =
        world.api.put("/api/v1/namespaces/a/services/s", json!({"metadata": {}, "spec": {}}));
    let identity = world.join(&world.token().await, "m", "edge-1").await.unwrap();
    let mut first = world.open(&identity).await.unwrap();
    assert_eq!(synced(&mut first).await.len(), 1);

    let mut digest = Digest::default();
    let text = |field: &str| stored["metadata"][field].as_str().unwrap().to_owned();
    digest.add("a", "s", &text("uid"), &text("resourceVersion"));
    let held = vec![(ObjectKind::Service.name().to_owned(), digest.count, digest.sum)];
    let same = Hello { held, ..hello() };
    let mut second = world.dialer.open(&identity, &same).await.unwrap();
    assert_eq!(synced(&mut second).await, []);

    // Another digest: an inventory, from which the node takes what it lacks.
    let stale = Hello { held: vec![("Service".into(), 1, 12345)], ..hello() };
    let mut third = world.dialer.open(&identity, &stale).await.unwrap();
    let told = synced(&mut third).await;
    let [Down::Offer(offer)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(offer.entries, [("a".into(), "s".into(), text("uid"), text("resourceVersion"))]);
    let keys = vec![("a".into(), "s".into()), ("a".into(), "unknown".into())];
    third.writer.push(&rimward_tunnel::wire::Want { kind: "Service".into(), keys });
    third.writer.flush().await.unwrap();
    let wanted = delta(&mut third).await;
    assert_eq!((names(&wanted), wanted.removes), (vec!["s".to_owned()], vec![]));

    // The earlier connections of the node were replaced.
    assert_eq!(closed(&world, &first).await.0, CloseCode::Replaced);
}

#[tokio::test]
async fn a_token_admits_until_it_is_gone_and_a_name_belongs_to_a_key() {
    let world = World::new();
    let token = world.token().await;
    world.join(&token, "machine-1", "edge-1").await.unwrap();
    // The same machine may come again, another may not take its name.
    world.join(&token, "machine-1", "edge-1").await.unwrap();
    let taken = world.join(&token, "machine-2", "edge-1").await.unwrap_err();
    assert!(taken.permanent() && taken.to_string().contains("another key"), "{taken}");
    world.api.delete("/api/v1/nodes/edge-1");
    world.join(&token, "machine-2", "edge-1").await.unwrap();

    let wrong = BootstrapToken { secret: "0123456789abcdef".into(), ..token.clone() };
    let refused = world.join(&wrong, "machine-3", "edge-3").await.unwrap_err();
    assert!(refused.permanent() && refused.to_string().contains("not valid"), "{refused}");
    let bad_name = world.join(&token, "machine-3", "Edge_3").await.unwrap_err();
    assert!(
        bad_name.permanent() && bad_name.to_string().contains("no name for a node"),
        "{bad_name}"
    );
    let secret = BootstrapToken::secret_name(&token.id);
    world.api.delete(&format!("/api/v1/namespaces/kube-system/secrets/{secret}"));
    assert!(world.join(&token, "machine-3", "edge-3").await.unwrap_err().permanent());
    assert!(world.api.get("/api/v1/nodes/edge-3").is_none());
}

#[tokio::test]
async fn the_key_that_lost_the_name_is_refused() {
    let world = World::new();
    let token = world.token().await;
    let first = world.join(&token, "machine-1", "edge-1").await.unwrap();
    world.api.delete("/api/v1/nodes/edge-1");
    world.join(&token, "machine-2", "edge-1").await.unwrap();
    let refused = world.open(&first).await.err().unwrap();
    assert!(refused.permanent() && refused.to_string().contains("another key"), "{refused}");
}

#[tokio::test]
async fn a_claim_comes_with_its_volume_and_a_nodes_own_volumes_always() {
    let world = World::new();
    let mut here = world.node("edge-1").await;
    let mut there = world.node("edge-2").await;
    let claim = |volume: &str| json!({"metadata": {}, "spec": {"volumeName": volume}});
    let volume = |by: &str, claim: &str| {
        let home = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["edge-2"]});
        json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": by}}, "spec": {
            "claimRef": {"namespace": "a", "name": claim},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [home]}]}}}})
    };
    world.api.put("/api/v1/persistentvolumes/shared", volume("", "data"));
    world.api.put("/api/v1/persistentvolumes/others", volume("", "other"));
    let mut p = pod("edge-1");
    p["spec"]["volumes"] = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]);
    world.api.put("/api/v1/namespaces/a/persistentvolumeclaims/data", claim("shared"));
    world.api.put(POD, p);
    let mut told = BTreeSet::new();
    while told.len() < 3 {
        let delta = delta(&mut here).await;
        told.extend(names(&delta).into_iter().map(|name| (delta.kind.clone(), name)));
    }
    let pair = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    let with_pod = BTreeSet::from([
        pair("PersistentVolume", "shared"),
        pair("PersistentVolumeClaim", "data"),
        pair("Pod", "web"),
    ]);
    assert_eq!(told, with_pod);
    // The other node keeps this one: it hears of it without a pod, and that it goes.
    let own = "/api/v1/persistentvolumes/own";
    world.api.put(own, volume(rimward_api::local_volumes::PROVISIONER, "nobody"));
    let first = delta(&mut there).await;
    assert_eq!((first.kind.as_str(), names(&first)), ("PersistentVolume", vec!["own".to_owned()]));
    world.api.delete(own);
    let gone = delta(&mut there).await;
    assert_eq!(gone.removes, [(String::new(), "own".to_owned())]);
    // What is nobody's here goes from here.
    world.api.delete(POD);
    let mut removed = BTreeSet::new();
    while removed.len() < 3 {
        let delta = delta(&mut here).await;
        removed.extend(delta.removes.into_iter().map(|(_, name)| (delta.kind.clone(), name)));
    }
    assert_eq!(removed, with_pod);
}
