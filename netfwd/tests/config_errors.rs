//! Wrong configurations: each fault is one line with file, line, key and what would be right.

use std::path::Path;

use netfwd::config::{Config, Queues, XdpMode, ZeroCopy};
use netfwd_common::abi::{TunnelKind, Verify};

/// Four lines before the tunnel's keys, which `tunnel` starts in line 5.
fn vxlan(changes: &[(&str, &str)], extra: &str) -> String {
    with_keys(
        &[
            ("name", "\"vx7\""),
            ("kind", "\"vxlan\""),
            ("vni", "7"),
            ("local", "\"10.9.0.2\""),
            ("remotes", "[\"10.9.0.1\"]"),
        ],
        changes,
        extra,
    )
}

/// The same with an L3 tunnel and one route.
fn gpe(changes: &[(&str, &str)], extra: &str) -> String {
    vxlan(&[&[("kind", "\"vxlan-gpe\"")], changes].concat(), extra)
}

fn with_keys(keys: &[(&str, &str)], changes: &[(&str, &str)], extra: &str) -> String {
    let mut text = "[[underlay]]\ninterface = \"eth0\"\n\n[[tunnel]]\n".to_owned();
    for (key, value) in keys {
        let value = changes.iter().find(|(changed, _)| changed == key).map_or(*value, |(_, value)| value);
        if !value.is_empty() {
            text += &format!("{key} = {value}\n");
        }
    }
    text + extra
}

fn lines(text: &str) -> String {
    match Config::parse(text, Path::new("gw.toml")) {
        Ok(config) => panic!("accepted: {config:?}\n{text}"),
        Err(errors) => errors.to_string(),
    }
}

/// Each wrong file prints exactly its line.
fn refused(cases: &[(String, &str)]) {
    for (text, line) in cases {
        assert_eq!(lines(text), *line, "for\n{text}");
    }
}

const ROUTE: &str = "[[tunnel.route]]\nprefix = \"10.20.0.0/16\"\nremote = \"10.9.0.1\"\n";

#[test]
fn the_network_identifier_has_24_bits() {
    refused(&[
        (vxlan(&[("vni", "16777216")], ""), "gw.toml:7: tunnel.vni: 16777216 is more than 16777215 (24 bits)"),
        (
            vxlan(&[("vni", "0xffff_ffff_ffff_ffff_ff")], ""),
            "gw.toml:7: tunnel.vni: 0xffffffffffffffffff is more than 16777215 (24 bits)",
        ),
        (vxlan(&[("vni", "-1")], ""), "gw.toml:7: tunnel.vni: -1 is less than 0"),
        (
            vxlan(&[("vni", "\"7\"")], ""),
            "gw.toml:7: tunnel.vni: expected a number from 0 to 16777215, found the string \"7\"",
        ),
        (vxlan(&[("vni", "")], ""), "gw.toml:4: tunnel.vni: missing: the network identifier"),
    ]);
}

#[test]
fn unknown_keys_are_refused_with_those_that_exist() {
    refused(&[
        (
            format!("[gro]\ntpc = true\n{}", vxlan(&[], "")),
            "gw.toml:2: gro.tpc: unknown key; known here: tcp, udp, udp_exclude_ports, udp_zero_checksum",
        ),
        (
            format!("metric.listen = \"127.0.0.1:9\"\n{}", vxlan(&[], "")),
            "gw.toml:1: metric: unknown key; known here: metrics, underlay, gro, tunnel",
        ),
    ]);
    assert!(
        lines(&vxlan(&[], "vlan = 7\n"))
            .starts_with("gw.toml:10: tunnel.vlan: unknown key; known here: name, kind, addresses, mtu, vni,")
    );
}

#[test]
fn kinds_that_are_not_supported_are_named_with_those_that_are() {
    refused(&[
        (
            vxlan(&[("kind", "\"geneve\"")], ""),
            "gw.toml:6: tunnel.kind: \"geneve\" is not one of \"vxlan\", \"vxlan-gpe\", \"wireguard\"",
        ),
        (vxlan(&[("kind", "")], ""), "gw.toml:4: tunnel.kind: missing: \"vxlan\", \"vxlan-gpe\" or \"wireguard\""),
    ]);
}

