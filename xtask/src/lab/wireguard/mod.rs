//! WireGuard tunnels of a lab: keys, the far end's program, and the two ends' configurations, each from one description.
//!
//! Invariants: keys are made afresh for each lab, live in files of mode 0600 in its directory and go with it; devices have
//! names that no other lab on this machine uses, since UAPI sockets know no network namespaces. The kernel's own WireGuard
//! ([`Program::Kernel`]) is a peer like any other where the kernel has one.

mod device;
mod dump;
mod keys;
mod program;

use std::fs;
use std::mem;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::namespace::Namespace;
use super::tunnel::{Family, Side, Tunnel, other};
use super::{LAN4, LAN6, Lab};
use crate::interrupt;
use crate::machine::wait_until;

pub use device::{Device, is_listening};
pub use dump::{DeviceState, PeerState};
pub use keys::{KeyPair, generate_preshared, read_secret, write_secret};
pub use program::Program;

/// MTU of WireGuard devices everywhere.
const MTU: u32 = 1420;
/// How long the first handshake may take; it is tried again after five seconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// What is particular to a WireGuard tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WireGuard {
    /// What runs at the peer.
    pub far_end: Program,
    /// Is there a preshared key too?
    pub preshared: bool,
    /// Who alone knows the other's endpoint, and so has to begin; both know it by default.
    pub initiator: Option<Side>,
}

/// The keys of one tunnel.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The gateway's.
    pub gateway: KeyPair,
    /// The peer's.
    pub peer: KeyPair,
    /// The file with the preshared key.
    pub preshared: Option<PathBuf>,
}

/// A tunnel's keys, and its device at the peer.
#[derive(Debug)]
pub struct FarEnd {
    /// The keys of both sides.
    pub keys: Keys,
    /// The device at the peer.
    pub device: Device,
    tunnel: String,
}

impl Tunnel {
    /// A WireGuard tunnel over IPv4 on overlay network 10, under a name that no other tunnel on this machine has.
    pub fn wireguard(far_end: Program) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // With one more letter for the peer's device at most 15 characters.
        let name = format!("wg{:x}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed) % 10_000);
        let kind = super::TunnelKind::WireGuard(WireGuard { far_end, preshared: false, initiator: None });
        Self { kind, port: 51820, mtu: Some(MTU), ..Self::vxlan(&name, 0) }
    }

    /// The same with a preshared key.
    pub fn preshared(self) -> Self {
        self.with_wireguard(|wireguard| wireguard.preshared = true)
    }

    /// The same where only that side knows the other's endpoint.
    pub fn initiator(self, side: Side) -> Self {
        self.with_wireguard(|wireguard| wireguard.initiator = Some(side))
    }

    fn with_wireguard(mut self, change: impl FnOnce(&mut WireGuard)) -> Self {
        if let super::TunnelKind::WireGuard(wireguard) = &mut self.kind {
            change(wireguard);
        }
        self
    }

    fn knows_endpoint(&self, side: Side) -> bool {
        match self.kind {
            super::TunnelKind::WireGuard(wireguard) => wireguard.initiator.is_none_or(|initiator| initiator == side),
            _ => true,
        }
    }

    /// Where that side listens.
    pub fn endpoint(&self, side: Side) -> SocketAddr {
        SocketAddr::new(self.outer_address(side), self.port)
    }
}

impl Keys {
    /// New ones, as files in that directory.
    pub(super) fn generate(tunnel: &Tunnel, wireguard: WireGuard, directory: &Path) -> Result<Self> {
        let file = |kind: &str| directory.join(format!("{}.{kind}", tunnel.name));
        let preshared = wireguard.preshared.then(|| file("preshared"));
        if let Some(file) = &preshared {
            generate_preshared(file)?;
        }
        let (gateway, peer) = (KeyPair::generate(&file("gateway"))?, KeyPair::generate(&file("peer"))?);
        Ok(Self { gateway, peer, preshared })
    }

    /// The pair of one side.
    pub fn of(&self, side: Side) -> &KeyPair {
        if side == Side::Peer { &self.peer } else { &self.gateway }
    }

    /// One side's configuration for `wg setconf`.
    pub fn wg_config(&self, tunnel: &Tunnel, side: Side) -> Result<String> {
        let far = other(side);
        let preshared = match &self.preshared {
            Some(file) => format!("PresharedKey = {}\n", read_secret(file)?),
            None => String::new(),
        };
        let endpoint = match tunnel.knows_endpoint(side) {
            true => format!("Endpoint = {}\n", tunnel.endpoint(far)),
            false => String::new(),
        };
        Ok(format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n[Peer]\nPublicKey = {}\n{preshared}{endpoint}AllowedIPs = {}\n",
            self.of(side).private()?,
            tunnel.port,
            self.of(far).public,
            allowed_ips(tunnel, far).join(", "),
        ))
    }

    /// netfwd's `[[tunnel]]` for the gateway's side.
    pub(super) fn netfwd_config(&self, tunnel: &Tunnel) -> String {
        let quoted = |path: &Path| format!("\"{}\"", path.display());
        let addresses =
            [Family::V4, Family::V6].map(|family| format!("\"{}\"", interface(tunnel, Side::Gateway, family)));
        let allowed = allowed_ips(tunnel, Side::Peer).map(|prefix| format!("\"{prefix}\""));
        let mut text = format!(
            "[[tunnel]]\nname = \"{}\"\nkind = \"wireguard\"\nprivate_key_file = {}\nlocal = \"{}\"\nport = {}\naddresses = [{}]\n\
             mtu = {}\n{}[[tunnel.peer]]\npublic_key = \"{}\"\nallowed_ips = [{}]\n",
            tunnel.name,
            quoted(&self.gateway.private_file),
            tunnel.outer_address(Side::Gateway),
            tunnel.port,
            addresses.join(", "),
            tunnel.mtu.unwrap_or(MTU),
            tunnel.config_lines,
            self.peer.public,
            allowed.join(", "),
        );
        if tunnel.knows_endpoint(Side::Gateway) {
            text += &format!("endpoint = \"{}\"\n", tunnel.endpoint(Side::Peer));
        }
        if let Some(file) = &self.preshared {
            text += &format!("preshared_key_file = {}\n", quoted(file));
        }
        text
    }
}

