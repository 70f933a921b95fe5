//! netfwd and the kernel's own WireGuard at either end, every byte compared.
//!
//! Not every kernel has it, so these run in an emulated machine: `cargo xtask vm test`, the last part of `cargo xtask test`. Their
//! names leave them out of the parts before it; on a kernel without WireGuard they fail rather than pass unseen.

mod e2e;

use e2e::tcp_intact;
use e2e::wireguard::everything_arrives;
use xtask::lab::{Family, Lab, Options, Program, Side, Tunnel, root_or_skip};

#[test]
fn vm_the_kernel_begins_over_ipv4() {
    everything_arrives(Tunnel::wireguard(Program::Kernel), Side::Peer);
}

#[test]
fn vm_the_kernel_begins_over_ipv6_with_a_preshared_key() {
    everything_arrives(Tunnel::wireguard(Program::Kernel).over(Family::V6).preshared(), Side::Peer);
}

#[test]
fn vm_netfwd_begins_over_ipv4_with_a_preshared_key() {
    everything_arrives(Tunnel::wireguard(Program::Kernel).preshared(), Side::Gateway);
}

#[test]
fn vm_netfwd_begins_over_ipv6() {
    everything_arrives(Tunnel::wireguard(Program::Kernel).over(Family::V6), Side::Gateway);
}

/// Nothing of netfwd's: when this fails, the lab or the machine is at fault.
#[test]
fn vm_the_kernel_talks_to_itself() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::with(Options::with_tunnels([Tunnel::wireguard(Program::Kernel)])).expect("a lab");
    let _gateway = lab.wireguard_gateway(Program::Kernel).expect("a device");
    lab.greet_peer().expect("a session");
    for family in e2e::FAMILIES {
        tcp_intact(&lab.peer, &lab.server, lab.server_address(family), 2, e2e::scaled(2_000_000));
        tcp_intact(&lab.server, &lab.peer, lab.peer_address(family), 2, e2e::scaled(2_000_000));
    }
}
