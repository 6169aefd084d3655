//! Frames out of a pod by a socket that hears nothing. Must never hide that the kernel refused one.

use std::os::fd::OwnedFd;

use netpol_isolation::netns::Netns;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrAny};

use crate::lab::Pod;
use crate::lab::wire::{Wire, packet_socket};

/// A packet socket at a pod's `eth0`.
pub struct Sender {
    socket: OwnedFd,
    interface: SocketAddrAny,
    /// The link-layer address of `eth0`.
    pub link: [u8; 6],
}

impl Sender {
    pub fn of(pod: &Pod) -> Self {
        Self::at(&pod.netns, pod.wire())
    }

    /// At the `eth0` that the wire is of.
    pub fn at(netns: &Netns, wire: &Wire) -> Self {
        let socket = netns.run(|| packet_socket(0)).unwrap();
        Self { socket, interface: wire.interface().clone(), link: wire.own_address() }
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8]) {
        self.offer(frame).unwrap_or_else(|error| {
            panic!("the kernel refuses a frame of {} bytes: {error}", frame.len())
        });
    }

    /// The same, or why the kernel of the sender's own namespace does not take it.
    pub fn offer(&self, frame: &[u8]) -> Result<(), Errno> {
        match rustix::net::sendto(&self.socket, frame, SendFlags::empty(), &self.interface) {
            // The other end had no use for it: whoever looks there tells why.
            Ok(_) | Err(Errno::NOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
