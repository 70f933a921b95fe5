//! Each problem's line, on machines that exist only here.

use super::*;
use crate::config;
use crate::datapath::tunnel::wireguard::PublicKey;

const FILE: &str = "gw.toml";

/// One underlay in line 2, one tunnel on a loopback address from line 3; the metrics port is any free one.
fn config(extra: &str) -> Config {
    let text = format!(
        "metrics.listen = \"127.0.0.1:0\"\nunderlay = [{{ interface = \"eth0\" }}]\n\
         [[tunnel]]\nname = \"vx7\"\nkind = \"vxlan\"\nvni = 7\nlocal = \"127.0.0.77\"\nremotes = [\"10.9.0.1\"]\n{extra}"
    );
    Config::parse(&text, Path::new(FILE)).expect("a valid configuration")
}

fn eth0(mtu: u32) -> Link {
    Link { name: "eth0".to_owned(), index: 2, mtu, up: true, ..Link::default() }
}

fn problems(config: &Config, links: &[Link]) -> String {
    check(config, links).expect_err("a problem").to_string()
}

#[test]
fn the_default_mtu_is_what_the_underlay_leaves() {
    let config = config("port = 47001");
    assert_eq!(check(&config, &[eth0(1500)]).expect("ready").mtus, [1450]);
    assert_eq!(check(&config, &[eth0(65536)]).expect("ready").mtus, [65485]);
}

#[test]
fn the_interface_with_the_local_address_limits_the_mtu() {
    let mut config = config("port = 47002");
    config.tunnels[0].local = [10, 9, 0, 2].into();
    let links =
        [eth0(1500), Link { name: "eth1".to_owned(), mtu: 9000, addresses: vec![config.tunnels[0].local], ..eth0(0) }];
    assert_eq!(mtu(&config, &config.tunnels[0], &links).expect("an MTU"), 8950);
}

#[test]
fn an_interface_that_leads_nowhere_limits_nothing() {
    let mut config = config("port = 47002\nmtu = 8950");
    config.tunnels[0].local = [10, 9, 0, 2].into();
    let addresses = vec![config.tunnels[0].local];
    let dummy = Link { name: "dummy0".to_owned(), leads_nowhere: true, addresses, ..eth0(1500) };
    assert_eq!(mtu(&config, &config.tunnels[0], &[dummy, eth0(9000)]).expect("an MTU"), 8950);
}

#[test]
fn an_mtu_that_does_not_fit_names_all_numbers() {
    let config = config("port = 47003\nmtu = 1500");
    assert_eq!(
        problems(&config, &[eth0(1500)]),
        "gw.toml:10: tunnel.mtu: 1500 and 50 bytes of tunnel headers are 1550, but interface eth0 has MTU 1500: \
         at most 1450 would fit, or give eth0 MTU 1550"
    );
}

#[test]
fn an_underlay_that_leaves_too_little_is_refused() {
    let config = config("port = 47004\naddresses = [\"fd00:10::2/64\"]");
    assert_eq!(
        problems(&config, &[eth0(1300)]),
        "gw.toml:3: tunnel.mtu: interface eth0 has MTU 1300, which leaves 1250 after 50 bytes of tunnel headers: \
         at least 1280 is needed, so give eth0 MTU 1330"
    );
}

#[test]
fn a_missing_interface_lists_those_that_exist() {
    let links = [Link { name: "lo".to_owned(), ..eth0(65536) }, Link { name: "ens3".to_owned(), ..eth0(1500) }];
    assert_eq!(
        problems(&config("port = 47005"), &links),
        "gw.toml:2: underlay.interface: no interface \"eth0\" on this machine; there are lo, ens3"
    );
}

#[test]
fn a_missing_address_lists_those_of_its_family() {
    let mut config = config("");
    config.tunnels[0].local = [192, 0, 2, 1].into();
    let addresses = vec![[10, 9, 0, 2].into(), "fd00::2".parse().expect("an address")];
    assert_eq!(
        problems(&config, &[Link { addresses, ..eth0(1500) }]),
        "gw.toml:7: tunnel.local: 192.0.2.1 is no address of this machine; there are 10.9.0.2 (eth0)"
    );
}

#[test]
fn an_existing_device_is_left_alone() {
    let links = [eth0(1500), Link { name: "vx7".to_owned(), ..eth0(1450) }];
    assert_eq!(
        problems(&config("port = 47006"), &links),
        "gw.toml:4: tunnel.name: a device \"vx7\" exists already: is netfwd running? Else remove it (ip link del vx7) or rename the tunnel"
    );
}

