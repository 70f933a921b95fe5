//! `kind = "wireguard"`: keys out of files, and peers.
//!
//! A private key is worth as much as the file it lies in is closed, so a file that others can read is refused, and so is
//! one that somebody else owns. What `wg` lets pass in silence because its commands come one by one (a prefix that moves
//! from peer to peer, our own key as a peer) is a mistake in a file, which says everything at once.
//!
//! Deliberately absent: keys in the configuration itself, which is copied, mailed and checked in; resolving host names,
//! which [`control`](crate::control) does when it can do so again.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::process::geteuid;
use toml::Spanned;
use toml::de::DeValue;
use zeroize::Zeroizing;

use super::document::{Parsed, Section};
use super::tunnel::family;
use super::value::{allowed_ip, fault, integer, integer16, list, string, unicast};
use crate::datapath::tunnel::wireguard::key::KeyError;
use crate::datapath::tunnel::wireguard::{AllowedIpUpdate, DeviceUpdate, PeerUpdate};
use crate::datapath::tunnel::wireguard::{PresharedKey, PrivateKey, PublicKey};

/// Keys of a `[[tunnel]]` that are WireGuard's alone.
pub(super) const KEYS: [&str; 3] = ["private_key_file", "fwmark", "peer"];
/// What is read of a key file at most: a key has 44 characters.
const MAX_KEY_FILE: u64 = 128;

/// Keys of `wireguard`.
#[derive(Clone, Debug)]
pub struct WireGuard {
    /// Out of `private_key_file`; `None` only for a device that its control socket configures.
    pub private_key: Option<PrivateKey>,
    /// Mark of what is sent, 0 for none.
    pub fwmark: u32,
    /// `[[tunnel.peer]]`, none twice; no prefix at two of them.
    pub peers: Vec<Peer>,
}

/// `[[tunnel.peer]]`.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its identity.
    pub public_key: PublicKey,
    /// Out of `preshared_key_file`.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is, if we are to find it.
    pub endpoint: Option<Endpoint>,
    /// Its prefixes, without host bits.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives, 0 for none.
    pub persistent_keepalive: u16,
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// At an address.
    Address(SocketAddr),
    /// Wherever a name leads.
    Name(HostName),
}

/// A host's name with a port, or a link-local address with its interface's name, which has to be looked up as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// Its name.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl WireGuard {
    /// Everything that the file says, as one change of an empty device that is to listen on `port`. Peers whose endpoint is
    /// a name have none in it.
    pub fn update(&self, port: u16) -> DeviceUpdate {
        DeviceUpdate {
            private_key: Some(self.private_key.clone()),
            listen_port: Some(port),
            fwmark: Some(self.fwmark),
            replace_peers: true,
            peers: self.peers.iter().map(Peer::update).collect(),
        }
    }

    /// The peers whose endpoint is a name.
    pub fn names(&self) -> impl Iterator<Item = (PublicKey, &HostName)> {
        self.peers.iter().filter_map(|peer| match &peer.endpoint {
            Some(Endpoint::Name(name)) => Some((peer.public_key, name)),
            _ => None,
        })
    }

    /// Whether every peer is known to be found over IPv4.
    pub(super) fn is_over_ipv4(&self) -> bool {
        let over_ipv4 = |peer: &Peer| matches!(peer.endpoint, Some(Endpoint::Address(SocketAddr::V4(_))));
        !self.peers.is_empty() && self.peers.iter().all(over_ipv4)
    }
}

impl Peer {
    fn update(&self) -> PeerUpdate {
        let endpoint = match self.endpoint {
            Some(Endpoint::Address(address)) => Some(address),
            _ => None,
        };
        let allowed_ips = self.allowed_ips.iter().map(|&prefix| AllowedIpUpdate { prefix, remove: false });
        PeerUpdate {
            preshared_key: self.preshared_key.clone(),
            endpoint,
            persistent_keepalive: Some(self.persistent_keepalive),
            replace_allowed_ips: true,
            allowed_ips: allowed_ips.collect(),
            ..PeerUpdate::new(self.public_key)
        }
    }
}

/// The local address; all of them unless one is named.
pub(super) fn local(section: &mut Section<'_>) -> Option<IpAddr> {
    let named = section.optional("local", unicast);
    if section.has("local") { named } else { Some(Ipv6Addr::UNSPECIFIED.into()) }
}

/// The keys of one tunnel. Key files lie where the configuration `file` does, unless they say otherwise.
pub(super) fn wireguard(section: &mut Section<'_>, local: Option<IpAddr>, file: &Path) -> Option<WireGuard> {
    let what = "a file with the private key, as `wg genkey` prints it";
    let private_key = section.required("private_key_file", what, |value| secret(value, file, PrivateKey::from_base64));
    if private_key.as_ref().is_some_and(PrivateKey::is_zero) {
        section.fault("private_key_file", "is all zeroes, which is no key");
    }
    let fwmark = section.optional("fwmark", |value| integer(value, 0..=u32::MAX, " (32 bits)"));
    let this_end = ThisEnd { key: private_key.as_ref().map(PrivateKey::public_key), local, file };
    let peers = peers(section, &this_end);
    Some(WireGuard { private_key: Some(private_key?), fwmark: fwmark.unwrap_or(0), peers: peers? })
}

