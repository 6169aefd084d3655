//! Questions to netlink, asked in the namespace of the thread that opened the socket.
//!
//! What is in a pod's namespace is asked for by target-netnsid (Linux 4.20), so nobody needs to
//! enter it, and the kernel resolves the id while it answers. Reads the few attributes that matter
//! by itself, so that an attribute of a newer kernel cannot hide a link. Must never change
//! anything in the kernel.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{
    NLA_TYPE_MASK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::Switch;

/// The kernel fills at most 32 KiB per dump message; a notification is far smaller.
const BUFFER_LEN: usize = 64 * 1024;
/// Lengths of `nlmsghdr`, `ifinfomsg`, `ifaddrmsg`, `rtgenmsg` with its padding
/// and `rtmsg`.
const NLMSG_HEADER_LEN: usize = 16;
const IFINFO_LEN: usize = 16;
const IFADDR_LEN: usize = 8;
const RTGEN_LEN: usize = 4;
const RTMSG_LEN: usize = 12;
/// Of linux/if_link.h, linux/if_addr.h and linux/net_namespace.h.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const NETNSA_NSID: u16 = 1;
/// Of linux/rtnetlink.h.
const RTA_VIA: u16 = 18;

/// Device types whose packets have no link-layer header where tc sees them (linux/if_arp.h): PPP,
/// raw IP, IPIP, IPv6 tunnels, SIT, GRE, GRE over IPv6, and none (tun, WireGuard).
const HEADERLESS: [u16; 8] = [512, 519, 768, 769, 776, 778, 823, 0xfffe];
/// Its packets stay.
const ARPHRD_LOOPBACK: u16 = 772;

/// All links of a dump.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Those whose peer is in another namespace.
    pub pods: Vec<Link>,
    /// Those by which packets can leave: the index, and whether there is a link-layer header.
    pub exits: Vec<(u32, bool)>,
}

/// A host-side link whose peer is in another namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub ifindex: u32,
    pub name: String,
    pub mac: Vec<u8>,
    /// Negative if the peer's namespace is ending.
    pub nsid: i32,
    pub peer_ifindex: u32,
    pub switch: Switch,
}

impl Link {
    /// Whether its peer is the same as that of `other`.
    pub(crate) fn leads_where(&self, other: &Self) -> bool {
        (self.nsid, self.peer_ifindex) == (other.nsid, other.peer_ifindex)
    }
}

/// The other end of a [`Link`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peer {
    pub name: String,
    pub mac: Vec<u8>,
    pub addresses: Vec<IpAddr>,
}

/// An address of this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OwnAddress {
    pub ifindex: u32,
    pub address: IpAddr,
    /// The other end's, on a point-to-point interface; with the length of the prefix around it.
    pub peer: IpAddr,
    pub prefix_length: u8,
    /// `rt_scope_t`.
    pub scope: u8,
    /// `IFA_F_*`, as far as they fit into a byte.
    pub flags: u8,
}

/// Where packets to an address leave by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The interface.
    pub ifindex: u32,
    /// The address is on that link itself, not behind a gateway.
    pub is_direct: bool,
}

/// A socket for questions.
pub(super) struct Asker {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Asker {
    /// Opens it in the calling thread's namespace, where it stays whoever uses it. `protocol` is
    /// one of [`netlink_sys::protocols`].
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Only the kernel may answer.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_LEN) })
    }

    /// Sends `request`, calls `each` with type and body of every message of the answer, and
    /// returns whether the answer is consistent: no change interrupted a dump.
    pub fn ask<T>(
        &mut self,
        request: T,
        flags: u16,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<bool>
    where
        T: NetlinkSerializable + Into<NetlinkPayload<T>>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut consistent = true;
        loop {
            receive(&self.socket, &mut self.buffer)?;
            for message in Messages(&self.buffer) {
                // Left over from a question that failed half-way.
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                if matches!(i32::from(message.kind), libc::NLMSG_ERROR | libc::NLMSG_DONE) {
                    message.status()?;
                    return Ok(consistent);
                }
                each(message.kind, message.body);
                if message.flags & NLM_F_MULTIPART == 0 {
                    return Ok(consistent);
                }
            }
        }
    }
}

