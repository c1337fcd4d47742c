//! Tokens as clients outside carry them.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;

use crate::cluster::{Cluster, in_time};

async fn who(client: Client) -> Result<String, kube::Error> {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let user = review.status.and_then(|s| s.user_info);
    Ok(user.and_then(|u| u.username).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_given_a_token_that_ends_with_it() {
    let mut cluster = Cluster::start();
    let admin = cluster.admin().await;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(admin.clone());
    let secrets: Api<Secret> = Api::default_namespaced(admin);
    let account = json!({ "metadata": { "name": "robot" } });
    accounts
        .create(&PostParams::default(), &serde_json::from_value(account).unwrap())
        .await
        .unwrap();
    let secret = json!({
        "metadata": { "name": "robot", "annotations": { "kubernetes.io/service-account.name": "robot" } },
        "type": "kubernetes.io/service-account-token",
    });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let filled = await_condition(secrets.clone(), "robot", |secret: Option<&Secret>| {
        secret.is_some_and(|s| s.data.as_ref().is_some_and(|d| d.contains_key("token")))
    });
    let filled = in_time("the Secret is given a token", filled).await.unwrap().unwrap();
    let data = filled.data.unwrap();
    assert_eq!(data["namespace"].0, b"default");
    assert!(data["ca.crt"].0.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let token = String::from_utf8(data["token"].0.clone()).unwrap();
    let expected = "system:serviceaccount:default:robot";
    assert_eq!(who(cluster.with_token(&token).await).await.unwrap(), expected);
    // It has no end of its own, not even that of the process that signed it.
    cluster = cluster.kill_and_restart();
    let client = cluster.with_token(&token).await;
    assert_eq!(who(client.clone()).await.unwrap(), expected);
    let admin = cluster.admin().await;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(admin.clone());
    let secrets: Api<Secret> = Api::default_namespaced(admin);
    accounts.delete("robot", &DeleteParams::default()).await.unwrap();
    let gone = await_condition(secrets, "robot", |secret: Option<&Secret>| secret.is_none());
    in_time("the Secret goes with its account", gone).await.unwrap();
    let refused = who(client).await;
    assert!(matches!(refused, Err(kube::Error::Api(e)) if e.code == 401));
}