/// What peers are compared with, as far as it is known.
struct ThisEnd<'f> {
    key: Option<PublicKey>,
    local: Option<IpAddr>,
    file: &'f Path,
}

/// All peers, or `None` if one of them is not complete.
fn peers(section: &mut Section<'_>, this_end: &ThisEnd<'_>) -> Option<Vec<Peer>> {
    let mut seen = Seen::default();
    let mut peers = Vec::new();
    let mut complete = true;
    for mut entry in section.tables("peer") {
        match peer(&mut entry, &mut seen, this_end) {
            Some(peer) => peers.push(peer),
            None => complete = false,
        }
        entry.finish();
    }
    complete.then_some(peers)
}

/// What earlier peers have, with their lines.
#[derive(Default)]
struct Seen {
    keys: HashMap<PublicKey, usize>,
    prefixes: HashMap<IpNet, usize>,
}

fn peer(entry: &mut Section<'_>, seen: &mut Seen, this_end: &ThisEnd<'_>) -> Option<Peer> {
    let public_key = entry.required("public_key", "the peer's, as `wg pubkey` prints it", public_key);
    if let Some(first) = public_key.and_then(|key| seen.keys.insert(key, entry.line_of("public_key"))) {
        entry.fault("public_key", format!("already the peer of line {first}"));
    }
    if public_key.is_some() && public_key == this_end.key {
        entry.fault("public_key", "is our own, that of private_key_file: name the other end's");
    }
    if public_key.as_ref().is_some_and(PublicKey::has_small_order) {
        entry.fault("public_key", "is nobody's secret: everybody could pass for this peer");
    }
    let preshared_key =
        entry.optional("preshared_key_file", |value| secret(value, this_end.file, PresharedKey::from_base64));
    let endpoint = entry.optional("endpoint", endpoint);
    if let Some(why) = endpoint.as_ref().zip(this_end.local).and_then(|(endpoint, local)| out_of_reach(endpoint, local))
    {
        entry.fault("endpoint", why);
    }
    let allowed_ips = allowed_ips(entry, seen);
    let persistent_keepalive = entry.optional("persistent_keepalive", keepalive).unwrap_or(0);
    Some(Peer { public_key: public_key?, preshared_key, endpoint, allowed_ips, persistent_keepalive })
}

fn allowed_ips(entry: &mut Section<'_>, seen: &mut Seen) -> Vec<IpNet> {
    let prefixes = entry.optional("allowed_ips", |value| list(value, "\"10.10.0.1/32\"", allowed_ip));
    let prefixes = prefixes.unwrap_or_default();
    let line = entry.line_of("allowed_ips");
    for prefix in &prefixes {
        if let Some(first) = seen.prefixes.insert(*prefix.get_ref(), line) {
            let prefix_text = prefix.get_ref();
            entry.fault_at(
                prefix.span(),
                "allowed_ips",
                format!("{prefix_text} is listed already in line {first}: a prefix belongs to one peer"),
            );
        }
    }
    prefixes.into_iter().map(Spanned::into_inner).collect()
}

fn public_key(value: &Spanned<DeValue<'_>>) -> Parsed<PublicKey> {
    let text = string(value, "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=")?;
    PublicKey::from_base64(text).or_else(|error| fault(value, error.to_string()))
}

/// Seconds, or `"off"` as `wg` calls it.
fn keepalive(value: &Spanned<DeValue<'_>>) -> Parsed<u16> {
    match value.get_ref().as_str() {
        Some("off") => Ok(0),
        Some(_) => fault(value, "expected a number of seconds from 0 to 65535, or \"off\""),
        None => integer16(value, 0..=u16::MAX, " seconds"),
    }
}

/// `address:port` or `name:port`; an address may be link-local with its interface.
fn endpoint(value: &Spanned<DeValue<'_>>) -> Parsed<Endpoint> {
    let text = string(value, "192.0.2.1:51820")?;
    let expected = "expected one such as \"192.0.2.1:51820\", \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\"";
    if let Ok(address) = text.parse::<SocketAddr>() {
        if let SocketAddr::V6(v6) = address
            && let Some(v4) = v6.ip().to_ipv4_mapped()
        {
            return fault(value, format!("{text} is an IPv4 address in disguise: write \"{v4}:{}\"", v6.port()));
        }
        let unusable = address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0;
        let is_somewhere =
            matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0);
        return match (unusable, is_somewhere) {
            (true, _) => fault(value, format!("{text} is nobody's: {expected}")),
            (_, true) => {
                fault(value, format!("{text} is on every link: name the interface, as in \"[fe80::1%eth0]:51820\""))
            }
            _ => Ok(Endpoint::Address(address)),
        };
    }
    let name = text.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse().ok().filter(|&port| port != 0)?;
        // The system knows how to resolve the latter, too, and again when the interface was made anew.
        let host = if is_host_name(host) { host } else { link_local(host)? };
        Some(HostName { host: host.to_owned(), port })
    });
    name.map_or_else(|| fault(value, format!("\"{text}\" is no endpoint; {expected}")), |name| Ok(Endpoint::Name(name)))
}

