//! From TOML values to addresses, numbers and choices; each refusal says what would be right.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use netfwd_common::wire::ethernet::{Mac, is_multicast};
use toml::Spanned;
use toml::de::{DeInteger, DeValue};

use super::document::{Fault, Parsed};

type Value<'a> = Spanned<DeValue<'a>>;

/// The refusal of a value.
pub fn fault<T>(value: &Value<'_>, message: impl Into<String>) -> Parsed<T> {
    Err(Fault { at: value.span(), message: message.into() })
}

fn wrong_type<T>(value: &Value<'_>, expected: &str) -> Parsed<T> {
    fault(value, format!("expected {expected}, found {}", describe(value.get_ref())))
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{text}\""),
        DeValue::Integer(number) => format!("the number {}", written(number)),
        DeValue::Boolean(choice) => choice.to_string(),
        other => format!("a value of type {}", other.type_str()),
    }
}

/// A number as the file has it, but for underscores.
fn written(number: &DeInteger<'_>) -> String {
    let prefix = match number.radix() {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    format!("{prefix}{}", number.as_str())
}

/// `true` or `false`.
pub fn boolean(value: &Value<'_>) -> Parsed<bool> {
    value.get_ref().as_bool().map_or_else(|| wrong_type(value, "true or false"), Ok)
}

/// Any string; `example` shows one.
pub fn string<'a>(value: &'a Value<'a>, example: &str) -> Parsed<&'a str> {
    value.get_ref().as_str().map_or_else(|| wrong_type(value, &format!("a string such as \"{example}\"")), Ok)
}

/// A whole number in `range`; `why` explains the upper bound.
pub fn integer(value: &Value<'_>, range: RangeInclusive<u32>, why: &str) -> Parsed<u32> {
    let (low, high) = (*range.start(), *range.end());
    let Some(number) = value.get_ref().as_integer() else {
        return wrong_type(value, &format!("a number from {low} to {high}"));
    };
    match i128::from_str_radix(number.as_str(), number.radix()) {
        Ok(n) if n < i128::from(low) => fault(value, format!("{n} is less than {low}")),
        Ok(n) if n <= i128::from(high) => Ok(n as u32),
        _ => fault(value, format!("{} is more than {high}{why}", written(number))),
    }
}

/// A whole number of 16 bits.
pub fn integer16(value: &Value<'_>, range: RangeInclusive<u16>, why: &str) -> Parsed<u16> {
    integer(value, u32::from(*range.start())..=u32::from(*range.end()), why).map(|number| number as u16)
}

/// A UDP port.
pub fn port(value: &Value<'_>) -> Parsed<u16> {
    integer16(value, 1..=u16::MAX, " (16 bits)")
}

/// An address that a host can send from and be reached at.
pub fn unicast(value: &Value<'_>) -> Parsed<IpAddr> {
    let text = string(value, "10.9.0.2")?;
    let Ok(address) = text.parse::<IpAddr>() else {
        return fault(
            value,
            format!("\"{text}\" is not an IP address; expected one such as \"10.9.0.2\" or \"fd00::2\""),
        );
    };
    match why_no_host(address) {
        Some(why) => fault(value, format!("{address} is {why}")),
        None => Ok(address),
    }
}

fn why_no_host(address: IpAddr) -> Option<String> {
    match address {
        _ if address.is_unspecified() => Some("no host's address: name the one to use".to_owned()),
        _ if address.is_multicast() => Some("a multicast address: only unicast works here".to_owned()),
        IpAddr::V4(v4) => v4.is_broadcast().then(|| "the broadcast address: only unicast works here".to_owned()),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("link-local, which says nothing without an interface: use a global or unique local one".to_owned())
        }
        // In the maps that XDP reads it would be the same as the IPv4 address.
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map(|v4| format!("an IPv4 address in disguise: write \"{v4}\"")),
    }
}

/// An interface address with its prefix length.
pub fn interface_address(value: &Value<'_>) -> Parsed<IpNet> {
    let text = string(value, "10.10.0.2/24")?;
    match read_prefix(text) {
        Some(network) if network.addr().is_multicast() || network.addr().is_unspecified() => {
            fault(value, format!("{text} cannot be an interface's address"))
        }
        Some(network) => Ok(network),
        None if text.parse::<IpAddr>().is_ok() => {
            fault(value, format!("\"{text}\" has no prefix length; expected one such as \"{text}/24\""))
        }
        None => fault(
            value,
            format!("\"{text}\" is not an address with prefix length; expected one such as \"10.10.0.2/24\""),
        ),
    }
}

