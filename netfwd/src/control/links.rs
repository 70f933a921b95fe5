//! The kernel's list of interfaces, over netlink: what is there before anything is made, and what became of our devices.
//!
//! sysfs would do for most of it, but it shows the namespace it was mounted in; netlink shows the caller's.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use netfwd_common::wire::ethernet::Mac;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkGetRequest, MulticastGroup};
use tokio::time::{sleep, timeout};

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU.
    pub mtu: u32,
    /// Its MAC address, of an Ethernet interface.
    pub station: Option<Mac>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether nothing leaves by it: lo, and dummy devices, which routers keep addresses on.
    pub leads_nowhere: bool,
    /// Whether it is a TUN or TAP device.
    pub is_tun: bool,
    /// Packets that its queue had no room for.
    pub tx_dropped: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// For a kernel VXLAN device: its UDP port.
    pub vxlan_port: Option<u16>,
}

/// How long the kernel may take to list its interfaces for a scrape: one that waits for ever is worse than a failed one.
const PATIENCE: Duration = Duration::from_secs(3);
/// And for a start, which comes while a machine boots or containers go: whoever takes a namespace down has the lock for seconds.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The longest time without a look at what may have changed.
const SWEEP: Duration = Duration::from_secs(30);
/// Changes seldom come alone.
const SETTLE: Duration = Duration::from_millis(100);

/// A netlink connection, alive as long as the runtime it was opened in.
#[derive(Clone, Debug)]
pub struct Netlink(Handle);

impl Netlink {
    /// Opens a connection; must be called inside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// A connection that gives no answers before somebody drives it.
    #[cfg(test)]
    pub(crate) fn without_answers() -> (impl Future<Output = ()> + Send, Self) {
        let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
        (connection, Self(handle))
    }

    /// The same, and something for each change of what these groups are about.
    pub fn open_with_changes(groups: &[MulticastGroup]) -> io::Result<(Self, impl Stream<Item = ()> + Unpin + use<>)> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(groups)?;
        tokio::spawn(connection);
        Ok((Self(handle), messages.map(drop)))
    }

    /// All interfaces, without their addresses; `TimedOut` after a few seconds without an answer.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        timeout(PATIENCE, self.list_links()).await?
    }

    /// All interfaces with their addresses, for a start; `TimedOut` after half a minute without an answer.
    pub async fn links_with_addresses(&self) -> io::Result<Vec<Link>> {
        timeout(START_PATIENCE, self.list_links_with_addresses()).await?
    }

    /// The interface of that name, without its addresses; `None` if there is none.
    pub async fn find(&self, name: &str) -> io::Result<Option<Link>> {
        Self::only(self.0.link().get().match_name(name)).await
    }

    /// The same by its index.
    pub async fn find_index(&self, index: u32) -> io::Result<Option<Link>> {
        Self::only(self.0.link().get().match_index(index)).await
    }

    async fn only(request: LinkGetRequest) -> io::Result<Option<Link>> {
        let mut answer = request.execute();
        match timeout(PATIENCE, answer.try_next()).await? {
            Ok(message) => Ok(message.map(link)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    async fn list_links(&self) -> io::Result<Vec<Link>> {
        let messages = self.0.link().get().execute();
        messages.map_ok(link).try_collect().await.map_err(io::Error::other)
    }

    async fn list_links_with_addresses(&self) -> io::Result<Vec<Link>> {
        let mut links = self.list_links().await?;
        let mut messages = self.0.address().get().execute();
        while let Some(message) = messages.try_next().await.map_err(io::Error::other)? {
            let link = links.iter_mut().find(|link| link.index == message.header.index);
            if let Some((link, address)) = link.zip(local_address(&message.attributes)) {
                link.addresses.push(address);
            }
        }
        Ok(links)
    }
}

/// Comes after a change, or when there has been none for a while.
///
/// Netlink's events only say when to look: what there is, a look says. Events can be lost, so now and then there is a look
/// without one; and many of them at a time make one look.
pub async fn next_look(changes: &mut (impl Stream<Item = ()> + Unpin)) {
    if timeout(SWEEP, changes.next()).await == Ok(None) {
        // No more events: then it is the looks alone.
        sleep(SWEEP).await;
    }
    sleep(SETTLE).await;
    while changes.next().now_or_never().flatten().is_some() {}
}

/// The interface's own address: IFA_LOCAL where there is one (a point-to-point IFA_ADDRESS is the peer's).
fn local_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn link(message: LinkMessage) -> Link {
    let is = |flag| message.header.flags.contains(flag);
    let (up, leads_nowhere) = (is(LinkFlags::Up), is(LinkFlags::Loopback));
    let mut link = Link { index: message.header.index, up, leads_nowhere, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(address) => link.station = address.try_into().ok(),
            LinkAttribute::Stats64(stats) => link.tx_dropped = stats.tx_dropped,
            LinkAttribute::LinkInfo(infos) => {
                link.leads_nowhere |= infos.contains(&LinkInfo::Kind(InfoKind::Dummy));
                link.is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                link.vxlan_port = infos.iter().find_map(vxlan_port);
            }
            _ => {}
        }
    }
    link
}

fn vxlan_port(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vxlan(attributes)) = info else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_by_lo_and_dummies() {
        let leads_nowhere = |flags, kind| {
            let mut message = LinkMessage::default();
            message.header.flags = flags;
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
            link(message).leads_nowhere
        };
        assert!(leads_nowhere(LinkFlags::Up, InfoKind::Dummy));
        assert!(leads_nowhere(LinkFlags::Up | LinkFlags::Loopback, InfoKind::Other(String::new())));
        assert!(!leads_nowhere(LinkFlags::Up, InfoKind::Veth));
    }

    #[test]
    fn netlink_that_does_not_answer_is_not_waited_for_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            // Nobody drives the connection.
            let (_connection, netlink) = Netlink::without_answers();
            let started = std::time::Instant::now();
            let error = netlink.links().await.expect_err("no answer");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(started.elapsed() < 2 * PATIENCE);
        });
    }
}
