//! Two network namespaces joined by a veth pair.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the peer sends to; nobody has this address, the neighbour entry is static.
pub const GATEWAY_ADDRESS: &str = "10.77.0.2";

/// The interface in the gateway's namespace.
const GATEWAY_INTERFACE: &str = "veth-gw";

/// A gateway and a peer; both namespaces are removed on drop.
pub struct Lab {
    gateway: String,
    peer: String,
}

impl Lab {
    /// Builds it. `None`, after saying so, if root tests are switched off; panics without root.
    pub fn new(mtu: u32) -> Option<Self> {
        if std::env::var_os("NETFWD_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
            eprintln!("SKIPPED: needs root, and NETFWD_SKIP_ROOT_TESTS=1 is set");
            return None;
        }
        assert!(
            rustix::process::geteuid().is_root(),
            "this test needs root (network namespaces, AF_XDP); NETFWD_SKIP_ROOT_TESTS=1 skips it"
        );
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xsk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { gateway: format!("{name}-gw"), peer: format!("{name}-peer") };
        let Self { gateway, peer } = &lab;
        ip(&format!("netns add {gateway}"));
        ip(&format!("netns add {peer}"));
        for namespace in [gateway, peer] {
            // Router solicitations would mix with the test's packets.
            inside(namespace, || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok());
        }
        ip(&format!(
            "-n {gateway} link add {GATEWAY_INTERFACE} mtu {mtu} type veth peer name veth-peer mtu {mtu} netns {peer}"
        ));
        ip(&format!("-n {gateway} link set {GATEWAY_INTERFACE} address 02:00:00:00:00:02 up"));
        ip(&format!("-n {peer} link set veth-peer address 02:00:00:00:00:01 up"));
        ip(&format!("-n {peer} addr add 10.77.0.1/24 dev veth-peer"));
        ip(&format!("-n {peer} neigh add {GATEWAY_ADDRESS} lladdr 02:00:00:00:00:02 dev veth-peer"));
        Some(lab)
    }

    /// Runs `work` inside the gateway's namespace, with the index of its interface.
    pub fn gateway<T: Send>(&self, work: impl FnOnce(u32) -> T + Send) -> T {
        inside(&self.gateway, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            work(rustix::net::netdevice::name_to_index(socket.as_fd(), GATEWAY_INTERFACE).unwrap())
        })
    }

    /// A UDP socket of the peer. Sockets stay in the namespace that they were made in.
    pub fn peer_socket(&self) -> UdpSocket {
        inside(&self.peer, || UdpSocket::bind("10.77.0.1:0").unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.gateway, &self.peer] {
            Command::new("ip").args(["netns", "del", namespace]).output().ok();
        }
    }
}

/// Runs `work` on a thread inside a namespace.
fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    let enter = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    match std::thread::scope(|scope| scope.spawn(enter).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
