//! What wakes the watcher: netlink groups, the netns directory, and requests of the program.
//!
//! Every source may fall silent, overflow or miss something: events only say what to look at
//! next, and what they are known to have lost makes the next look a thorough one. Must never pass
//! on an event's content as knowledge.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchDescriptor, WatchMask};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::netlink::{Messages, RawLink, parse_address, parse_nsid, receive};

/// Of linux/rtnetlink.h.
const RTNLGRP_NSID: u32 = 28;
/// Holds the notifications of some hundred links; the kernel caps it at net.core.rmem_max.
const EVENT_BUFFER_LEN: libc::c_int = 1 << 20;

/// What happened since the last look.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Links came, went or changed.
    pub links: bool,
    /// Filters, or what they hang on, went from links.
    pub filters: bool,
    /// Namespaces may have got a file by which they can be found.
    pub directory: bool,
    /// Events were lost: anything may have changed.
    pub lost: bool,
    /// Links that were deleted, or left our namespace.
    pub deleted_links: BTreeSet<u32>,
    /// Ids whose namespace is gone.
    pub deleted_nsids: BTreeSet<i32>,
    /// Addresses that a link with this index has got, in whichever namespace.
    pub added: BTreeSet<(u32, IpAddr)>,
    /// Addresses that a link with this index has lost, in whichever namespace.
    pub removed: BTreeSet<(u32, IpAddr)>,
}

/// All sources. They can be left out one by one, which only tests do.
pub(super) struct Events {
    pub links: Option<Socket>,
    pub addresses: Option<Socket>,
    pub directory: Option<Directory>,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes in the calling thread's namespace. Also returns what could not be subscribed
    /// to and can be done without.
    pub fn subscribe(netns_dir: &Path) -> io::Result<(Self, Vec<String>)> {
        let mut problems = Vec::new();
        let links = subscribe(&[libc::RTNLGRP_LINK, libc::RTNLGRP_TC, RTNLGRP_NSID])?;
        let addresses = subscribe_everywhere().map_err(|error| {
            problems.push(format!(
                "Cannot listen to address changes inside pods, their addresses are polled \
                 instead; give the agent CAP_NET_BROADCAST: {error}"
            ));
        });
        let directory = Directory::watch(netns_dir).map_err(|error| {
            problems.push(format!(
                "Cannot watch {} for new namespaces, it is polled instead; raise \
                 fs.inotify.max_user_instances and max_user_watches: {error}",
                netns_dir.display()
            ));
        });
        let events = Self {
            links: Some(links),
            addresses: addresses.ok(),
            directory: directory.ok(),
            buffer: Vec::new(),
        };
        Ok((events, problems))
    }

