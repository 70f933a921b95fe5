//! WireGuard tunnels in the configuration: what a right one becomes, and the one line of each wrong one.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use netfwd::config::{Config, Endpoint, WireGuard};
use netfwd::datapath::tunnel::wireguard::PrivateKey;
use netfwd_common::abi::TunnelKind;

const PRIVATE: &str = "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo=";
const PRESHARED: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

/// A configuration's directory, with the keys `wg0.key` and `psk.key`.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("netfwd-config-wg-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        let directory = Self(path);
        directory.write("wg0.key", &format!("{PRIVATE}\n"), 0o600);
        directory.write("psk.key", PRESHARED, 0o400);
        directory
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.0.join(name);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).expect("a new file");
        file.write_all(text.as_bytes()).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("our file");
    }

    fn parse(&self, text: &str) -> Result<Config, String> {
        Config::parse(text, &self.0.join("gw.toml")).map_err(|errors| errors.to_string())
    }

    /// The one line of a wrong file, from its line number on and with the directory left out.
    fn line(&self, text: &str) -> String {
        let lines = self.parse(text).expect_err(text);
        let directory = format!("{}/", self.0.display());
        lines.replace(&format!("{directory}gw.toml:"), "").replace(&directory, "")
    }

    fn refused(&self, cases: &[(String, &str)]) {
        for (text, line) in cases {
            assert_eq!(self.line(text), *line, "for\n{text}");
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tunnel in lines 4 to 7, `keys` from line 8, and a peer whose keys are `peer`.
fn tunnel(keys: &str, peer: &str) -> String {
    let keys = if keys.is_empty() { String::new() } else { format!("{keys}\n") };
    format!(
        "[[underlay]]\ninterface = \"eth0\"\n\n[[tunnel]]\nname = \"wg0\"\nkind = \"wireguard\"\n\
         private_key_file = \"wg0.key\"\n{keys}[[tunnel.peer]]\npublic_key = \"{PEER}\"\n{peer}"
    )
}

fn wireguard(config: &Config) -> &WireGuard {
    config.tunnels[0].wireguard().expect("a WireGuard tunnel")
}

#[test]
fn everything_that_is_said_is_understood() {
    let directory = Directory::new("everything");
    let keys = "local = \"10.9.0.2\"\nport = 51820\nfwmark = 0xca6c\naddresses = [\"10.10.0.2/24\"]\nmtu = 1400";
    let peer = format!(
        "preshared_key_file = \"psk.key\"\nendpoint = \"192.0.2.1:51820\"\nallowed_ips = [\"10.10.0.1\", \"fd00::/64\"]\n\
         persistent_keepalive = 25\n[[tunnel.peer]]\npublic_key = \"{OTHER}\"\nendpoint = \"vpn.example.org:7\"\n\
         persistent_keepalive = \"off\"\n"
    );
    let config = directory.parse(&tunnel(keys, &peer)).expect("right");
    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.kind(), tunnel.port, tunnel.mtu), (TunnelKind::WireGuard, 51820, Some(1400)));
    assert_eq!(tunnel.local.to_string(), "10.9.0.2");
    let wireguard = wireguard(&config);
    assert_eq!(wireguard.fwmark, 0xca6c);
    let [first, second] = &wireguard.peers[..] else { panic!("two peers") };
    let address: SocketAddr = "192.0.2.1:51820".parse().expect("an address");
    assert_eq!(first.endpoint, Some(Endpoint::Address(address)));
    let prefixes: Vec<_> = first.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!((prefixes, first.persistent_keepalive), (vec!["10.10.0.1/32".to_owned(), "fd00::/64".to_owned()], 25));
    assert!(matches!(&second.endpoint, Some(Endpoint::Name(name)) if name.to_string() == "vpn.example.org:7"));

    let update = wireguard.update(tunnel.port);
    let private = update.private_key.flatten().expect("a key");
    assert_eq!(private.public_key(), PrivateKey::from_base64(PRIVATE).expect("a key").public_key());
    assert_eq!((update.listen_port, update.fwmark, update.replace_peers), (Some(51820), Some(0xca6c), true));
    assert_eq!(update.peers[0].endpoint, Some(address));
    assert!(update.peers[0].preshared_key.as_ref().is_some_and(|key| key.bytes().is_some()));
    assert_eq!((update.peers[1].endpoint, update.peers[1].persistent_keepalive), (None, Some(0)));
    let names: Vec<_> = wireguard.names().map(|(key, name)| (key.to_string(), name.port)).collect();
    assert_eq!(names, [(OTHER.to_owned(), 7)]);
}

