//! Requests as clients write them, and every way to get one wrong.

use proptest::prelude::*;

use super::*;
use crate::datapath::tunnel::wireguard::{DeviceStatus, PeerStatus};

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const OTHER: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";

fn no_scope(_: &str) -> Option<u32> {
    None
}

/// All requests of a connection, as it would be answered; `Err` where it ends without an answer.
fn read(text: &str) -> Result<Vec<Parsed<Request>>, Unintelligible> {
    let mut reader = Reader::new(no_scope);
    let mut requests = Vec::new();
    let cut = !text.is_empty() && !text.ends_with('\n');
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines.pop();
    for line in lines {
        requests.extend(reader.line(line.as_bytes())?);
    }
    requests.extend(reader.end(cut));
    Ok(requests)
}

fn set(lines: &str) -> Parsed<DeviceUpdate> {
    let mut requests = read(&format!("set=1\n{lines}\n")).expect("an operation");
    assert_eq!(requests.len(), 1, "{lines}");
    match requests.remove(0)? {
        Request::Set(update) => Ok(update),
        Request::Get => panic!("a set became a get"),
    }
}

/// What a peer's lines make of it.
fn peer(lines: &str) -> Parsed<PeerUpdate> {
    Ok(set(&format!("public_key={KEY}\n{lines}"))?.peers.remove(0))
}

#[test]
fn the_example_of_the_protocol_is_understood() {
    let update = set(&format!(
        "private_key={KEY}\nfwmark=51820\nlisten_port=12912\nreplace_peers=true\n\
         public_key={KEY}\npreshared_key={OTHER}\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\n\
         endpoint=[abcd:23::33%2]:51820\nprotocol_version=1\n\
         public_key={OTHER}\ntx_bytes=0\n"
    ));
    // Counters are told and never set.
    assert_eq!(update.unwrap_err().errno, libc::EINVAL);
    let update = set(&format!(
        "private_key={KEY}\nfwmark=51820\nlisten_port=12912\nreplace_peers=true\n\
         public_key={KEY}\npreshared_key={OTHER}\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\n\
         endpoint=[abcd:23::33%2]:51820\npersistent_keepalive_interval=111\n\
         public_key={OTHER}\nupdate_only=true\nallowed_ip=-192.168.4.0/24\n\
         public_key={OTHER}\nremove=true\n"
    ))
    .expect("right");
    assert_eq!(update.private_key.flatten().expect("a key").to_hex().as_str(), KEY);
    assert_eq!((update.listen_port, update.fwmark, update.replace_peers), (Some(12912), Some(51820), true));
    let [first, second, third] = &update.peers[..] else { panic!("three peers") };
    assert_eq!(first.public_key.to_hex(), KEY);
    assert_eq!(first.preshared_key.as_ref().expect("a key").to_hex().as_str(), OTHER);
    assert!(first.replace_allowed_ips && !first.remove && !first.update_only);
    let prefix = |text: &str| text.parse().expect("a prefix");
    assert_eq!(first.allowed_ips, [AllowedIpUpdate { prefix: prefix("192.168.4.4/32"), remove: false }]);
    assert_eq!(first.endpoint, Some("[abcd:23::33%2]:51820".parse().expect("an address")));
    assert_eq!(first.persistent_keepalive, Some(111));
    assert!(second.update_only && second.persistent_keepalive.is_none() && second.endpoint.is_none());
    assert_eq!(second.allowed_ips, [AllowedIpUpdate { prefix: prefix("192.168.4.0/24"), remove: true }]);
    assert!(third.remove);
}

#[test]
fn what_is_not_named_is_not_changed() {
    let update = set("").expect("right");
    assert!(update.private_key.is_none() && update.listen_port.is_none() && update.fwmark.is_none());
    assert!(!update.replace_peers && update.peers.is_empty());
}

#[test]
fn a_key_of_zeroes_takes_the_key_away() {
    let zero = "0".repeat(64);
    assert!(matches!(set(&format!("private_key={zero}\n")).expect("right").private_key, Some(None)));
    let preshared = peer(&format!("preshared_key={zero}\n")).expect("right").preshared_key;
    assert_eq!(preshared.expect("named").bytes(), None);
}

#[test]
fn replacing_allowed_ips_replaces_those_before_it_too() {
    let peer = peer("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=10.1.2.3/16\n").expect("right");
    let prefix = "10.1.0.0/16".parse().expect("a prefix");
    assert!(peer.replace_allowed_ips);
    assert_eq!(peer.allowed_ips, [AllowedIpUpdate { prefix, remove: false }]);
}

