//! Addresses, CIDRs and ports that are a number or a name.

use std::net::IpAddr;

use serde_json::Value;

use super::text;
use crate::path::{Errors, Path};

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// An address, whatever its family.
pub fn ip(address: &str, path: &Path<'_>, e: &mut Errors) -> Option<IpAddr> {
    let parsed = address.parse().ok();
    if parsed.is_none() {
        e.invalid(path, address, NOT_AN_IP);
    }
    parsed
}

/// A range of addresses: `10.0.0.0/8`.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let good = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    let bits: u8 = if good { bits.parse().ok()? } else { return None };
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

pub fn cidr(range: &str, path: &Path<'_>, e: &mut Errors) {
    if parse_cidr(range).is_none() {
        e.invalid(path, range, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

/// Whether the first range holds the second.
pub fn cidr_contains(outer: (IpAddr, u8), inner: (IpAddr, u8)) -> bool {
    let masked = |ip: IpAddr, bits: u8| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)) >> (32 - u32::from(bits.min(32))).min(127),
        IpAddr::V6(ip) if bits == 0 => {
            let _ = ip;
            0
        }
        IpAddr::V6(ip) => u128::from(ip) >> (128 - u32::from(bits)),
    };
    outer.0.is_ipv4() == inner.0.is_ipv4()
        && outer.1 <= inner.1
        && masked(outer.0, outer.1) == masked(inner.0, outer.1)
}

/// A port by number, or by the name that a container gives it. Missing reads as 0.
pub fn port_or_name(port: &Value, path: &Path<'_>, e: &mut Errors) {
    match port.as_str() {
        Some(name) => e.invalid_each(path, name, text::port_name(name)),
        None => port_number(port, path, e),
    }
}

/// A port by number; missing reads as 0.
pub fn port_number(port: &Value, path: &Path<'_>, e: &mut Errors) {
    let number = port.as_i64().unwrap_or_default();
    if !text::is_port(number) {
        e.invalid(path, number, text::PORT_RANGE);
    }
}

/// An address that another machine could be reached at: not unspecified, loopback, link-local.
pub fn not_special(address: &str, path: &Path<'_>, e: &mut Errors) {
    let Some(ip) = ip(address, path, e) else { return };
    if ip.is_unspecified() {
        e.invalid(path, address, &format!("may not be unspecified ({address})"));
    }
    if ip.is_loopback() {
        e.invalid(path, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local {
        e.invalid(path, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    let multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[0] == 224 && v4.octets()[1] == 0 && v4.octets()[2] == 0,
        IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    if multicast {
        e.invalid(
            path,
            address,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = |t: &str| parse_cidr(t).unwrap();
        assert!(cidr_contains(range("10.0.0.0/8"), range("10.1.0.0/16")));
        assert!(!cidr_contains(range("10.1.0.0/16"), range("10.0.0.0/8")));
        assert!(cidr_contains(range("0.0.0.0/0"), range("1.2.3.4/32")));
        assert!(cidr_contains(range("::/0"), range("fe80::/10")));
        assert!(!cidr_contains(range("::/0"), range("1.2.3.4/32")));
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "x/8"] {
            assert_eq!(parse_cidr(wrong), None, "{wrong}");
        }
    }
}