#[test]
fn what_is_not_said_is_as_wg_has_it() {
    let directory = Directory::new("defaults");
    let config = directory.parse(&tunnel("", "")).expect("right");
    let tunnel = &config.tunnels[0];
    assert_eq!((tunnel.local.to_string().as_str(), tunnel.port, tunnel.mtu), ("::", 0, None));
    let wireguard = wireguard(&config);
    assert_eq!((wireguard.fwmark, wireguard.peers[0].endpoint.as_ref()), (0, None));
    assert!(wireguard.peers[0].preshared_key.is_none() && wireguard.peers[0].allowed_ips.is_empty());
    assert!(!config.metrics.wireguard_peers);
}

#[test]
fn a_configuration_shows_no_secret() {
    let directory = Directory::new("secret");
    let config = directory.parse(&tunnel("", "preshared_key_file = \"psk.key\"\n")).expect("right");
    let shown = format!("{config:?} {:?}", wireguard(&config).update(0));
    let hex = PrivateKey::from_base64(PRIVATE).expect("a key").to_hex();
    for secret in [&PRIVATE[..8], &PRESHARED[..8], &hex[..8], "[88, 9,"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    directory.write("bad.key", &PRIVATE[..43], 0o600);
    let line = directory.line(&tunnel("", "").replace("wg0.key", "bad.key"));
    assert!(line.contains("not a key") && !line.contains(&PRIVATE[..8]), "{line}");
}

#[test]
fn key_files_are_closed_to_others_and_hold_one_key() {
    let directory = Directory::new("files");
    directory.write("open.key", PRIVATE, 0o644);
    directory.write("group.key", PRIVATE, 0o660);
    directory.write("long.key", &PRIVATE.repeat(5), 0o600);
    directory.write("two.key", &format!("{PRIVATE}\n{PRIVATE}\n"), 0o600);
    directory.write("empty.key", "", 0o600);
    directory.write("zero.key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 0o600);
    let key = |file: &str| tunnel("", "").replace("wg0.key", file);
    // Whoever puts it there must not find it in the log.
    let itself =
        "7: tunnel.private_key_file: looks like a key itself: put it into a file of its own, and the file's name here";
    let no_key = "not a key: 44 characters of base64, as `wg genkey` prints them, are expected";
    for file in ["long.key", "two.key", "empty.key"] {
        assert_eq!(directory.line(&key(file)), format!("7: tunnel.private_key_file: {file}: {no_key}"));
    }
    directory.refused(&[
        (
            key("open.key"),
            "7: tunnel.private_key_file: open.key: has mode 644, so others can read or change the key: chmod 600 would be right",
        ),
        (
            key("group.key"),
            "7: tunnel.private_key_file: group.key: has mode 660, so others can read or change the key: chmod 600 would be right",
        ),
        (
            key("none.key"),
            "7: tunnel.private_key_file: none.key: cannot be read: No such file or directory (os error 2)",
        ),
        (key("."), "7: tunnel.private_key_file: .: is no file"),
        (key(PRIVATE), itself),
        (key(PRIVATE.trim_end_matches('=')), itself),
        (key("zero.key"), "7: tunnel.private_key_file: is all zeroes, which is no key"),
        (
            tunnel("", "").replace("private_key_file = \"wg0.key\"\n", ""),
            "4: tunnel.private_key_file: missing: a file with the private key, as `wg genkey` prints it",
        ),
        (
            tunnel("", "preshared_key_file = \"open.key\"\n"),
            "10: tunnel.peer.preshared_key_file: open.key: has mode 644, so others can read or change the key: chmod 600 would be right",
        ),
    ]);
}

#[test]
fn a_key_file_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED without root: a_key_file_of_somebody_else_is_refused");
        assert!(std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_some(), "needs root; NETFWD_SKIP_ROOT_TESTS=1 skips it");
        return;
    }
    let directory = Directory::new("owner");
    std::os::unix::fs::chown(directory.0.join("wg0.key"), Some(4242), None).expect("we are root");
    assert_eq!(
        directory.line(&tunnel("", "")),
        "7: tunnel.private_key_file: wg0.key: belongs to user 4242, who could read and change the key: chown root would be right"
    );
}

