//! `componentstatuses`: not stored, but how the parts of the control plane are at this moment. Deprecated
//! since v1.19, and still what `kubectl get componentstatuses` and older tools ask.

use rimward_api::ObjectKey;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::record::Record;
use crate::served::Served;
use crate::server::{ApiServer, Inner};
use crate::views::Stored;

/// What Kubernetes calls its store; ours has failed only when this process has ended.
const STORE: &str = "etcd-0";

/// A part that runs beside the API server.
pub struct Component {
    name: String,
    running: AbortHandle,
}

impl ApiServer {
    /// Tells of a part of the control plane that is well while its task runs.
    pub fn add_component(&self, name: &str, running: AbortHandle) {
        self.inner.components.write().push(Component { name: name.to_owned(), running });
    }
}

/// Whether reads of a kind are answered here.
pub fn are(served: &Served) -> bool {
    served.is("", "componentstatuses")
}

/// All of them, in the order of their names.
pub fn all(server: &Inner, served: &Served) -> Vec<Stored> {
    let components = server.components.read();
    let mut states: Vec<(&str, bool)> =
        components.iter().map(|c| (c.name.as_str(), !c.running.is_finished())).collect();
    states.push((STORE, true));
    states.sort_unstable();
    states.into_iter().map(|(name, well)| stored(served, name, &status(name, well))).collect()
}

fn status(name: &str, well: bool) -> Value {
    let condition = match well {
        true => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        false => json!({ "type": "Healthy", "status": "False", "error": "it has ended" }),
    };
    json!({ "metadata": { "name": name }, "conditions": [condition] })
}

fn stored(served: &Served, name: &str, object: &Value) -> Stored {
    let bytes = Record::encode(object, &served.stored).expect("names are short");
    Stored {
        key: served.key(&ObjectKey::new("", name)).into(),
        record: Record::open(&bytes).expect("was just encoded"),
        revision: 0,
        kept: false,
    }
}
