//! Finds the files through which other network namespaces can be opened.
//!
//! Looks into the netns directory, where container runtimes and `ip netns` keep theirs, and at
//! every process. Opens a namespace only for the moment in which the kernel says which id it has.
//! What vanishes while we look was not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::PodNetns;
use super::netlink::Rtnl;
use netpol_isolation::netns::{Netns, NetnsId};

/// Finds the namespaces with the ids `wanted`, as far as there are files for them. `known` are
/// those that need not be looked at again.
pub(super) fn find(
    rtnl: &mut Rtnl,
    netns_dir: &Path,
    mut wanted: BTreeSet<i32>,
    known: &BTreeMap<i32, PodNetns>,
) -> BTreeMap<i32, PodNetns> {
    let mut seen: BTreeSet<NetnsId> = known.values().map(|netns| netns.id).collect();
    // Our own, which most processes of the host are in.
    seen.extend(NetnsId::of_path("/proc/thread-self/ns/net").ok());
    let mut found = BTreeMap::new();
    for path in named(netns_dir).chain(of_processes()) {
        if wanted.is_empty() {
            break;
        }
        let is_new = NetnsId::of_path(&path).is_ok_and(|id| !seen.contains(&id));
        if is_new && let Some((nsid, netns)) = identify(rtnl, &path) {
            seen.insert(netns.id);
            if nsid.is_some_and(|nsid| wanted.remove(&nsid)) {
                found.extend(nsid.map(|nsid| (nsid, netns)));
            }
        }
    }
    found
}

/// Whether `netns` can still be found by its file and still has this id.
pub(super) fn verify(rtnl: &mut Rtnl, nsid: i32, netns: &PodNetns) -> bool {
    identify(rtnl, &netns.path)
        .is_some_and(|(now_nsid, now)| now_nsid == Some(nsid) && now.id == netns.id)
}

/// The network namespace at `path`, and its id in ours if it has one.
fn identify(rtnl: &mut Rtnl, path: &Path) -> Option<(Option<i32>, PodNetns)> {
    let netns = Netns::open(path).ok()?;
    let nsid = rtnl.nsid_of(&netns).ok()?;
    Some((nsid, PodNetns { id: netns.id(), path: path.into() }))
}

/// Everything in the netns directory, in a fixed order so that the choice among names is stable.
fn named(netns_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(netns_dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths.into_iter()
}

/// The namespace files of all processes.
fn of_processes() -> impl Iterator<Item = PathBuf> {
    // Read only when the directory did not suffice.
    std::iter::once_with(|| fs::read_dir("/proc"))
        .flatten()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"))
}