#[test]
fn keys_of_other_kinds_are_refused_with_the_reason() {
    let directory = Directory::new("kinds");
    let peers = "only for \"vxlan\" and \"vxlan-gpe\": WireGuard's peers and their allowed_ips are in [[tunnel.peer]]";
    let ethernet = "only for \"vxlan\": wireguard carries IP and knows no MAC addresses";
    let checksum = "only for \"vxlan\" and \"vxlan-gpe\": WireGuard's datagrams always have a checksum";
    for (line, key, why) in [
        ("vni = 7", "vni", peers),
        ("remotes = [\"10.9.0.1\"]", "remotes", peers),
        ("route = [{ prefix = \"10.0.0.0/8\" }]", "route", peers),
        ("learning = true", "learning", ethernet),
        ("fdb = []", "fdb", ethernet),
        ("mac = \"02:00:00:00:00:07\"", "mac", ethernet),
        ("udp_checksum = true", "udp_checksum", checksum),
        ("udp6_zero_checksum_rx = true", "udp6_zero_checksum_rx", checksum),
        ("udp6_zero_checksum_tx = true", "udp6_zero_checksum_tx", checksum),
        (
            "dscp = 8",
            "dscp",
            "only for \"vxlan\" and \"vxlan-gpe\": WireGuard shows nothing of what it carries but ECN",
        ),
    ] {
        assert_eq!(directory.line(&tunnel(line, "")), format!("8: tunnel.{key}: {why}"));
    }
    let vxlan = |key: &str| {
        format!(
            "[[underlay]]\ninterface = \"eth0\"\n\n[[tunnel]]\nname = \"vx7\"\nkind = \"vxlan\"\nvni = 7\n\
             local = \"10.9.0.2\"\nremotes = [\"10.9.0.1\"]\n{key}\n"
        )
    };
    for (line, key) in
        [("private_key_file = \"wg0.key\"", "private_key_file"), ("fwmark = 7", "fwmark"), ("peer = []", "peer")]
    {
        let why = "only for \"wireguard\": vxlan has neither keys nor peers";
        assert_eq!(directory.line(&vxlan(line)), format!("10: tunnel.{key}: {why}"));
    }
    assert!(
        directory.line(&tunnel("colour = 1", "")).starts_with(
            "8: tunnel.colour: unknown key; known here: name, kind, addresses, mtu, local, port, private_key_file, fwmark, peer"
        )
    );
    assert_eq!(
        directory.line(&tunnel("", "colour = 1\n")),
        "10: tunnel.peer.colour: unknown key; known here: public_key, preshared_key_file, endpoint, allowed_ips, persistent_keepalive"
    );
}

#[test]
fn numbers_and_addresses_have_their_ranges() {
    let directory = Directory::new("ranges");
    directory.refused(&[
        (tunnel("port = 65536", ""), "8: tunnel.port: 65536 is more than 65535 (16 bits)"),
        (tunnel("fwmark = 4294967296", ""), "8: tunnel.fwmark: 4294967296 is more than 4294967295 (32 bits)"),
        (
            tunnel("fwmark = \"0x1\"", ""),
            "8: tunnel.fwmark: expected a number from 0 to 4294967295, found the string \"0x1\"",
        ),
        (tunnel("local = \"0.0.0.0\"", ""), "8: tunnel.local: 0.0.0.0 is no host's address: name the one to use"),
        (
            tunnel("", "persistent_keepalive = 65536\n"),
            "10: tunnel.peer.persistent_keepalive: 65536 is more than 65535 seconds",
        ),
        (
            tunnel("", "persistent_keepalive = \"on\"\n"),
            "10: tunnel.peer.persistent_keepalive: expected a number of seconds from 0 to 65535, or \"off\"",
        ),
    ]);
    assert!(directory.parse(&tunnel("port = 0", "persistent_keepalive = 0\n")).is_ok());
}

