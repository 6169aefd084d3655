//! One look at the kernel, reusing what earlier looks learned.
//!
//! A [`Scanner`] asks only what may have changed: it dumps the links, reads the peers it does not
//! know, and looks for the files of namespaces that have none yet. Must never report a link as
//! gone because a question failed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::events::Changes;
use super::netlink::{Link, Peer, Rtnl};
use super::{Exit, Interface, PodNetns, find};
use netpol_isolation::netns::NetnsId;

/// For so long after it appeared, an interface's addresses are read again when an address changed
/// somewhere on a peer with its index. Later only the thorough look does.
const SETTLING: Duration = Duration::from_secs(30);

/// What a look covers, beside what the changes say.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Dump the links.
    pub links: bool,
    /// Look for the files of namespaces that have none.
    pub namespaces: bool,
    /// Believe nothing: dump the links, read every peer, verify every namespace.
    pub everything: bool,
    /// Read the peers of these links again.
    pub peers: BTreeSet<u32>,
}

/// A link we know.
struct KnownLink {
    link: Link,
    incarnation: u64,
    since: Instant,
    /// Seconds since the epoch at which it was first seen.
    appeared: i64,
    peer: Option<Peer>,
}

impl KnownLink {
    /// The peer's namespace is about to end, and the link with it; the id may already mean another
    /// one. What is known of the link stays true: it must be enforced for as long as it exists.
    fn end(&mut self) {
        self.link.nsid = -1 - self.link.ifindex.cast_signed();
    }

    fn is_ending(&self) -> bool {
        self.link.nsid < 0
    }

    fn has(&self, address: &IpAddr) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.addresses.contains(address))
    }
}

/// What we know.
pub(super) struct Scanner {
    rtnl: Rtnl,
    netns_dir: PathBuf,
    known: BTreeMap<u32, KnownLink>,
    namespaces: BTreeMap<i32, PodNetns>,
    exits: BTreeMap<u32, Exit>,
    own_addresses: BTreeSet<IpAddr>,
    n_incarnations: u64,
    /// The first failure of the last look.
    problem: Option<String>,
}

impl Scanner {
    /// A scanner for the calling thread's namespace that knows nothing yet.
    pub fn new(netns_dir: PathBuf) -> io::Result<Self> {
        Ok(Self {
            rtnl: Rtnl::open()?,
            netns_dir,
            known: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            exits: BTreeMap::new(),
            own_addresses: BTreeSet::new(),
            n_incarnations: 0,
            problem: None,
        })
    }

    /// Takes a look.
    pub fn scan(&mut self, changes: &Changes, scope: &Scope) {
        self.problem = None;
        let everything = scope.everything || changes.lost;
        self.forget(changes);
        if scope.links || changes.links || changes.directory || everything {
            self.scan_links(changes.lost);
        }
        if everything || !changes.added.is_empty() || !changes.removed.is_empty() {
            self.scan_own_addresses();
        }
        self.scan_peers(changes, scope, everything);
        if everything {
            let rtnl = &mut self.rtnl;
            self.namespaces.retain(|&nsid, netns| find::verify(rtnl, nsid, netns));
        }
        if scope.namespaces || scope.links || changes.links || changes.directory || everything {
            self.scan_namespaces(changes.directory || everything);
        }
    }

    /// All interfaces, by ifindex.
    pub fn interfaces(&self) -> Vec<Interface> {
        self.known.values().map(|known| self.interface(known)).collect()
    }

    /// All interfaces by which packets can leave, by ifindex.
    pub fn exits(&self) -> Vec<Exit> {
        self.exits.values().cloned().collect()
    }

