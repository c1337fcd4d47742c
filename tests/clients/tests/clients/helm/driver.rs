//! Helm's requests, in Helm's order.
//! <https://helm.sh/docs/topics/charts_hooks/>

use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams,
    PostParams,
};
use kube::core::GroupVersionKind;
use kube::discovery::{Discovery, Scope};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::three_way;
use crate::cluster::in_time;

const MANAGER: &str = "helm";
/// What comes first when a chart is installed, and last when it is removed.
const ORDER: [&str; 5] = ["ServiceAccount", "Secret", "ConfigMap", "Service", "Deployment"];

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Chart {
    /// Of the chart's `crds` directory: made once, never changed or removed.
    pub definitions: Vec<Value>,
    pub hooks: Vec<Value>,
    pub manifests: Vec<Value>,
}

pub struct Helm {
    client: Client,
    namespace: String,
    release: String,
    discovery: Discovery,
    /// Hooks that ended and objects that were waited for, in order.
    log: Vec<String>,
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn id(object: &Value) -> (String, String) {
    (text(object, "/kind").to_owned(), text(object, "/metadata/name").to_owned())
}

impl Helm {
    pub async fn new(client: Client, namespace: &str, release: &str) -> Self {
        let version = client.apiserver_version().await.unwrap();
        assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
        let discovery = Discovery::new(client.clone()).run().await.unwrap();
        Self {
            client,
            namespace: namespace.into(),
            release: release.into(),
            discovery,
            log: Vec::new(),
        }
    }

    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let (group, version) = match text(object, "/apiVersion").split_once('/') {
            Some(pair) => pair,
            None => ("", text(object, "/apiVersion")),
        };
        let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
        let (resource, served): (ApiResource, _) = self
            .discovery
            .resolve_gvk(&kind)
            .unwrap_or_else(|| panic!("no matches for kind {kind:?}"));
        match served.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => {
                Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
            }
        }
    }

    fn post() -> PostParams {
        PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
    }

    /// As Helm marks what is its own.
    fn owned(&self, object: &Value) -> Value {
        let mut object = object.clone();
        let marks = &mut object["metadata"]["annotations"];
        if !marks.is_object() {
            *marks = json!({});
        }
        marks["meta.helm.sh/release-name"] = self.release.as_str().into();
        marks["meta.helm.sh/release-namespace"] = self.namespace.as_str().into();
        object
    }

    pub async fn install(&mut self, chart: &Chart) {
        for definition in &chart.definitions {
            let api = self.api(definition);
            let object = serde_json::from_value(definition.clone()).unwrap();
            api.create(&Self::post(), &object).await.unwrap();
            let established = await_condition(
                api,
                text(definition, "/metadata/name"),
                |o: Option<&DynamicObject>| {
                    let conditions =
                        o.and_then(|o| o.data.pointer("/status/conditions")?.as_array());
                    conditions.is_some_and(|all| {
                        all.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
                    })
                },
            );
            in_time("the definition is established", established).await.unwrap();
        }
        self.discovery = Discovery::new(self.client.clone()).run().await.unwrap();
        // Nothing of it may be there already: all is looked at before anything is made.
        for object in &chart.manifests {
            let found = self.api(object).get_opt(text(object, "/metadata/name")).await.unwrap();
            assert!(found.is_none(), "{object}");
        }
        self.record(1, "pending-install", chart).await;
        self.run_hooks(chart, "pre-install").await;
        for object in in_order(&chart.manifests) {
            let object = serde_json::from_value(self.owned(object)).unwrap();
            self.api(&serde_json::to_value(&object).unwrap())
                .create(&Self::post(), &object)
                .await
                .unwrap();
        }
        self.wait(chart).await;
        self.run_hooks(chart, "post-install").await;
        self.record(1, "deployed", chart).await;
    }

    pub async fn upgrade(&mut self, chart: &Chart) {
        let (last, before) = self.deployed().await;
        let next = self.revisions().await.last().unwrap().0 + 1;
        self.record(next, "pending-upgrade", chart).await;
        self.run_hooks(chart, "pre-upgrade").await;
        self.change(&before, chart).await;
        self.wait(chart).await;
        self.run_hooks(chart, "post-upgrade").await;
        self.record(last, "superseded", &before).await;
        self.record(next, "deployed", chart).await;
    }

    pub async fn rollback(&mut self, to: i32) {
        let (last, before) = self.deployed().await;
        let chart = self.read(to).await;
        let next = self.revisions().await.last().unwrap().0 + 1;
        self.record(next, "pending-rollback", &chart).await;
        self.change(&before, &chart).await;
        self.wait(&chart).await;
        self.record(last, "superseded", &before).await;
        self.record(next, "deployed", &chart).await;
    }

    pub async fn uninstall(&mut self) {
        let (last, chart) = self.deployed().await;
        self.record(last, "uninstalling", &chart).await;
        let background = DeleteParams::background();
        for object in in_order(&chart.manifests).into_iter().rev() {
            let name = text(object, "/metadata/name").to_owned();
            let api = self.api(object);
            api.delete(&name, &background).await.unwrap();
            let gone = await_condition(api, &name, |o: Option<&DynamicObject>| o.is_none());
            in_time(&format!("{name} is gone"), gone).await.unwrap();
        }
        for (revision, _) in self.revisions().await {
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
            secrets.delete(&self.secret_name(revision), &DeleteParams::default()).await.unwrap();
        }
    }

    /// From what one release said to what another says, over what there is.
    async fn change(&self, before: &Chart, now: &Chart) {
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        for object in in_order(&now.manifests) {
            let (api, name) = (self.api(object), text(object, "/metadata/name"));
            let wanted = self.owned(object);
            let Some(live) = api.get_opt(name).await.unwrap() else {
                let object = serde_json::from_value(wanted).unwrap();
                api.create(&Self::post(), &object).await.unwrap();
                continue;
            };
            let live = serde_json::to_value(live).unwrap();
            let old = before.manifests.iter().find(|o| id(o) == id(object));
            let old = old.map(|o| self.owned(o)).unwrap_or_default();
            let custom = text(object, "/apiVersion").contains("example.com");
            let patch = three_way::patch(&old, &wanted, &live, !custom);
            if patch == json!({}) {
                continue;
            }
            let patch = if custom { Patch::Merge(patch) } else { Patch::Strategic(patch) };
            api.patch(name, &params, &patch).await.unwrap();
        }
        for object in &before.manifests {
            if !now.manifests.iter().any(|o| id(o) == id(object)) {
                let name = text(object, "/metadata/name");
                self.api(object).delete(name, &DeleteParams::background()).await.unwrap();
            }
        }
    }

    async fn run_hooks(&mut self, chart: &Chart, when: &str) {
        let note = |hook: &Value, key: &str| {
            let annotations = hook["metadata"]["annotations"].as_object().unwrap();
            annotations.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut hooks: Vec<&Value> = chart
            .hooks
            .iter()
            .filter(|hook| note(hook, "helm.sh/hook").split(',').any(|w| w == when))
            .collect();
        hooks.sort_by_key(|hook| note(hook, "helm.sh/hook-weight").parse::<i32>().unwrap_or(0));
        for hook in hooks {
            let (api, name) = (self.api(hook), text(hook, "/metadata/name").to_owned());
            let policy = note(hook, "helm.sh/hook-delete-policy");
            if policy.contains("before-hook-creation")
                && api.get_opt(&name).await.unwrap().is_some()
            {
                self.remove(&api, &name).await;
            }
            let object = serde_json::from_value(hook.clone()).unwrap();
            api.create(&Self::post(), &object).await.unwrap();
            let ended = await_condition(api.clone(), &name, |o: Option<&DynamicObject>| {
                o.is_some_and(|o| o.data["status"]["phase"] == "Succeeded")
            });
            in_time(&format!("hook {name} ends"), ended).await.unwrap();
            if policy.contains("hook-succeeded") {
                self.remove(&api, &name).await;
            }
            self.log.push(name);
        }
    }

    async fn remove(&self, api: &Api<DynamicObject>, name: &str) {
        api.delete(name, &DeleteParams::background()).await.unwrap();
        let gone = await_condition(api.clone(), name, |o: Option<&DynamicObject>| o.is_none());
        in_time(&format!("{name} is gone"), gone).await.unwrap();
    }

    /// `--wait`: Deployments are rolled out.
    async fn wait(&mut self, chart: &Chart) {
        for object in chart.manifests.iter().filter(|o| o["kind"] == "Deployment") {
            let name = text(object, "/metadata/name");
            let ready = await_condition(self.api(object), name, |o: Option<&DynamicObject>| {
                o.is_some_and(|o| {
                    let number = |path: &str| o.data.pointer(path).and_then(Value::as_i64);
                    let wanted = number("/spec/replicas");
                    number("/status/observedGeneration") >= o.metadata.generation
                        && number("/status/updatedReplicas") == wanted
                        && number("/status/replicas") == wanted
                        && number("/status/availableReplicas") == wanted
                })
            });
            in_time(&format!("Deployment {name} is rolled out"), ready).await.unwrap();
            self.log.push(format!("Deployment/{name}"));
        }
    }

    fn secret_name(&self, revision: i32) -> String {
        format!("sh.helm.release.v1.{}.v{revision}", self.release)
    }

    /// Writes a release: a Secret of Helm's own type, found by its labels.
    async fn record(&self, revision: i32, status: &str, chart: &Chart) {
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        zip.write_all(&serde_json::to_vec(chart).unwrap()).unwrap();
        let body = STANDARD.encode(zip.finish().unwrap()).into_bytes();
        let labels = [
            ("name", self.release.clone()),
            ("owner", "helm".to_owned()),
            ("status", status.to_owned()),
            ("version", revision.to_string()),
        ];
        let name = self.secret_name(revision);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.map(|(k, v)| (k.to_owned(), v)).into()),
                ..ObjectMeta::default()
            },
            type_: Some("helm.sh/release.v1".into()),
            data: Some([("release".to_owned(), ByteString(body))].into()),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        // An update without a resourceVersion, as Helm's driver sends it.
        match status.starts_with("pending") {
            true => secrets.create(&Self::post(), &secret).await.unwrap(),
            false => secrets.replace(&name, &Self::post(), &secret).await.unwrap(),
        };
    }

    async fn releases(&self, more: &str) -> Vec<Secret> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let labels = format!("owner=helm,name={}{more}", self.release);
        let list = secrets.list(&ListParams::default().labels(&labels)).await.unwrap();
        let mut all = list.items;
        all.sort_by_key(revision);
        all
    }

    pub async fn revisions(&self) -> Vec<(i32, String)> {
        let all = self.releases("").await;
        all.iter().map(|s| (revision(s), s.labels()["status"].clone())).collect()
    }

    async fn deployed(&self) -> (i32, Chart) {
        let all = self.releases(",status=deployed").await;
        let [secret] = all.as_slice() else { panic!("{} releases are deployed", all.len()) };
        (revision(secret), unpacked(secret))
    }

    async fn read(&self, wanted: i32) -> Chart {
        let all = self.releases("").await;
        unpacked(all.iter().find(|s| revision(s) == wanted).unwrap())
    }
}

fn revision(secret: &Secret) -> i32 {
    secret.labels()["version"].parse().unwrap()
}

fn unpacked(secret: &Secret) -> Chart {
    let ByteString(body) = &secret.data.as_ref().unwrap()["release"];
    let zipped = STANDARD.decode(body).unwrap();
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(&zipped[..]).read_to_end(&mut json).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn in_order(objects: &[Value]) -> Vec<&Value> {
    let place =
        |o: &&Value| ORDER.iter().position(|kind| o["kind"] == *kind).unwrap_or(ORDER.len());
    let mut all: Vec<&Value> = objects.iter().collect();
    all.sort_by_key(place);
    all
}