/// A prefix without host bits.
pub fn prefix(value: &Value<'_>) -> Parsed<IpNet> {
    let text = string(value, "10.20.0.0/16")?;
    let Some(network) = read_prefix(text) else {
        return fault(
            value,
            format!("\"{text}\" is not a prefix; expected one such as \"10.20.0.0/16\" or \"fd00:20::/32\""),
        );
    };
    if network != network.trunc() {
        return fault(value, format!("{network} has host bits set: {} would be right", network.trunc()));
    }
    Ok(network)
}

/// A prefix without host bits, or one address.
pub fn allowed_ip(value: &Value<'_>) -> Parsed<IpNet> {
    let text = string(value, "10.10.0.1/32")?;
    text.parse::<IpAddr>().map_or_else(|_| prefix(value), |address| Ok(address.into()))
}

/// `address/length`. The address is the standard library's to read: `010.0.0.0` is eight to those who take it for octal, so it
/// refuses that.
pub fn read_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = length.bytes().all(|byte| byte.is_ascii_digit()).then(|| length.parse().ok())??;
    IpNet::new(address.parse().ok()?, length).ok()
}

/// A unicast MAC address.
pub fn mac(value: &Value<'_>) -> Parsed<Mac> {
    let text = string(value, "02:00:00:00:00:07")?;
    let Some(mac) = parse_mac(text) else {
        return fault(value, format!("\"{text}\" is not a MAC address; expected one such as \"02:00:00:00:00:07\""));
    };
    if mac == [0; 6] {
        return fault(value, format!("{text} is no station's address"));
    }
    if is_multicast(&mac) {
        return fault(
            value,
            format!("{text} is not one station's address: the lowest bit of the first byte must be 0"),
        );
    }
    Ok(mac)
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// A name that the kernel takes for a network device (`dev_valid_name`).
pub fn interface_name(value: &Value<'_>) -> Parsed<String> {
    let text = string(value, "eth0")?;
    let refused = match text {
        "" => "an interface name cannot be empty".to_owned(),
        "." | ".." => format!("\"{text}\" cannot be an interface name"),
        _ if text.len() > 15 => format!("\"{text}\" has {} bytes: an interface name has at most 15", text.len()),
        _ if text.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control()) => {
            format!("\"{}\" has a character that interface names cannot have (space, /, :, %)", text.escape_debug())
        }
        _ => return Ok(text.to_owned()),
    };
    fault(value, refused)
}

/// A name for a device of ours: what the kernel takes, in printable ASCII.
pub fn device_name(value: &Value<'_>) -> Parsed<String> {
    let name = interface_name(value)?;
    if name.is_ascii() {
        Ok(name)
    } else {
        fault(value, format!("\"{name}\" is not ASCII, as a device's name must be here"))
    }
}

/// One of a few names.
pub fn one_of<T: Copy>(value: &Value<'_>, choices: &[(&str, T)]) -> Parsed<T> {
    let allowed = || choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let Some(text) = value.get_ref().as_str() else {
        return wrong_type(value, &format!("one of {}", allowed()));
    };
    match choices.iter().find(|(name, _)| *name == text) {
        Some(&(_, choice)) => Ok(choice),
        None => fault(value, format!("\"{text}\" is not one of {}", allowed())),
    }
}

/// `address:port`.
pub fn listen(value: &Value<'_>) -> Parsed<SocketAddr> {
    let text = string(value, "127.0.0.1:9477")?;
    match text.parse() {
        Ok(address) => Ok(address),
        Err(_) => fault(
            value,
            format!(
                "\"{text}\" is not an address with port; expected one such as \"127.0.0.1:9477\" or \"[::1]:9477\""
            ),
        ),
    }
}

/// A list whose items `parse` reads; each keeps its place.
pub fn list<'a, T>(
    value: &'a Value<'a>,
    example: &str,
    parse: impl Fn(&'a Value<'a>) -> Parsed<T>,
) -> Parsed<Vec<Spanned<T>>> {
    let Some(items) = value.get_ref().as_array() else {
        return wrong_type(value, &format!("a list such as [{example}]"));
    };
    items.iter().map(|item| Ok(Spanned::new(item.span(), parse(item)?))).collect()
}
