//! Addresses and networks.
//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-ip-address-library>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::standard::text_of;
use super::{Row, no_overload};
use crate::error::EvalError;
use crate::value::{Cidr, Value};

macro_rules! of_ip {
    ($name:literal, $holds:expr) => {
        ($name, &[concat!("IP.", $name, "() -> bool")], |_, args| match &args[0] {
            Value::Ip(ip) => Ok(Value::Bool($holds(ip))),
            _ => no_overload(),
        })
    };
}

pub const ROWS: &[Row] = &[
    ("ip", &["ip(string) -> IP", "CIDR.ip() -> IP"], |cx, args| match &args[0] {
        Value::Cidr(cidr) => Ok(Value::Ip(cidr.ip)),
        text => {
            let text = text_of(text)?;
            cx.budget.traverse(text.len())?;
            parse_ip(text).map(Value::Ip).map_err(EvalError::Other)
        }
    }),
    ("isIP", &["isIP(string) -> bool"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        Ok(Value::Bool(parse_ip(text).is_ok()))
    }),
    ("ip.isCanonical", &["ip.isCanonical(string) -> bool"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len() * 2)?;
        let ip = parse_ip(text).map_err(EvalError::Other)?;
        Ok(Value::Bool(ip.to_string() == text))
    }),
    ("family", &["IP.family() -> int"], |_, args| match &args[0] {
        Value::Ip(ip) => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        _ => no_overload(),
    }),
    of_ip!("isUnspecified", IpAddr::is_unspecified),
    of_ip!("isLoopback", IpAddr::is_loopback),
    of_ip!("isLinkLocalMulticast", |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }),
    of_ip!("isLinkLocalUnicast", is_link_local),
    of_ip!("isGlobalUnicast", |ip: &IpAddr| {
        let broadcast = *ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        !broadcast
            && !ip.is_unspecified()
            && !ip.is_loopback()
            && !ip.is_multicast()
            && !is_link_local(ip)
    }),
    ("cidr", &["cidr(string) -> CIDR"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        parse_cidr(text).map(Value::Cidr).map_err(EvalError::Other)
    }),
    ("isCIDR", &["isCIDR(string) -> bool"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        Ok(Value::Bool(parse_cidr(text).is_ok()))
    }),
    (
        "containsIP",
        &["CIDR.containsIP(string) -> bool", "CIDR.containsIP(IP) -> bool"],
        |cx, args| {
            let cidr = cidr_of(&args[0])?;
            cx.budget.traverse(32 + args[1].size())?;
            let ip = match &args[1] {
                Value::Ip(ip) => *ip,
                text => parse_ip(text_of(text)?).map_err(EvalError::Other)?,
            };
            Ok(Value::Bool(contains(cidr, ip)))
        },
    ),
    (
        "containsCIDR",
        &["CIDR.containsCIDR(string) -> bool", "CIDR.containsCIDR(CIDR) -> bool"],
        |cx, args| {
            let cidr = cidr_of(&args[0])?;
            cx.budget.traverse(48 + args[1].size())?;
            let inner = match &args[1] {
                Value::Cidr(inner) => *inner,
                text => parse_cidr(text_of(text)?).map_err(EvalError::Other)?,
            };
            Ok(Value::Bool(inner.bits >= cidr.bits && contains(cidr, masked(&inner).ip)))
        },
    ),
    ("masked", &["CIDR.masked() -> CIDR"], |_, args| Ok(Value::Cidr(masked(cidr_of(&args[0])?)))),
    ("prefixLength", &["CIDR.prefixLength() -> int"], |_, args| {
        Ok(Value::Int(i64::from(cidr_of(&args[0])?.bits)))
    }),
];

fn cidr_of<'v>(value: &'v Value<'_>) -> Result<&'v Cidr, EvalError> {
    match value {
        Value::Cidr(cidr) => Ok(cidr),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let shown = clip(text);
    if text.contains('%') {
        return Err(format!("IP address {shown:?} with zone value is not allowed"));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        format!(
            "IP Address {shown:?} parse error during conversion from string: ParseAddr({shown:?}): unable to parse IP"
        )
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {shown:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let shown = clip(text);
    let wrong = |why: &str| {
        format!(
            "network address parse error during conversion from string: netip.ParsePrefix({shown:?}): {why}"
        )
    };
    let (ip, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let address: IpAddr = ip.parse().map_err(|_| wrong("unable to parse IP"))?;
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("IPv4-mapped IPv6 address {shown:?} is not allowed"));
    }
    let plain = !bits.is_empty()
        && bits.bytes().all(|b| b.is_ascii_digit())
        && (bits == "0" || !bits.starts_with('0'));
    let bits: u8 = match plain {
        true => bits.parse().map_err(|_| wrong("prefix length out of range"))?,
        false => return Err(wrong("bad bits after slash")),
    };
    match bits <= if address.is_ipv4() { 32 } else { 128 } {
        true => Ok(Cidr { ip: address, bits }),
        false => Err(wrong("prefix length out of range")),
    }
}

fn masked(cidr: &Cidr) -> Cidr {
    let ip = match cidr.ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(cidr.bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(cidr.bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    };
    Cidr { ip, bits: cidr.bits }
}

fn contains(cidr: &Cidr, ip: IpAddr) -> bool {
    ip.is_ipv4() == cidr.ip.is_ipv4() && masked(&Cidr { ip, bits: cidr.bits }).ip == masked(cidr).ip
}
