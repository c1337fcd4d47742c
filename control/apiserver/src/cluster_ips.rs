//! An IPAddress object for every cluster IP, written and deleted in its Service's own transaction.
//! <https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/>
//!
//! Which addresses are free, [`crate::pools`] knows; the objects say it to everybody else. One that
//! is deleted while its Service holds the address comes back.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use rimward_api::{ObjectKey, Status};
use rimward_control_store::{CommitError, Error, Expect, ListRequest, Op, Txn};
use serde_json::{Value, json};

use crate::health::Part;
use crate::meta;
use crate::pools::Held;
use crate::record::Record;
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

fn addresses(server: &Inner) -> Arc<Served> {
    server.registry().resource("networking.k8s.io", "ipaddresses").expect("a built-in kind")
}

/// What a write of a Service does to IPAddresses; nothing for anything else.
pub fn ops(
    server: &Inner,
    served: &Served,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<Vec<Op>, Status> {
    if !served.is("", "services") {
        return Ok(Vec::new());
    }
    let held = |service: Option<&Value>| service.map(Held::of).unwrap_or_default().addresses;
    let (before, after) = (held(old), held(new));
    if before == after {
        return Ok(Vec::new());
    }
    let kind = addresses(server);
    let mut ops = Vec::new();
    for address in before.iter().filter(|a| !after.contains(a)) {
        let key = kind.key(&ObjectKey::new("", address.to_string()));
        ops.push(Op::Delete { key, expect: Expect::Anything });
    }
    for address in after.iter().filter(|a| !before.contains(a)) {
        let service = ObjectKey::of(new.expect("it holds the address"));
        ops.push(put(&kind, &address.to_string(), &service, Expect::Anything)?);
    }
    Ok(ops)
}

fn put(kind: &Served, address: &str, service: &ObjectKey, expect: Expect) -> Result<Op, Status> {
    let mut object = json!({
        "metadata": {
            "name": address,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {
            "parentRef": { "resource": "services", "namespace": service.namespace, "name": service.name },
        },
    });
    meta::fill_for_create(&mut object, "", kind.stored.hooks.has_generation(), Timestamp::now());
    let value = Record::encode(&object, &kind.stored).map_err(Status::internal)?;
    Ok(Op::Put { key: kind.key(&ObjectKey::new("", address)), value, expect })
}

/// Keeps the objects as the Services say, from a first look on, until the server stops.
pub fn start(server: &Arc<Inner>) {
    let kept = server.clone();
    server.parts.run(Part::ClusterIps, &server.stop, async move {
        loop {
            match keep(&kept).await {
                Err(Error::Closed) => return,
                Err(e) => {
                    tracing::warn!(error = %e, "looking at the IPAddresses anew");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
                Ok(never) => match never {},
            }
        }
    });
}

async fn keep(server: &Inner) -> Result<std::convert::Infallible, Error> {
    let prefix = addresses(server).kind.storage.clone();
    let after = repair(server, &prefix).await?;
    let mut feed = server.store.watch(&prefix, after)?;
    loop {
        for event in &feed.next().await?.events {
            let Some(previous) = event.previous.as_ref().filter(|_| event.entry.is_none()) else {
                continue;
            };
            let address = event.key.strip_prefix(prefix.as_str()).unwrap_or_default();
            if let Some(service) = Stored::open(previous).ok().and_then(|s| parent(&s))
                && holds(server, &service, address).await?
            {
                restore(server, address, &service).await?;
            }
        }
    }
}

/// The Service that an IPAddress belongs to; None for what other allocators made.
fn parent(stored: &Stored) -> Option<ObjectKey> {
    let object: Value = serde_json::from_slice(stored.record.body()).ok()?;
    let parent = object.pointer("/spec/parentRef")?;
    let text = |field: &str| parent.get(field).and_then(Value::as_str).unwrap_or_default();
    let ours = text("group").is_empty() && text("resource") == "services";
    ours.then(|| ObjectKey::new(text("namespace"), text("name")))
}

async fn holds(server: &Inner, service: &ObjectKey, address: &str) -> Result<bool, Error> {
    let services = server.registry().resource("", "services").expect("a built-in kind");
    let Some(entry) = server.store.get(&services.key(service), None).await? else {
        return Ok(false);
    };
    let object = Stored::open(&entry).ok().and_then(|s| s.stored_value(&services).ok());
    let held = object.as_ref().map(Held::of).unwrap_or_default();
    Ok(held.addresses.iter().any(|a| a.to_string() == address))
}

async fn restore(server: &Inner, address: &str, service: &ObjectKey) -> Result<(), Error> {
    let Ok(op) = put(&addresses(server), address, service, Expect::Absent) else { return Ok(()) };
    match server.store.commit(Txn { ops: vec![op] }).await {
        Err(CommitError::Store(e)) => Err(e),
        // It is there again already.
        _ => Ok(()),
    }
}

/// Makes what is missing (of Services from before there were IPAddresses), and removes what no
/// Service holds. Answers with the revision that it looked at.
async fn repair(server: &Inner, prefix: &str) -> Result<u64, Error> {
    let request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
    let page = server.store.list(request).await?;
    let mut stored: HashMap<String, Stored> = HashMap::new();
    for entry in &page.entries {
        if let Ok(address) = Stored::open(entry) {
            stored.insert(address.name().to_owned(), address);
        }
    }
    let services = server.registry().resource("", "services").expect("a built-in kind");
    let request = ListRequest { prefix: services.kind.storage.clone(), ..ListRequest::default() };
    for entry in server.store.list(request).await?.entries {
        let Ok(object) = Stored::open(&entry).and_then(|s| s.stored_value(&services)) else {
            continue;
        };
        for address in Held::of(&object).addresses {
            if stored.remove(&address.to_string()).is_none() {
                restore(server, &address.to_string(), &ObjectKey::of(&object)).await?;
            }
        }
    }
    for (address, orphan) in stored {
        let Some(service) = parent(&orphan) else { continue };
        if holds(server, &service, &address).await? {
            continue;
        }
        let expect = Expect::At(orphan.revision);
        let op = Op::Delete { key: orphan.key.to_string(), expect };
        if let Err(CommitError::Store(e)) = server.store.commit(Txn { ops: vec![op] }).await {
            return Err(e);
        }
    }
    Ok(page.revision)
}