#[test]
fn endpoints_are_addresses_or_names_with_a_port() {
    let directory = Directory::new("endpoints");
    let endpoint = |endpoint: &str| tunnel("", &format!("endpoint = \"{endpoint}\"\n"));
    for right in ["192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%2]:51820", "gw:51820", "vpn.example.org.:51820"] {
        assert!(directory.parse(&endpoint(right)).is_ok(), "{right}");
    }
    let config = directory.parse(&endpoint("[fe80::1%eth0.7]:51820")).expect("an address with its interface");
    let name = config.tunnels[0].wireguard().expect("its kind").names().next().expect("to be looked up").1.clone();
    assert_eq!((name.to_string(), name.host), ("[fe80::1%eth0.7]:51820".to_owned(), "fe80::1%eth0.7".to_owned()));
    let nowhere = "10: tunnel.peer.endpoint: [fe80::1]:51820 is on every link: name the interface, as in \"[fe80::1%eth0]:51820\"";
    assert_eq!(directory.line(&endpoint("[fe80::1]:51820")), nowhere);
    let expected = "expected one such as \"192.0.2.1:51820\", \"[2001:db8::1]:51820\" or \"vpn.example.org:51820\"";
    let names = ["192.0.2.1", "gw", "gw:", "gw:0", "gw:65536", ":51820", "2001:db8::1:51820", "10.9.0.300:1", "g w:1"];
    let links =
        ["[fe80::1%]:1", "[fe80::1%e h]:1", "[2001:db8::1%eth0]:1", "fe80::1%eth0:1", "[fe80::1%sixteen-letters-]:1"];
    for wrong in names.into_iter().chain(links) {
        let line = format!("10: tunnel.peer.endpoint: \"{wrong}\" is no endpoint; {expected}");
        assert_eq!(directory.line(&endpoint(wrong)), line);
    }
    for nobody in ["0.0.0.0:51820", "[ff02::1]:51820", "192.0.2.1:0"] {
        assert_eq!(
            directory.line(&endpoint(nobody)),
            format!("10: tunnel.peer.endpoint: {nobody} is nobody's: {expected}")
        );
    }
    let mapped = "10: tunnel.peer.endpoint: [::ffff:192.0.2.1]:7 is an IPv4 address in disguise: write \"192.0.2.1:7\"";
    assert_eq!(directory.line(&endpoint("[::ffff:192.0.2.1]:7")), mapped);
}

#[test]
fn an_endpoint_is_of_the_family_of_the_only_local_address() {
    let directory = Directory::new("family");
    let [v4, v6] = ["10.9.0.2", "2001:db8::2"];
    let endpoint =
        |local: &str, endpoint: &str| tunnel(&format!("local = \"{local}\""), &format!("endpoint = \"{endpoint}\"\n"));
    for (local, there, theirs, ours) in [
        (v4, "[2001:db8::1]:51820", "IPv6", "IPv4"),
        (v4, "[fe80::1%eth0]:51820", "IPv6", "IPv4"),
        (v6, "192.0.2.1:51820", "IPv4", "IPv6"),
    ] {
        let why = format!("{there} is {theirs} but local = \"{local}\" is {ours}: without local both would do");
        assert_eq!(directory.line(&endpoint(local, there)), format!("11: tunnel.peer.endpoint: {why}"));
        assert!(directory.parse(&tunnel("", &format!("endpoint = \"{there}\"\n"))).is_ok(), "{there}");
    }
    for (local, there) in [(v4, "gw:1"), (v6, "gw:1"), (v4, "192.0.2.1:1"), (v6, "[2001:db8::1]:1")] {
        assert!(directory.parse(&endpoint(local, there)).is_ok(), "{there} from {local}");
    }
}

