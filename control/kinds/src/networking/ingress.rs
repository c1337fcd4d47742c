//! Ingress and IngressClass.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check::{self, text};
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill};
use crate::rules::Rules;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub const INGRESS: Rules = Rules {
    prepare_create: |object| object["status"] = json!({ "loadBalancer": {} }),
    create: |object, e| {
        ingress(object, e);
        let class = object.deep(&["metadata", "annotations", CLASS_ANNOTATION]);
        if class.is_string() && object.at("spec").has("ingressClassName") {
            let path = Path::Root.field("metadata");
            e.invalid(
                &path.field("annotations").key(CLASS_ANNOTATION),
                class.clone(),
                "can not be set when the class field is also set",
            );
        }
    },
    update: |new, _, e| ingress(new, e),
    status: true,
    generation: true,
    cells: print::network::ingress,
    warnings: crate::warnings::ingress,
    ..Rules::PLAIN
};

fn ingress(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let (rules, default) = (spec.list("rules"), spec.at("defaultBackend"));
    if rules.is_empty() && default.is_null() {
        e.invalid(&path, rules.to_vec(), "either `defaultBackend` or `rules` must be specified");
    }
    if !default.is_null() {
        backend(default, &path.field("defaultBackend"), e);
    }
    let list = path.field("rules");
    for (i, rule) in rules.iter().enumerate() {
        self::rule(rule, &list.index(i), e);
    }
    let list = path.field("tls");
    for (i, tls) in spec.list("tls").iter().enumerate() {
        let at = list.index(i);
        let hosts = at.field("hosts");
        for (j, host) in tls.list("hosts").iter().filter_map(Value::as_str).enumerate() {
            self::host(host, &hosts.index(j), e);
        }
        let secret = tls.text("secretName");
        if !secret.is_empty() {
            e.invalid_each(&at.field("secretName"), secret, names::dns1123_subdomain(secret));
        }
    }
    if let Some(class) = spec.at("ingressClassName").as_str() {
        e.invalid_each(&path.field("ingressClassName"), class, names::dns1123_subdomain(class));
    }
}

fn rule(rule: &Value, path: &Path<'_>, e: &mut Errors) {
    let name = rule.text("host");
    if !name.is_empty() {
        if name.parse::<std::net::IpAddr>().is_ok() {
            e.invalid(&path.field("host"), name, "must be a DNS name, not an IP address");
        }
        host(name, &path.field("host"), e);
    }
    let http = rule.at("http");
    if http.is_null() {
        return;
    }
    let at = path.field("http");
    let list = at.field("paths");
    let paths = http.list("paths");
    if paths.is_empty() {
        e.required(&list, "");
    }
    for (i, one) in paths.iter().enumerate() {
        http_path(one, &list.index(i), e);
    }
}

fn host(host: &str, path: &Path<'_>, e: &mut Errors) {
    let wrong = if host.contains('*') {
        text::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    };
    e.invalid_each(path, host, wrong);
}

fn http_path(one: &Value, path: &Path<'_>, e: &mut Errors) {
    let (place, at) = (one.text("path"), path.field("path"));
    let Some(kind) = one.at("pathType").as_str() else {
        return e.required(&path.field("pathType"), "pathType must be specified");
    };
    match kind {
        "Exact" | "Prefix" => {
            if !place.starts_with('/') {
                e.invalid(&at, place, "must be an absolute path");
            }
            if !place.is_empty() {
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if place.contains(bad) {
                        e.invalid(&at, place, &format!("must not contain '{bad}'"));
                    }
                }
                for bad in ["/..", "/."] {
                    if place.ends_with(bad) {
                        e.invalid(&at, place, &format!("cannot end with '{bad}'"));
                    }
                }
            }
        }
        "ImplementationSpecific" => {
            if !place.is_empty() && !place.starts_with('/') {
                e.invalid(&at, place, "must be an absolute path");
            }
        }
        other => e.not_supported(
            &path.field("pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        ),
    }
    backend(one.at("backend"), &path.field("backend"), e);
}

fn backend(backend: &Value, path: &Path<'_>, e: &mut Errors) {
    match (backend.has("service"), backend.has("resource")) {
        (true, true) => {
            return e.invalid(path, "", "cannot set both resource and service backends");
        }
        (false, false) => return e.invalid(path, "", "resource or service backend is required"),
        (false, true) => {
            return typed_reference(backend.at("resource"), &path.field("resource"), e);
        }
        (true, false) => {}
    }
    let (service, at) = (backend.at("service"), path.field("service"));
    match service.text("name") {
        "" => e.required(&at.field("name"), ""),
        name => e.invalid_each(&at.field("name"), name, names::dns1035_label(name)),
    }
    let (name, number) = (service.deep(&["port", "name"]), service.deep(&["port", "number"]));
    let (name, number) = (name.as_str().unwrap_or_default(), number.as_i64().unwrap_or_default());
    let port = at.field("port");
    match (name, number) {
        ("", 0) => e.required(path, "port name or number is required"),
        (name, n) if !name.is_empty() && n != 0 => {
            e.invalid(path, "", "cannot set both port name & port number")
        }
        ("", n) => {
            if !text::is_port(n) {
                e.invalid(&port.field("number"), n, text::PORT_RANGE);
            }
        }
        (name, _) => e.invalid_each(&port.field("name"), name, text::port_name(name)),
    }
}

/// An object by group, kind and name.
fn typed_reference(reference: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(group) = reference.at("apiGroup").as_str() {
        e.invalid_each(&path.field("apiGroup"), group, names::dns1123_subdomain(group));
    }
    for (field, missing) in [("kind", "kind is required"), ("name", "name is required")] {
        match reference.text(field) {
            "" => e.required(&path.field(field), missing),
            value => e.invalid_each(&path.field(field), value, text::path_segment(value)),
        }
    }
}

pub const INGRESS_CLASS: Rules = Rules {
    default: |object| {
        if let Some(parameters) = object.get_mut("spec").and_then(|s| s.get_mut("parameters")) {
            fill(parameters, "scope", "Cluster");
        }
    },
    create: |object, e| class(object, e),
    update: |new, old, e| {
        class(new, e);
        let path = Path::Root.field("spec");
        let controller = |v: &Value| v.at("spec").at("controller").clone();
        check::immutable(&controller(new), &controller(old), &path.field("controller"), e);
    },
    generation: true,
    cells: print::network::ingress_class,
    ..Rules::PLAIN
};

fn class(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let (controller, at) = (spec.text("controller"), path.field("controller"));
    if controller.len() > 250 {
        e.too_long(&at, 250);
    }
    text::domain_prefixed(controller, &at, e);
    let parameters = spec.at("parameters");
    if parameters.is_null() {
        return;
    }
    let at = path.field("parameters");
    typed_reference(parameters, &at, e);
    let scope = parameters.text("scope");
    if !parameters.has("scope") {
        return e.required(&at.field("scope"), "");
    }
    check::one_of(&scope.into(), &["Cluster", "Namespace"], &at.field("scope"), e);
    let (namespace, named) = (parameters.at("namespace").as_str(), at.field("namespace"));
    match (scope, namespace) {
        ("Namespace", None) => e.required(&named, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(name)) => e.invalid_each(&named, name, names::dns1123_label(name)),
        ("Cluster", Some(_)) => e.forbidden(&named, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}
