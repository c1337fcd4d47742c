//! OpenAPI of extension API servers: their entries in the index of v3 and their documents as they are,
//! and one document of v2 of everything.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use rimward_api::Status;
use serde_json::{Map, Value};

use super::{Aggregation, ApiService};
use crate::body::Response;
use crate::paths::etag;
use crate::request::Call;
use crate::server::Inner;

fn name(service: &ApiService) -> String {
    service.path().trim_start_matches('/').to_owned()
}

/// The entry of a group and version in an index.
pub fn entry(index: &[u8], service: &ApiService) -> Option<Value> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let entry = index.get("paths")?.get(name(service))?;
    // It leads to this server, and there to the document of that name only.
    let url = entry.get("serverRelativeURL")?.as_str()?;
    let expected = format!("/openapi/v3/{}", name(service));
    (url.split('?').next() == Some(expected.as_str())).then(|| entry.clone())
}

/// Adds what extension API servers serve.
pub fn add_to_index(aggregation: &Aggregation, paths: &mut Map<String, Value>) {
    if !aggregation.any_remote() {
        return;
    }
    for service in aggregation.all() {
        let told = aggregation.told(&service.name);
        if service.destination.is_some()
            && let Some(entry) = told.and_then(|t| t.openapi.clone())
        {
            paths.insert(name(&service), entry);
        }
    }
}

/// The document of a group and version that another server serves; None when we serve it ourselves.
pub async fn document(server: &Arc<Inner>, call: &mut Call, path: &str) -> Option<Response> {
    let under = path.strip_prefix("/openapi/v3")?;
    let service = server.aggregation.owner(under)?;
    Some(super::proxy::forward(server, call, &service).await)
}

const V2_WAIT: Duration = Duration::from_secs(5);
const V2_BYTES_MAX: usize = 8 << 20;

/// The merged document of v2 in both encodings, each with its tag.
pub struct V2 {
    generation: u64,
    pub json: (Bytes, String),
    pub protobuf: (Bytes, String),
}

/// Ours and theirs as one; made anew when something that a server says of itself has changed.
///
/// # Errors
/// When it cannot be made. A server that does not answer is left out.
pub async fn v2(server: &Arc<Inner>) -> Result<Arc<V2>, Status> {
    let generation = *server.aggregation.generation.borrow();
    if let Some(made) = server.aggregation.v2.read().clone()
        && made.generation == generation
    {
        return Ok(made);
    }
    let services = server.aggregation.all();
    let asked = services.iter().filter(|s| s.available).map(|service| async move {
        let Some(Ok(destination)) = &service.destination else { return None };
        let headers = [("accept", "application/json")];
        let got =
            server.outbound.get(destination, "/openapi/v2", &headers, V2_WAIT, V2_BYTES_MAX).await;
        let (parts, bytes) = got.ok()?;
        parts.status.is_success().then(|| (service.path(), bytes))
    });
    let theirs: Vec<(String, Bytes)> = join_all(asked).await.into_iter().flatten().collect();
    let owned = server.clone();
    let made = tokio::task::spawn_blocking(move || {
        let mut whole = crate::openapi::v2(&owned.registry());
        for (path, bytes) in theirs {
            if let Ok(document) = serde_json::from_slice(&bytes) {
                add_v2(&mut whole, &path, document);
            }
        }
        let tagged = |bytes: Bytes| {
            let tag = etag(&bytes);
            (bytes, tag)
        };
        let json = tagged(whole.to_string().into());
        let protobuf = tagged(rimward_control_schema::openapi::v2_protobuf(&whole).into());
        V2 { generation, json, protobuf }
    });
    let made = Arc::new(made.await.map_err(Status::internal)?);
    *server.aggregation.v2.write() = Some(made.clone());
    Ok(made)
}

/// Takes over what is under a path, and the definitions that we do not have under the same name.
fn add_v2(whole: &mut Value, path: &str, document: Value) {
    let Value::Object(mut document) = document else { return };
    let mut take = |field: &str, wanted: &dyn Fn(&str) -> bool| {
        let Some(Value::Object(theirs)) = document.remove(field) else { return };
        let Some(ours) = whole.get_mut(field).and_then(Value::as_object_mut) else { return };
        for (name, value) in theirs.into_iter().filter(|(name, _)| wanted(name)) {
            ours.entry(name).or_insert(value);
        }
    };
    take("paths", &|p| p.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('/')));
    take("definitions", &|_| true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_merged() {
        let mut whole = json!({ "paths": { "/apis/": 1 }, "definitions": { "a": 1 } });
        let theirs = json!({
            "paths": { "/apis/": 2, "/apis/g/v1/": 2, "/apis/g/v1beta1/": 2 },
            "definitions": { "a": 2, "b": 2 },
        });
        add_v2(&mut whole, "/apis/g/v1", theirs);
        assert_eq!(
            whole,
            json!({ "paths": { "/apis/": 1, "/apis/g/v1/": 2 }, "definitions": { "a": 1, "b": 2 } })
        );
        add_v2(&mut whole, "/apis/g/v1", json!([1]));
    }
}