#[test]
fn addresses_are_hosts_of_one_family() {
    let local = |value| vxlan(&[("local", value)], "");
    let remotes = |value| vxlan(&[("remotes", value)], "");
    refused(&[
        (
            local("\"10.9.0.300\""),
            "gw.toml:8: tunnel.local: \"10.9.0.300\" is not an IP address; expected one such as \"10.9.0.2\" or \"fd00::2\"",
        ),
        (local("\"0.0.0.0\""), "gw.toml:8: tunnel.local: 0.0.0.0 is no host's address: name the one to use"),
        (local("\"239.1.1.1\""), "gw.toml:8: tunnel.local: 239.1.1.1 is a multicast address: only unicast works here"),
        (
            local("\"::ffff:10.9.0.2\""),
            "gw.toml:8: tunnel.local: ::ffff:10.9.0.2 is an IPv4 address in disguise: write \"10.9.0.2\"",
        ),
        (
            local("\"fe80::1\""),
            "gw.toml:8: tunnel.local: fe80::1 is link-local, which says nothing without an interface: use a global or unique local one",
        ),
        (remotes("[]"), "gw.toml:9: tunnel.remotes: is empty, so nobody may send: name at least one remote"),
        (
            remotes("\"10.9.0.1\""),
            "gw.toml:9: tunnel.remotes: expected a list such as [\"10.9.0.1\"], found the string \"10.9.0.1\"",
        ),
        (remotes("[\"10.9.0.2\"]"), "gw.toml:9: tunnel.remotes: 10.9.0.2 is the local address: name the other end's"),
        (remotes("[\"10.9.0.1\",\n\"10.9.0.1\"]"), "gw.toml:10: tunnel.remotes: 10.9.0.1 is listed twice"),
        (remotes("[\n\"fd00::1\"]"), "gw.toml:10: tunnel.remotes: fd00::1 is IPv6 but local = \"10.9.0.2\" is IPv4"),
    ]);
}

#[test]
fn device_names_are_names_that_the_kernel_takes() {
    let name = |value| vxlan(&[("name", value)], "");
    refused(&[
        (
            name("\"a-name-too-long-x\""),
            "gw.toml:5: tunnel.name: \"a-name-too-long-x\" has 17 bytes: an interface name has at most 15",
        ),
        (
            name("\"vx/7\""),
            "gw.toml:5: tunnel.name: \"vx/7\" has a character that interface names cannot have (space, /, :, %)",
        ),
        (
            name("\"vx 7\""),
            "gw.toml:5: tunnel.name: \"vx 7\" has a character that interface names cannot have (space, /, :, %)",
        ),
        (name("\"\""), "gw.toml:5: tunnel.name: an interface name cannot be empty"),
        (name("\"vé7\""), "gw.toml:5: tunnel.name: \"vé7\" is not ASCII, as a device's name must be here"),
        (
            name("\"eth0\""),
            "gw.toml:5: tunnel.name: \"eth0\" is an underlay interface: the tunnel needs a name of its own",
        ),
    ]);
}

#[test]
fn tunnels_do_not_collide() {
    let second = |name: &str, kind: &str, vni: &str, rest: &str| {
        vxlan(
            &[],
            &format!(
                "[[tunnel]]\nname = \"{name}\"\nkind = \"{kind}\"\nvni = {vni}\nlocal = \"10.9.0.2\"\n\
                 remotes = [\"10.9.0.1\"]\n{rest}"
            ),
        )
    };
    refused(&[
        (
            second("vx7", "vxlan", "8", ""),
            "gw.toml:11: tunnel.name: \"vx7\" is already the tunnel of line 5: device names are unique",
        ),
        (
            second("vx8", "vxlan", "7", ""),
            "gw.toml:13: tunnel.vni: 7 at 10.9.0.2 port 4789 is already the tunnel of line 5",
        ),
        (
            second("gpe8", "vxlan-gpe", "8", &format!("port = 4789\n{ROUTE}")),
            "gw.toml:12: tunnel.kind: 10.9.0.2 port 4789 is vxlan since line 5: one kind per address and port",
        ),
    ]);
}

