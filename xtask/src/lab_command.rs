//! `cargo xtask lab up` and `lab down`: the lab, left standing for exploring by hand.

use anyhow::Result;
use clap::Subcommand;
use xtask::lab::{self, Config, Family, Lab, Options, Tunnel};

use crate::setup;

#[derive(Subcommand)]
pub enum Task {
    /// Make the namespaces nf-peer, nf-gw and nf-server and leave them standing
    Up {
        /// A VXLAN-GPE tunnel (IP inside) instead of VXLAN (Ethernet inside)
        #[arg(long)]
        gpe: bool,
        /// IPv6 between peer and gateway
        #[arg(long)]
        ipv6: bool,
        /// MTU between peer and gateway
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
    },
    /// Remove them, and what labs of processes that were killed have left
    Down,
}

pub fn perform(task: &Task) -> Result<()> {
    match *task {
        Task::Up { gpe, ipv6, mtu } => {
            let tunnel = if gpe { Tunnel::vxlan_gpe("gpe7", 7) } else { Tunnel::vxlan("vx7", 7) };
            up(tunnel.over(if ipv6 { Family::V6 } else { Family::V4 }), mtu)
        }
        Task::Down => down(),
    }
}

fn up(tunnel: Tunnel, underlay_mtu: u32) -> Result<()> {
    setup::ensure()?;
    let options = Options { underlay_mtu, ..Options::with_tunnels([tunnel]) };
    let lab = Lab::up(options)?;
    let config = lab.directory().join("netfwd.toml");
    std::fs::write(&config, Config::of(&lab).text())?;
    println!(
        "The lab stands: nf-peer ── underlay ── nf-gw ── LAN ── nf-server\n\n  \
         cargo build --release --package netfwd\n  \
         ip netns exec nf-gw target/release/netfwd run --config {} &\n  \
         ip netns exec nf-peer ping -c 3 {}\n  \
         ip netns exec nf-server cargo xtask load tcp-receive --port 5001 &\n  \
         ip netns exec nf-peer cargo xtask load tcp-send {}:5001 --seconds 5\n  \
         ip netns exec nf-gw curl -s http://{}/metrics\n\n\
         cargo xtask lab down removes it.",
        config.display(),
        lab.server_address(Family::V4),
        lab.server_address(Family::V4),
        lab::METRICS_ADDRESS,
    );
    Ok(())
}

fn down() -> Result<()> {
    let removed = lab::down()?;
    println!(
        "{}",
        if removed.is_empty() { "no lab stands".to_owned() } else { format!("removed {}", removed.join(", ")) }
    );
    Ok(())
}