/// A socket for questions to rtnetlink.
pub(super) struct Rtnl(Asker);

impl Rtnl {
    /// Opens it in the calling thread's namespace, where it stays whoever uses it.
    pub fn open() -> io::Result<Self> {
        let asker = Asker::open(NETLINK_ROUTE)?;
        // Without it the kernel ignores the filters of a dump and dumps our own namespace.
        asker.socket.set_netlink_get_strict_chk(true).map_err(|error| {
            let need = "netlink's strict checking is not available, Linux 4.20 or newer is needed";
            io::Error::new(error.kind(), format!("{need}: {error}"))
        })?;
        Ok(Self(asker))
    }

    /// All veth and netkit links whose peer is in another namespace, and all by which packets can
    /// leave.
    pub fn links(&mut self) -> io::Result<Links> {
        // A dump that changes interrupted may lack a link; it is rarely interrupted twice.
        let mut n_attempts = 0;
        loop {
            n_attempts += 1;
            let mut request = LinkMessage::default();
            request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
            let mut links = Links::default();
            let complete =
                self.0.ask(RouteNetlinkMessage::GetLink(request), NLM_F_DUMP, |kind, body| {
                    if kind == libc::RTM_NEWLINK
                        && let Some(raw) = RawLink::parse(body)
                    {
                        links.exits.extend(raw.as_exit());
                        links.pods.extend(raw.into_pod_link());
                    }
                })?;
            if complete || n_attempts == 10 {
                return Ok(links);
            }
        }
    }

    /// The peer of `link`, or `None` if it or its namespace is gone, or is not its peer any more.
    pub fn peer(&mut self, link: &Link) -> io::Result<Option<Peer>> {
        let mut request = LinkMessage::default();
        request.header.index = link.peer_ifindex;
        // The same attribute as IFLA_TARGET_NETNSID, by its first name.
        request.attributes.push(LinkAttribute::IfNetnsId(link.nsid));
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut raw = None;
        let asked = self.0.ask(RouteNetlinkMessage::GetLink(request), 0, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                raw = RawLink::parse(body);
            }
        });
        if none_if_gone(asked)?.is_none() {
            return Ok(None);
        }
        // The id may have come to mean another namespace since the link was read: the peer of our
        // link refers back to it.
        let is_pair = |raw: &RawLink| raw.link.unwrap_or(raw.ifindex) == link.ifindex;
        let Some(raw) = raw.filter(is_pair) else { return Ok(None) };
        let Some(addresses) = self.addresses(link)? else { return Ok(None) };
        Ok(Some(Peer { name: raw.name, mac: raw.mac, addresses }))
    }

    /// The addresses of the peer of `link`, sorted.
    fn addresses(&mut self, link: &Link) -> io::Result<Option<Vec<IpAddr>>> {
        let mut request = AddressMessage::default();
        request.header.index = link.peer_ifindex;
        request.attributes.push(AddressAttribute::TargetNetNsId(link.nsid));
        let mut addresses = Vec::new();
        let asked =
            self.0.ask(RouteNetlinkMessage::GetAddress(request), NLM_F_DUMP, |kind, body| {
                if kind == libc::RTM_NEWADDR
                    && let Some((peer_ifindex, address)) = parse_address(body)
                    && peer_ifindex == link.peer_ifindex
                {
                    addresses.push(address);
                }
            });
        addresses.sort_unstable();
        addresses.dedup();
        Ok(none_if_gone(asked)?.map(|_| addresses))
    }

    /// The addresses of this namespace.
    pub fn own_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        Ok(self.listed_addresses()?.into_iter().map(|listed| listed.address).collect())
    }

    /// The same with what decides which of them the kernel uses; those of an interface in its
    /// order.
    pub(crate) fn listed_addresses(&mut self) -> io::Result<Vec<OwnAddress>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut addresses = Vec::new();
        self.0.ask(request, NLM_F_DUMP, |kind, body| {
            if kind == libc::RTM_NEWADDR {
                addresses.extend(parse_own_address(body));
            }
        })?;
        Ok(addresses)
    }

    /// Where this namespace sends what is for `address`, if anywhere.
    pub(crate) fn route_to(&mut self, address: IpAddr) -> io::Result<Option<Route>> {
        let mut request = RouteMessage::default();
        let (family, length, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        (request.header.address_family, request.header.destination_prefix_length) =
            (family, length);
        request.attributes.push(RouteAttribute::Destination(destination));
        let mut route = None;
        let asked = self.0.ask(RouteNetlinkMessage::GetRoute(request), 0, |kind, body| {
            if kind == libc::RTM_NEWROUTE {
                route = parse_route(body);
            }
        });
        match asked {
            // There is none, or one that says so.
            Err(error) if error.raw_os_error().is_some_and(is_no_route) => Ok(None),
            asked => asked.map(|_| route),
        }
    }

    /// Which id `netns` has in our namespace, if it has one.
    pub(crate) fn nsid_of(&mut self, netns: impl AsFd) -> io::Result<Option<i32>> {
        let mut request = NsidMessage::default();
        let fd = netns.as_fd().as_raw_fd().cast_unsigned();
        request.attributes.push(NsidAttribute::Fd(fd));
        let mut nsid = None;
        self.0.ask(RouteNetlinkMessage::GetNsId(request), 0, |kind, body| {
            if kind == libc::RTM_NEWNSID {
                nsid = parse_nsid(body);
            }
        })?;
        Ok(nsid.filter(|&nsid| nsid >= 0))
    }
}

