use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::ServiceCIDR;
use rimward_control_controllers::service_cidrs::{contains, is_needed};
use serde_json::json;

fn range(name: &str, cidr: &str, leaving: bool) -> Arc<ServiceCIDR> {
    let mut object = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
    if leaving {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(object).expect("a ServiceCIDR"))
}

#[test]
fn networks_and_addresses() {
    #[track_caller]
    fn check(network: &str, address: &str, expected: bool) {
        assert_eq!(contains(network, address.parse().expect("an address")), expected, "{network}");
    }
    check("10.0.0.0/24", "10.0.0.255", true);
    check("10.0.0.0/24", "10.0.1.0", false);
    check("10.0.0.0/0", "192.0.2.1", true);
    check("2001:db8::/64", "2001:db8::1", true);
    check("2001:db8::/64", "10.0.0.1", false);
    check("nonsense", "10.0.0.1", false);
    check("10.0.0.0/33", "10.0.0.1", false);
}

#[test]
fn a_range_is_needed_for_what_no_other_has() {
    #[track_caller]
    fn check(others: &[Arc<ServiceCIDR>], address: &str, expected: bool) {
        let (mine, address) = (range("mine", "10.0.0.0/24", true), address.parse::<IpAddr>());
        let others: Vec<_> = others.iter().cloned().chain([mine.clone()]).collect();
        assert_eq!(is_needed(&mine, &others, &[address.expect("an address")]), expected);
    }
    check(&[], "10.0.0.1", true);
    check(&[], "10.1.0.1", false);
    check(&[range("wide", "10.0.0.0/16", false)], "10.0.0.1", false);
    check(&[range("wide", "10.0.0.0/16", true)], "10.0.0.1", true);
}
