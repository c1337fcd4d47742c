//! Rows of Services, their endpoints, Ingresses and policies.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{NONE, UNSET, age, first_of, label_selector, labels, name, or_none, text_or};
use crate::read::Read;

/// Endpoints and ports shown before `+ N more...`.
const SHOWN: usize = 3;

pub fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let cluster_ip = spec.list("clusterIPs").first().map_or(NONE.into(), Value::clone);
    let ports: Vec<String> = spec.list("ports").iter().map(port).collect();
    vec![
        name(object),
        spec.text("type").into(),
        cluster_ip,
        external_ip(object).into(),
        or_none(ports.join(",")).into(),
        age(object, now),
        labels(spec.at("selector")).into(),
    ]
}

fn port(port: &Value) -> String {
    let (number, protocol) = (port.int("port").unwrap_or_default(), port.text("protocol"));
    match port.int("nodePort").unwrap_or_default() {
        1.. => format!("{number}:{}/{protocol}", port.int("nodePort").unwrap_or_default()),
        _ => format!("{number}/{protocol}"),
    }
}

fn external_ip(service: &Value) -> String {
    let spec = service.at("spec");
    let given: Vec<&str> = spec.list("externalIPs").iter().filter_map(Value::as_str).collect();
    match spec.text("type") {
        "ClusterIP" | "NodePort" => or_none(given.join(",")),
        "ExternalName" => spec.text("externalName").to_owned(),
        "LoadBalancer" => {
            let mut all = load_balancer(service);
            all.extend(given.into_iter().map(str::to_owned));
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => super::UNKNOWN.to_owned(),
    }
}

/// Addresses and names that a load balancer gave, sorted, each once.
fn load_balancer(object: &Value) -> Vec<String> {
    let given = object.deep(&["status", "loadBalancer"]).list("ingress").iter();
    let set: BTreeSet<&str> = given
        .filter_map(|i| [i.text("ip"), i.text("hostname")].into_iter().find(|t| !t.is_empty()))
        .collect();
    set.into_iter().map(str::to_owned).collect()
}

pub fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in object.list("subsets") {
        let ips = || subset.list("addresses").iter().map(|a| a.text("ip"));
        if subset.list("ports").is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in subset.list("ports") {
            let number = port.int("port").unwrap_or_default();
            all.extend(ips().map(|ip| join_host_port(ip, number)));
        }
    }
    let shown =
        if object.list("subsets").is_empty() { NONE.to_owned() } else { first_of(&all, SHOWN) };
    vec![name(object), shown.into(), age(object, now)]
}

fn join_host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .list("ports")
        .iter()
        .map(|p| match (p.int("port"), p.at("name").as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = object
        .list("endpoints")
        .iter()
        .flat_map(|e| e.list("addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let or_unset = |list: &[String]| match first_of(list, SHOWN) {
        text if text.is_empty() => UNSET.to_owned(),
        text => text,
    };
    vec![
        name(object),
        object.text("addressType").into(),
        or_unset(&ports).into(),
        or_unset(&addresses).into(),
        age(object, now),
    ]
}

pub fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    vec![
        name(object),
        text_or(spec.at("ingressClassName"), NONE),
        hosts(spec.list("rules")).into(),
        load_balancer(object).join(",").into(),
        if spec.list("tls").is_empty() { "80" } else { "80, 443" }.into(),
        age(object, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let (mut list, mut more) = (Vec::new(), false);
    for rule in rules {
        more |= list.len() == SHOWN;
        if !more && !rule.text("host").is_empty() {
            list.push(rule.text("host"));
        }
    }
    match (list.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (_, true) => format!("{} + {} more...", list.join(","), rules.len() - SHOWN),
        _ => list.join(","),
    }
}

pub fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = object.deep(&["spec", "parameters"]);
    let shown = match (parameters.is_object(), parameters.at("apiGroup").as_str()) {
        (false, _) => NONE.to_owned(),
        (_, Some(group)) => {
            format!("{}.{group}/{}", parameters.text("kind"), parameters.text("name"))
        }
        (_, None) => format!("{}/{}", parameters.text("kind"), parameters.text("name")),
    };
    vec![name(object), object.at("spec").text("controller").into(), shown.into(), age(object, now)]
}

pub fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let selector = label_selector(object.deep(&["spec", "podSelector"]));
    vec![name(object), selector.into(), age(object, now)]
}

pub fn ip_address(object: &Value, _now: Timestamp) -> Vec<Value> {
    let parent = object.deep(&["spec", "parentRef"]);
    let mut shown = match parent.text("group") {
        "" => parent.text("resource").to_owned(),
        group => format!("{}.{group}", parent.text("resource")),
    };
    for part in [parent.text("namespace"), parent.text("name")] {
        if !part.is_empty() {
            shown = format!("{shown}/{part}");
        }
    }
    vec![name(object), or_none(shown).into()]
}

pub fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let cidrs: Vec<&str> =
        object.at("spec").list("cidrs").iter().filter_map(Value::as_str).collect();
    vec![name(object), cidrs.join(",").into(), age(object, now)]
}

