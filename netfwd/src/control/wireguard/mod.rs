//! What the control thread does for WireGuard interfaces: their control sockets, and the names of their peers.
//!
//! Invariants: everything here is a task of the control thread, and none keeps the others waiting, for a name or for workers
//! that change over to another port; changes of one interface follow each other all the same.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::uapi::Configurable;
use super::uapi::server::{self, Place, SocketError, SocketFile};
use super::{Control, StopNotice};
use crate::config;
use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate, PeerUpdate, PublicKey};
use crate::wireguard::Interface;
use crate::wireguard::interface::Former;

mod names;

use names::{Followed, Names};

/// How often somebody looks whether the socket is still there.
const LOOK: Duration = Duration::from_millis(250);
/// How long workers may take to change over to another port: a batch, and a busy machine.
const CHANGEOVER: Duration = Duration::from_secs(1);
/// Between two looks at them.
const CHANGEOVER_LOOK: Duration = Duration::from_millis(1);

/// What happens when the control socket is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disappearance {
    /// Nothing: the interface is configured by a file.
    Stays,
    /// The daemon ends well: removing the socket asks it to, as it asks wireguard-go.
    Ends,
}

/// An interface as the control thread has it; its control socket goes with it.
#[derive(Debug)]
pub struct Attached {
    _socket: SocketFile,
}

/// An interface that is changed by one after the other, each to the end: by the operator, who has the last word, and by names.
struct Changeable {
    interface: Arc<Interface>,
    turn: Mutex<Followed>,
}

impl Changeable {
    fn new(interface: Arc<Interface>, followed: Followed) -> Arc<Self> {
        Arc::new(Self { interface, turn: Mutex::new(followed) })
    }

    /// Leads to where a peer's name says it is, unless the operator has said something else or the peer has a session by now.
    async fn lead(&self, public_key: PublicKey, endpoint: SocketAddr) -> io::Result<()> {
        let followed = self.turn.lock().await;
        if followed.has(&public_key) && self.interface.device().lacks_session(&public_key, SystemTime::now()) {
            let peer = PeerUpdate { update_only: true, endpoint: Some(endpoint), ..PeerUpdate::new(public_key) };
            self.change(&DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() })?;
        }
        Ok(())
    }

    fn change(&self, update: &DeviceUpdate) -> io::Result<Former> {
        self.interface.apply(update).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

impl Configurable for Changeable {
    /// What comes next may want the port of before, so this waits until workers have given it up.
    async fn apply(&self, update: &DeviceUpdate) -> io::Result<()> {
        let mut followed = self.turn.lock().await;
        let former = self.change(update)?;
        followed.heed(update);
        let deadline = Instant::now() + CHANGEOVER;
        while !former.is_given_up() && Instant::now() < deadline {
            sleep(CHANGEOVER_LOOK).await;
        }
        Ok(())
    }

    fn status(&self) -> DeviceStatus {
        self.interface.status()
    }
}

/// Ends the daemon when its control socket is removed.
async fn end_without(socket: Place, notice: StopNotice) {
    while !socket.is_gone() {
        sleep(LOOK).await;
    }
    notice.end("the control socket was removed");
}

/// Makes the control socket of `interface`, which is what `tunnel` configures, and looks after it as long as the control thread serves.
pub fn attach(
    control: &Control,
    tunnel: &config::Tunnel,
    interface: &Arc<Interface>,
    disappearance: (Disappearance, &StopNotice),
) -> Result<Attached, SocketError> {
    let name = &tunnel.name;
    let (socket, listener) = SocketFile::create(name)?;
    let runtime = control.runtime();
    let names = Names::of(tunnel);
    let interface = Changeable::new(interface.clone(), names.followed());
    runtime.spawn(server::serve(listener, name.clone(), interface.clone()));
    if !names.is_empty() {
        runtime.spawn(names.follow(interface));
    }
    let (disappearance, notice) = disappearance;
    if disappearance == Disappearance::Ends {
        runtime.spawn(end_without(socket.place().clone(), notice.clone()));
    }
    Ok(Attached { _socket: socket })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;
    use crate::control::health::Health;
    use crate::control::http;
    use crate::control::metrics::Metrics;
    use crate::datapath::table::ForwardingTable;
    use crate::wireguard::interface::tests::interface;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("it answers");
        response
    }

    /// The control thread's sockets: metrics, and that of the interface.
    async fn serve(metrics: TcpListener, control: std::os::unix::net::UnixListener, interface: Interface) {
        let interface = Changeable::new(Arc::new(interface), Followed::default());
        let table = Metrics::new(&ForwardingTable::default());
        tokio::select! {
            served = http::serve(metrics, table, Arc::<Health>::default()) => served.expect("a listener"),
            served = server::serve(control, "wg0".to_owned(), interface) => served.expect("a listener"),
        }
    }

    #[test]
    fn metrics_are_served_while_workers_change_over_to_another_port() {
        let (interface, inbox, sockets) = interface();
        let directory = std::env::temp_dir().join(format!("netfwd-changeover-{}", std::process::id()));
        let (_socket, control) = SocketFile::create_in(&directory, "wg0").expect("a socket");
        let metrics = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = metrics.local_addr().expect("bound");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(metrics, control, interface));
        });
        assert!(get(address, "/metrics").contains("200 OK"));
        let mut client = UnixStream::connect(directory.join("wg0.sock")).expect("it listens");
        std::fs::remove_dir_all(&directory).expect("ours");
        client.set_read_timeout(Some(PATIENCE)).expect("settable");
        client.write_all(b"set=1\nlisten_port=0\n\n").expect("it reads");
        // This worker has got its new sockets, and keeps the old ones for now.
        let order = std::iter::repeat_with(|| inbox.next()).find_map(|order| order);
        assert!(get(address, "/metrics").contains("200 OK"));
        client.set_nonblocking(true).expect("settable");
        let early = client.read(&mut [0; 1]).expect_err("no answer while the port of before is in use");
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        client.set_nonblocking(false).expect("settable");
        drop((sockets, order));
        let mut answer = [0; 9];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"errno=0\n\n");
    }
}