#[test]
fn peers_do_not_collide() {
    let directory = Directory::new("peers");
    let own = PrivateKey::from_base64(PRIVATE).expect("a key").public_key().to_string();
    let second = |key: &str, rest: &str| {
        tunnel("", &format!("allowed_ips = [\"10.1.0.0/16\"]\n[[tunnel.peer]]\npublic_key = \"{key}\"\n{rest}"))
    };
    directory.refused(&[
        (second(PEER, ""), "12: tunnel.peer.public_key: already the peer of line 9"),
        (second(&own, ""), "12: tunnel.peer.public_key: is our own, that of private_key_file: name the other end's"),
        (
            second("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ""),
            "12: tunnel.peer.public_key: is nobody's secret: everybody could pass for this peer",
        ),
        (
            second(OTHER, "allowed_ips = [\"10.2.0.0/16\",\n\"10.1.0.0/16\"]\n"),
            "14: tunnel.peer.allowed_ips: 10.1.0.0/16 is listed already in line 10: a prefix belongs to one peer",
        ),
        (
            second(OTHER, "allowed_ips = [\"10.2.0.1/16\"]\n"),
            "13: tunnel.peer.allowed_ips: 10.2.0.1/16 has host bits set: 10.2.0.0/16 would be right",
        ),
        (
            second(&OTHER[1..], ""),
            "12: tunnel.peer.public_key: not a key: 44 characters of base64, as `wg genkey` prints them, are expected",
        ),
        (
            tunnel("", "").replace(&format!("public_key = \"{PEER}\"\n"), ""),
            "8: tunnel.peer.public_key: missing: the peer's, as `wg pubkey` prints it",
        ),
        (
            tunnel("", "").replace("[[tunnel.peer]]", "[tunnel.peer]"),
            "8: tunnel.peer: expected [[tunnel.peer]] with double brackets: there may be several",
        ),
    ]);
    // Longer prefixes inside a shorter one are what allowed IPs are for.
    assert!(directory.parse(&second(OTHER, "allowed_ips = [\"10.1.7.0/24\", \"10.0.0.0/8\"]\n")).is_ok());
}

#[test]
fn two_tunnels_do_not_share_a_port_where_both_would_hear_it() {
    let directory = Directory::new("ports");
    let two = |first: &str, second: &str| {
        let second =
            tunnel(second, "").replace("\"wg0\"", "\"wg1\"").replace("[[underlay]]\ninterface = \"eth0\"\n\n", "");
        format!("{}{second}", tunnel(first, ""))
    };
    directory.refused(&[(
        two("port = 51820", "local = \"10.9.0.2\"\nport = 51820"),
        "16: tunnel.port: 51820 is already the WireGuard tunnel's of line 5: each needs its own",
    )]);
    let vxlan =
        "[[tunnel]]\nname = \"vx7\"\nkind = \"vxlan\"\nvni = 7\nlocal = \"10.9.0.2\"\nremotes = [\"10.9.0.1\"]\n";
    directory.refused(&[(
        format!("{}{vxlan}", tunnel("port = 4789", "")),
        "13: tunnel.kind: every address' port 4789 is wireguard since line 5: one kind per address and port",
    )]);
    for (first, second) in [
        ("port = 51820", "port = 51821"),
        // The kernel chooses two.
        ("port = 0", "port = 0"),
        ("local = \"10.9.0.2\"\nport = 51820", "local = \"10.9.0.3\"\nport = 51820"),
    ] {
        assert!(directory.parse(&two(first, second)).is_ok(), "{first} {second}");
    }
}

#[test]
fn keys_lie_beside_the_file_or_where_an_absolute_path_says() {
    let directory = Directory::new("absolute");
    let absolute = tunnel("", "").replace("wg0.key", directory.0.join("wg0.key").to_str().expect("plain"));
    assert!(Config::parse(&absolute, Path::new("gw.toml")).is_ok());
    assert!(directory.parse(&tunnel("", "")).is_ok());
}