#[test]
fn wrong_values_are_invalid() {
    let short = &KEY[1..];
    for line in [
        format!("private_key={short}"),
        "private_key=".to_owned(),
        "listen_port=65536".to_owned(),
        "listen_port=-1".to_owned(),
        "listen_port=+1".to_owned(),
        "listen_port= 1".to_owned(),
        "listen_port=".to_owned(),
        "fwmark=0x1".to_owned(),
        "fwmark=4294967296".to_owned(),
        "replace_peers=false".to_owned(),
        "replace_peers=TRUE".to_owned(),
        format!("public_key={short}"),
        "endpoint=10.0.0.1:1".to_owned(),
        "allowed_ip=10.0.0.0/8".to_owned(),
        "errno=0".to_owned(),
        "=".to_owned(),
        "get=1".to_owned(),
    ] {
        assert_eq!(set(&format!("{line}\n")).expect_err(&line).errno, libc::EINVAL, "{line}");
    }
    for line in [
        format!("preshared_key={short}"),
        "remove=1".to_owned(),
        "update_only=false".to_owned(),
        "replace_allowed_ips=no".to_owned(),
        "endpoint=10.0.0.1".to_owned(),
        "endpoint=example.org:51820".to_owned(),
        "endpoint=fd00::1:51820".to_owned(),
        "endpoint=[fd00::1]:65536".to_owned(),
        "endpoint=[fe80::1%eth9]:51820".to_owned(),
        "persistent_keepalive_interval=off".to_owned(),
        "persistent_keepalive_interval=65536".to_owned(),
        "allowed_ip=10.0.0.0".to_owned(),
        "allowed_ip=10.0.0.0/33".to_owned(),
        "allowed_ip=010.0.0.0/8".to_owned(),
        "allowed_ip=10.0.0.0/+8".to_owned(),
        "allowed_ip=fe80::1%1/64".to_owned(),
        "allowed_ip=--10.0.0.0/8".to_owned(),
        "allowed_ip=".to_owned(),
        "protocol_version=2".to_owned(),
        "last_handshake_time_sec=0".to_owned(),
        "private_key=00".to_owned(),
        "listen_port=1".to_owned(),
    ] {
        assert_eq!(peer(&format!("{line}\n")).expect_err(&line).errno, libc::EINVAL, "{line}");
    }
}

#[test]
fn a_line_without_a_value_breaks_the_protocol() {
    for line in ["replace_peers", "remove true", " "] {
        assert_eq!(set(&format!("{line}\n")).expect_err(line).errno, libc::EPROTO, "{line}");
    }
    let mut reader = Reader::new(no_scope);
    assert!(reader.line(b"set=1").is_ok_and(|request| request.is_none()));
    assert!(reader.line(b"private_key=\xff").is_ok_and(|request| request.is_none()));
    assert_eq!(reader.line(b"").unwrap().unwrap().unwrap_err().errno, libc::EPROTO);
}

#[test]
fn a_refused_request_says_nothing_of_its_values() {
    for line in [format!("private_key={OTHER}0"), format!("public_key={KEY}\npreshared_key={OTHER}x")] {
        let refusal = set(&format!("{line}\n")).unwrap_err();
        let shown = format!("{refusal} {refusal:?}");
        assert!(shown.contains("_key") && !shown.contains(&OTHER[..4]), "{shown}");
    }
}

#[test]
fn requests_follow_each_other_and_a_refused_one_is_read_to_its_end() {
    let text = format!(
        "get=1\n\nset=1\nlisten_port=x\nfwmark=7\npublic_key={KEY}\n\nset=1\nfwmark=8\n\nget=1\nall=please\n\nget=1\n\n"
    );
    let requests = read(&text).expect("operations");
    let shape: Vec<_> = requests
        .iter()
        .map(|request| match request {
            Ok(Request::Get) => "get".to_owned(),
            Ok(Request::Set(update)) => format!("set {:?}", update.fwmark),
            Err(refusal) => refusal.errno.to_string(),
        })
        .collect();
    assert_eq!(shape, ["get", "22", "set Some(8)", "22", "get"]);
}

#[test]
fn other_operations_end_the_connection() {
    for text in ["\n", "get=2\n\n", "set=0\n\n", "GET / HTTP/1.1\n\n", "set=1 \n\n", "get=1\n\n\n"] {
        assert!(read(text).is_err(), "{text}");
    }
}

#[test]
fn the_end_of_the_connection_ends_a_set_unless_it_cut_a_line() {
    let whole = read("set=1\nfwmark=7\n").expect("an operation");
    assert!(matches!(&whole[..], [Ok(Request::Set(update))] if update.fwmark == Some(7)));
    let cut = read("set=1\nfwmark=7").expect("an operation");
    assert!(matches!(&cut[..], [Err(Refusal { errno: libc::EPROTO, .. })]));
    assert!(read("get=1\n").expect("an operation").is_empty());
    assert!(read("").expect("nothing").is_empty());
}