#[test]
fn keys_of_the_other_layer_are_refused() {
    refused(&[
        (
            gpe(&[], &format!("learning = true\n{ROUTE}")),
            "gw.toml:10: tunnel.learning: only for \"vxlan\": vxlan-gpe carries IP and knows no MAC addresses",
        ),
        (
            vxlan(&[], ROUTE),
            "gw.toml:10: tunnel.route: only for \"vxlan-gpe\": vxlan carries Ethernet, where the kernel routes over the device",
        ),
        (
            gpe(&[], ""),
            "gw.toml:4: tunnel.route: missing: at least one [[tunnel.route]] with prefix and remote; nothing passes without",
        ),
        (
            gpe(&[], "route = []\n"),
            "gw.toml:10: tunnel.route: missing: at least one [[tunnel.route]] with prefix and remote; nothing passes without",
        ),
    ]);
}

#[test]
fn routes_are_prefixes_behind_configured_remotes() {
    let route = |prefix: &str, remote: &str| {
        gpe(&[], &format!("[[tunnel.route]]\nprefix = \"{prefix}\"\nremote = \"{remote}\"\n"))
    };
    refused(&[
        (
            route("10.20.0.1/16", "10.9.0.1"),
            "gw.toml:11: tunnel.route.prefix: 10.20.0.1/16 has host bits set: 10.20.0.0/16 would be right",
        ),
        (
            route("010.20.0.0/16", "10.9.0.1"),
            "gw.toml:11: tunnel.route.prefix: \"010.20.0.0/16\" is not a prefix; expected one such as \"10.20.0.0/16\" or \"fd00:20::/32\"",
        ),
        (
            route("10.20.0.0/33", "10.9.0.1"),
            "gw.toml:11: tunnel.route.prefix: \"10.20.0.0/33\" is not a prefix; expected one such as \"10.20.0.0/16\" or \"fd00:20::/32\"",
        ),
        (
            route("10.20.0.0/16", "10.9.0.9"),
            "gw.toml:12: tunnel.route.remote: 10.9.0.9 is not one of the tunnel's remotes: 10.9.0.1",
        ),
        (gpe(&[], &format!("{ROUTE}{ROUTE}")), "gw.toml:14: tunnel.route.prefix: already has a route in line 11"),
        (
            gpe(&[], "route = 7\n"),
            "gw.toml:10: tunnel.route: expected [[tunnel.route]] with double brackets: there may be several",
        ),
    ]);
}

#[test]
fn static_entries_are_single_stations_behind_configured_remotes() {
    let fdb =
        |mac: &str, remote: &str| vxlan(&[], &format!("[[tunnel.fdb]]\nmac = \"{mac}\"\nremote = \"{remote}\"\n"));
    let twice = "[[tunnel.fdb]]\nmac = \"02:00:00:00:00:07\"\nremote = \"10.9.0.1\"\n".repeat(2);
    refused(&[
        (
            fdb("02:00:00:00:07", "10.9.0.1"),
            "gw.toml:11: tunnel.fdb.mac: \"02:00:00:00:07\" is not a MAC address; expected one such as \"02:00:00:00:00:07\"",
        ),
        (
            fdb("ff:ff:ff:ff:ff:ff", "10.9.0.1"),
            "gw.toml:11: tunnel.fdb.mac: ff:ff:ff:ff:ff:ff is not one station's address: the lowest bit of the first byte must be 0",
        ),
        (fdb("00:00:00:00:00:00", "10.9.0.1"), "gw.toml:11: tunnel.fdb.mac: 00:00:00:00:00:00 is no station's address"),
        (
            fdb("02:00:00:00:00:07", "10.9.0.9"),
            "gw.toml:12: tunnel.fdb.remote: 10.9.0.9 is not one of the tunnel's remotes: 10.9.0.1",
        ),
        (vxlan(&[], &twice), "gw.toml:14: tunnel.fdb.mac: already has an entry in line 11"),
    ]);
}

