//! From text to what is to be done, line by line.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::config::read_prefix;
use crate::datapath::tunnel::wireguard::{
    AllowedIpUpdate, DeviceUpdate, PeerUpdate, PresharedKey, PrivateKey, PublicKey,
};

/// Most bytes of a line, its end included. The longest of the protocol have about 80.
pub const MAX_LINE: usize = 1024;
/// Most peers that one request names, as many as wireguard-go knows at all.
pub const MAX_PEERS: usize = 65_536;
/// Most allowed IPs that one request names.
pub const MAX_ALLOWED_IPS: usize = 1 << 20;

/// Something to be done, complete.
#[derive(Debug)]
pub enum Request {
    /// Tell what the device is.
    Get,
    /// Change it.
    Set(DeviceUpdate),
}

/// A request that is answered with an error number and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client is told: an error number of the system, positive.
    pub errno: i32,
    /// What was wrong, for the log. Never a value, which may be a secret.
    pub what: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (errno {})", self.what, self.errno)
    }
}

/// The connection makes no sense any more and ends without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unintelligible;

type Parsed<T> = Result<T, Refusal>;

const fn invalid(what: &'static str) -> Refusal {
    Refusal { errno: libc::EINVAL, what }
}

/// Finds the index of the interface that a link-local address is on; a system call, so it is an argument.
pub type ScopeOf = fn(&str) -> Option<u32>;

/// Reads the lines of a connection.
#[derive(Debug)]
pub struct Reader {
    scope_of: ScopeOf,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    Get(Parsed<()>),
    Set(Parsed<Set>),
}

impl Reader {
    /// At the start of a connection.
    pub fn new(scope_of: ScopeOf) -> Self {
        Self { scope_of, state: State::Idle }
    }

    /// Between two requests.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Takes a line without its end; a request that it completes.
    ///
    /// After a fault the rest of the request is read past, so that what follows it keeps its meaning.
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Parsed<Request>>, Unintelligible> {
        match &mut self.state {
            State::Idle => self.state = State::begin(line)?,
            _ if line.is_empty() => return Ok(std::mem::replace(&mut self.state, State::Idle).complete()),
            State::Get(read) => *read = read.and(Err(invalid("a line in a get request"))),
            State::Set(read) => {
                if let Ok(set) = read
                    && let Err(refusal) = set.line(line, self.scope_of)
                {
                    *read = Err(refusal);
                }
            }
        }
        Ok(None)
    }

    /// A line that was longer than [`MAX_LINE`]: a fault of the request, as for wireguard-go's scanner.
    pub fn long_line(&mut self) -> Result<(), Unintelligible> {
        let refusal = Refusal { errno: libc::EIO, what: "a line is too long" };
        match &mut self.state {
            State::Idle => return Err(Unintelligible),
            State::Get(read) => *read = read.and(Err(refusal)),
            State::Set(read) if read.is_ok() => *read = Err(refusal),
            State::Set(_) => {}
        }
        Ok(())
    }

    /// The connection's end, which like wireguard-go we take for the blank line behind `set=1`, unless it cut a line in two.
    pub fn end(&mut self, cut: bool) -> Option<Parsed<Request>> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle | State::Get(_) => None,
            State::Set(_) if cut => Some(Err(Refusal { errno: libc::EPROTO, what: "the last line has no end" })),
            set @ State::Set(_) => set.complete(),
        }
    }
}

impl State {
    fn begin(line: &[u8]) -> Result<Self, Unintelligible> {
        match line {
            b"get=1" => Ok(Self::Get(Ok(()))),
            b"set=1" => Ok(Self::Set(Ok(Set::default()))),
            _ => Err(Unintelligible),
        }
    }

    fn complete(self) -> Option<Parsed<Request>> {
        match self {
            Self::Idle => None,
            Self::Get(read) => Some(read.map(|()| Request::Get)),
            Self::Set(read) => Some(read.map(|set| Request::Set(set.update))),
        }
    }
}

/// A `set=1` so far: the last of the update's peers is the one that lines speak of.
#[derive(Debug, Default)]
struct Set {
    update: DeviceUpdate,
    allowed_ips: usize,
}