#[test]
fn an_endpoint_may_be_a_mapped_address_or_name_its_interface() {
    let mapped = peer("endpoint=[::ffff:192.0.2.1]:51820\n").expect("right").endpoint;
    assert_eq!(mapped, Some("192.0.2.1:51820".parse().expect("an address")));
    let mut reader = Reader::new(|name| (name == "eth0").then_some(5));
    for line in ["set=1".to_owned(), format!("public_key={KEY}"), "endpoint=[fe80::1%eth0]:7".to_owned()] {
        assert!(reader.line(line.as_bytes()).unwrap().is_none());
    }
    let Some(Ok(Request::Set(update))) = reader.line(b"").unwrap() else { panic!("refused") };
    assert_eq!(update.peers[0].endpoint, Some("[fe80::1%5]:7".parse().expect("an address")));
}

#[test]
fn peers_of_one_request_are_bounded() {
    let mut reader = Reader::new(no_scope);
    assert!(reader.line(b"set=1").unwrap().is_none());
    let line = format!("public_key={KEY}");
    for _ in 0..=MAX_PEERS {
        assert!(reader.line(line.as_bytes()).unwrap().is_none());
    }
    assert_eq!(reader.line(b"").unwrap().unwrap().unwrap_err().errno, libc::EINVAL);
}

#[test]
fn a_line_that_is_too_long_is_a_fault_of_its_request() {
    let mut reader = Reader::new(no_scope);
    assert_eq!(reader.long_line(), Err(Unintelligible));
    assert!(reader.line(b"set=1").unwrap().is_none());
    assert_eq!(reader.long_line(), Ok(()));
    assert_eq!(reader.line(b"").unwrap().unwrap().unwrap_err().errno, libc::EIO);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let mut reader = Reader::new(no_scope);
        let _ = reader.line(b"set=1");
        for line in lines {
            if reader.line(&line).is_err() {
                break;
            }
        }
        let _ = reader.end(false);
    }

    /// What a device tells about itself, said back to an empty one, makes the same device.
    #[test]
    fn what_is_told_can_be_set(
        private in any::<[u8; 32]>(),
        listen_port in any::<u16>(),
        fwmark in any::<u32>(),
        peers in prop::collection::vec(peer_status(), 0..5),
    ) {
        let status = DeviceStatus { private_key: Some(PrivateKey::from_bytes(private)), listen_port, fwmark, peers };
        let told = crate::control::uapi::response::device(&status);
        // Counters and times are told only.
        let told_only = ["last_handshake", "tx_bytes", "rx_bytes", "errno"];
        let lines: String = told
            .lines()
            .filter(|line| !line.is_empty() && !told_only.iter().any(|key| line.starts_with(key)))
            .map(|line| format!("{line}\n"))
            .collect();
        let update = set(&lines).expect("right");
        prop_assert_eq!(update.private_key.flatten().map(|key| key.to_hex()), Some(PrivateKey::from_bytes(private).to_hex()));
        prop_assert_eq!((update.listen_port.unwrap_or(0), update.fwmark.unwrap_or(0)), (listen_port, fwmark));
        prop_assert_eq!(update.peers.len(), status.peers.len());
        for (set, told) in update.peers.iter().zip(&status.peers) {
            prop_assert_eq!(set.public_key, told.public_key);
            prop_assert_eq!(set.preshared_key.as_ref().and_then(PresharedKey::bytes), told.preshared_key.as_ref().and_then(PresharedKey::bytes));
            prop_assert_eq!(set.endpoint, told.endpoint);
            prop_assert_eq!(set.persistent_keepalive, Some(told.persistent_keepalive));
            let prefixes: Vec<_> = set.allowed_ips.iter().map(|update| update.prefix).collect();
            prop_assert_eq!(&prefixes, &told.allowed_ips);
        }
    }
}

prop_compose! {
    fn peer_status()(
        public_key in any::<[u8; 32]>(),
        preshared_key in prop::option::of(any::<[u8; 32]>()),
        endpoint in prop::option::of(any::<(u32, u16)>()),
        endpoint6 in prop::option::of(any::<(u64, u16)>()),
        persistent_keepalive in any::<u16>(),
        v4 in prop::collection::vec((any::<u32>(), 0..=32u8), 0..4),
        v6 in prop::collection::vec((any::<u128>(), 0..=128u8), 0..4),
    ) -> PeerStatus {
        let v4 = v4.into_iter().filter_map(|(bits, len)| ipnet::IpNet::new(std::net::Ipv4Addr::from(bits).into(), len).ok());
        let v6 = v6.into_iter().filter_map(|(bits, len)| ipnet::IpNet::new(Ipv6Addr::from(bits).into(), len).ok());
        let endpoint6 = endpoint6.map(|(low, port)| (Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(low)), port).into());
        PeerStatus {
            public_key: PublicKey(public_key),
            preshared_key: preshared_key.map(PresharedKey::from_bytes),
            endpoint: endpoint6.or(endpoint.map(|(bits, port)| (std::net::Ipv4Addr::from(bits), port).into())),
            persistent_keepalive,
            allowed_ips: v4.chain(v6).map(|prefix| prefix.trunc()).collect(),
            last_handshake: None,
            receive_bytes: 1,
            transmit_bytes: 2,
        }
    }
}
