//! One gateway goes and another takes its place with the same key, while the far end stays as it is.

mod e2e;

use std::path::Path;

use e2e::wireguard::OTHERS;
use e2e::{FAMILIES, NETFWD, tcp_intact, turn};
use xtask::lab::{Config, Lab, Netfwd, Options, Program, Tunnel, root_or_skip};

const BYTES: u64 = 2_000_000;

fn lab() -> Lab {
    Lab::with(Options::with_tunnels([Tunnel::wireguard(Program::WireguardGo)])).expect("a lab")
}

fn netfwd(lab: &Lab) -> Netfwd {
    Netfwd::start(lab, Path::new(NETFWD), &Config::of(lab)).expect("a running netfwd")
}

/// The gateway that is there now has a session and carries both families both ways.
fn carries(lab: &Lab) {
    lab.greet_peer().expect("an answer");
    for family in FAMILIES {
        tcp_intact(&lab.peer, &lab.server, lab.server_address(family), 1, BYTES);
        tcp_intact(&lab.server, &lab.peer, lab.peer_address(family), 1, BYTES);
    }
}

#[test]
fn netfwd_takes_the_place_of_others_and_the_other_end_stays_as_it_is() {
    if !root_or_skip() {
        return;
    }
    let _turn = turn();
    let lab = lab();
    for program in OTHERS {
        let other = lab.wireguard_gateway(program).expect("a device");
        carries(&lab);
        drop(other);
        let mut netfwd = netfwd(&lab);
        carries(&lab);
        assert!(netfwd.stop().expect("an end").success());
        // wireguard-go would not be let in after netfwd, boringtun is.
    }
}

/// They number handshakes otherwise than netfwd, and whoever remembers its last one turns theirs away for 27 seconds.
#[test]
fn others_take_netfwd_s_place_where_the_far_end_starts_afresh() {
    if !root_or_skip() {
        return;
    }
    let _turn = turn();
    let mut lab = lab();
    let mut netfwd = netfwd(&lab);
    carries(&lab);
    assert!(netfwd.stop().expect("an end").success());
    lab.restart_far_ends().expect("another far end");
    let _other = lab.wireguard_gateway(Program::WireguardGo).expect("a device");
    carries(&lab);
}
