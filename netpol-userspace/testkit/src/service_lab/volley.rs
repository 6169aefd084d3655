//! Many connections at once, and what became of each. Must never wait for something not to
//! happen: a lost packet is one that somebody counted.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use netpol_isolation::netns::Netns;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::backend::{NAME, name_in};
use crate::world::PATIENCE;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Udp, Self::Tcp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What is sent in each.
const QUESTION: &[u8; 8] = b"who is't";

/// One connection, from a port of its own.
pub struct Shot {
    state: State,
    /// Where it comes from.
    pub local: SocketAddr,
    /// The server's name, or how it failed.
    pub outcome: Option<Result<String, String>>,
}

enum State {
    Udp(UdpSocket),
    Connecting(TcpStream),
    Asked(TcpStream, Vec<u8>),
}

/// Ports for clients, none of which comes twice: what is known of an earlier connection, here and
/// in the kernel's tables, says nothing about a new one.
pub struct Ports(AtomicU16);

impl Ports {
    pub const fn new() -> Self {
        Self(AtomicU16::new(1024))
    }

    /// How many have been given out.
    pub fn used(&self) -> u16 {
        self.0.load(Ordering::Relaxed) - 1024
    }

    fn next(&self) -> u16 {
        let port = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(port >= 1024, "all ports have been used");
        port
    }

    /// Makes a socket that is bound to a port that nobody in this namespace has.
    pub fn bound<T>(&self, bind: impl Fn(u16) -> std::io::Result<T>) -> T {
        loop {
            match bind(self.next()) {
                Ok(socket) => return socket,
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => panic!("cannot bind: {error}"),
            }
        }
    }
}

/// Starts so many connections to an address.
pub fn fire(
    from: &Netns,
    ports: &Ports,
    to: SocketAddr,
    protocol: Protocol,
    count: usize,
) -> Vec<Shot> {
    from.run(|| (0..count).map(|_| Shot::fire(ports, to, protocol)).collect()).unwrap()
}

impl Shot {
    fn fire(ports: &Ports, to: SocketAddr, protocol: Protocol) -> Self {
        match protocol {
            Protocol::Udp => {
                let socket = ports.bound(|port| UdpSocket::bind(any(to, port)));
                socket.connect(to).unwrap();
                socket.set_nonblocking(true).unwrap();
                let local = socket.local_addr().unwrap();
                socket.send(QUESTION).unwrap();
                Self { state: State::Udp(socket), local, outcome: None }
            }
            Protocol::Tcp => {
                let stream = connecting_from(ports, to);
                let local = stream.local_addr().unwrap();
                Self { state: State::Connecting(stream), local, outcome: None }
            }
        }
    }

    /// Ends an answered connection in good order. Nothing of it is on its way any more: what was,
    /// could be dropped, and counted, when the policies are others.
    pub fn end(&self) {
        if let (State::Asked(stream, _), Some(Ok(_))) = (&self.state, &self.outcome) {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let rest = (&mut &*stream).read(&mut [0; 8]).expect("the server ends it, too");
            assert_eq!(rest, 0, "nothing was asked");
        }
    }

    /// Asks once more, by the same socket.
    pub fn repeat(&self) {
        let State::Udp(socket) = &self.state else { panic!("TCP repeats by itself") };
        socket.send(QUESTION).unwrap();
    }

    /// Looks what has happened.
    pub fn poll(&mut self) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = match self.step() {
            Ok(None) => None,
            Ok(Some(answer)) => Some(Ok(answer)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error.to_string())),
        };
    }

    fn step(&mut self) -> std::io::Result<Option<String>> {
        let mut buffer = [0; 256];
        if let State::Connecting(stream) = &mut self.state {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            if stream.peer_addr().is_err() {
                return Ok(None);
            }
            stream.write_all(QUESTION)?;
            self.state = State::Asked(stream.try_clone()?, Vec::new());
        }
        match &mut self.state {
            State::Udp(socket) => {
                let length = socket.recv(&mut buffer)?;
                Ok(Some(name_in(&buffer[..length])))
            }
            State::Asked(stream, heard) => {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                heard.extend(&buffer[..length]);
                Ok((heard.len() >= NAME + QUESTION.len()).then(|| name_in(heard)))
            }
            State::Connecting(_) => Ok(None),
        }
    }
}

pub fn any(family_of: SocketAddr, port: u16) -> SocketAddr {
    let address: IpAddr = match family_of {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    (address, port).into()
}

/// A connection that has been started and that nobody waits for.
pub fn connecting_from(ports: &Ports, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = ports.bound(|port| {
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &any(to, port))?;
        Ok(socket)
    });
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => socket.into(),
        Err(error) => panic!("cannot connect to {to}: {error}"),
    }
}