impl Set {
    fn line(&mut self, line: &[u8], scope_of: ScopeOf) -> Parsed<()> {
        let line = str::from_utf8(line).map_err(|_| Refusal { errno: libc::EPROTO, what: "a line is not UTF-8" })?;
        let no_pair = Refusal { errno: libc::EPROTO, what: "a line without =" };
        let (key, value) = line.split_once('=').ok_or(no_pair)?;
        match (key, self.update.peers.last_mut()) {
            ("public_key", _) => self.begin_peer(value),
            (_, None) => self.device_key(key, value),
            ("allowed_ip", Some(_)) if self.allowed_ips >= MAX_ALLOWED_IPS => Err(invalid("too many allowed IPs")),
            ("allowed_ip", Some(peer)) => {
                self.allowed_ips += 1;
                peer.allowed_ips.push(allowed_ip(value)?);
                Ok(())
            }
            (_, Some(peer)) => peer_key(peer, key, value, scope_of),
        }
    }

    fn begin_peer(&mut self, value: &str) -> Parsed<()> {
        if self.update.peers.len() >= MAX_PEERS {
            return Err(invalid("too many peers"));
        }
        let key = PublicKey::from_hex(value).map_err(|_| invalid("public_key"))?;
        self.update.peers.push(PeerUpdate::new(key));
        Ok(())
    }

    fn device_key(&mut self, key: &str, value: &str) -> Parsed<()> {
        let update = &mut self.update;
        match key {
            "private_key" => {
                let key = PrivateKey::from_hex(value).map_err(|_| invalid("private_key"))?;
                update.private_key = Some(Some(key).filter(|key| !key.is_zero()));
            }
            "listen_port" => update.listen_port = Some(number(value, u16::MAX.into(), "listen_port")? as u16),
            "fwmark" => update.fwmark = Some(number(value, u32::MAX, "fwmark")?),
            "replace_peers" => update.replace_peers = is_true(value, "replace_peers")?,
            _ => return Err(invalid("an unknown key of the device")),
        }
        Ok(())
    }
}

fn peer_key(peer: &mut PeerUpdate, key: &str, value: &str, scope_of: ScopeOf) -> Parsed<()> {
    match key {
        "remove" => peer.remove = is_true(value, "remove")?,
        "update_only" => peer.update_only = is_true(value, "update_only")?,
        "preshared_key" => {
            peer.preshared_key = Some(PresharedKey::from_hex(value).map_err(|_| invalid("preshared_key"))?);
        }
        "endpoint" => peer.endpoint = Some(endpoint(value, scope_of).ok_or(invalid("endpoint"))?),
        "persistent_keepalive_interval" => {
            let seconds = number(value, u16::MAX.into(), "persistent_keepalive_interval")?;
            peer.persistent_keepalive = Some(seconds as u16);
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = is_true(value, "replace_allowed_ips")?;
            // What was given to it before is among what is replaced.
            peer.allowed_ips.clear();
        }
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(invalid("protocol_version")),
        _ => return Err(invalid("an unknown key of a peer")),
    }
    Ok(())
}

fn is_true(value: &str, what: &'static str) -> Parsed<bool> {
    if value == "true" { Ok(true) } else { Err(invalid(what)) }
}

/// Decimal digits and nothing else, as Go's `strconv.ParseUint` reads them.
fn number(value: &str, max: u32, what: &'static str) -> Parsed<u32> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|number| digits && *number <= max);
    number.ok_or(invalid(what))
}

/// A prefix; a `-` before it takes it away.
fn allowed_ip(value: &str) -> Parsed<AllowedIpUpdate> {
    let (remove, prefix) = value.strip_prefix('-').map_or((false, value), |prefix| (true, prefix));
    let prefix = read_prefix(prefix).ok_or(invalid("allowed_ip"))?;
    Ok(AllowedIpUpdate { prefix: prefix.trunc(), remove })
}

/// `address:port`, where a link-local address may name its interface (`[fe80::1%eth0]:51820`).
fn endpoint(value: &str, scope_of: ScopeOf) -> Option<SocketAddr> {
    match value.parse() {
        Ok(SocketAddr::V6(address)) if address.ip().to_ipv4_mapped().is_some() => {
            Some(SocketAddr::new(IpAddr::V6(*address.ip()).to_canonical(), address.port()))
        }
        Ok(address) => Some(address),
        Err(_) => {
            let (address, port) = value.strip_prefix('[')?.split_once("]:")?;
            let (address, interface) = address.split_once('%')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = number(port, u16::MAX.into(), "").ok()? as u16;
            Some(SocketAddrV6::new(address, port, 0, scope_of(interface)?).into())
        }
    }
}

#[cfg(test)]
mod tests;