#[test]
fn numbers_have_their_ranges() {
    let key = |line: &str| vxlan(&[], &format!("{line}\n"));
    refused(&[
        (key("port = 0"), "gw.toml:10: tunnel.port: 0 is less than 1"),
        (key("port = 65536"), "gw.toml:10: tunnel.port: 65536 is more than 65535 (16 bits)"),
        (key("mtu = 575"), "gw.toml:10: tunnel.mtu: 575 is less than 576"),
        (key("mtu = 65536"), "gw.toml:10: tunnel.mtu: 65536 is more than 65535"),
        (
            key("mtu = 1279\naddresses = [\"fd00:10::2/64\"]"),
            "gw.toml:10: tunnel.mtu: 1279 is less than the 1280 that IPv6 needs, and fd00:10::2/64 is IPv6",
        ),
        (
            key("addresses = [\"10.10.0.2/24\",\n\"10.10.0.2/24\"]"),
            "gw.toml:11: tunnel.addresses: 10.10.0.2/24 is listed twice",
        ),
        (key("dscp = 64"), "gw.toml:10: tunnel.dscp: 64 is more than 63 (6 bits)"),
        (
            key("addresses = [\"10.10.0.2\"]"),
            "gw.toml:10: tunnel.addresses: \"10.10.0.2\" has no prefix length; expected one such as \"10.10.0.2/24\"",
        ),
    ]);
}

#[test]
fn checksum_switches_belong_to_their_family() {
    let v6 = |line: &str| vxlan(&[("local", "\"fd00::2\""), ("remotes", "[\"fd00::1\"]")], line);
    refused(&[
        (
            v6("udp_checksum = false\n"),
            "gw.toml:10: tunnel.udp_checksum: over IPv6 the checksum is mandatory; udp6_zero_checksum_tx = true is the exception (RFC 6935)",
        ),
        (
            vxlan(&[], "udp6_zero_checksum_rx = true\n"),
            "gw.toml:10: tunnel.udp6_zero_checksum_rx: only over IPv6, and local is IPv4 (where a zero checksum is always accepted)",
        ),
        (
            v6(
                "[[tunnel]]\nname = \"vx8\"\nkind = \"vxlan\"\nvni = 8\nlocal = \"fd00::2\"\nremotes = [\"fd00::1\"]\nudp6_zero_checksum_rx = true\n",
            ),
            "gw.toml:16: tunnel.udp6_zero_checksum_rx: is false for the tunnel of line 5, which has the same address and port: one socket, one rule",
        ),
    ]);
}

#[test]
fn choices_list_what_is_allowed() {
    let underlay =
        |line: &str| vxlan(&[], "").replace("interface = \"eth0\"\n", &format!("interface = \"eth0\"\n{line}\n"));
    refused(&[
        (
            underlay("xdp = \"fast\""),
            "gw.toml:3: underlay.xdp: \"fast\" is not one of \"auto\", \"native\", \"generic\", \"off\"",
        ),
        (
            underlay("zero_copy = true"),
            "gw.toml:3: underlay.zero_copy: expected one of \"auto\", \"require\", \"off\", found true",
        ),
        (underlay("verify = \"no\""), "gw.toml:3: underlay.verify: \"no\" is not one of \"drop\", \"count\", \"off\""),
        (underlay("queues = 257"), "gw.toml:3: underlay.queues: 257 is more than 256 queues"),
        (
            underlay("queues = \"some\""),
            "gw.toml:3: underlay.queues: \"some\" is not one of \"all\", nor a number from 1 to 256",
        ),
        (
            underlay("busy_poll = \"yes\""),
            "gw.toml:3: underlay.busy_poll: expected true or false, found the string \"yes\"",
        ),
    ]);
}

#[test]
fn sections_are_there_and_have_their_brackets() {
    let underlay = "[[underlay]]\ninterface = \"eth0\"\n";
    refused(&[
        (underlay.to_owned(), "gw.toml:1: tunnel: missing: at least one [[tunnel]]"),
        (format!("tunnel = []\n{underlay}"), "gw.toml:1: tunnel: missing: at least one [[tunnel]]"),
        (
            format!("underlay = []\n{}", vxlan(&[], "").split_once("\n\n").expect("a blank line").1),
            "gw.toml:1: underlay: missing: at least one [[underlay]] with interface = \"…\" (xdp = \"off\" uses kernel sockets only)",
        ),
        (
            vxlan(&[], "").replace("[[underlay]]", "[underlay]"),
            "gw.toml:1: underlay: expected [[underlay]] with double brackets: there may be several",
        ),
        (format!("{}{underlay}", vxlan(&[], "")), "gw.toml:11: underlay.interface: already an underlay in line 2"),
        (
            format!("metrics.listen = \"9477\"\n{}", vxlan(&[], "")),
            "gw.toml:1: metrics.listen: \"9477\" is not an address with port; expected one such as \"127.0.0.1:9477\" or \"[::1]:9477\"",
        ),
    ]);
}

