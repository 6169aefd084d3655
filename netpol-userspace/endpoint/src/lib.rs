//! Endpoint discovery: which interfaces of this node lead into which pods.
//!
//! Knows no CNI: a pod's interface is a veth or netkit device in the agent's own network
//! namespace whose peer is in another one. [`Watcher`] keeps the list of those [`Interface`]s
//! current, [`matching`] says which pod each belongs to. Nothing here may hold a pod's namespace
//! open (its interfaces would outlive the pod), change anything in the kernel, or decide what is
//! enforced.

#![forbid(unsafe_code)]

mod events;
mod find;
mod masquerade;
pub mod matching;
mod netlink;
mod routes;
mod scan;
pub mod sockets;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

pub use masquerade::masquerades;
pub use matching::{Claim, Endpoint, Evidence, Finding, Holder, Matching, Pinned, match_pods};
pub use netlink::Route;
pub use routes::Routes;
pub use watch::{Options, Watcher};

use netpol_isolation::netns::{Netns, NetnsId};

/// A host-side interface whose peer is in another network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index in the agent's namespace.
    pub ifindex: u32,
    /// Its name, which may change while it exists.
    pub name: String,
    /// Numbers the links that this watcher has seen: a later link that got the same index has
    /// another number. The same link keeps it, whatever is done to it or its peer.
    pub incarnation: u64,
    /// The kernel's number, in the agent's namespace, of the namespace that the peer is in.
    /// Interfaces with the same number lead to the same namespace. Negative, and different for
    /// each interface, when the namespace is ending and the interface about to vanish.
    pub nsid: i32,
    /// That namespace, if a file was found through which it can be opened. Finding and enforcing
    /// an endpoint does not need it.
    pub netns: Option<PodNetns>,
    /// The peer's index in that namespace.
    pub peer_ifindex: u32,
    /// The peer's name there; empty until it could be read.
    pub peer_name: String,
    /// The peer's addresses, sorted, link-local ones included; empty until they could be read.
    pub addresses: Vec<IpAddr>,
    /// The peer's link-layer address, if it has one and it could be read.
    pub link_address: Option<[u8; 6]>,
    /// The switch that this end is a port of.
    pub switch: Switch,
    /// When it was first seen, in seconds since the epoch.
    pub appeared: i64,
}

/// What an interface is a port of, so that others share its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Switch {
    /// Nothing: the node routes what comes in by it (also where it belongs to a VRF).
    #[default]
    None,
    /// A bridge of the kernel, by its index.
    Bridge(u32),
    /// Another switch, as Open vSwitch, by the index of its device.
    Other(u32),
}

/// A namespace that some file refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetns {
    /// Which namespace it is.
    pub id: NetnsId,
    /// A file that leads to it: in the netns directory, or /proc/PID/ns/net.
    pub path: Arc<Path>,
}

impl PodNetns {
    /// Opens it, unless the file leads elsewhere by now. Close it soon: it keeps the pod's
    /// interfaces alive.
    pub fn open(&self) -> io::Result<Netns> {
        let netns = Netns::open(&self.path)?;
        if netns.id() == self.id {
            return Ok(netns);
        }
        let message =
            format!("{} leads to {} and no longer to {}", self.path.display(), netns.id(), self.id);
        Err(io::Error::new(io::ErrorKind::NotFound, message))
    }
}

/// The index of the interface `name` of a namespace and that of its other end, if it is a veth or
/// netkit device with its other end in another namespace. An interface that does not exist is an
/// error of kind `NotFound`.
pub fn pair_in(netns: &Netns, name: &str) -> io::Result<Option<(u32, u32)>> {
    let look = || -> io::Result<_> {
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        name_to_index(&any, name).map_err(|_| {
            let message = format!("there is no interface {name} in it");
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        netlink::Rtnl::open()?.links()
    };
    let links = netns.run(look)??;
    let link = links.pods.into_iter().find(|link| link.name == name);
    Ok(link.map(|link| (link.ifindex, link.peer_ifindex)))
}

/// An interface by which packets can leave this network namespace: any but loopback, and but the
/// pairs whose other end is here too, behind which the packet is still to come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its index.
    pub ifindex: u32,
    /// As [`Interface::incarnation`], among exits.
    pub incarnation: u64,
    /// Whether its packets have a link-layer header.
    pub has_link_header: bool,
}

/// What a [`Watcher`] knows at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All interfaces that lead to other namespaces, by ifindex.
    pub interfaces: Vec<Interface>,
    /// All interfaces by which packets can leave, by ifindex.
    pub exits: Vec<Exit>,
    /// The addresses of this node itself.
    pub own_addresses: BTreeSet<IpAddr>,
    /// How often the kernel has told that filters, or what they hang on, went from interfaces.
    pub n_filter_losses: u64,
    /// What keeps discovery from being complete or quick, each a sentence for a person.
    pub problems: Vec<String>,
}
