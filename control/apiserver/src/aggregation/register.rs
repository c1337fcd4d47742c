//! APIServices of what this server serves itself: the built-in groups at start, those of
//! CustomResourceDefinitions as they come and go. And what tells extension API servers whom to believe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rimward_api::{ObjectKey, Status, UserInfo};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::health::Part;
use crate::mirror::Mirrored;
use crate::options::{DeleteOptions, WriteOptions};
use crate::rest::write::Author;
use crate::server::Inner;
use crate::views::Stored;

pub const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Managed as long as there is a definition.
const WHILE_DEFINED: &str = "true";
const CUSTOM_PRIORITIES: (i64, i64) = (1000, 100);
const RETRY: Duration = Duration::from_secs(1);

/// (group, groupPriorityMinimum, version, versionPriority), as kube-apiserver registers them.
const PRIORITIES: [(&str, i64, &str, i64); 25] = [
    ("", 18000, "v1", 1),
    ("apps", 17800, "v1", 15),
    ("events.k8s.io", 17750, "v1", 15),
    ("authentication.k8s.io", 17700, "v1", 15),
    ("authorization.k8s.io", 17600, "v1", 15),
    ("autoscaling", 17500, "v2", 30),
    ("autoscaling", 17500, "v1", 15),
    ("batch", 17400, "v1", 15),
    ("certificates.k8s.io", 17300, "v1", 15),
    ("networking.k8s.io", 17200, "v1", 15),
    ("policy", 17100, "v1", 15),
    ("rbac.authorization.k8s.io", 17000, "v1", 15),
    ("storage.k8s.io", 16800, "v1", 15),
    ("apiextensions.k8s.io", 16700, "v1", 15),
    ("admissionregistration.k8s.io", 16700, "v1", 15),
    ("scheduling.k8s.io", 16600, "v1", 15),
    ("coordination.k8s.io", 16500, "v1", 15),
    ("node.k8s.io", 16300, "v1", 15),
    ("discovery.k8s.io", 16200, "v1", 15),
    ("flowcontrol.apiserver.k8s.io", 16100, "v1", 21),
    ("internal.apiserver.k8s.io", 16000, "v1alpha1", 9),
    ("resource.k8s.io", 16200, "v1", 15),
    ("storagemigration.k8s.io", 16200, "v1beta1", 9),
    // As metrics-server registers itself. Whoever installs one points this APIService at it.
    ("metrics.k8s.io", 100, "v1beta1", 100),
    ("apiregistration.k8s.io", 0, "v1", 0),
];

fn api_service(group: &str, version: &str, priorities: (i64, i64), managed: &str) -> Value {
    let mut spec = json!({
        "version": version, "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": { "name": format!("{version}.{group}"), "labels": { MANAGED: managed } },
        "spec": spec,
    })
}

/// The APIServices of the built-in groups.
pub fn builtin(server: &Inner) -> Vec<Value> {
    let mut all: BTreeMap<(String, String), Value> = BTreeMap::new();
    for served in server.registry().all() {
        let (group, version) = (served.kind.group.as_str(), served.kind.version.as_str());
        let known = PRIORITIES.iter().find(|(g, _, v, _)| (*g, *v) == (group, version));
        let priorities = known.map_or((15_000, 1), |(_, g, _, v)| (*g, *v));
        // The group of APIServices themselves has none.
        if priorities.0 > 0 {
            let key = (group.to_owned(), version.to_owned());
            all.entry(key).or_insert_with(|| api_service(group, version, priorities, "onstart"));
        }
    }
    all.into_values().collect()
}

/// The ConfigMap by which extension API servers know which certificates and headers to believe.
pub fn authentication(server: &Inner) -> Value {
    let mut data = json!({ "client-ca-file": server.config.ca_pem });
    if let Some(front_proxy) = &server.config.front_proxy {
        data["requestheader-client-ca-file"] = front_proxy.ca_pem.as_str().into();
        let lists = [
            ("allowed-names", front_proxy.name.as_str()),
            ("username-headers", "X-Remote-User"),
            ("uid-headers", "X-Remote-Uid"),
            ("group-headers", "X-Remote-Group"),
            ("extra-headers-prefix", "X-Remote-Extra-"),
        ];
        for (name, value) in lists {
            data[format!("requestheader-{name}")] = json!([value]).to_string().into();
        }
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
        "data": data,
    })
}