#[test]
fn a_taken_port_says_who_has_it_as_far_as_is_known() {
    let taken = UdpSocket::bind(("127.0.0.77", 0)).expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let config = config(&format!("port = {port}"));
    assert_eq!(
        problems(&config, &[eth0(1500)]),
        format!(
            "gw.toml:9: tunnel.port: UDP port {port} on 127.0.0.77 is taken by another program \
             (ss -ulpn 'sport = :{port}' names it)"
        )
    );
    let kernel = Link { name: "vxlan0".to_owned(), vxlan_port: Some(port), ..eth0(1450) };
    assert_eq!(
        problems(&config, &[eth0(1500), kernel]),
        format!("gw.toml:9: tunnel.port: UDP port {port} on 127.0.0.77 is taken by the kernel's VXLAN device vxlan0")
    );
}

#[test]
fn two_tunnels_may_share_an_endpoint() {
    let config = config(
        "port = 47007\n[[tunnel]]\nname = \"vx8\"\nkind = \"vxlan\"\nvni = 8\nlocal = \"127.0.0.77\"\nport = 47007\n\
         remotes = [\"10.9.0.1\"]",
    );
    assert_eq!(check(&config, &[eth0(1500)]).expect("ready").mtus, [1450, 1450]);
}

#[test]
fn a_taken_metrics_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut config = config("port = 47008");
    config.metrics.listen = taken.local_addr().expect("bound");
    let listen = config.metrics.listen;
    let line = problems(&config, &[eth0(1500)]);
    assert!(
        line.starts_with(&format!("gw.toml:1: metrics.listen: cannot listen on {listen}: Address already in use")),
        "{line}"
    );
}

#[test]
fn missing_capabilities_are_named_and_bpf_only_for_xdp() {
    assert_eq!(missing_capabilities(CapabilitySet::NET_ADMIN, true, false), ["CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"]);
    assert_eq!(missing_capabilities(CapabilitySet::NET_ADMIN, false, true), ["CAP_NET_RAW"]);
    assert!(missing_capabilities(CapabilitySet::NET_ADMIN, false, false).is_empty(), "WireGuard on kernel sockets");
    let with_sys_admin = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::SYS_ADMIN;
    assert!(missing_capabilities(with_sys_admin, true, true).is_empty());
}

#[test]
fn the_first_of_several_problems_does_not_hide_the_others() {
    assert_eq!(problems(&config("port = 47009\nmtu = 9000"), &[]).lines().count(), 1);
    let links = [Link { name: "vx7".to_owned(), ..eth0(1450) }, eth0(1500)];
    assert_eq!(problems(&config("port = 47009\nmtu = 9000"), &links).lines().count(), 2);
}

/// A WireGuard tunnel, with its MTU left to the machine.
fn wireguard(local: &str, endpoint: &str) -> Config {
    let mut config = Config::of_device("wg0".to_owned());
    config.underlays = self::config("").underlays;
    config.metrics.listen = ([127, 0, 0, 1], 0).into();
    config.tunnels[0].local = local.parse().expect("an address");
    let peer = config::Peer {
        public_key: PublicKey([7; 32]),
        preshared_key: None,
        endpoint: endpoint.parse().ok().map(config::Endpoint::Address),
        allowed_ips: Vec::new(),
        persistent_keepalive: 0,
    };
    if let config::Protocol::WireGuard(wireguard) = &mut config.tunnels[0].protocol {
        wireguard.peers.push(peer);
    }
    config
}

#[test]
fn wireguard_leaves_room_for_ipv6_unless_all_is_known_to_be_ipv4() {
    for (local, endpoint, mtu) in [
        ("::", "", 1420),
        ("::", "[2001:db8::1]:7", 1420),
        ("::", "192.0.2.1:7", 1440),
        ("127.0.0.77", "", 1440),
        ("::1", "", 1420),
    ] {
        let ready = check(&wireguard(local, endpoint), &[eth0(1500)]).expect("ready");
        assert_eq!(ready.mtus, [mtu], "{local} {endpoint}");
    }
    let mut config = wireguard("::", "");
    config.tunnels[0].mtu = Some(1440);
    assert_eq!(check(&config, &[eth0(1500)]).expect("ready").mtus, [1440], "who names it may know more");
}

#[test]
fn a_wireguard_tunnel_on_all_addresses_still_needs_its_port() {
    let taken = UdpSocket::bind("[::]:0").expect("a free port");
    let mut config = wireguard("::", "");
    config.tunnels[0].port = taken.local_addr().expect("bound").port();
    let line = problems(&config, &[eth0(1500)]);
    assert!(line.contains("on :: is taken by another program"), "{line}");
}
