//! A controller of kube-rs, as its documentation has them: a custom resource, a finalizer, an owned object,
//! a status. It knows nothing of this server, and lives through its restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResource, CustomResourceExt as _, Resource as _, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::{Cluster, Way, in_time};

const FINALIZER: &str = "greetings.example.com/cleanup";
const MANAGER: &str = "greetings.example.com";

#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(group = "example.com", version = "v1", kind = "Greeting", namespaced)]
#[kube(status = "GreetingStatus", shortname = "hi")]
#[kube(printcolumn = r#"{"name":"Said","type":"string","jsonPath":".status.said"}"#)]
struct GreetingSpec {
    #[schemars(length(min = 1))]
    text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
struct GreetingStatus {
    said: String,
    observed_generation: Option<i64>,
}

struct Context {
    client: Client,
    reconciled: AtomicUsize,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Finalizer(#[from] Box<kube::runtime::finalizer::Error<kube::Error>>),
}

async fn reconcile(greeting: Arc<Greeting>, context: Arc<Context>) -> Result<Action, Error> {
    context.reconciled.fetch_add(1, Ordering::SeqCst);
    let namespace = greeting.namespace().unwrap();
    let greetings: Api<Greeting> = Api::namespaced(context.client.clone(), &namespace);
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let done = finalizer(&greetings, FINALIZER, greeting, |event| async {
        match event {
            Event::Apply(greeting) => say(&greetings, &maps, &greeting).await,
            Event::Cleanup(greeting) => {
                // What is not owned goes by hand.
                let name = format!("{}-outside", greeting.name_any());
                match maps.delete(&name, &DeleteParams::default()).await {
                    Err(kube::Error::Api(e)) if e.code == 404 => {}
                    deleted => _ = deleted?,
                }
                Ok(Action::await_change())
            }
        }
    });
    done.await.map_err(|e| Error::Finalizer(Box::new(e)))
}

async fn say(
    greetings: &Api<Greeting>,
    maps: &Api<ConfigMap>,
    greeting: &Greeting,
) -> Result<Action, kube::Error> {
    let name = greeting.name_any();
    let apply = PatchParams::apply(MANAGER).force();
    let map = |name: &str, owner| ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: owner,
            ..ObjectMeta::default()
        },
        data: Some([("text".to_owned(), greeting.spec.text.clone())].into()),
        ..ConfigMap::default()
    };
    let owner = greeting.controller_owner_ref(&()).map(|owner| vec![owner]);
    maps.patch(&name, &apply, &Patch::Apply(map(&name, owner))).await?;
    let outside = format!("{name}-outside");
    maps.patch(&outside, &apply, &Patch::Apply(map(&outside, None))).await?;
    let status = json!({
        "apiVersion": "example.com/v1", "kind": "Greeting",
        "status": { "said": greeting.spec.text, "observed_generation": greeting.meta().generation },
    });
    greetings.patch_status(&name, &apply, &Patch::Apply(status)).await?;
    Ok(Action::await_change())
}

fn run(context: Arc<Context>) -> tokio::task::JoinHandle<()> {
    let greetings: Api<Greeting> = Api::all(context.client.clone());
    let maps: Api<ConfigMap> = Api::all(context.client.clone());
    tokio::spawn(async move {
        Controller::new(greetings, watcher::Config::default())
            .owns(maps, watcher::Config::default())
            .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(500)), context)
            .for_each(|_| async {})
            .await;
    })
}

fn greeting(name: &str, text: &str) -> Greeting {
    Greeting::new(name, GreetingSpec { text: text.into() })
}

async fn said(greetings: &Api<Greeting>, name: &str, text: &'static str) {
    let is = move |greeting: Option<&Greeting>| {
        greeting.is_some_and(|g| {
            let status = g.status.as_ref();
            status.is_some_and(|s| s.said == text && s.observed_generation == g.metadata.generation)
        })
    };
    let wait = await_condition(greetings.clone(), name, is);
    in_time(&format!("{name} says {text}"), wait).await.unwrap();
}

