//! What admission tells the audit log.

use std::sync::{Arc, Mutex};

use rimward_control_apiserver::Auditor;
use rimward_control_apiserver::audit::{Policy, Sink};
use rimward_control_store::MemoryStore;
use serde_json::{Value, json};

use crate::cluster::{CONFIG_MAPS, Cluster, config_map};
use crate::tls::{Ca, Server};
use crate::webhooks::{hook, patching, register, review};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

#[derive(Debug, Default)]
struct Lines(Mutex<Vec<Value>>);

impl Sink for Lines {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(serde_json::from_str(&line).unwrap());
    }
}

impl Lines {
    /// The annotations of the last request of a verb.
    fn last(&self, verb: &str) -> Value {
        let lines = self.0.lock().unwrap();
        let of_verb = |l: &&Value| l["verb"] == verb && l["stage"] == "ResponseComplete";
        lines.iter().rfind(of_verb).unwrap()["annotations"].clone()
    }
}

async fn audited(level: &str) -> (Cluster, Arc<Lines>) {
    let policy =
        format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{{level: {level}}}]\n");
    let lines = Arc::new(Lines::default());
    let auditor =
        Auditor { policy: Arc::new(Policy::parse(&policy).unwrap()), sink: lines.clone() };
    let cluster =
        Cluster::start_on(MemoryStore::new(), |config| config.audit = Some(auditor)).await;
    (cluster, lines)
}

#[tokio::test]
async fn policies_annotate() {
    let (cluster, lines) = audited("Metadata").await;
    let c = &cluster.admin;
    let policy = json!({ "metadata": { "name": "p" }, "spec": {
        "matchConstraints": { "resourceRules": [
            { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"] } ] },
        "validations": [{ "expression": "object.data.k != 'bad'", "message": "not this" }],
        "auditAnnotations": [
            { "key": "value", "valueExpression": "'it is ' + object.data.k" },
            { "key": "none", "valueExpression": "null" },
        ],
    } });
    c.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy).await.expect(201);
    let binding = json!({ "metadata": { "name": "b" }, "spec": { "policyName": "p", "validationActions": ["Warn", "Audit"] } });
    c.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.expect(201);

    c.post(CONFIG_MAPS, &config_map("a", "good")).await.expect(201);
    let noted = lines.last("create");
    assert_eq!(noted["p/value"], "it is good");
    assert_eq!(noted.get("p/none"), None);
    let failure = "validation.policy.admission.k8s.io/validation_failure";
    assert_eq!(noted.get(failure), None);

    c.post(CONFIG_MAPS, &config_map("b", "bad")).await.expect(201);
    let noted = lines.last("create");
    let failures: Value = serde_json::from_str(noted[failure].as_str().unwrap()).unwrap();
    assert_eq!(
        failures,
        json!([{ "message": "not this", "policy": "p", "binding": "b", "expressionIndex": 0, "validationActions": ["Warn", "Audit"] }])
    );
    assert_eq!(noted["authorization.k8s.io/decision"], "allow");
}

#[tokio::test]
async fn webhooks_annotate() {
    let (cluster, lines) = audited("Request").await;
    let (c, ca) = (&cluster.admin, Ca::new());
    let server = Server::simple(&ca, &["127.0.0.1"], |seen| {
        let mut response = patching(&json!([{ "op": "add", "path": "/data/n", "value": "v" }]));
        response["auditAnnotations"] = json!({ "why": "because" });
        review(seen, response)
    })
    .await;
    let mut down = hook("down.example.com", &server, &ca, &["CREATE"], &["configmaps"]);
    down["clientConfig"]["url"] = "https://127.0.0.1:1/".into();
    down["failurePolicy"] = "Ignore".into();
    let good = hook("m.example.com", &server, &ca, &["CREATE"], &["configmaps"]);
    register(c, "mutating", "m", vec![good, down]).await;

    c.post(CONFIG_MAPS, &config_map("a", "1")).await.expect(201);
    let noted = lines.last("create");
    let read = |key: &str| -> Value { serde_json::from_str(noted[key].as_str().unwrap()).unwrap() };
    assert_eq!(noted["m.example.com/why"], "because");
    assert_eq!(
        read("mutation.webhook.admission.k8s.io/round_0_index_0"),
        json!({ "configuration": "m", "webhook": "m.example.com", "mutated": true })
    );
    assert_eq!(
        read("patch.webhook.admission.k8s.io/round_0_index_0")["patch"][0]["path"],
        "/data/n"
    );
    assert_eq!(
        noted["failed-open.mutating.webhook.admission.k8s.io/round_0_index_1"],
        "down.example.com"
    );
}

#[tokio::test]
async fn requests_have_an_id() {
    let (cluster, lines) = audited("Metadata").await;
    let id =
        |answer: &crate::cluster::Answer| answer.headers["audit-id"].to_str().unwrap().to_owned();
    let told = |verb: &str| {
        let lines = lines.0.lock().unwrap();
        lines.iter().rfind(|l| l["verb"] == verb).unwrap()["auditID"].clone()
    };
    let list = cluster.admin.get(CONFIG_MAPS).await;
    assert_eq!(told("list"), id(&list));
    assert_ne!(id(&list), id(&cluster.admin.get(CONFIG_MAPS).await));
    assert_eq!(list.headers["cache-control"], "no-cache, private");
    let own = [("audit-id", "mine")];
    let answer = cluster.admin.send("GET", &format!("{CONFIG_MAPS}/none"), &own, "").await;
    assert_eq!((answer.code, id(&answer), told("get")), (404, "mine".into(), json!("mine")));
    let keys = cluster.admin.get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["cache-control"], "public, max-age=3600");
}
