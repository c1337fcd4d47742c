//! `componentstatuses`: how the parts of the control plane are, made when somebody asks. Kubernetes
//! probes the store, the scheduler and the controllers; here only the store can be asked, since the
//! others are clients in this process, and an API server without a store has ended.

use std::sync::Arc;

use rimward_api::{ObjectKey, Status};
use serde_json::json;

use crate::body::Response;
use crate::negotiate;
use crate::options::ListOptions;
use crate::record::Record;
use crate::request::Call;
use crate::rest::list;
use crate::served::Served;
use crate::server::Inner;
use crate::views::{ListMeta, Stored};

pub fn get(
    server: &Inner,
    call: &Call,
    served: &Arc<Served>,
    key: &ObjectKey,
) -> Result<Response, Status> {
    let all = all(served)?;
    let found = all.iter().find(|component| component.name() == key.name);
    let found = found.ok_or_else(|| Status::not_found(&served.group_resource(), &key.name))?;
    server.respond(call, served, found, 200)
}

pub fn list(server: &Inner, call: &Call, served: &Arc<Served>) -> Result<Response, Status> {
    let form = negotiate::accepted(&call.headers, served)?;
    let options = ListOptions::parse(&call.query, &served.kind, false)?;
    let mut items = all(served)?;
    items.retain(|i| options.matches(&i.record, i.name()));
    let meta = ListMeta::none(server.store.revision());
    list::answer(server, call, served, form, &items, &meta)
}

fn all(served: &Served) -> Result<Vec<Stored>, Status> {
    let store = json!({
        "metadata": { "name": "etcd-0" },
        "conditions": [{ "type": "Healthy", "status": "True", "message": "ok" }],
    });
    let bytes = Record::encode(&store, &served.kind).map_err(Status::internal)?;
    let record = Record::open(&bytes).map_err(Status::internal)?;
    let key = served.key(&ObjectKey::new("", "etcd-0")).into();
    Ok(vec![Stored { key, record, revision: 0, kept: false }])
}