/// The groups and versions that each CustomResourceDefinition serves.
pub struct CustomGroups {
    by_definition: RwLock<BTreeMap<String, Vec<(String, String)>>>,
    changes: watch::Sender<u64>,
}

impl Default for CustomGroups {
    fn default() -> Self {
        Self { by_definition: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl CustomGroups {
    fn wanted(&self) -> BTreeSet<(String, String)> {
        self.by_definition.read().values().flatten().cloned().collect()
    }
}

fn served_versions(stored: &Stored) -> Vec<(String, String)> {
    let Ok(object) = stored.record.parsed() else {
        return Vec::new();
    };
    let group = object.pointer("/spec/group").and_then(Value::as_str).unwrap_or_default();
    let versions = object.pointer("/spec/versions").and_then(Value::as_array);
    let served = versions.into_iter().flatten().filter(|v| v["served"] == true);
    served.filter_map(|v| Some((group.to_owned(), v["name"].as_str()?.to_owned()))).collect()
}

impl Mirrored for CustomGroups {
    fn replace(&self, all: Vec<(String, Stored)>) {
        *self.by_definition.write() =
            all.iter().map(|(key, stored)| (key.clone(), served_versions(stored))).collect();
        self.changes.send_modify(|c| *c += 1);
    }

    fn put(&self, key: &str, stored: &Stored) {
        self.by_definition.write().insert(key.to_owned(), served_versions(stored));
        self.changes.send_modify(|c| *c += 1);
    }

    fn remove(&self, key: &str) {
        self.by_definition.write().remove(key);
        self.changes.send_modify(|c| *c += 1);
    }
}

/// Keeps the APIServices of custom groups as they should be, until the server stops.
pub fn start(server: &Arc<Inner>) {
    server.parts.run(Part::Registration, &server.stop, follow(server.clone()));
}

async fn follow(server: Arc<Inner>) {
    let mut definitions = server.custom_groups.changes.subscribe();
    let mut services = server.aggregation.generation.subscribe();
    loop {
        definitions.borrow_and_update();
        services.borrow_and_update();
        let done = bring_up_to_date(&server).await;
        let changed = async {
            tokio::select! {
                changed = definitions.changed() => changed.is_ok(),
                changed = services.changed() => changed.is_ok(),
            }
        };
        match done {
            Ok(()) => {
                if !changed.await {
                    return;
                }
            }
            Err(e) => {
                tracing::warn!(error = %e, "an APIService was not kept");
                let _either_way_again = tokio::time::timeout(RETRY, changed).await;
            }
        }
    }
}

async fn bring_up_to_date(server: &Arc<Inner>) -> Result<(), Status> {
    let wanted = server.custom_groups.wanted();
    let served = server
        .registry()
        .resource("apiregistration.k8s.io", "apiservices")
        .expect("a built-in kind");
    let user = UserInfo::authenticated("system:kube-aggregator", &["system:masters"]);
    let query = crate::request::Query::default();
    let options = WriteOptions::parse(&query, "CreateOptions", "kube-apiserver", false)?;
    let author = Author { user: &user, options: &options };
    for (group, version) in &wanted {
        if server.aggregation.get(&format!("{version}.{group}")).is_some() {
            continue;
        }
        let object = api_service(group, version, CUSTOM_PRIORITIES, WHILE_DEFINED);
        match server.create(&served, "", object, &author, &mut Vec::new()).await {
            Err(e) if !e.is_already_exists() => return Err(e),
            _ => {}
        }
    }
    for service in server.aggregation.all() {
        let defined = wanted.contains(&(service.group.clone(), service.version.clone()));
        if service.managed != WHILE_DEFINED || service.destination.is_some() || defined {
            continue;
        }
        let key = ObjectKey::new("", service.name.clone());
        let options = DeleteOptions { uid: Some(service.uid.clone()), ..DeleteOptions::default() };
        match server.delete(&served, &key, &options, &user, &mut Vec::new()).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
