use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rimward_control_controllers::endpointslice_mirroring::{is_mirrored, plan, skipped, slices_of};
use serde_json::{Value, json};

fn endpoints(meta: Value, subsets: Value) -> Endpoints {
    let mut object =
        json!({"metadata": {"name": "db", "namespace": "ns", "uid": "u"}, "subsets": subsets});
    for (key, value) in meta.as_object().into_iter().flatten() {
        object["metadata"][key] = value.clone();
    }
    serde_json::from_value(object).expect("Endpoints")
}

fn service(selector: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {"selector": selector}}))
        .expect("a Service")
}

#[test]
fn whose_words_are_mirrored() {
    #[track_caller]
    fn check(meta: Value, service: Option<&Service>, expected: bool) {
        assert_eq!(is_mirrored(&endpoints(meta, json!([])), service), expected);
    }
    let (plain, selecting) = (service(Value::Null), service(json!({"app": "a"})));
    check(json!({}), Some(&plain), true);
    check(json!({}), None, false);
    check(json!({}), Some(&selecting), false);
    check(
        json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}),
        Some(&plain),
        false,
    );
    check(
        json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}),
        Some(&plain),
        false,
    );
}

/// Family, ports, addresses with their readiness; labels and annotations of the first.
fn shown(slices: &[EndpointSlice]) -> Value {
    let rows = slices.iter().map(|s| {
        let ports: Vec<_> = s.ports.iter().flatten().filter_map(|p| p.port).collect();
        let addresses: Vec<String> = s
            .endpoints
            .iter()
            .flatten()
            .map(|e| {
                let ready = e.conditions.as_ref().and_then(|c| c.ready);
                format!("{} {}", e.addresses[0], ready == Some(true))
            })
            .collect();
        json!([s.address_type, ports, addresses])
    });
    rows.collect()
}

#[test]
fn slices() {
    let subsets = json!([
        {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}, {"ip": "nonsense"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 80}]},
        {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 81}]},
        {"addresses": [{"ip": "192.0.2.4"}], "ports": [{"port": 80}]},
    ]);
    let annotations =
        json!({"kept": "1", "kubectl.kubernetes.io/last-applied-configuration": "{}"});
    let made = slices_of(&endpoints(json!({"annotations": annotations}), subsets));
    assert_eq!(
        shown(&made),
        json!([
            ["IPv4", [80], ["192.0.2.1 true", "192.0.2.2 false", "192.0.2.4 true"]],
            ["IPv4", [81], ["192.0.2.3 true"]],
            ["IPv6", [80], ["2001:db8::1 true"]],
        ])
    );
    let annotations = made[0].metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["kept"]);
    let many: Vec<_> =
        (0..1200).map(|i| json!({"ip": format!("10.0.{}.{}", i / 256, i % 256)})).collect();
    let many = endpoints(json!({}), json!([{"addresses": many, "ports": [{"port": 80}]}]));
    let made = slices_of(&many);
    assert_eq!(made[0].endpoints.as_ref().map(Vec::len), Some(1000), "no more are mirrored");
    let text = "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 200 addresses were skipped";
    assert_eq!(skipped(&many), [("TooManyAddressesToMirror", text.to_owned())]);
    let wrong = endpoints(json!({}), json!([{"addresses": [{"ip": "no"}, {"ip": "192.0.2.1"}]}]));
    let text = "Skipped 1 invalid IP addresses when mirroring to EndpointSlices";
    assert_eq!(skipped(&wrong), [("InvalidIPAddress", text.to_owned())]);
}

#[test]
fn only_what_differs_is_written() {
    let of = |ips: &[&str]| {
        let addresses: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        slices_of(&endpoints(json!({}), json!([{"addresses": addresses, "ports": [{"port": 80}]}])))
    };
    let named = |mut slices: Vec<EndpointSlice>| {
        slices.iter_mut().for_each(|s| s.metadata.name = Some(format!("db-{}", s.address_type)));
        slices
    };
    let there = named(of(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(plan(of(&["192.0.2.1", "2001:db8::1"]), there.clone()), Default::default());
    let plan = plan(of(&["192.0.2.2"]), there);
    assert!(plan.create.is_empty());
    assert_eq!(plan.update[0].metadata.name.as_deref(), Some("db-IPv4"));
    assert_eq!(plan.delete[0].metadata.name.as_deref(), Some("db-IPv6"));
}