#[cfg(test)]
mod tests {
    use crate::print::tests::check;
    use serde_json::json;

    #[test]
    fn rows() {
        let meta = || json!({ "name": "x", "creationTimestamp": "2026-11-20T12:00:00Z" });
        check(
            "",
            "v1",
            "Service",
            json!({ "metadata": meta(), "spec": { "type": "NodePort", "clusterIPs": ["10.43.0.9"], "selector": { "a": "b" }, "ports": [
                { "port": 80, "protocol": "TCP", "nodePort": 30080 }, { "port": 53, "protocol": "UDP" }] } }),
            json!(["x", "NodePort", "10.43.0.9", "<none>", "80:30080/TCP,53/UDP", "24h", "a=b"]),
        );
        check(
            "",
            "v1",
            "Service",
            json!({ "metadata": meta(), "spec": { "type": "LoadBalancer", "clusterIPs": ["10.43.0.9"], "externalIPs": ["9.9.9.9"] },
                    "status": { "loadBalancer": { "ingress": [{ "hostname": "h" }, { "ip": "1.2.3.4" }] } } }),
            json!([
                "x",
                "LoadBalancer",
                "10.43.0.9",
                "1.2.3.4,h,9.9.9.9",
                "<none>",
                "24h",
                "<none>"
            ]),
        );
        check(
            "",
            "v1",
            "Service",
            json!({ "metadata": meta(), "spec": { "type": "ExternalName", "externalName": "e.com" } }),
            json!(["x", "ExternalName", "<none>", "e.com", "<none>", "24h", "<none>"]),
        );
        check(
            "",
            "v1",
            "Endpoints",
            json!({ "metadata": meta(), "subsets": [{ "addresses": [{ "ip": "1.1.1.1" }, { "ip": "::1" }], "ports": [{ "port": 80 }, { "port": 81 }] }] }),
            json!(["x", "1.1.1.1:80,[::1]:80,1.1.1.1:81 + 1 more...", "24h"]),
        );
        check(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            json!({ "metadata": meta(), "addressType": "IPv4", "endpoints": [], "ports": [{ "name": "h", "port": 80 }, {}] }),
            json!(["x", "IPv4", "80,*", "<unset>", "24h"]),
        );
        check(
            "networking.k8s.io",
            "v1",
            "Ingress",
            json!({ "metadata": meta(), "spec": { "tls": [{}], "rules": [{ "host": "a" }, { "host": "b" }, { "host": "c" }, { "host": "d" }] } }),
            json!(["x", "<none>", "a,b,c + 1 more...", "", "80, 443", "24h"]),
        );
        check(
            "networking.k8s.io",
            "v1",
            "IPAddress",
            json!({ "metadata": meta(), "spec": { "parentRef": { "resource": "services", "namespace": "n", "name": "s" } } }),
            json!(["x", "services/n/s"]),
        );
    }
}