/// Why nothing sent from `local` gets there, if that can be told.
fn out_of_reach(endpoint: &Endpoint, local: IpAddr) -> Option<String> {
    let is_ipv4 = match endpoint {
        Endpoint::Address(address) => address.is_ipv4(),
        Endpoint::Name(name) if name.host.contains(':') => false,
        // What the name stands for is not known.
        Endpoint::Name(_) => return None,
    };
    let other_family = !local.is_unspecified() && is_ipv4 != local.is_ipv4();
    other_family.then(|| {
        let (theirs, ours) = (family(is_ipv4), family(local.is_ipv4()));
        format!("{endpoint} is {theirs} but local = \"{local}\" is {ours}: without local both would do")
    })
}

/// `fe80::1%eth0` out of its brackets.
fn link_local(text: &str) -> Option<&str> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    let (address, interface) = inside.split_once('%')?;
    let is_link_local = address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_unicast_link_local());
    // As in the kernel (`dev_valid_name`).
    let is_interface = (1..16).contains(&interface.len())
        && interface.bytes().all(|byte| !byte.is_ascii_whitespace() && !b"/:%".contains(&byte));
    (is_link_local && is_interface).then_some(inside)
}

/// Whether a resolver could know it (RFC 1123 §2.1, and underscores, which some use). Only digits and dots are an address
/// gone wrong.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253 && text.split('.').all(label) && text.bytes().any(|c| c.is_ascii_alphabetic())
}

/// A key out of the file that `value` names.
fn secret<K>(value: &Spanned<DeValue<'_>>, file: &Path, parse: fn(&str) -> Result<K, KeyError>) -> Parsed<K> {
    let named = string(value, "wg0.key")?;
    let path = file.parent().unwrap_or(Path::new("")).join(named);
    read_secret(&path, parse).or_else(|message| match looks_like_a_key(named) {
        // Then it must not be repeated.
        true => fault(value, "looks like a key itself: put it into a file of its own, and the file's name here"),
        false => fault(value, format!("{}: {message}", path.display())),
    })
}

/// Whether it is a key in base64, the padding perhaps lost on the way.
fn looks_like_a_key(text: &str) -> bool {
    let digits = text.trim().trim_end_matches('=');
    digits.len() == 43 && digits.bytes().all(|c| c.is_ascii_alphanumeric() || b"+/".contains(&c))
}

fn read_secret<K>(path: &PathBuf, parse: fn(&str) -> Result<K, KeyError>) -> Result<K, String> {
    // A FIFO or a device would be waited for; what is asked about is asked of the file that is then read.
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is no file".to_owned());
    }
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    check_owner(metadata.mode(), metadata.uid(), geteuid().as_raw())?;
    // Twice what is read: text that never moves leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * MAX_KEY_FILE as usize));
    file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(|_| KeyError::Base64.to_string())?;
    parse(text.trim()).map_err(|error| error.to_string())
}

/// Refuses what others may read or could have written.
fn check_owner(mode: u32, owner: u32, we: u32) -> Result<(), String> {
    if owner != 0 && owner != we {
        return Err(format!("belongs to user {owner}, who could read and change the key: chown root would be right"));
    }
    if mode & 0o066 != 0 {
        return Err(format!(
            "has mode {:03o}, so others can read or change the key: chmod 600 would be right",
            mode & 0o777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_root_s_or_ours_and_closed_to_others() {
        for (mode, owner, we) in [(0o600, 0, 0), (0o400, 0, 1000), (0o700, 1000, 1000)] {
            assert_eq!(check_owner(mode, owner, we), Ok(()), "{mode:o} {owner}");
        }
        for (mode, owner, we) in [(0o644, 0, 0), (0o640, 0, 0), (0o602, 0, 0), (0o620, 0, 0), (0o600, 1000, 0)] {
            assert!(check_owner(mode, owner, we).is_err(), "{mode:o} {owner}");
        }
    }

    #[test]
    fn host_names_are_what_a_resolver_could_know() {
        for name in ["vpn.example.org", "gw", "gw.", "a-b_c.1.x", "xn--bcher-kva.example"] {
            assert!(is_host_name(name), "{name}");
        }
        let long = "a.".repeat(127) + "example";
        for name in ["", ".", "10.9.0.300", "a..b", "a b", "[fe80::1", "fe80::1", "höst", &"a".repeat(64), &long] {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
