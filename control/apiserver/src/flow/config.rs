//! The stored FlowSchemas and PriorityLevelConfigurations, as they come to be in force.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use jiff::Timestamp;
use rimward_api::{ObjectKey, Status, UserInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Flow, Ids, Rules, Schema, level, schema, shares};
use crate::bootstrap;
use crate::meta;
use crate::mirror::Mirrored;
use crate::options::WriteOptions;
use crate::request::Query;
use crate::rest::write::{Author, Change};
use crate::server::Inner;
use crate::views::Stored;

const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// How long objects are left alone after a change. A status that is written at once gets in the way of
/// whoever goes on writing with the version of the last answer.
const SETTLES_AFTER: Duration = Duration::from_millis(300);
const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";

/// The objects as they are stored, by name.
#[derive(Default)]
pub struct Objects {
    schemas: BTreeMap<String, Object<schema::Spec>>,
    levels: BTreeMap<String, Object<level::Spec>>,
}

#[derive(Clone)]
struct Object<S> {
    uid: HeaderValue,
    spec: S,
    status: Value,
}

#[derive(Deserialize)]
struct Body<S> {
    spec: S,
    #[serde(default)]
    status: Value,
}

impl<S: DeserializeOwned> Object<S> {
    fn read(stored: &Stored) -> Option<Self> {
        let body: Body<S> = serde_json::from_slice(stored.record.body())
            .inspect_err(
                |e| tracing::error!(key = %stored.key, error = %e, "left out of flow control"),
            )
            .ok()?;
        let uid = HeaderValue::from_str(stored.record.uid()).ok()?;
        Some(Self { uid, spec: body.spec, status: body.status })
    }
}

/// One of the two kinds, for the mirrors.
pub struct Part {
    flow: Arc<Flow>,
    levels: bool,
}

impl Part {
    pub fn schemas(flow: &Arc<Flow>) -> Arc<Self> {
        Arc::new(Self { flow: flow.clone(), levels: false })
    }

    pub fn levels(flow: &Arc<Flow>) -> Arc<Self> {
        Arc::new(Self { flow: flow.clone(), levels: true })
    }

    fn change(&self, change: impl FnOnce(&mut Objects)) {
        let mut objects = self.flow.objects.lock();
        change(&mut objects);
        self.flow.apply(&mut objects);
        self.flow.changed.notify_one();
    }

    fn insert(&self, objects: &mut Objects, key: &str, stored: &Stored) {
        if self.levels {
            if let Some(object) = Object::read(stored) {
                objects.levels.insert(key.to_owned(), object);
            }
        } else if let Some(object) = Object::read(stored) {
            objects.schemas.insert(key.to_owned(), object);
        }
    }
}

impl Mirrored for Part {
    fn replace(&self, all: Vec<(String, Stored)>) {
        self.change(|objects| {
            if self.levels {
                objects.levels.clear();
            } else {
                objects.schemas.clear();
            }
            all.iter().for_each(|(key, stored)| self.insert(objects, key, stored));
        });
    }

    fn put(&self, key: &str, stored: &Stored) {
        self.change(|objects| self.insert(objects, key, stored));
    }

    fn remove(&self, key: &str) {
        self.change(|objects| {
            if self.levels {
                objects.levels.remove(key);
            } else {
                objects.schemas.remove(key);
            }
        });
    }
}

impl Flow {
    /// Puts the objects in force. Levels that stay keep who runs and waits on them.
    pub(super) fn apply(&self, objects: &mut Objects) {
        let mut levels = objects.levels.clone();
        for name in [EXEMPT, CATCH_ALL] {
            levels.entry(name.to_owned()).or_insert_with(|| Object {
                uid: HeaderValue::from_static(""),
                spec: mandatory_level(name),
                status: Value::Null,
            });
        }
        let mut schemas = objects.schemas.clone();
        for name in [EXEMPT, CATCH_ALL] {
            schemas.entry(name.to_owned()).or_insert_with(|| Object {
                uid: HeaderValue::from_static(""),
                spec: mandatory_schema(name),
                status: Value::Null,
            });
        }
        let before = self.rules.read().clone();
        let sum = levels.values().map(|l| l.spec.shares()).sum();
        let mut rules = Rules::default();
        for (name, object) in &levels {
            let kept = before.levels.iter().find(|l| l.name == *name).cloned();
            let level = kept.unwrap_or_else(|| Arc::new(level::Level::new(name)));
            let nominal = shares::nominal(self.total, object.spec.shares(), sum);
            level.set(&object.spec, nominal, self.total);
            rules.levels.push(level);
        }
        for (name, object) in schemas {
            let wanted = &object.spec.priority_level_configuration.name;
            // One that points nowhere matches nothing.
            let Some(level) = rules.levels.iter().find(|l| l.name == *wanted).cloned() else {
                continue;
            };
            let ids = Ids([object.uid, levels[wanted].uid.clone()]);
            rules.schemas.push(Schema { name, spec: object.spec, level, ids });
        }
        // The last resort stays last whatever precedence somebody gave to others.
        rules.schemas.sort_by(|a, b| {
            let of = |s: &Schema| (s.name == CATCH_ALL, s.spec.matching_precedence);
            of(a).cmp(&of(b)).then_with(|| a.name.cmp(&b.name))
        });
        *self.rules.write() = Arc::new(rules);
    }

