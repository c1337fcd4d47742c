//! The real kubectl on custom resources.

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::kubectl::{Authority, Kubectl, tls};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        description: A CronTab runs things.
        type: object
        properties:
          spec:
            type: object
            description: What to run.
            required: [cronSpec]
            properties:
              cronSpec: {type: string, description: When to run it., pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'}
              image: {type: string, default: 'busybox'}
              replicas: {type: integer, minimum: 1, maximum: 10}
          status:
            type: object
            properties: {replicas: {type: integer}, labelSelector: {type: string}}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec, description: The cron spec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.labelSelector}
"#;

const CRONTAB: &str = "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: mine}\nspec: {cronSpec: '* * * * */5', replicas: 2}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_with_kubectl() {
    let cluster = Cluster::start().await;
    let ca = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = CancellationToken::new();
    let (server, tls, stop) = (cluster.server.clone(), tls(&ca), shutdown.clone());
    let serving = tokio::spawn(async move { server.serve(listener, tls, None, stop).await });
    let kubectl = Kubectl::new(&ca, port);
    let write =
        |name: &str, text: &str| std::fs::write(kubectl.dir.path().join(name), text).unwrap();
    write("crd.yaml", DEFINITION);
    write("mine.yaml", CRONTAB);
    write("more.yaml", &CRONTAB.replace("replicas: 2", "replicas: 3"));
    write("unknown.yaml", &CRONTAB.replace("replicas: 2", "replcas: 3"));
    write("wrong.yaml", &CRONTAB.replace("'* * * * */5'", "'x'"));

    kubectl.check("apply -f crd.yaml", &["crontabs.stable.example.com created"]).await;
    kubectl
        .check(
            "wait --for=condition=Established crd/crontabs.stable.example.com --timeout=20s",
            &["condition met"],
        )
        .await;
    kubectl.check("apply -f mine.yaml", &["crontab.stable.example.com/mine created"]).await;
    kubectl.check("apply -f mine.yaml", &["crontab.stable.example.com/mine unchanged"]).await;
    kubectl.check("apply -f more.yaml", &["crontab.stable.example.com/mine configured"]).await;
    kubectl
        .check("get crontabs", &["NAME", "SPEC", "REPLICAS", "AGE", "mine", "* * * * */5", "3"])
        .await;
    kubectl.check("get ct mine -o jsonpath={.spec.image}", &["busybox"]).await;
    kubectl.check("get all", &["crontab.stable.example.com/mine"]).await;
    kubectl
        .check(
            "api-resources --api-group=stable.example.com",
            &["crontabs", "ct", "CronTab", "true"],
        )
        .await;
    kubectl
        .check("explain crontab", &["KIND:       CronTab", "A CronTab runs things.", "spec"])
        .await;
    kubectl.check("explain crontab.spec.cronSpec", &["When to run it."]).await;
    for (file, text) in [
        ("unknown.yaml", "unknown field \"spec.replcas\""),
        ("wrong.yaml", "spec.cronSpec in body should match"),
    ] {
        let (ok, said) = kubectl.run(&format!("apply -f {file}")).await;
        assert!(!ok && said.contains(text), "{file}: {said}");
    }
    kubectl.check("scale ct/mine --replicas=5", &["crontab.stable.example.com/mine scaled"]).await;
    kubectl.check("get ct mine", &["5"]).await;
    kubectl
        .check("apply --server-side --force-conflicts -f mine.yaml", &["serverside-applied"])
        .await;
    kubectl.check("patch ct mine --type=merge -p {\"spec\":{\"image\":\"x\"}}", &["patched"]).await;
    kubectl.check("label ct mine a=b", &["labeled"]).await;
    kubectl.check("get ct -l a=b", &["mine"]).await;
    kubectl.check("describe ct mine", &["Cron Spec:", "Image:"]).await;
    kubectl.check("delete ct mine", &["deleted"]).await;
    kubectl.check("apply -f mine.yaml", &["created"]).await;
    kubectl.check("delete crd crontabs.stable.example.com", &["deleted"]).await;
    let (ok, said) = kubectl.run("get crontabs").await;
    // What kubectl remembers of discovery decides about the words.
    let words =
        ["the server doesn't have a resource type", "could not find the requested resource"];
    assert!(!ok && words.iter().any(|w| said.contains(w)), "{said}");

    shutdown.cancel();
    cluster.server.stop();
    serving.await.unwrap();
}