    /// Waits until there is something to read or `waker` was woken, `timeout` at most.
    pub fn wait(&self, waker: &Waker, timeout: Duration) -> io::Result<()> {
        let sources = [
            Some(waker.0.as_fd()),
            self.links.as_ref().map(AsFd::as_fd),
            self.addresses.as_ref().map(AsFd::as_fd),
            self.directory.as_ref().map(|directory| directory.inotify.as_fd()),
        ];
        let mut fds: Vec<PollFd<'_>> = sources
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec::try_from(timeout).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes up for events about the netns directory that may have been lost.
    pub fn refresh(&mut self) {
        if let Some(directory) = &mut self.directory
            && let Err(error) = directory.arm()
        {
            tracing::warn!(%error, path = %directory.path.display(), "Cannot watch for namespaces");
        }
    }

    /// Reads everything there is into `changes`, without waiting.
    pub fn drain(&mut self, changes: &mut Changes) {
        if let Some(socket) = &self.links {
            drain(socket, &mut self.buffer, changes, record_link_event);
        }
        if let Some(socket) = &self.addresses {
            drain(socket, &mut self.buffer, changes, record_address_event);
        }
        if let Some(directory) = &mut self.directory
            && directory.drain()
        {
            changes.directory = true;
        }
    }
}

/// Wakes a waiting thread from another one.
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    /// A waker that has not been woken.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// Ends the next, or the current, [`Events::wait`].
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the thread is about to wake.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it sleep again.
    pub fn reset(&self) {
        // It fails only when nobody has woken it.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// A socket that gets what the kernel says in `groups`.
fn subscribe(groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.set_rx_buf_sz(EVENT_BUFFER_LEN)?;
    for &group in groups {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

/// A socket that gets the address changes of all namespaces that have an id in ours.
fn subscribe_everywhere() -> io::Result<Socket> {
    let socket = subscribe(&[libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR])?;
    socket.set_listen_all_namespaces(true)?;
    Ok(socket)
}

/// Reads all that `socket` holds, message by message.
fn drain(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    changes: &mut Changes,
    note: impl Fn(&mut Changes, u16, &[u8]),
) {
    loop {
        match receive(socket, buffer) {
            Ok(()) => {
                Messages(buffer).for_each(|message| note(changes, message.kind, message.body));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // ENOBUFS: the kernel dropped events. It clears the error by reporting it.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changes.lost = true,
            Err(error) => {
                tracing::warn!(%error, socket = socket.as_raw_fd(), "Cannot read netlink events");
                changes.lost = true;
                return;
            }
        }
    }
}

fn record_link_event(changes: &mut Changes, kind: u16, body: &[u8]) {
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => match RawLink::parse(body) {
            // A bridge announces its ports in its own family: a link that leaves a bridge is
            // "deleted" there and still exists.
            Some(link) if i32::from(link.family) != libc::AF_UNSPEC => {}
            Some(link) => {
                changes.links = true;
                if kind == libc::RTM_DELLINK {
                    changes.deleted_links.insert(link.ifindex);
                }
            }
            None => changes.lost = true,
        },
        libc::RTM_DELQDISC | libc::RTM_DELTFILTER => changes.filters = true,
        libc::RTM_DELNSID => {
            changes.links = true;
            match parse_nsid(body) {
                Some(nsid) => drop(changes.deleted_nsids.insert(nsid)),
                None => changes.lost = true,
            }
        }
        _ => {}
    }
}

fn record_address_event(changes: &mut Changes, kind: u16, body: &[u8]) {
    let set = match kind {
        libc::RTM_NEWADDR => &mut changes.added,
        libc::RTM_DELADDR => &mut changes.removed,
        _ => return,
    };
    set.extend(parse_address(body));
}

/// An inotify watch on a directory that may come and go.
pub(super) struct Directory {
    path: PathBuf,
    inotify: Inotify,
    /// Where the watch is: on `path` or, while that does not exist, on its nearest existing
    /// ancestor.
    current: Option<(PathBuf, WatchDescriptor)>,
}

impl Directory {
    fn watch(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let mut directory = Self { path, inotify: Inotify::init()?, current: None };
        directory.arm()?;
        Ok(directory)
    }

    /// Moves the watch to where it belongs now.
    pub fn arm(&mut self) -> io::Result<()> {
        loop {
            let (place, watch) = self.watch_nearest()?;
            // What lies on the way may have been created before the watch began.
            let child = self.path.ancestors().take_while(|path| *path != place).last();
            let done = !child.is_some_and(Path::exists);
            if let Some((_, old)) = self.current.replace((place, watch.clone()))
                && old != watch
            {
                // It fails if what it watched is gone, and the watch with it.
                let _ = self.inotify.watches().remove(old);
            }
            if done {
                return Ok(());
            }
        }
    }

    fn watch_nearest(&self) -> io::Result<(PathBuf, WatchDescriptor)> {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        for place in self.path.ancestors() {
            match self.inotify.watches().add(place, mask) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return Ok((place.to_owned(), result?)),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Reads all events; whether one of them was about the directory itself.
    fn drain(&mut self) -> bool {
        let mut any = false;
        let mut buffer = [0; 4096];
        while let Ok(mut events) = self.inotify.read_events(&mut buffer) {
            any |= events.next().is_some();
        }
        if any && let Err(error) = self.arm() {
            tracing::warn!(%error, path = %self.path.display(), "Cannot watch for namespaces");
        }
        any && self.current.as_ref().is_some_and(|(place, _)| *place == self.path)
    }
}
