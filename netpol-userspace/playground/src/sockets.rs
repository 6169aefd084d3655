//! Sockets as servers and probes need them, made inside a namespace. Must never block: every
//! socket is handed to the runtime.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

use super::sctp;

/// A raw SCTP socket bound to this address, and connected if a peer is given: it then receives
/// from that peer alone. std has no type for raw sockets, but its `UdpSocket` only sends and
/// receives datagrams on whatever socket it is given; ports are 0 and mean nothing.
pub fn sctp(local: IpAddr, peer: Option<IpAddr>) -> io::Result<UdpSocket> {
    let socket = open(local, SocketType::RAW, Some(u32::from(sctp::PROTOCOL)))?;
    rustix::net::bind(&socket, &SocketAddr::new(local, 0))?;
    if let Some(peer) = peer {
        rustix::net::connect(&socket, &SocketAddr::new(peer, 0))?;
    }
    Ok(socket.into())
}

/// A UDP socket bound to this address, and connected if a peer is given.
pub fn udp(local: SocketAddr, peer: Option<SocketAddr>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    if let Some(peer) = peer {
        socket.connect(peer)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A TCP server.
pub(crate) fn tcp_listener(local: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = open(local.ip(), SocketType::STREAM, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &local)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(socket.into())
}

/// A TCP connection that has been started: the first SYN is on its way when this returns.
pub(crate) fn tcp_connecting(local: IpAddr, peer: SocketAddr) -> io::Result<std::net::TcpStream> {
    let socket = open(local, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(local, 0))?;
    match rustix::net::connect(&socket, &peer) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(errno) => Err(errno.into()),
    }
}

fn open(local: IpAddr, kind: SocketType, protocol: Option<u32>) -> io::Result<OwnedFd> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = protocol.and_then(std::num::NonZeroU32::new).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, kind, flags, protocol)?)
}
