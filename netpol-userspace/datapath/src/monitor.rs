//! Reads events. Programs write them only while someone holds a lease; one reader at a time,
//! since the ring has one read position.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, RingBuf};
use netpol_common::layout::{Event, names};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes as _;

use super::clock::clock;
use super::error::{DatapathError, io_error};
use super::maps::Maps;
use super::pinned::open;
use super::pins::Pins;
use crate::lock::Lock;

/// A lease lasts this many ticks (a few seconds); renew it about once a second.
const LEASE_TICKS: u64 = 16;

/// The event ring, with the lease that makes programs write to it.
pub struct Monitor {
    maps: Maps,
    ring: RingBuf<MapData>,
    has_flows: bool,
    _lock: Lock,
}

impl Monitor {
    /// Opens the ring for drops, and for new flows if `has_flows`.
    pub fn open(pins: &Pins, has_flows: bool) -> Result<Self, DatapathError> {
        let maps = Maps::open(pins, false)?;
        // A pinned map cannot be locked; its directory can.
        let path = pins.map(names::EVENTS).with_file_name("");
        let lock = File::open(&path).map_err(io_error(format!("open {}", path.display())))?;
        let lock = Lock::take(lock)
            .map_err(io_error(format!("lock {}", path.display())))?
            .ok_or_else(|| {
                DatapathError::Missing(
                    "another `netpol monitor` is reading the events of this node: stop it first"
                        .into(),
                )
            })?;
        let mut monitor = Self { maps, ring: open(pins, names::EVENTS)?, has_flows, _lock: lock };
        // What an earlier reader left unread is not news.
        while monitor.next_event().is_some() {}
        monitor.renew();
        Ok(monitor)
    }

    /// Extends the lease: call it about once a second.
    pub fn renew(&self) {
        let until = clock().now + LEASE_TICKS;
        self.maps.control.report_drops_until(until);
        if self.has_flows {
            self.maps.control.report_flows_until(until);
        }
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.ring.next()?;
        Event::read_from_prefix(&item).ok().map(|(event, _)| event)
    }

    /// Becomes readable when events arrive in an empty ring. Needs a tokio runtime.
    pub fn arrivals(&self) -> Result<AsyncFd<OwnedFd>, DatapathError> {
        let what = "watch the event ring";
        let fd = self.ring.as_fd().try_clone_to_owned().map_err(io_error(what))?;
        // SAFETY: an OwnedFd is open, and the same descriptor, until it is dropped.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|error| io_error(what)(error.into()))
    }

    /// The maps, for names of what events mention.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.maps.control.report_drops_until(0);
        self.maps.control.report_flows_until(0);
    }
}