/// The inner addresses that belong to one side.
fn allowed_ips(tunnel: &Tunnel, side: Side) -> [String; 4] {
    let [v4, v6] = [Family::V4, Family::V6].map(|family| tunnel.address(side, family));
    match side {
        // Two more networks behind the peer, where nobody lives.
        Side::Peer => [format!("{v4}/32"), format!("{v6}/128"), "10.30.0.0/24".to_owned(), "fd30::/64".to_owned()],
        Side::Gateway => [format!("{v4}/32"), format!("{v6}/128"), LAN4.to_owned(), LAN6.to_owned()],
    }
}

/// One side's inner address with the length of the overlay's prefix.
fn interface(tunnel: &Tunnel, side: Side, family: Family) -> String {
    format!("{}/{}", tunnel.address(side, family), if family == Family::V4 { 24 } else { 64 })
}

impl FarEnd {
    pub(super) fn start(
        keys: Keys,
        tunnel: &Tunnel,
        wireguard: WireGuard,
        peer: &Namespace,
        directory: &Path,
        with_lan: bool,
    ) -> Result<Self> {
        let device = start_device(tunnel, &keys, (Side::Peer, peer), wireguard.far_end, directory)?;
        if with_lan {
            peer.ip_lines(&[LAN4, LAN6].map(|prefix| format!("route replace {prefix} dev {}", device.name())))?;
        }
        Ok(Self { keys, device, tunnel: tunnel.name.clone() })
    }
}

/// Removes the sockets that programs which were killed have left.
pub(super) fn remove_sockets(tunnels: &[Tunnel]) {
    for tunnel in tunnels.iter().filter(|tunnel| matches!(tunnel.kind, super::TunnelKind::WireGuard(_))) {
        fs::remove_file(device::socket(&tunnel.device_name(Side::Gateway))).ok();
    }
}

/// A configured device with its addresses, up.
fn start_device(
    tunnel: &Tunnel,
    keys: &Keys,
    (side, namespace): (Side, &Namespace),
    program: Program,
    directory: &Path,
) -> Result<Device> {
    let device = Device::start(program, namespace, &tunnel.device_name(side), directory)?;
    let file = directory.join(format!("{}.conf", device.name()));
    write_secret(&file, &keys.wg_config(tunnel, side)?)?;
    device.set_config(&file)?;
    fs::remove_file(&file)?;
    let name = device.name();
    let address = |family| format!("address add {} dev {name} nodad", interface(tunnel, side, family));
    let up = format!("link set {name} mtu {} up", tunnel.mtu.unwrap_or(MTU));
    namespace.ip_lines(&[address(Family::V4), address(Family::V6), up])?;
    Ok(device)
}

impl Lab {
    /// The WireGuard tunnel of that name, its keys and its device at the peer.
    pub fn far_end(&self, tunnel: &str) -> Result<&FarEnd> {
        self.far_ends.iter().find(|end| end.tunnel == tunnel).with_context(|| format!("no WireGuard tunnel {tunnel}"))
    }

    /// Puts another program's end of the first tunnel into the gateway, for as long as the returned value lives.
    pub fn wireguard_gateway(&self, program: Program) -> Result<Device> {
        let tunnel = self.options().tunnels.first().context("no tunnel")?;
        let keys = &self.far_end(&tunnel.name)?.keys;
        start_device(tunnel, keys, (Side::Gateway, &self.gateway), program, self.directory())
    }

    /// Starts the programs at the peer afresh, with the keys they had. Those remember a gateway's newest handshake and take no
    /// older one, and not all programs number handshakes alike: gotatun and boringtun count 37 leap seconds where others
    /// count 10, so whoever follows one of them with the same key is turned away for 27 seconds.
    pub fn restart_far_ends(&mut self) -> Result<()> {
        let far_ends = mem::take(&mut self.far_ends);
        for FarEnd { keys, device, tunnel: name } in far_ends {
            // Its name is to be had again only then.
            drop(device);
            let index = self.options.tunnels.iter().position(|tunnel| tunnel.name == name).context("no such tunnel")?;
            let tunnel = &self.options.tunnels[index];
            if let super::TunnelKind::WireGuard(wireguard) = tunnel.kind {
                let end = FarEnd::start(keys, tunnel, wireguard, &self.peer, &self.directory, index == 0)?;
                self.far_ends.push(end);
            }
        }
        Ok(())
    }

    /// Has the gateway greet the peer until it answers.
    pub fn greet_peer(&self) -> Result<()> {
        let peer = self.peer_address(Family::V4);
        let ping = format!("ping -c 1 -W 1 {peer}");
        let greeted = wait_until(HANDSHAKE_TIMEOUT, || self.gateway.exec(&ping).is_ok() || interrupt::requested());
        if !greeted {
            bail!("{peer} does not answer the gateway within {HANDSHAKE_TIMEOUT:?}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_short_enough_and_differ() {
        let [one, two] = [Tunnel::wireguard(Program::Gotatun), Tunnel::wireguard(Program::Gotatun)];
        assert_ne!(one.name, two.name);
        assert_ne!(one.device_name(Side::Peer), one.device_name(Side::Gateway));
        assert!("wg3fffffx9999p".len() <= 15 && one.device_name(Side::Peer).len() <= 15);
    }
}
