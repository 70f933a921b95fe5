//! How long clients are waited for.

use super::*;
use crate::datapath::tunnel::wireguard::{DeviceStatus, DeviceUpdate};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);

/// A device that cannot be changed.
struct Nothing;

impl Configurable for Nothing {
    async fn apply(&self, _: &DeviceUpdate) -> io::Result<()> {
        Ok(())
    }

    fn status(&self) -> DeviceStatus {
        DeviceStatus::default()
    }
}

/// What comes within a long time; nothing at the connection's end.
async fn answer(client: &mut UnixStream) -> Vec<u8> {
    let mut answer = vec![0; 64];
    let read = timeout(LONG, client.read(&mut answer)).await.expect("in time").expect("connected");
    answer.truncate(read);
    answer
}

async fn converse() {
    let (mut client, stream) = UnixStream::pair().expect("sockets");
    let connection = Connection { patience: SHORT, ..Connection::new(stream, Arc::new(Crowd::new())) };
    let serving = tokio::spawn(connection.serve("wg0", &Nothing));
    for _ in 0..2 {
        client.write_all(b"get=1\n\n").await.expect("somebody reads");
        assert_eq!(answer(&mut client).await, b"errno=0\n\n");
        sleep(4 * SHORT).await;
    }
    client.write_all(b"set=1\nfwmark=7\n").await.expect("somebody reads");
    assert_eq!(answer(&mut client).await, b"");
    let ended = serving.await.expect("no panic").expect_err("half a request");
    assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_client_may_be_silent_between_requests_and_not_within_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(converse());
}
