//! Names of peers of a device that has no worker, and a resolver that knows what their hosts' names tell it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use super::*;
use crate::control::uapi::Configurable;
use crate::datapath::tunnel::wireguard::PeerUpdate;
use crate::wireguard::interface::tests::interface;

/// Longer than any test takes.
const SILENCE: Duration = Duration::from_secs(60);
/// How long something may take that needs no time.
const PATIENCE: Duration = Duration::from_secs(15);

static LATE: AtomicUsize = AtomicUsize::new(0);
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static MOST_UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// What the resolver says of all names that it knows.
fn found() -> SocketAddr {
    "192.0.2.1:51820".parse().expect("an address")
}

fn elsewhere() -> SocketAddr {
    "192.0.2.99:9".parse().expect("an address")
}

fn answer(name: &HostName) -> io::Result<Vec<SocketAddr>> {
    match name.host.as_str() {
        "silent" => thread::sleep(SILENCE),
        "counted" => {
            MOST_UNDER_WAY.fetch_max(UNDER_WAY.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
        }
        "late" if LATE.fetch_add(1, Ordering::SeqCst) == 0 => return Err(io::ErrorKind::NotFound.into()),
        _ => {}
    }
    Ok(vec![found()])
}

fn key(n: usize) -> PublicKey {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    PublicKey(key)
}

fn named(host: &str, n: usize) -> Named {
    Named::new(key(n), HostName { host: host.to_owned(), port: 51820 })
}

/// An interface with a peer at each of these hosts, and their names.
fn peers_at(hosts: &[&str]) -> (Names, Arc<Changeable>) {
    let peers: Vec<_> = hosts.iter().enumerate().map(|(n, host)| named(host, n)).collect();
    let names = Names { interface: "wg0".to_owned(), local: [0; 4].into(), peers, resolve: answer };
    let (interface, ..) = interface();
    let peers = names.peers.iter().map(|named| PeerUpdate::new(named.key)).collect();
    interface.apply(&DeviceUpdate { peers, ..DeviceUpdate::default() }).expect("nothing to refuse");
    let device = Changeable::new(Arc::new(interface), names.followed());
    (names, device)
}

fn change(peer: PeerUpdate) -> DeviceUpdate {
    DeviceUpdate { peers: vec![peer], ..DeviceUpdate::default() }
}

fn set_endpoint(n: usize) -> DeviceUpdate {
    change(PeerUpdate { endpoint: Some(elsewhere()), ..PeerUpdate::new(key(n)) })
}

fn endpoint(device: &Changeable, n: usize) -> Option<SocketAddr> {
    device.status().peers.iter().find(|peer| peer.public_key == key(n)).and_then(|peer| peer.endpoint)
}

fn count_found(device: &Changeable) -> usize {
    device.status().peers.iter().filter(|peer| peer.endpoint == Some(found())).count()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Follows `names` until that many peers have been found.
fn find(count: usize, (names, device): (Names, Arc<Changeable>)) {
    let runtime = runtime();
    runtime.spawn(names.follow(device.clone()));
    let all_found = async {
        while count_found(&device) < count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = runtime.block_on(async { timeout(PATIENCE, all_found).await });
    // Silent names are not waited for.
    runtime.shutdown_background();
    assert!(in_time.is_ok(), "{} of {count} were found", count_found(&device));
}

#[test]
fn a_slow_answer_keeps_no_other_name_waiting() {
    let hosts = [["silent"; LOOKUPS - 1].as_slice(), &["known"; 3 * LOOKUPS]].concat();
    find(3 * LOOKUPS, peers_at(&hosts));
}

#[test]
fn lookups_at_a_time_are_bounded() {
    find(5 * LOOKUPS, peers_at(&["counted"; 5 * LOOKUPS]));
    let most = MOST_UNDER_WAY.load(Ordering::SeqCst);
    assert!((2..=LOOKUPS).contains(&most), "{most} at a time");
}

#[test]
fn a_name_that_nobody_knew_is_asked_about_again_after_five_seconds() {
    let begin = Instant::now();
    find(1, peers_at(&["late"]));
    let took = begin.elapsed();
    assert!(FIRST <= took && took < FIRST + 3 * LOOK, "{took:?}");
}

#[test]
fn who_was_slow_lets_others_go_first() {
    let (mut names, device) = peers_at(&["slow", "known", "known"]);
    names.peers[0].is_slow = true;
    let mut waiting = Waiting::new();
    runtime().block_on(names.look(&device, &mut waiting));
    assert_eq!(waiting.iter().map(|(.., index)| *index).collect::<Vec<_>>(), [1, 2, 0]);
}

#[test]
fn many_names_of_many_peers_are_looked_through_in_no_time() {
    const MANY: usize = 20_000;
    let (mut names, device) = peers_at(&vec!["known"; MANY]);
    let (mut waiting, begin) = (Waiting::new(), Instant::now());
    runtime().block_on(names.look(&device, &mut waiting));
    let took = begin.elapsed();
    assert_eq!(waiting.len(), MANY);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn what_the_operator_sets_holds_against_a_name() {
    let (mut names, device) = peers_at(&["known", "known"]);
    runtime().block_on(async {
        device.lead(key(0), found()).await.expect("nothing to refuse");
        assert_eq!(endpoint(&device, 0), Some(found()));
        device.apply(&set_endpoint(0)).await.expect("nothing to refuse");
        // An answer that was under way.
        device.lead(key(0), found()).await.expect("nothing to refuse");
        assert_eq!(endpoint(&device, 0), Some(elsewhere()));
        let mut waiting = Waiting::new();
        names.look(&device, &mut waiting).await;
        assert_eq!(waiting.iter().map(|(.., index)| *index).collect::<Vec<_>>(), [1], "nor is it asked about again");
    });
}

#[test]
fn what_the_operator_says_of_other_things_changes_nothing_for_a_name() {
    let (_, device) = peers_at(&["known"]);
    runtime().block_on(async {
        let update = change(PeerUpdate { persistent_keepalive: Some(25), ..PeerUpdate::new(key(0)) });
        device.apply(&update).await.expect("nothing to refuse");
        device.apply(&set_endpoint(1)).await.expect("nothing to refuse");
        device.lead(key(0), found()).await.expect("nothing to refuse");
        assert_eq!(endpoint(&device, 0), Some(found()));
    });
}

#[test]
fn a_peer_that_is_removed_and_made_again_is_where_the_operator_says() {
    let remove = change(PeerUpdate { remove: true, ..PeerUpdate::new(key(0)) });
    let replace = DeviceUpdate { replace_peers: true, ..DeviceUpdate::default() };
    for removal in [remove, replace] {
        let (_, device) = peers_at(&["known"]);
        runtime().block_on(async {
            device.apply(&removal).await.expect("nothing to refuse");
            device.lead(key(0), found()).await.expect("nothing to refuse");
            assert!(device.status().peers.is_empty(), "a name brings nobody back");
            device.apply(&change(PeerUpdate::new(key(0)))).await.expect("nothing to refuse");
            device.lead(key(0), found()).await.expect("nothing to refuse");
            assert_eq!(endpoint(&device, 0), None);
        });
    }
}

#[test]
fn lookups_become_rarer_up_to_a_bound_until_there_is_a_session() {
    let mut named = named("known", 0);
    let now = Instant::now();
    let intervals = [(); 9].map(|()| {
        named.wait(now);
        named.due.map(|due| (due - now).as_secs())
    });
    assert_eq!(intervals, [5, 10, 20, 40, 80, 160, 300, 300, 300].map(Some));
    named.rest(now);
    named.wait(now);
    assert_eq!(named.due, Some(now + FIRST));
}

#[test]
fn addresses_of_the_family_that_we_have_not_are_left_out() {
    let [v4, v6]: [SocketAddr; 2] = ["192.0.2.1:1", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address"));
    let from = |local: &str| usable(vec![v4, v4, v6], local.parse().expect("an address")).expect("some");
    assert_eq!((from("::"), from("10.9.0.2"), from("fd00::1")), (vec![v4, v6], vec![v4], vec![v6]));
    assert!(usable(vec![v6], [10, 9, 0, 2].into()).is_err());
}

#[test]
fn all_addresses_of_a_name_get_their_turn() {
    let addresses: Vec<SocketAddr> =
        ["192.0.2.1:1", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address")).into();
    let mut named = named("known", 0);
    let choices: Vec<_> = (0..3).map(|_| named.choose(&addresses)).collect();
    assert_eq!(choices, [Some(addresses[0]), Some(addresses[1]), Some(addresses[0])]);
    assert_eq!(named.choose(&[]), None);
}