async fn gone<K>(api: &Api<K>, name: &str)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let wait = await_condition(api.clone(), name, |object: Option<&K>| object.is_none());
    in_time(&format!("{name} is gone"), wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_lives_through_everything() {
    let mut cluster = Cluster::start();
    let mut admin = cluster.admin().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    let apply = PatchParams::apply("installer").force();
    let name = Greeting::crd_name();
    for _ in 0..2 {
        definitions.patch(name, &apply, &Patch::Apply(Greeting::crd())).await.unwrap();
    }
    let established = await_condition(definitions, name, conditions::is_crd_established());
    in_time("the definition is established", established).await.unwrap();

    let way = Way::to(cluster.api).await;
    let client = cluster.admin_by(way.address).await;
    let context = Arc::new(Context { client, reconciled: AtomicUsize::default() });
    let operator = run(context.clone());

    let mut greetings: Api<Greeting> = Api::default_namespaced(admin.clone());
    let mut maps: Api<ConfigMap> = Api::default_namespaced(admin.clone());
    greetings.create(&PostParams::default(), &greeting("one", "hello")).await.unwrap();
    said(&greetings, "one", "hello").await;
    let refused = greetings.create(&PostParams::default(), &greeting("none", "")).await;
    assert!(matches!(refused, Err(kube::Error::Api(e)) if e.code == 422));
    let change = |text: &str| Patch::Merge(json!({ "spec": { "text": text } }));
    greetings.patch("one", &PatchParams::default(), &change("good day")).await.unwrap();
    said(&greetings, "one", "good day").await;
    // What it owns is watched too.
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    let back = await_condition(maps.clone(), "one", |map: Option<&ConfigMap>| {
        map.is_some_and(|m| m.metadata.deletion_timestamp.is_none())
    });
    in_time("what was deleted is there again", back).await.unwrap();

    // Its connections end, and while it is cut off there is news.
    let before = way.seen();
    way.cut();
    greetings.patch("one", &PatchParams::default(), &change("still here?")).await.unwrap();
    greetings.create(&PostParams::default(), &greeting("two", "meanwhile")).await.unwrap();
    way.open();
    said(&greetings, "one", "still here?").await;
    said(&greetings, "two", "meanwhile").await;
    assert!(way.seen() > before, "it came again");

    // The control plane is killed, and another goes on with what is on the disk.
    cluster = cluster.kill_and_restart();
    admin = cluster.admin().await;
    greetings = Api::default_namespaced(admin.clone());
    maps = Api::default_namespaced(admin.clone());
    assert_eq!(greetings.get("one").await.unwrap().status.unwrap().said, "still here?");
    greetings.patch("one", &PatchParams::default(), &change("and now")).await.unwrap();
    said(&greetings, "one", "and now").await;
    greetings.create(&PostParams::default(), &greeting("three", "new")).await.unwrap();
    said(&greetings, "three", "new").await;

    // It is deleted: first it cleans up, then what it owned is collected.
    greetings.delete("one", &DeleteParams::default()).await.unwrap();
    for name in ["one-outside", "one"] {
        gone(&maps, name).await;
    }
    gone(&greetings, "one").await;
    // Without the operator nothing goes: its finalizer stands.
    operator.abort();
    let _ended = operator.await;
    greetings.delete("two", &DeleteParams::default()).await.unwrap();
    let held = greetings.get("two").await.unwrap();
    assert_eq!(held.finalizers(), [FINALIZER]);
    assert!(held.meta().deletion_timestamp.is_some());
    let operator = run(context.clone());
    gone(&greetings, "two").await;
    gone(&maps, "two-outside").await;
    assert!(context.reconciled.load(Ordering::SeqCst) < 500, "it is not driven in circles");
    operator.abort();
    drop(cluster);
}
