//! `pods/eviction`: a delete that asks politely. Disruption budgets are not heeded yet, as the
//! Warning on their kind says.

use std::sync::Arc;

use bytes::Bytes;
use rimward_api::{ObjectKey, Status};
use serde_json::{Value, json};

use crate::body::Response;
use crate::decode;
use crate::negotiate::{self, Offer};
use crate::options::{DeleteOptions, WriteOptions};
use crate::request::Call;
use crate::rest::take_body;
use crate::served::Served;
use crate::server::Inner;
use crate::views;

pub async fn create(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let form = negotiate::form(&call.headers, Offer::OWN)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let eviction = decode::spoken(
        &server.registry(),
        ("policy", "v1", "Eviction"),
        call,
        &body,
        options.validation,
    )?;
    let named = eviction["metadata"].get("name").and_then(Value::as_str).unwrap_or_default();
    if !named.is_empty() && named != key.name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {:?}, {named:?}",
            key.name
        )));
    }
    let sent = match eviction.get("deleteOptions").filter(|o| o.is_object()) {
        Some(options) => Bytes::from(options.to_string()),
        None => Bytes::new(),
    };
    let mut delete = DeleteOptions::parse(&call.query, &sent)?;
    delete.dry_run |= options.dry_run;
    server.delete(served, key, &delete, &call.user, &mut call.warnings).await?;
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(views::encoded(call, 201, form, &status))
}