    /// Whether an object is gone without which there would be no last resort.
    fn lacks_mandatory(&self) -> bool {
        let objects = self.objects.lock();
        let there = |name| objects.schemas.contains_key(name) && objects.levels.contains_key(name);
        !(there(EXEMPT) && there(CATCH_ALL))
    }

    /// Schemas whose condition is not what it should be, and what it should be.
    fn untold(&self) -> Vec<(String, Value)> {
        let objects = self.objects.lock();
        let wrong = objects.schemas.iter().filter_map(|(name, object)| {
            let level = &object.spec.priority_level_configuration.name;
            let wanted = dangling(level, objects.levels.contains_key(level));
            let told = object.status["conditions"].as_array().into_iter().flatten();
            let told = told.into_iter().find(|c| c["type"] == "Dangling");
            let same = |c: &Value| {
                ["status", "reason", "message"].iter().all(|field| c[field] == wanted[field])
            };
            (!told.is_some_and(same)).then(|| (name.clone(), wanted))
        });
        wrong.collect()
    }
}

/// The condition that tells whether the level of a schema exists.
fn dangling(level: &str, exists: bool) -> Value {
    let (status, reason, message) = match exists {
        true => (
            "False",
            "Found",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists"
            ),
        ),
        false => (
            "True",
            "NotFound",
            format!(
                "This FlowSchema references the PriorityLevelConfiguration object named {level:?} but there is no such object"
            ),
        ),
    };
    json!({ "type": "Dangling", "status": status, "reason": reason, "message": message })
}

/// What holds while the stored object is missing.
fn mandatory_level(name: &str) -> level::Spec {
    let spec = match name {
        EXEMPT => json!({ "type": "Exempt", "exempt": { "nominalConcurrencyShares": 0 } }),
        _ => json!({ "type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "limitResponse": { "type": "Reject" },
        } }),
    };
    serde_json::from_value(spec).expect("it is a spec")
}

fn mandatory_schema(name: &str) -> schema::Spec {
    let (precedence, groups): (i64, &[&str]) = match name {
        EXEMPT => (1, &["system:masters"]),
        _ => (10_000, &["system:unauthenticated", "system:authenticated"]),
    };
    let subject = |group: &&str| json!({ "kind": "Group", "group": { "name": group } });
    let spec = json!({
        "priorityLevelConfiguration": { "name": name },
        "matchingPrecedence": precedence,
        "distinguisherMethod": { "type": "ByUser" },
        "rules": [{
            "subjects": groups.iter().map(subject).collect::<Vec<_>>(),
            "resourceRules": [{
                "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
            }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
        }],
    });
    serde_json::from_value(spec).expect("it is a spec")
}

/// Keeps the `Dangling` condition of every FlowSchema true, and the mandatory objects there.
pub async fn keep_statuses(server: Arc<Inner>) {
    loop {
        if server.flow.lacks_mandatory() {
            bootstrap::mandatory_flow_control(&server).await;
        }
        for (name, condition) in server.flow.untold() {
            match tell(&server, &name, condition).await {
                Err(e) if !e.is_not_found() => {
                    tracing::warn!(name, error = %e, "the status of a FlowSchema cannot be written");
                }
                _ => {}
            }
        }
        server.flow.changed.notified().await;
        tokio::time::sleep(SETTLES_AFTER).await;
    }
}

async fn tell(server: &Arc<Inner>, name: &str, condition: Value) -> Result<(), Status> {
    let served = server.registry().resource("flowcontrol.apiserver.k8s.io", "flowschemas");
    let served = served.expect("a built-in kind").clone();
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions::parse(&Query::default(), "UpdateOptions", MANAGER, false)?;
    let author = Author { user: &user, options: &options };
    let rewrite = move |mut object: Value| {
        let mut condition = condition.clone();
        let told = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let (ours, mut all): (Vec<Value>, Vec<Value>) =
            told.into_iter().partition(|c| c["type"] == "Dangling");
        let since = ours.iter().find(|c| c["status"] == condition["status"]);
        condition["lastTransitionTime"] = match since {
            Some(before) => before["lastTransitionTime"].clone(),
            None => meta::time(Timestamp::now()).into(),
        };
        all.push(condition);
        object["status"]["conditions"] = all.into();
        Ok(object)
    };
    let key = ObjectKey::new("", name);
    let change = Change::Rewrite(&rewrite);
    server.update(&served, &key, "status", change, &author, &mut Vec::new()).await.map(|_| ())
}
