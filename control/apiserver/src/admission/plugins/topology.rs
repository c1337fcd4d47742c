//! A pod is labelled with the zone and the region of its node, so that it can read them of itself.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#podtopologylabels>

use rimward_api::Status;
use rimward_api::meta::str_at;
use serde_json::{Map, Value};

use crate::admission::Review;
use crate::error;
use crate::meta;
use crate::server::Inner;
use crate::views::Stored;

const LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// The labels that a pod gets from its node; none of a node that is not there.
pub async fn labels_of(server: &Inner, node: &str) -> Result<Map<String, Value>, Status> {
    let key = format!("{}{node}", server.nodes_prefix);
    let Some(entry) = server.store.get(&key, None).await.map_err(error::store)? else {
        return Ok(Map::new());
    };
    let node = Stored::open(&entry)?;
    let label = |key: &&'static str| Some(((*key).to_owned(), node.record.label(key)?.into()));
    Ok(LABELS.iter().filter_map(label).collect())
}

/// A pod that names its node at once. (Others are labelled when they are bound.)
pub async fn admit(server: &Inner, review: &mut Review<'_>) -> Result<(), Status> {
    let node = str_at(review.object, &["spec", "nodeName"]).unwrap_or_default().to_owned();
    if node.is_empty() {
        return Ok(());
    }
    put(review.object, labels_of(server, &node).await?);
    Ok(())
}

pub fn put(pod: &mut Value, labels: Map<String, Value>) {
    if labels.is_empty() {
        return;
    }
    let own = meta::metadata(pod).entry("labels").or_insert(Value::Null);
    match own {
        Value::Object(own) => own.extend(labels),
        other => *other = Value::Object(labels),
    }
}