/// Receives one datagram into `buffer`.
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    buffer.reserve(BUFFER_LEN);
    loop {
        match socket.recv(buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.map(drop),
        }
    }
}

/// One message of a datagram.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The outcome that NLMSG_ERROR and NLMSG_DONE carry: a negated errno.
    fn status(&self) -> io::Result<()> {
        match u32_at(self.body, 0).map_or(0, u32::cast_signed) {
            0.. => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

/// The messages of a datagram.
pub(super) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        let message = self.0.get(..len)?;
        let (kind_flags, sequence) = (u32_at(message, 4)?, u32_at(message, 8)?);
        let [kind_low, kind_high, flags_low, flags_high] = kind_flags.to_ne_bytes();
        let body = message.get(NLMSG_HEADER_LEN..)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([kind_low, kind_high]),
            flags: u16::from_ne_bytes([flags_low, flags_high]),
            sequence,
            body,
        })
    }
}

/// The attributes of a link that we look at.
#[derive(Debug, Default)]
pub(super) struct RawLink {
    pub family: u8,
    pub ifindex: u32,
    device_type: u16,
    name: String,
    mac: Vec<u8>,
    kind: String,
    /// What it is a port of, and which kind of port that makes it.
    master: Option<u32>,
    port_kind: String,
    link: Option<u32>,
    link_nsid: Option<i32>,
}

