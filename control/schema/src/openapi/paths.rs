//! Paths and operations of resources, as Kubernetes publishes them: which operations a resource has
//! follows `staging/src/k8s.io/apiserver/pkg/endpoints/installer.go`, ids and tags
//! `staging/src/k8s.io/apiserver/pkg/endpoints/openapi/openapi.go`.

pub(super) mod operation;
mod parameters;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use self::operation::{Body, Media, Operation, Place, capital, path_item};
use super::{Dialect, ResourceInfo, SubresourceInfo};
use crate::model::{DefId, Model};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";

/// Adds the paths of a resource, and the definitions that they use.
pub(super) fn add(
    model: &Model,
    resource: &ResourceInfo,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
    used: &mut BTreeSet<DefId>,
) {
    for (place, operations) in of(model, resource) {
        let bodies = operations.iter().flat_map(|o| o.body.map(|b| b.definition));
        for name in bodies.chain(operations.iter().flat_map(|o| o.answer)) {
            used.extend(model.id(name));
        }
        if !operations.is_empty() {
            paths.insert(place.path.clone(), path_item(&place, &operations, dialect));
        }
    }
}

type Paths<'a> = Vec<(Place<'a>, Vec<Operation<'a>>)>;

fn of<'a>(model: &'a Model, resource: &'a ResourceInfo) -> Paths<'a> {
    let ResourceInfo { group, version, kind, resource: plural, .. } = resource;
    let prefix = match group.is_empty() {
        true => format!("/api/{version}"),
        false => format!("/apis/{group}/{version}"),
    };
    let (scope, scoped) = match resource.namespaced {
        true => ("/namespaces/{namespace}", "Namespaced"),
        false => ("", ""),
    };
    let own = &*model.get(resource.definition).name;
    let list = model.definition(&format!("{own}List")).map_or(own, |d| &*d.name);
    let place = |path: String, noun: String| Place {
        path,
        noun,
        group,
        version,
        speaks: (group, version, kind),
        custom: resource.custom,
        named: None,
    };
    let named = |path: String, noun: String| Place { named: Some(kind), ..place(path, noun) };
    let can = |verb: &str| resource.verbs.iter().any(|v| v == verb);

    let collection = format!("{scope}/{plural}");
    let item = format!("{collection}/{{name}}");
    let of_one = format!("{scoped}{kind}");
    let everywhere = resource.namespaced && can("list");
    let mut all = vec![
        (
            place(format!("{prefix}{collection}"), of_one.clone()),
            collection_operations(resource, own, list),
        ),
        (
            named(format!("{prefix}{item}"), of_one.clone()),
            item_operations(resource, kind, &resource.verbs, own),
        ),
    ];
    if everywhere {
        let at = place(format!("{prefix}/{plural}"), format!("{kind}ForAllNamespaces"));
        all.push((at, vec![list_operation(kind, list)]));
    }
    // The old paths of watches; custom kinds never had them published.
    if can("watch") && !resource.custom {
        let (one, many) = (watch_operation(kind), watch_list_operation(kind));
        let at = |path: &str| format!("{prefix}/watch{path}");
        if everywhere {
            let noun = format!("{kind}ListForAllNamespaces");
            all.push((place(at(&format!("/{plural}")), noun), vec![watch_list_operation(kind)]));
        }
        all.push((place(at(&collection), format!("{scoped}{kind}List")), vec![many]));
        all.push((named(at(&item), of_one.clone()), vec![one]));
    }
    for sub in &resource.subresources {
        let (path, noun) =
            (format!("{prefix}{item}/{}", sub.name), format!("{of_one}{}", capital(&sub.name)));
        let speaks = (&*sub.speaks.0, &*sub.speaks.1, &*sub.speaks.2);
        let at = |path: String, noun: String| Place {
            speaks,
            // A connection is named by its options.
            named: Some(if sub.definition.is_some() { kind } else { speaks.2 }),
            ..place(path, noun)
        };
        match sub.definition {
            Some(definition) => {
                let body = &*model.get(definition).name;
                all.push((at(path, noun), subresource_operations(resource, sub, body)));
            }
            None => {
                let operations = || connections(kind, sub);
                if sub.name == "proxy" {
                    let under = at(format!("{path}/{{path}}"), format!("{noun}WithPath"));
                    all.push((under, operations()));
                }
                all.push((at(path, noun), operations()));
            }
        }
    }
    all
}

fn collection_operations<'a>(
    resource: &ResourceInfo,
    own: &'a str,
    list: &'a str,
) -> Vec<Operation<'a>> {
    let ResourceInfo { kind, verbs, .. } = resource;
    let can = |verb: &str| verbs.iter().any(|v| v == verb);
    let mut operations = Vec::new();
    if can("list") {
        operations.push(list_operation(kind, list));
    }
    if can("create") {
        operations.push(create_operation(format!("create {}", with_article(kind)), own));
    }
    if can("deletecollection") {
        operations.push(Operation {
            method: "delete",
            action: "deletecollection",
            verb: "delete",
            before: "Collection",
            summary: format!("delete collection of {kind}"),
            query: parameters::delete_collection(),
            body: Some(Body { definition: DELETE_OPTIONS, required: false }),
            answer: Some(STATUS),
            codes: &[],
            media: Media::Object,
        });
    }
    operations
}

