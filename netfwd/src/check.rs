//! `netfwd check`: what the configuration makes of this machine, in one line per tunnel and underlay.
//!
//! It is mostly asked about a new configuration while the gateway runs with the old one, so what a running netfwd holds is a
//! note and no fault: it will have let go before the next start. What two of them hold, or anybody else, is a fault.

use std::fmt::Write;

use crate::config::{Config, Protocol, Queues, Tunnel, Underlay, XdpMode, ZeroCopy};
use crate::control::Control;
use crate::control::links::Link;
use crate::control::logging::Count;
use crate::control::preflight::{self, Findings, Problem, Problems};
use crate::control::running::{Held, Running};

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
    let Findings { mtus, mut problems, .. } = preflight::examine(config, &links);
    let note = excuse(&mut problems);
    if !problems.is_empty() {
        return Err(Problems(problems).into());
    }
    let mut summary = summary(config, &links, &mtus) + &note.unwrap_or_default();
    if let Err(problems) = preflight::privileges(config) {
        for problem in problems.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(summary, "note: run would stop here with: {problem}");
        }
    }
    Ok(summary)
}

/// Takes the problems away that are one running netfwd's doing; the line that says so.
fn excuse(problems: &mut Vec<Problem>) -> Option<String> {
    if problems.iter().all(|problem| problem.held().is_none()) {
        return None;
    }
    let holds = |netfwd: &Running, problem: &Problem| problem.held().is_some_and(|held| netfwd.holds(&held));
    let running = Running::all();
    let netfwd = running.iter().find(|netfwd| problems.iter().any(|problem| holds(netfwd, problem)))?;
    let excused: Vec<_> = problems.extract_if(.., |problem| holds(netfwd, problem)).collect();
    let held: Vec<_> = excused.iter().filter_map(Problem::held).map(|held: Held| held.to_string()).collect();
    let (pid, held) = (netfwd.pid, held.join(", "));
    Some(format!("note: netfwd runs here already (process {pid}) and has {held}: it must end before another starts\n"))
}

fn summary(config: &Config, links: &[Link], mtus: &[u16]) -> String {
    let mut lines: Vec<_> = config.underlays.iter().map(|underlay| underlay_line(underlay, links)).collect();
    lines.extend(config.tunnels.iter().zip(mtus).map(|(tunnel, &mtu)| tunnel_line(tunnel, mtu)));
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
            let routes = routes.map_or_else(String::new, |routes| format!(", {}", Count(routes.len(), "route")));
            format!(" VNI {}, {local} port {port}, {}{routes}", vxlan.vni, Count(vxlan.remotes.len(), "remote"))
        }
        Protocol::WireGuard(wireguard) => {
            let local = if local.is_unspecified() { "any address".to_owned() } else { local.to_string() };
            let port = if *port == 0 { "any port".to_owned() } else { format!("port {port}") };
            let key = wireguard.private_key.as_ref().map_or("none".to_owned(), |key| key.public_key().to_string());
            format!(", {local} {port}, public key {key}, {}", Count(wireguard.peers.len(), "peer"))
        }
    };
    format!("tunnel {name}: {kind}{particulars}, {device} with MTU {mtu}")
}
