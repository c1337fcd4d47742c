//! Cluster IPs and node ports of Services. What follows from them, and what an update keeps, is the
//! kind's own rule.
//! <https://kubernetes.io/docs/concepts/services-networking/service/>

use std::net::Ipv4Addr;

use rimward_api::{FieldError, Status};
use serde_json::{Value, json};

use super::Review;
use crate::pools::{Held, Pools, Refusal, Reservation};
use crate::server::Inner;

pub fn admit(server: &Inner, review: &mut Review<'_>) -> Result<Vec<Reservation>, Status> {
    let mut errors = Vec::new();
    let mut reservations = Vec::new();
    let held = review.old.map(Held::of).unwrap_or_default();
    let dry_run = review.options.dry_run();
    let service = &mut *review.object;
    if !service["spec"].is_object() {
        return Ok(reservations);
    }
    let kind =
        service["spec"].get("type").and_then(Value::as_str).unwrap_or("ClusterIP").to_owned();
    let spec = &mut service["spec"];
    let mut hold = |taken: Result<Reservation, Refusal>| taken.map(|r| reservations.push(r));
    if kind != "ExternalName" {
        addresses(&server.pools, spec, &held, &mut hold, &mut errors);
    }
    // A rehearsal takes no port, and so does not ask whether there is such a one.
    let mut hold_port = |taken: Result<Reservation, Refusal>| match taken {
        Err(Refusal::OutOfRange) if dry_run => Ok(()),
        taken => hold(taken),
    };
    node_ports(&server.pools, spec, &kind, &held, &mut hold_port, &mut errors);
    if !errors.is_empty() {
        let name = review.text("name").to_owned();
        return Err(Status::invalid(&review.served.group_kind(), &name, &errors));
    }
    if health_checked(spec, &kind) {
        health_check_port(&server.pools, spec, &held, &mut hold_port)
            .map_err(|why| Status::internal(&why))?;
    }
    Ok(reservations)
}

type Hold<'a> = dyn FnMut(Result<Reservation, Refusal>) -> Result<(), Refusal> + 'a;

fn text<'a>(spec: &'a Value, field: &str) -> &'a str {
    spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn health_checked(spec: &Value, kind: &str) -> bool {
    kind == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn addresses(
    pools: &Pools,
    spec: &mut Value,
    held: &Held,
    hold: &mut Hold<'_>,
    errors: &mut Vec<FieldError>,
) {
    let listed = spec
        .get("clusterIPs")
        .and_then(Value::as_array)
        .and_then(|a| a.first())
        .and_then(Value::as_str);
    let asked = match text(spec, "clusterIP") {
        "" => listed.unwrap_or_default().to_owned(),
        ip => ip.to_owned(),
    };
    let set = |spec: &mut Value, ip: &str| {
        spec["clusterIP"] = ip.into();
        if listed_differs(spec, ip) {
            spec["clusterIPs"] = json!([ip]);
        }
    };
    if asked == "None" {
        return set(spec, "None");
    }
    let mut refuse = |value: Value, why: String| {
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            &value,
            &format!("failed to allocate IP {why}"),
        ));
    };
    if asked.is_empty() {
        match pools.any_address() {
            Ok((address, reservation)) => {
                let _any_address_was_free = hold(Ok(reservation));
                set(spec, &address.to_string());
            }
            Err(_) => refuse(json!([]), ": range is full".into()),
        }
        return;
    }
    // What is not an address is for validation to refuse, with its own words.
    let Ok(address) = asked.parse::<Ipv4Addr>() else { return set(spec, &asked) };
    set(spec, &asked);
    if held.addresses.contains(&address) {
        return;
    }
    match hold(pools.address(address)) {
        Ok(()) => {}
        Err(Refusal::OutOfRange) => {
            refuse(
                json!([asked]),
                format!("{asked}: the provided network does not match the current range"),
            );
        }
        Err(_) => refuse(json!([asked]), format!("{asked}: provided IP is already allocated")),
    }
}

