//! The control thread from outside: its endpoint over real sockets, and what ends it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netfwd::control::health::Health;
use netfwd::control::metrics::Metrics;
use netfwd::control::{Control, Stop, StopNotice};
use netfwd::datapath::table::{ForwardingTable, Tunnel};
use netfwd_common::abi::TunnelKind;
use rustix::process::{Signal, getpid, kill_process};

/// Shorter than the five seconds that a client may dawdle, and long enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A signal reaches every control thread of the process, so these tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Daemon {
    address: SocketAddr,
    health: Arc<Health>,
    notice: StopNotice,
    thread: thread::JoinHandle<Stop>,
}

impl Daemon {
    fn start() -> Self {
        Self::with_tunnels(Vec::new())
    }

    fn with_tunnels(tunnels: Vec<Tunnel>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (health, notice) = (Arc::new(Health::default()), StopNotice::default());
        let mut control = Control::start().expect("a runtime");
        let (served_health, served_notice) = (health.clone(), notice.clone());
        let mut metrics = Metrics::new(&ForwardingTable::new(tunnels));
        // The first interface of a network namespace is lo.
        metrics.know_devices(&[1]);
        let thread = thread::spawn(move || control.serve(listener, metrics, served_health, &served_notice));
        Self { address, health, notice, thread }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
        stream
    }

    /// The whole response to a GET.
    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("it answers");
        response
    }

    fn end(self) -> Stop {
        self.thread.join().expect("it does not panic")
    }
}

#[test]
fn metrics_are_served_as_prometheus_text() {
    let _turn = turn();
    let daemon = Daemon::start();
    let response = daemon.get("/metrics");
    let (head, body) = response.split_once("\r\n\r\n").expect("a header");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("\nnetfwd_build_info{version="), "{body}");
    assert!(daemon.get("/").starts_with("HTTP/1.1 404"));
    daemon.notice.fail("enough");
    assert_eq!(daemon.end(), Stop::Failure("enough".to_owned()));
}

/// Every machine has the device `lo`, and it is up.
#[test]
fn a_scrape_asks_the_kernel_for_the_devices() {
    let _turn = turn();
    let tunnel = |name: &str| Tunnel {
        name: name.to_owned(),
        kind: TunnelKind::Vxlan,
        vni: 7,
        local: [10, 9, 0, 2].into(),
        port: 4789,
        remotes: vec![[10, 9, 0, 1].into()],
        learning: true,
        static_macs: Vec::new(),
        routes: Vec::new(),
        mtu: 1450,
        udp_checksum: false,
        udp6_zero_checksum_rx: false,
        udp6_zero_checksum_tx: false,
        dscp: 0,
    };
    let daemon = Daemon::with_tunnels(vec![tunnel("lo"), tunnel("nosuch0")]);
    let response = daemon.get("/metrics");
    assert!(response.contains(r#"netfwd_tunnel_up{tunnel="lo",kind="vxlan"} 1"#), "{response}");
    assert!(response.contains(r#"netfwd_tunnel_up{tunnel="nosuch0",kind="vxlan"} 0"#), "{response}");
    daemon.notice.fail("enough");
    daemon.end();
}

#[test]
fn health_follows_the_workers() {
    let _turn = turn();
    let daemon = Daemon::start();
    let heartbeat = daemon.health.add_worker("0");
    let healthy = daemon.get("/healthz");
    assert!(healthy.starts_with("HTTP/1.1 200 OK") && healthy.ends_with("\r\n\r\nok\n"), "{healthy}");
    drop(heartbeat);
    let ill = daemon.get("/healthz");
    assert!(ill.starts_with("HTTP/1.1 503") && ill.ends_with("worker 0 has ended\n"), "{ill}");
    daemon.notice.fail("enough");
    daemon.end();
}

#[test]
fn a_signal_ends_it_at_once_though_a_client_dawdles() {
    let _turn = turn();
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let daemon = Daemon::start();
        let mut dawdler = daemon.connect();
        dawdler.write_all(b"GET /metrics HTTP/1.1\r\n").expect("it reads");
        // The other connection has been served, so the dawdler's is open.
        assert!(daemon.get("/healthz").starts_with("HTTP/1.1 200"));
        let start = Instant::now();
        kill_process(getpid(), signal).expect("our own process");
        assert_eq!(daemon.end(), Stop::Signal(name));
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
}

/// Open files of this process, which has both ends.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("a directory").count()
}

/// Whether the other end closes it within twenty seconds, having said that.
fn is_closed_after(mut stream: &TcpStream, said: &str) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
    let mut heard = String::new();
    let ended = stream.read_to_string(&mut heard);
    assert!(heard.starts_with(said), "{heard}");
    !matches!(ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn silent_connections_keep_no_scrape_waiting_and_do_not_pile_up() {
    const SILENT: usize = 300;
    /// What there may be at once, and what else this process opens meanwhile.
    const MOST: usize = 64 + 16;
    let _turn = turn();
    let daemon = Daemon::start();
    let before = open_files();
    let silent: Vec<TcpStream> = (0..SILENT).map(|_| daemon.connect()).collect();
    for _ in 0..10 {
        let start = Instant::now();
        assert!(daemon.get("/metrics").starts_with("HTTP/1.1 200 OK"));
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
    let more = open_files() - before - SILENT;
    assert!(more <= MOST, "{more} connections are open");
    assert!(is_closed_after(&silent[0], ""), "the oldest one is still open");
    daemon.notice.fail("enough");
    daemon.end();
}

#[test]
fn a_connection_is_for_one_request_that_comes_soon() {
    let _turn = turn();
    let daemon = Daemon::start();
    let [mut slow, mut idle, silent] = [(); 3].map(|()| daemon.connect());
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost:").expect("it reads");
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
    assert!(is_closed_after(&idle, "HTTP/1.1 200 OK"));
    assert!(is_closed_after(&slow, ""));
    assert!(is_closed_after(&silent, ""));
    daemon.notice.fail("enough");
    daemon.end();
}

#[test]
fn a_signal_during_set_up_is_not_lost() {
    let _turn = turn();
    let mut control = Control::start().expect("a runtime");
    kill_process(getpid(), Signal::TERM).expect("our own process");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let metrics = Metrics::new(&ForwardingTable::default());
    let stop = control.serve(listener, metrics, Arc::default(), &StopNotice::default());
    assert_eq!(stop, Stop::Signal("SIGTERM"));
}

#[test]
fn no_work_of_the_start_outlasts_a_signal() {
    let _turn = turn();
    let mut control = Control::start().expect("a runtime");
    assert_eq!(control.unless_stopped(|| 7), Ok(7));
    let panicked = control.unless_stopped(|| std::panic::resume_unwind(Box::new(())));
    assert_eq!(panicked, Err::<(), _>(Stop::Failure("the start panicked".to_owned())));
    kill_process(getpid(), Signal::TERM).expect("our own process");
    let begun = std::time::Instant::now();
    let stopped = control.unless_stopped(|| std::thread::sleep(std::time::Duration::from_secs(60)));
    assert_eq!(stopped, Err(Stop::Signal("SIGTERM")));
    assert!(begun.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn the_loopback_interface_is_listed_with_its_address() {
    let _turn = turn();
    let links = Control::start().and_then(|control| control.links()).expect("netlink answers");
    let lo = links.iter().find(|link| link.name == "lo").expect("every namespace has one");
    assert!(lo.mtu >= 1280 && lo.leads_nowhere && lo.vxlan_port.is_none(), "{lo:?}");
}
