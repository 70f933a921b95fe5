//! `netfwd check`: what the configuration makes of this machine, in one line per tunnel and underlay.

use std::fmt::Write;

use crate::config::{Config, Protocol, Queues, Tunnel, Underlay, XdpMode, ZeroCopy};
use crate::control::Control;
use crate::control::links::Link;
use crate::control::preflight::{self, Problems, Ready};

/// Why a configuration cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Netlink did not answer.
    #[error("cannot list the interfaces: {0}")]
    Interfaces(std::io::Error),
    /// The machine lacks something.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Checks everything that needs no privileges; the summary to print.
pub fn check(config: &Config) -> Result<String, CheckError> {
    let links = Control::start().and_then(|control| control.links()).map_err(CheckError::Interfaces)?;
    let ready = preflight::check(config, &links)?;
    let mut summary = summary(config, &links, &ready);
    if let Err(problems) = preflight::privileges(config) {
        for problem in problems.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(summary, "note: run would stop here with: {problem}");
        }
    }
    Ok(summary)
}

fn summary(config: &Config, links: &[Link], ready: &Ready) -> String {
    let mut lines: Vec<_> = config.underlays.iter().map(|underlay| underlay_line(underlay, links)).collect();
    lines.extend(config.tunnels.iter().zip(&ready.mtus).map(|(tunnel, &mtu)| tunnel_line(tunnel, mtu)));
    lines.push(format!("metrics http://{}/metrics\n", config.metrics.listen));
    lines.join("\n")
}

fn underlay_line(underlay: &Underlay, links: &[Link]) -> String {
    let Underlay { interface, xdp, zero_copy, queues, .. } = underlay;
    let link = links.iter().find(|link| link.name == *interface);
    let mtu = link.map_or(0, |link| link.mtu);
    let down = if link.is_some_and(|link| link.up) { "" } else { ", DOWN" };
    let xdp = match xdp {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Off => "off",
    };
    let zero_copy = match zero_copy {
        ZeroCopy::Auto => "auto",
        ZeroCopy::Require => "require",
        ZeroCopy::Off => "off",
    };
    let queues = match queues {
        Queues::All => "all".to_owned(),
        Queues::Count(count) => count.to_string(),
    };
    format!("underlay {interface}: MTU {mtu}{down}, xdp {xdp}, zero copy {zero_copy}, queues {queues}")
}

fn tunnel_line(tunnel: &Tunnel, mtu: u16) -> String {
    let Tunnel { name, local, port, .. } = tunnel;
    let (device, kind) = (if tunnel.kind().is_l2() { "TAP" } else { "TUN" }, tunnel.kind().as_str());
    let particulars = match &tunnel.protocol {
        Protocol::Vxlan(vxlan) => {
            let routes = Some(&vxlan.routes).filter(|routes| !routes.is_empty());
            let routes = routes.map_or_else(String::new, |routes| format!(", {}", plural(routes.len(), "route")));
            format!(" VNI {}, {local} port {port}, {}{routes}", vxlan.vni, plural(vxlan.remotes.len(), "remote"))
        }
        Protocol::WireGuard(wireguard) => {
            let local = if local.is_unspecified() { "any address".to_owned() } else { local.to_string() };
            let port = if *port == 0 { "any port".to_owned() } else { format!("port {port}") };
            let key = wireguard.private_key.as_ref().map_or("none".to_owned(), |key| key.public_key().to_string());
            format!(", {local} {port}, public key {key}, {}", plural(wireguard.peers.len(), "peer"))
        }
    };
    format!("tunnel {name}: {kind}{particulars}, {device} with MTU {mtu}")
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