/// `clusterIPs` repeats `clusterIP`, unless the client set both and must be told that they differ.
fn listed_differs(spec: &Value, ip: &str) -> bool {
    let first = spec
        .get("clusterIPs")
        .and_then(Value::as_array)
        .and_then(|a| a.first())
        .and_then(Value::as_str);
    first != Some(ip) && first.is_none_or(str::is_empty)
}

fn node_ports(
    pools: &Pools,
    spec: &mut Value,
    kind: &str,
    held: &Held,
    hold: &mut Hold<'_>,
    errors: &mut Vec<FieldError>,
) {
    let allocates = match kind {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    };
    let refusal = |refusal: Refusal| why_refused(pools, refusal);
    let may_hold = matches!(kind, "NodePort" | "LoadBalancer");
    let mut mine: Vec<(i64, i64, String)> = Vec::new();
    for (i, port) in
        spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
    {
        let number = |field: &str| port.get(field).and_then(Value::as_i64).unwrap_or(0);
        let protocol = text(port, "protocol").to_owned();
        let (outer, node_port) = (number("port"), number("nodePort"));
        let at = format!("spec.ports[{i}].nodePort");
        if !may_hold {
            continue;
        }
        if node_port != 0 {
            // One number may serve several protocols of a Service.
            let shared = mine.iter().any(|(_, n, p)| *n == node_port && *p != protocol);
            let kept = u16::try_from(node_port).is_ok_and(|n| held.ports.contains(&n));
            if !shared && !kept {
                let taken = u16::try_from(node_port)
                    .map_err(|_| Refusal::OutOfRange)
                    .and_then(|n| pools.port(n));
                if let Err(e) = hold(taken) {
                    errors.push(FieldError::invalid(at, &json!(node_port), &refusal(e)));
                }
            }
            mine.push((outer, node_port, protocol));
        } else if allocates {
            // Ports of the same number share a node port, whatever their protocols.
            let shared = mine.iter().find(|(o, n, _)| *o == outer && *n != 0).map(|(_, n, _)| *n);
            let given = match shared {
                Some(n) => n,
                None => match pools.any_port() {
                    Ok((n, reservation)) => {
                        let _any_port_was_free = hold(Ok(reservation));
                        n.into()
                    }
                    Err(e) => {
                        errors.push(FieldError::invalid(at, &json!(0), &refusal(e)));
                        continue;
                    }
                },
            };
            port["nodePort"] = given.into();
            mine.push((outer, given, protocol));
        }
    }
}

/// What Kubernetes' port allocator says of a port that it does not give out.
fn why_refused(pools: &Pools, refusal: Refusal) -> String {
    match refusal {
        Refusal::OutOfRange => format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            pools.ports().start(),
            pools.ports().end()
        ),
        Refusal::Taken => "provided port is already allocated".to_owned(),
        Refusal::Exhausted => "failed to allocate a nodePort: range is full".to_owned(),
    }
}

/// The port for health checks comes from the node ports too. Kubernetes does not call it the client's
/// fault when there is no such one: `allocHealthCheckNodePort` answers with an internal error.
fn health_check_port(
    pools: &Pools,
    spec: &mut Value,
    held: &Held,
    hold: &mut Hold<'_>,
) -> Result<(), String> {
    let asked = spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0);
    if asked == 0 {
        let (port, reservation) = pools.any_port().map_err(|refusal| {
            let why = why_refused(pools, refusal);
            format!("failed to allocate a HealthCheck NodePort 0: {why}")
        })?;
        let _any_port_was_free = hold(Ok(reservation));
        spec["healthCheckNodePort"] = port.into();
        return Ok(());
    }
    let number = u16::try_from(asked).map_err(|_| Refusal::OutOfRange);
    if number.as_ref().is_ok_and(|n| held.ports.contains(n)) {
        return Ok(());
    }
    hold(number.and_then(|n| pools.port(n))).map_err(|refusal| {
        let why = why_refused(pools, refusal);
        format!("failed to allocate requested HealthCheck NodePort {asked}: {why}")
    })
}