    /// The addresses of this node itself.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.own_addresses.clone()
    }

    /// What went wrong in the last look.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Interfaces (ifindex, incarnation) that another look may well tell more about.
    pub fn unfinished(&self) -> BTreeSet<(u32, u64)> {
        let is_finished = |known: &KnownLink| {
            let has_address = known.peer.as_ref().is_some_and(has_address);
            known.is_ending() || has_address && self.namespaces.contains_key(&known.link.nsid)
        };
        let unfinished = self.known.values().filter(|known| !is_finished(known));
        unfinished.map(|known| (known.link.ifindex, known.incarnation)).collect()
    }

    /// Drops what events say has ended, even if something that looks the same exists by now.
    fn forget(&mut self, changes: &Changes) {
        for ifindex in &changes.deleted_links {
            self.known.remove(ifindex);
            self.exits.remove(ifindex);
        }
        for nsid in &changes.deleted_nsids {
            self.namespaces.remove(nsid);
            self.known
                .values_mut()
                .filter(|known| known.link.nsid == *nsid)
                .for_each(KnownLink::end);
        }
    }

    /// `lost`: deletions may be among the events that were lost.
    fn scan_links(&mut self, lost: bool) {
        let links = match self.rtnl.links() {
            Ok(links) => links,
            Err(error) => return self.note("Cannot list the interfaces of this node", &error),
        };
        self.record_exits(&links.exits);
        let mut before = std::mem::take(&mut self.known);
        for link in links.pods {
            let known = match before.remove(&link.ifindex) {
                Some(mut known) if link.nsid < 0 => {
                    known.end();
                    known
                }
                None if link.nsid < 0 => continue,
                // The node's end has an address of its own, by which a successor with the same
                // index is told that nobody has announced.
                Some(known) if lost && known.link.mac != link.mac => self.begin(link),
                // Its name may have changed, it is the same link.
                Some(known) if known.link.leads_where(&link) => KnownLink { link, ..known },
                // Whoever may configure the other end may move it to another namespace. It is the
                // same link all the same, and what is enforced on it is.
                Some(known) => KnownLink { link, peer: None, since: Instant::now(), ..known },
                None => self.begin(link),
            };
            self.known.insert(known.link.ifindex, known);
        }
    }

    fn record_exits(&mut self, exits: &[(u32, bool)]) {
        let mut before = std::mem::take(&mut self.exits);
        for &(ifindex, has_link_header) in exits {
            let known = before.remove(&ifindex);
            let known = known.filter(|exit| exit.has_link_header == has_link_header);
            let exit = known.unwrap_or_else(|| {
                self.n_incarnations += 1;
                Exit { ifindex, incarnation: self.n_incarnations, has_link_header }
            });
            self.exits.insert(ifindex, exit);
        }
    }

    fn scan_own_addresses(&mut self) {
        match self.rtnl.own_addresses() {
            Ok(addresses) => self.own_addresses = addresses,
            Err(error) => self.note("Cannot list the addresses of this node", &error),
        }
    }

    fn begin(&mut self, link: Link) -> KnownLink {
        self.n_incarnations += 1;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        KnownLink {
            link,
            incarnation: self.n_incarnations,
            since: Instant::now(),
            appeared: now.as_secs().cast_signed(),
            peer: None,
        }
    }

    /// The peer indexes for which an address came up that no interface with such a peer has yet.
    /// The kernel announces an address again when it has checked it or its lifetime changes.
    fn indexes_with_new_addresses(&self, changes: &Changes) -> BTreeSet<u32> {
        let is_known = |index, address| {
            let mut peers = self.known.values().filter(|known| known.link.peer_ifindex == index);
            peers.any(|known| known.has(address))
        };
        let new = changes.added.iter().filter(|(index, address)| !is_known(*index, address));
        new.map(|(index, _)| *index).collect()
    }

    fn scan_peers(&mut self, changes: &Changes, scope: &Scope, everything: bool) {
        let mut failure = None;
        let added = self.indexes_with_new_addresses(changes);
        for known in self.known.values_mut() {
            let index = known.link.peer_ifindex;
            let must = everything
                || scope.peers.contains(&known.link.ifindex)
                || known.peer.as_ref().is_none_or(|peer| !has_address(peer))
                || added.contains(&index) && known.since.elapsed() < SETTLING
                || changes.removed.iter().any(|(of, address)| *of == index && known.has(address));
            if !must || known.is_ending() {
                continue;
            }
            match self.rtnl.peer(&known.link) {
                Ok(peer) => known.peer = peer,
                Err(error) => failure = Some((known.link.name.clone(), error)),
            }
        }
        if let Some((name, error)) = failure {
            let what = format!(
                "Cannot read the addresses of the pod behind interface {name}; \
                 the agent needs CAP_NET_ADMIN over the pod's network namespace"
            );
            self.note(&what, &error);
        }
    }

    /// Looks for the files of namespaces that have none yet, and if `better` may exist also of
    /// those that were found by a process: that may end before its namespace does.
    fn scan_namespaces(&mut self, better: bool) {
        let lasting = self.known.values().filter(|known| !known.is_ending());
        let in_use: BTreeSet<i32> = lasting.map(|known| known.link.nsid).collect();
        self.namespaces.retain(|nsid, netns| {
            let is_good = || NetnsId::of_path(&netns.path).is_ok_and(|id| id == netns.id);
            let is_process = netns.path.starts_with("/proc");
            in_use.contains(nsid) && (!is_process || !better && is_good())
        });
        let wanted: BTreeSet<i32> =
            in_use.into_iter().filter(|nsid| !self.namespaces.contains_key(nsid)).collect();
        if !wanted.is_empty() {
            let found = find::find(&mut self.rtnl, &self.netns_dir, wanted, &self.namespaces);
            self.namespaces.extend(found);
        }
    }

    fn interface(&self, known: &KnownLink) -> Interface {
        let peer = known.peer.clone().unwrap_or_default();
        Interface {
            ifindex: known.link.ifindex,
            name: known.link.name.clone(),
            incarnation: known.incarnation,
            nsid: known.link.nsid,
            netns: self.namespaces.get(&known.link.nsid).cloned(),
            peer_ifindex: known.link.peer_ifindex,
            peer_name: peer.name,
            addresses: peer.addresses,
            link_address: peer.mac.try_into().ok(),
            switch: known.link.switch,
            appeared: known.appeared,
        }
    }

    /// Keeps the first problem: the next ones are mostly its consequences.
    fn note(&mut self, what: &str, error: &io::Error) {
        self.problem.get_or_insert_with(|| format!("{what}: {error}"));
    }
}

/// Whether the peer has an address by which a pod can be recognised.
fn has_address(peer: &Peer) -> bool {
    !peer.addresses.iter().all(is_link_local)
}

/// Whether `address` means something on its own link only, so that no pod is known by it.
pub(super) fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