impl RawLink {
    /// Of the body of RTM_NEWLINK or RTM_DELLINK.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (family, ifindex) = (*body.first()?, u32_at(body, 4)?);
        let device_type = u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?);
        let mut raw = Self { family, ifindex, device_type, ..Self::default() };
        for (kind, value) in Attributes(body.get(IFINFO_LEN..)?) {
            match kind {
                libc::IFLA_IFNAME => raw.name = text(value),
                libc::IFLA_ADDRESS => raw.mac = value.to_vec(),
                libc::IFLA_LINK => raw.link = u32_at(value, 0),
                libc::IFLA_LINK_NETNSID => raw.link_nsid = u32_at(value, 0).map(u32::cast_signed),
                libc::IFLA_MASTER => raw.master = u32_at(value, 0),
                libc::IFLA_LINKINFO => {
                    let kind = |which| attribute(value, 0, which).map(text).unwrap_or_default();
                    raw.kind = kind(IFLA_INFO_KIND);
                    raw.port_kind = kind(IFLA_INFO_SLAVE_KIND);
                }
                _ => {}
            }
        }
        Some(raw)
    }

    /// As a link by which packets can leave.
    fn as_exit(&self) -> Option<(u32, bool)> {
        let is_pair = matches!(self.kind.as_str(), "veth" | "netkit");
        let stays = self.device_type == ARPHRD_LOOPBACK || is_pair && self.link_nsid.is_none();
        (!stays).then(|| (self.ifindex, !HEADERLESS.contains(&self.device_type)))
    }

    fn switch(&self) -> Switch {
        match (self.master, self.port_kind.as_str()) {
            (None | Some(0), _) | (_, "vrf") => Switch::None,
            (Some(master), "bridge") => Switch::Bridge(master),
            (Some(master), _) => Switch::Other(master),
        }
    }

    /// As a link that may lead into a pod.
    fn into_pod_link(self) -> Option<Link> {
        let (nsid, switch) = (self.link_nsid?, self.switch());
        matches!(self.kind.as_str(), "veth" | "netkit").then_some(Link {
            ifindex: self.ifindex,
            name: self.name,
            mac: self.mac,
            nsid,
            // Before Linux 5.10 (rtnetlink: always put IFLA_LINK for links with a link-netnsid) it
            // is left out when both ends have the same index.
            peer_ifindex: self.link.unwrap_or(self.ifindex),
            switch,
        })
    }
}

/// Interface index and address of the body of RTM_NEWADDR or RTM_DELADDR.
pub(super) fn parse_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let OwnAddress { ifindex, address, .. } = parse_own_address(body)?;
    Some((ifindex, address))
}

fn parse_own_address(body: &[u8]) -> Option<OwnAddress> {
    let ifindex = u32_at(body, 4)?;
    let of = |kind| address_of(attribute(body, IFADDR_LEN, kind)?);
    // On a point-to-point interface IFA_ADDRESS is the other end and IFA_LOCAL our own.
    let address = of(libc::IFA_LOCAL).or_else(|| of(libc::IFA_ADDRESS))?;
    let peer = of(libc::IFA_ADDRESS).unwrap_or(address);
    let &[_, prefix_length, flags, scope] = body.first_chunk()?;
    Some(OwnAddress { ifindex, address, peer, prefix_length, scope, flags })
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    Some(match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    })
}

/// The way out of the body of RTM_NEWROUTE, if packets leave by it at all.
fn parse_route(body: &[u8]) -> Option<Route> {
    // `rtm_type`.
    if *body.get(7)? != libc::RTN_UNICAST {
        return None;
    }
    let ifindex = u32_at(attribute(body, RTMSG_LEN, libc::RTA_OIF)?, 0)?;
    let has = |kind| attribute(body, RTMSG_LEN, kind).is_some();
    Some(Route { ifindex, is_direct: !has(libc::RTA_GATEWAY) && !has(RTA_VIA) })
}

/// Error numbers of a question for a route that does not exist, or refuses.
fn is_no_route(error: i32) -> bool {
    let none = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ESRCH, libc::ENODEV];
    none.contains(&error) || [libc::EACCES, libc::EINVAL].contains(&error)
}

/// The nsid of the body of RTM_NEWNSID or RTM_DELNSID.
pub(super) fn parse_nsid(body: &[u8]) -> Option<i32> {
    u32_at(attribute(body, RTGEN_LEN, NETNSA_NSID)?, 0).map(u32::cast_signed)
}

/// Attributes as (type, value), up to the first malformed one.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?);
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    }
}

