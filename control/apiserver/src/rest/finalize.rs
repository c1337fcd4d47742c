//! `namespaces/finalize`: whoever held a namespace lets go of it.

use std::sync::Arc;

use rimward_api::{ObjectKey, Status};
use serde_json::Value;

use crate::body::Response;
use crate::decode;
use crate::options::WriteOptions;
use crate::request::Call;
use crate::rest::write::{Author, Change};
use crate::rest::{answer, take_body};
use crate::served::Served;
use crate::server::Inner;

pub async fn update(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let options = WriteOptions::parse(&call.query, "UpdateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let sent = decode::object(served, call, &body, options.validation)?;
    let finalize = |mut namespace: Value| {
        // The version and identity that the client named stay preconditions.
        for field in ["resourceVersion", "uid"] {
            if let Some(value) = sent["metadata"].get(field) {
                namespace["metadata"][field] = value.clone();
            }
        }
        match sent.pointer("/spec/finalizers") {
            Some(finalizers) => namespace["spec"]["finalizers"] = finalizers.clone(),
            None => {
                if let Some(spec) = namespace["spec"].as_object_mut() {
                    spec.remove("finalizers");
                }
            }
        }
        Ok(namespace)
    };
    let author = Author { user: &call.user, options: &options };
    let change = Change::Rewrite(&finalize);
    let written =
        server.update(served, key, "finalize", change, &author, &mut call.warnings).await?;
    answer(server, call, served, &written)
}
