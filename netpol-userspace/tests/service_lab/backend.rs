//! Servers that say who they are and count what reaches them. Must never answer for another.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netpol_userspace::netns::Netns;

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
    /// A namespace in which nobody else receives anything.
    own_netns: Option<Netns>,
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
            own_netns: own.then(|| netns.run(|| Netns::current().unwrap()).unwrap()),
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

    /// How much of TCP and UDP has reached it: every segment and datagram, also to ports nobody
    /// listens on, where it has a namespace of its own; else what its servers have received.
    pub fn heard(&self) -> u64 {
        match &self.own_netns {
            Some(netns) => netns.run(received).unwrap(),
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
fn socket(address: SocketAddr, kind: rustix::net::SocketType) -> std::os::fd::OwnedFd {
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

/// TCP segments and UDP datagrams that this thread's namespace has received.
fn received() -> u64 {
    let counters = counters();
    let names = [
        "Tcp.InSegs",
        "Udp.InDatagrams",
        "Udp.NoPorts",
        "Udp.InErrors",
        "Udp6InDatagrams",
        "Udp6NoPorts",
        "Udp6InErrors",
    ];
    // A kernel without IPv6 lacks some.
    names.iter().filter_map(|&name| counters.get(name)).sum()
}

fn counters() -> BTreeMap<String, u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let mut all = BTreeMap::new();
    let snmp = read("snmp").unwrap();
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.chunks(2) {
        let (group, names) = pair[0].split_once(':').unwrap();
        let (_, values) = pair[1].split_once(':').unwrap();
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            all.extend(value.parse().map(|value| (format!("{group}.{name}"), value)));
        }
    }
    for line in read("snmp6").unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next().unwrap(), words.next().unwrap());
        all.insert(name.to_owned(), value.parse().unwrap());
    }
    all
}

/// The name in an answer.
pub fn name_in(answer: &[u8]) -> String {
    String::from_utf8_lossy(&answer[..NAME.min(answer.len())]).trim_end().to_owned()
}
