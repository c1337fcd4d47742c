//! Since when the uses of legacy tokens are written down.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";

#[tokio::test]
async fn a_config_map_says_since_when() {
    let cluster = Cluster::start().await;
    let c = &cluster.admin;
    let all = "/api/v1/namespaces/kube-system/configmaps";
    let mut events = c.watch(&format!("{all}?watch=1&fieldSelector=metadata.name%3D{NAME}")).await;
    let is_day = |event: &Value| {
        let since = event["object"]["data"]["since"].as_str().unwrap_or_default();
        since.parse::<jiff::civil::Date>().is_ok()
    };
    let made = events.next().await.expect("it is made");
    assert!(made["type"] == "ADDED" && is_day(&made), "{made}");
    // Who writes something else there is corrected.
    c.merge(&format!("{all}/{NAME}"), &json!({ "data": { "since": "ever" } })).await.expect(200);
    let theirs = events.next().await.expect("the change");
    assert_eq!(theirs["object"]["data"]["since"], "ever");
    let ours = events.next().await.expect("the correction");
    assert!(ours["type"] == "MODIFIED" && is_day(&ours), "{ours}");
}