/// The value of the first attribute `kind` behind a fixed header.
fn attribute(body: &[u8], header_len: usize, kind: u16) -> Option<&[u8]> {
    Attributes(body.get(header_len..)?).find_map(|(this, value)| (this == kind).then_some(value))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A string attribute, which ends with a zero byte.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A link or namespace that vanished meanwhile is no error.
fn none_if_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // EINVAL: no such netnsid.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// An attribute, padded.
    fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// The body of a link message.
    fn link_body(ifindex: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; IFINFO_LEN];
        body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        body.extend(attributes.iter().flat_map(|(kind, value)| attribute_bytes(*kind, value)));
        body
    }

    fn pod_link(kind: &[u8], extra: &[(u16, &[u8])]) -> Option<Link> {
        const NLA_F_NESTED: u16 = 0x8000;
        let info = attribute_bytes(IFLA_INFO_KIND, kind);
        let mut attributes: Vec<(u16, &[u8])> =
            vec![(libc::IFLA_IFNAME, b"v1\0"), (libc::IFLA_LINKINFO | NLA_F_NESTED, &info)];
        attributes.extend(extra);
        RawLink::parse(&link_body(7, &attributes)).unwrap().into_pod_link()
    }

    #[test]
    fn only_pairs_that_lead_elsewhere_lead_into_pods() {
        let nsid: (u16, &[u8]) = (libc::IFLA_LINK_NETNSID, &3_i32.to_ne_bytes());
        let no_nsid: (u16, &[u8]) = (libc::IFLA_LINK_NETNSID, &(-1_i32).to_ne_bytes());
        let peer: (u16, &[u8]) = (libc::IFLA_LINK, &9_u32.to_ne_bytes());
        let expected = |peer_ifindex| {
            let (name, switch) = ("v1".into(), Switch::None);
            Some(Link { ifindex: 7, name, mac: vec![], nsid: 3, peer_ifindex, switch })
        };
        assert_eq!(pod_link(b"veth\0", &[nsid, peer]), expected(9));
        assert_eq!(pod_link(b"netkit\0", &[peer, nsid]), expected(9));
        assert_eq!(pod_link(b"veth\0", &[nsid]), expected(7), "equal indexes on an old kernel");
        assert_eq!(pod_link(b"veth\0", &[peer]), None, "both ends are here");
        let ending = expected(9).map(|link| Link { nsid: -1, ..link });
        assert_eq!(pod_link(b"veth\0", &[peer, no_nsid]), ending);
        assert_eq!(pod_link(b"vlan\0", &[nsid, peer]), None);
        assert_eq!(pod_link(b"macvlan\0", &[nsid, peer]), None);
    }

    #[test]
    fn ports_of_switches_are_told_from_parts_of_a_vrf() {
        let of = |port: &[u8]| {
            let info = [attribute_bytes(IFLA_INFO_KIND, b"veth\0"), attribute_bytes(4, port)];
            let attributes: [(u16, &[u8]); 3] = [
                (libc::IFLA_LINKINFO, &info.concat()),
                (libc::IFLA_MASTER, &12_u32.to_ne_bytes()),
                (libc::IFLA_LINK_NETNSID, &3_i32.to_ne_bytes()),
            ];
            RawLink::parse(&link_body(7, &attributes)).unwrap().into_pod_link().unwrap().switch
        };
        assert_eq!(of(b"bridge\0"), Switch::Bridge(12));
        assert_eq!(of(b"openvswitch\0"), Switch::Other(12));
        assert_eq!(of(b"vrf\0"), Switch::None);
    }

    #[test]
    fn truncated_messages_are_read_as_far_as_they_go() {
        let mut message = vec![0; NLMSG_HEADER_LEN];
        message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        message.extend(link_body(7, &[(libc::IFLA_IFNAME, b"v1\0"), (libc::IFLA_LINK, &[9, 0])]));
        let len = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&len.to_ne_bytes());
        let whole = [message.clone(), message.clone()].concat();
        assert_eq!(Messages(&whole).count(), 2);
        for cut in 0..message.len() {
            assert_eq!(Messages(&message[..cut]).count(), 0, "cut at {cut}");
            let body = &message[NLMSG_HEADER_LEN.min(cut)..cut];
            let name = RawLink::parse(body).map(|link| link.name).unwrap_or_default();
            assert!(name.is_empty() || name == "v1", "cut at {cut}");
        }
        let mut endless = message;
        endless[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(Messages(&endless).count(), 0, "a length of zero must end it");
    }
}
