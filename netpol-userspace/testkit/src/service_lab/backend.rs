//! Servers that say who they are and count what reaches them. Must never answer for another.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netpol_isolation::netns::Netns;
use rustix::net::RecvFlags;

use crate::lab::Pod;
use crate::lab::wire::{EVERYTHING, packet_socket};

/// Every answer begins with the server's name in so many bytes.
pub const NAME: usize = 16;
/// How often a server looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);

/// Answers TCP and UDP on some ports with its name and what it was sent, until dropped.
pub struct Backend {
    pub name: String,
    /// Of each family one, as the EndpointSlices have them.
    pub addresses: Vec<IpAddr>,
    /// 1 or 2; none if it is no part of the cluster.
    pub node: Option<usize>,
    /// Whose interface may drop what is sent to it.
    pub pod: Option<Arc<Pod>>,
    /// Where nobody else receives anything.
    tap: Option<Tap>,
    heard: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Starts it in `netns`, on these ports of all addresses there (`own`) or, among other
    /// servers, of its own addresses.
    pub fn start(
        name: &str,
        netns: &Netns,
        own: bool,
        addresses: &[IpAddr],
        node: Option<usize>,
        ports: &[u16],
    ) -> Self {
        let mut backend = Self {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            node,
            pod: None,
            tap: own.then(|| Tap::open(netns, addresses)),
            heard: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for &port in ports {
            for &address in addresses {
                let any: IpAddr = match address {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let listening = SocketAddr::new(if own { any } else { address }, port);
                backend.listen(netns, listening);
            }
        }
        backend
    }

    fn listen(&mut self, netns: &Netns, address: SocketAddr) {
        let sockets = || (listener(address), datagrams(address));
        let (tcp, udp) = netns.run(sockets).unwrap();
        for work in [
            Box::new({
                let shared = self.shared();
                move || accept(&tcp, &shared)
            }) as Box<dyn FnOnce() + Send>,
            Box::new({
                let shared = self.shared();
                move || answer(&udp, &shared)
            }),
        ] {
            self.threads.push(thread::spawn(work));
        }
    }

    fn shared(&self) -> Shared {
        let mut name = [b' '; NAME];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        Shared { name, heard: self.heard.clone(), stop: self.stop.clone() }
    }

    /// How many connections and datagrams have reached it, also to ports nobody listens on, where
    /// it has a namespace of its own; else what its servers have received.
    pub fn heard(&self) -> u64 {
        match &self.tap {
            Some(tap) => tap.count(),
            None => self.heard.load(Ordering::SeqCst),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Shared {
    name: [u8; NAME],
    heard: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Of one family only, so that both can listen on a port.
fn socket(address: SocketAddr, kind: rustix::net::SocketType) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).unwrap();
    }
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    // accept() heeds it as well.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TICK)).unwrap();
    rustix::net::bind(&socket, &address).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket = socket(address, rustix::net::SocketType::STREAM);
    rustix::net::listen(&socket, 256).unwrap();
    socket.into()
}

fn datagrams(address: SocketAddr) -> UdpSocket {
    socket(address, rustix::net::SocketType::DGRAM).into()
}

fn accept(listener: &TcpListener, shared: &Shared) {
    let mut connections = Vec::new();
    while !shared.stopped() {
        if let Ok((stream, _)) = listener.accept() {
            shared.heard.fetch_add(1, Ordering::SeqCst);
            let shared = shared.clone();
            connections.push(thread::spawn(move || converse(stream, &shared)));
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn converse(mut stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(TICK)).unwrap();
    let mut buffer = [0; 2048];
    while !shared.stopped() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                shared.heard.fetch_add(1, Ordering::SeqCst);
                if stream.write_all(&[&shared.name, &buffer[..length]].concat()).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

fn answer(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 2048];
    while !shared.stopped() {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            shared.heard.fetch_add(1, Ordering::SeqCst);
            let _ = socket.send_to(&[&shared.name, &buffer[..length]].concat(), from);
        }
    }
}

/// Sees everything that comes to `eth0` of a namespace, before anything there can drop it.
struct Tap {
    socket: OwnedFd,
    addresses: Vec<IpAddr>,
    counted: AtomicU64,
}

impl Tap {
    fn open(netns: &Netns, addresses: &[IpAddr]) -> Self {
        let socket = netns.run(|| packet_socket(EVERYTHING)).unwrap();
        Self { socket, addresses: addresses.to_vec(), counted: AtomicU64::new(0) }
    }

    /// Works off what has come in. (More than fits into the socket's buffer since the last look
    /// is lost: so each look is preceded by another one before what must not arrive is sent.)
    fn count(&self) -> u64 {
        let mut frame = [0; 2048];
        while let Ok((length, _)) = rustix::net::recv(&self.socket, &mut frame, RecvFlags::DONTWAIT)
        {
            let begins = begins_something(&frame[..length]);
            if begins.is_some_and(|address| self.addresses.contains(&address)) {
                self.counted.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.counted.load(Ordering::SeqCst)
    }
}

/// The destination of a frame that is a UDP datagram or opens a TCP connection. (The rest of
/// earlier connections may come at any time.)
fn begins_something(frame: &[u8]) -> Option<IpAddr> {
    let packet = frame.get(14..)?;
    let (destination, protocol, payload): (IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (address.into(), packet[9], packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 => {
            let address: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (address.into(), packet[6], packet.get(40..)?)
        }
        _ => return None,
    };
    let begins = match protocol {
        6 => payload.get(13)? & 0x12 == 0x02,
        17 => true,
        _ => false,
    };
    begins.then_some(destination)
}

/// The name in an answer.
pub fn name_in(answer: &[u8]) -> String {
    String::from_utf8_lossy(&answer[..NAME.min(answer.len())]).trim_end().to_owned()
}