/// A read of something, which other operations differ from.
fn read(summary: String, answer: Option<&str>) -> Operation<'_> {
    Operation {
        method: "get",
        action: "get",
        verb: "read",
        before: "",
        summary,
        query: Vec::new(),
        body: None,
        answer,
        codes: &[],
        media: Media::Object,
    }
}

fn list_operation<'a>(kind: &str, list: &'a str) -> Operation<'a> {
    let summary = format!("list or watch objects of kind {kind}");
    Operation {
        action: "list",
        verb: "list",
        query: parameters::list(),
        media: Media::Stream,
        ..read(summary, Some(list))
    }
}

fn watch_list_operation(kind: &str) -> Operation<'static> {
    let summary = format!(
        "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
    );
    Operation { action: "watchlist", verb: "watch", ..watch(summary) }
}

fn watch_operation(kind: &str) -> Operation<'static> {
    let summary = format!(
        "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
    );
    watch(summary)
}

fn watch(summary: String) -> Operation<'static> {
    Operation {
        action: "watch",
        verb: "watch",
        query: parameters::list(),
        media: Media::Stream,
        ..read(summary, Some(WATCH_EVENT))
    }
}

fn create_operation(summary: String, body: &str) -> Operation<'_> {
    Operation {
        method: "post",
        action: "post",
        verb: "create",
        query: parameters::WRITE.to_vec(),
        body: Some(Body { definition: body, required: true }),
        codes: &[201, 202],
        ..read(summary, Some(body))
    }
}

/// The operations of one object, or of `what` of it.
fn item_operations<'a>(
    resource: &ResourceInfo,
    what: &str,
    verbs: &[String],
    own: &'a str,
) -> Vec<Operation<'a>> {
    let can = |verb: &str| verbs.iter().any(|v| v == verb);
    let of_specified = |verb: &str| match what.contains(' ') {
        false => format!("{verb} the specified {what}"),
        true => format!("{verb} {what}"),
    };
    let mut operations = Vec::new();
    if can("get") {
        operations.push(read(of_specified("read"), Some(own)));
    }
    if can("update") {
        operations.push(Operation {
            method: "put",
            action: "put",
            verb: "replace",
            query: parameters::WRITE.to_vec(),
            body: Some(Body { definition: own, required: true }),
            codes: &[201],
            ..read(of_specified("replace"), Some(own))
        });
    }
    if can("delete") {
        let answer = if resource.returns_deleted { own } else { STATUS };
        operations.push(Operation {
            method: "delete",
            action: "delete",
            verb: "delete",
            query: parameters::DELETE.to_vec(),
            body: Some(Body { definition: DELETE_OPTIONS, required: false }),
            codes: &[202],
            ..read(format!("delete {}", with_article(what)), Some(answer))
        });
    }
    if can("patch") {
        operations.push(Operation {
            method: "patch",
            action: "patch",
            verb: "patch",
            query: parameters::PATCH.to_vec(),
            body: Some(Body { definition: PATCH, required: true }),
            codes: &[201],
            media: Media::Patch,
            ..read(of_specified("partially update"), Some(own))
        });
    }
    operations
}

fn subresource_operations<'a>(
    resource: &ResourceInfo,
    sub: &SubresourceInfo,
    body: &'a str,
) -> Vec<Operation<'a>> {
    let (kind, name) = (&resource.kind, &sub.name);
    if name == "log" {
        let query = parameters::log();
        let summary = format!("read log of the specified {kind}");
        return vec![Operation { query, media: Media::Log, ..read(summary, None) }];
    }
    let about = format!("{name} of the specified {kind}");
    let mut operations = item_operations(resource, &about, &sub.verbs, body);
    if sub.verbs.iter().any(|v| v == "create") {
        let summary = format!("create {name} of {}", with_article(kind));
        operations.push(create_operation(summary, body));
    }
    operations
}

/// The methods by which a connection is made: a proxy passes on all of them.
fn connections(kind: &str, sub: &SubresourceInfo) -> Vec<Operation<'static>> {
    const METHODS: [(&str, &str); 7] = [
        ("get", "Get"),
        ("post", "Post"),
        ("put", "Put"),
        ("patch", "Patch"),
        ("delete", "Delete"),
        ("head", "Head"),
        ("options", "Options"),
    ];
    let some = if sub.name == "proxy" { &METHODS[..] } else { &METHODS[..2] };
    let connect = |(method, word): &(&'static str, &'static str)| {
        let upper = method.to_uppercase();
        let summary = format!("connect {upper} requests to {} of {kind}", sub.name);
        Operation {
            method,
            action: "connect",
            verb: "connect",
            before: word,
            query: parameters::connection(&sub.speaks.2),
            media: Media::Connection,
            ..read(summary, None)
        }
    };
    some.iter().map(connect).collect()
}

/// Plurals have no article; `Class` and the like are none.
fn with_article(noun: &str) -> String {
    let plural = noun.ends_with('s') && !noun.ends_with("ss");
    match noun.chars().next() {
        _ if plural => noun.to_owned(),
        Some('a' | 'e' | 'i' | 'o' | 'u' | 'A' | 'E' | 'I' | 'O' | 'U') => format!("an {noun}"),
        _ => format!("a {noun}"),
    }
}