#[test]
fn what_a_line_quotes_cannot_make_it_two() {
    refused(&[
        (
            vxlan(&[("kind", "\"\"\"a\nb\\u001b[31m\"\"\"")], ""),
            "gw.toml:6: tunnel.kind: \"a\\nb\\u{1b}[31m\" is not one of \"vxlan\", \"vxlan-gpe\", \"wireguard\"",
        ),
        (
            format!("\"a\\nb\" = 1\n{}", vxlan(&[], "")),
            "gw.toml:1: a\\nb: unknown key; known here: metrics, underlay, gro, tunnel",
        ),
    ]);
}

#[test]
fn syntax_errors_have_their_line() {
    let text = vxlan(&[("vni", "= 7")], "");
    let line = lines(&text);
    assert!(line.starts_with("gw.toml:7: ") && line.lines().count() == 1, "{line}");
    let line = lines(&vxlan(&[], "vni = 8\n"));
    assert!(line.starts_with("gw.toml:10: duplicate key") && line.lines().count() == 1, "{line}");
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_their_lines() {
    let text = vxlan(&[("vni", "-1"), ("local", "\"x\"")], "colour = 1\n");
    let text = text.replace("interface = \"eth0\"", "interface = \"eth0\"\nxdp = 1");
    let lines = lines(&text);
    let places: Vec<_> = lines.lines().map(|line| line.split(':').nth(1).unwrap_or_default()).collect();
    assert_eq!(places, ["3", "8", "9", "11"], "{lines}");
}

#[test]
fn an_unreadable_file_is_named() {
    let error = Config::load(Path::new("no/such/gw.toml")).expect_err("no such file").to_string();
    assert_eq!(error, "no/such/gw.toml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn what_is_not_said_has_its_default() {
    let text = gpe(&[], ROUTE);
    let config = Config::parse(&text, Path::new("gw.toml")).expect("valid");
    assert_eq!(config.metrics.listen.to_string(), "127.0.0.1:9477");
    let underlay = &config.underlays[0];
    assert_eq!((underlay.xdp, underlay.zero_copy, underlay.queues), (XdpMode::Auto, ZeroCopy::Auto, Queues::All));
    assert_eq!((underlay.verify, underlay.accept_partial, underlay.busy_poll), (Verify::Drop, false, false));
    assert!(config.gro.tcp && config.gro.udp && !config.gro.udp_zero_checksum);
    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.kind(), tunnel.port, tunnel.mtu), (TunnelKind::VxlanGpe, 4790, None));
    assert!(tunnel.vxlan().is_some_and(|vxlan| !vxlan.learning && !vxlan.udp_checksum));
    let vxlan = Config::parse(&vxlan(&[], ""), Path::new("gw.toml")).expect("valid");
    assert_eq!((vxlan.tunnels[0].port, vxlan.tunnels[0].vxlan().map(|vxlan| vxlan.learning)), (4789, Some(true)));
}

proptest::proptest! {
    /// Files that are nearly right: any bytes of a right one replaced by any text.
    #[test]
    fn no_text_makes_the_reading_panic(start in 0usize..400, length in 0usize..40, text in "\\PC{0,12}") {
        let right = gpe(&[], &format!("mtu = 1400\naddresses = [\"10.10.0.2/24\"]\n{ROUTE}"));
        let start = start.min(right.len());
        let end = (start + length).min(right.len());
        let nearly = format!("{}{text}{}", &right[..start], &right[end..]);
        if let Err(errors) = Config::parse(&nearly, Path::new("gw.toml")) {
            let lines = errors.to_string();
            let last = nearly.lines().count().max(1);
            for line in lines.lines() {
                let number: usize = line.split(':').nth(1).unwrap_or_default().parse().expect("each line has its line");
                proptest::prop_assert!((1..=last + 1).contains(&number), "{line}");
            }
        }
    }
}
