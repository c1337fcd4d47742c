//! Addresses, CIDRs and ports that are a number or a name.

use std::net::IpAddr;

use serde_json::Value;

use super::text;
use crate::path::{Errors, Path};

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// Go's sloppy parser, which Kubernetes began with: numbers of an IPv4 address may begin with zeros.
fn sloppy(address: &str) -> Option<IpAddr> {
    if address.contains(':') {
        return address.parse().ok();
    }
    let plain: Vec<&str> = address
        .split('.')
        .map(|part| part.trim_start_matches('0'))
        .map(|part| if part.is_empty() { "0" } else { part })
        .collect();
    let good = |c: char| c.is_ascii_digit() || c == '.';
    let whole = address.chars().all(good) && address.split('.').all(|part| !part.is_empty());
    whole.then(|| plain.join(".").parse().ok())?
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// An address, whatever its family, in a form that all read alike (`IsValidIPForLegacyField`).
pub fn ip(address: &str, path: &Path<'_>, e: &mut Errors) -> Option<IpAddr> {
    let Some(ip) = sloppy(address) else {
        e.invalid(path, address, NOT_AN_IP);
        return None;
    };
    if address.parse::<IpAddr>().is_err() {
        e.invalid(path, address, "must not have leading 0s");
        return None;
    }
    if is_mapped(ip) {
        e.invalid(path, address, "must not be an IPv4-mapped IPv6 address");
        return None;
    }
    Some(ip)
}

/// A range of addresses: `10.0.0.0/8`.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = sloppy(address)?;
    let good = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    let bits: u8 = if good { bits.parse().ok()? } else { return None };
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

/// `IsValidCIDRForLegacyField`: a range, written in the one way that all read alike.
pub fn cidr(range: &str, path: &Path<'_>, e: &mut Errors) {
    let Some((address, bits)) = parse_cidr(range) else {
        let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        return e.invalid(path, range, why);
    };
    let strict = range.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<IpAddr>().is_ok() && (bits == "0" || !bits.starts_with('0'))
    });
    if !strict {
        e.invalid(path, range, "must not have leading 0s in IP or prefix length");
    } else if is_mapped(address) {
        e.invalid(path, range, "must not have an IPv4-mapped IPv6 address");
    } else if has_bits_beyond(address, bits) {
        e.invalid(path, range, "must not have bits set beyond the prefix length");
    }
}

/// `IsValidCIDR`: as [`cidr`], and written the shortest way.
pub fn canonical_cidr(range: &str, path: &Path<'_>, e: &mut Errors) {
    if e.count(|e| cidr(range, path, e)) > 0 {
        return;
    }
    let canonical = parse_cidr(range).map(|(address, bits)| format!("{address}/{bits}"));
    if let Some(canonical) = canonical.filter(|canonical| canonical != range) {
        e.invalid(path, range, &format!("must be in canonical form ({canonical:?})"));
    }
}

fn has_bits_beyond(address: IpAddr, bits: u8) -> bool {
    match address {
        IpAddr::V4(ip) => u32::from(ip).checked_shl(bits.into()).is_some_and(|rest| rest != 0),
        IpAddr::V6(ip) => u128::from(ip).checked_shl(bits.into()).is_some_and(|rest| rest != 0),
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

/// `host:port`, with an IPv6 host in brackets, as Go's `net.SplitHostPort` takes it.
pub fn is_host_and_port(text: &str) -> bool {
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').is_some_and(|(_, port)| port.starts_with(':')),
        None => text.matches(':').count() == 1,
    }
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

/// An address that another machine could be reached at: `ip` and, where it is one, [`special`].
pub fn not_special(address: &str, path: &Path<'_>, e: &mut Errors) {
    if ip(address, path, e).is_some() {
        special(address, path, e);
    }
}

/// `ValidateEndpointIP`: not unspecified, loopback, link-local.
pub fn special(address: &str, path: &Path<'_>, e: &mut Errors) {
    let Some(ip) = sloppy(address) else {
        return e.invalid(path, address, "must be a valid IP address");
    };
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

    #[test]
    fn forms_that_all_read_alike() {
        #[track_caller]
        fn check<T>(rule: impl FnOnce(&Path<'_>, &mut Errors) -> T, why: &[&str]) {
            let mut e = Errors::new();
            rule(&Path::Root.field("f"), &mut e);
            let found: Vec<String> = e.into_vec().into_iter().map(|e| e.message).collect();
            let matches = found.len() == why.len()
                && found.iter().zip(why).all(|(found, why)| found.contains(why));
            assert!(matches, "{found:?}");
        }
        check(|p, e| ip("10.0.0.1", p, e), &[]);
        check(|p, e| ip("FE80::1", p, e), &[]);
        check(|p, e| ip("010.0.0.1", p, e), &["leading 0s"]);
        check(|p, e| ip("::ffff:1.2.3.4", p, e), &["IPv4-mapped"]);
        check(|p, e| ip("a b", p, e), &["must be a valid IP address"]);
        check(|p, e| cidr("10.0.0.0/8", p, e), &[]);
        check(|p, e| cidr("0.0.0.0/0", p, e), &[]);
        check(|p, e| cidr("10.1.0.0/8", p, e), &["bits set beyond"]);
        check(|p, e| cidr("10.0.0.0/08", p, e), &["leading 0s"]);
        check(|p, e| canonical_cidr("FE80::/64", p, e), &["canonical form"]);
        check(|p, e| not_special("127.0.0.1", p, e), &["loopback"]);
        check(|p, e| special("x", p, e), &["must be a valid IP address"]);
    }
}
