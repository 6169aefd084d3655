//! A node with dual-stack pods, and flows of which both ends are in the test's hands: each packet
//! of either end is seen to arrive, or counted as dropped and seen not to arrive.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use netpol_isolation::netns::Netns;

use crate::world::traffic::bound;
use crate::world::{NODE_NAME, PATIENCE, World, eventually};

/// The port that servers listen on.
pub const PORT: u16 = 80;
/// The namespace of all pods.
pub const NAMESPACE: &str = "default";
const GATEWAY6: &str = "fe80::1";

/// A pod's number, from which its addresses follow.
pub type Number = u8;

pub fn v4(number: Number) -> IpAddr {
    IpAddr::from([10, 244, 0, number])
}

pub fn v6(number: Number) -> IpAddr {
    IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(number)])
}

/// A node that forwards both families.
pub fn world() -> World {
    let world = World::new();
    let forward = || fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    world.node.run(forward).unwrap();
    world
}

/// Gives a pod its interface, with an address of each family.
pub fn wire(world: &mut World, name: &str, number: Number) {
    world.wire(name, &v4(number).to_string());
    let address = v6(number);
    world.ip(&format!(
        "address add {GATEWAY6}/64 dev v-{name} nodad\n\
         route replace {address}/128 dev v-{name}"
    ));
    world.ip_in(
        name,
        &format!(
            "address add {address}/128 dev eth0 nodad\nroute add default via {GATEWAY6} dev eth0"
        ),
    );
}

/// A pod as its manifest says it.
#[derive(Debug, Clone)]
pub struct Manifest<'a> {
    pub name: &'a str,
    pub number: Number,
    pub labels: &'a str,
    pub uid: &'a str,
    pub node: &'a str,
    /// The number of its port named `web`.
    pub web: u16,
}

impl<'a> Manifest<'a> {
    pub fn new(name: &'a str, number: Number, labels: &'a str) -> Self {
        Self { name, number, labels, uid: name, node: NODE_NAME, web: PORT }
    }

    pub fn write(&self, world: &World) {
        let Self { name, number, labels, uid, node, web } = self;
        let (v4, v6) = (v4(*number), v6(*number));
        world.write(
            &format!("pod-{name}"),
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {name}, namespace: {NAMESPACE}, uid: uid-{uid}, \
                 labels: {labels}}}\n\
                 spec: {{nodeName: {node}, containers: [{{name: c, ports: [{{name: web, \
                 containerPort: {web}}}]}}]}}\n\
                 status: {{podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}], \
                 phase: Running}}\n"
            ),
        );
    }
}

/// A wired and declared pod.
pub fn pod(world: &mut World, name: &str, number: Number, labels: &str) {
    wire(world, name, number);
    Manifest::new(name, number, labels).write(world);
}

/// The labels of the namespace.
pub fn namespace(world: &World, labels: &str) {
    world.write(
        "namespace",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {labels}}}\n"
        ),
    );
}

/// The two ends of an established flow, client first.
pub enum Ends {
    Tcp([TcpStream; 2]),
    Udp([UdpSocket; 2]),
}

/// An established flow.
pub struct Flow {
    pub name: String,
    pub ends: Ends,
    /// Bytes on their way to each end.
    on_the_way: [Cell<usize>; 2],
}

/// Which end sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Client = 0,
    Server = 1,
}

impl End {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl Flow {
    /// A connection from `client` to `server` at this address; insists that it comes about.
    pub fn tcp(client: &Netns, server: &Netns, address: IpAddr) -> Self {
        let to = SocketAddr::new(address, PORT);
        let listener = server.run(|| bound(|| TcpListener::bind(to))).unwrap();
        let connect = || TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        let near = client.run(connect).unwrap();
        let far = listener.accept().unwrap().0;
        for end in [&near, &far] {
            end.set_nodelay(true).unwrap();
            end.set_nonblocking(true).unwrap();
        }
        Self::new(format!("TCP to {to}"), Ends::Tcp([near, far]))
    }

    fn new(name: String, ends: Ends) -> Self {
        Self { name, ends, on_the_way: [const { Cell::new(0) }; 2] }
    }

    /// The same by UDP: both sockets connected to each other.
    pub fn udp(client: &Netns, server: &Netns, address: IpAddr) -> Self {
        Self::udp_from(client, server, address, 0)
    }

    /// The same from this port.
    pub fn udp_from(client: &Netns, server: &Netns, address: IpAddr, port: u16) -> Self {
        let to = SocketAddr::new(address, PORT);
        let far = server.run(|| bound(|| UdpSocket::bind(to))).unwrap();
        far.set_nonblocking(true).unwrap();
        let near = udp_socket(client, to, port);
        let mut from = None;
        eventually("the first datagram arrives", || {
            near.send(b"?").unwrap();
            from = far.recv_from(&mut [0; 8]).ok();
            from.is_some()
        });
        far.connect(from.unwrap().1).unwrap();
        let flow = Self::new(format!("UDP to {to}"), Ends::Udp([near, far]));
        flow.drain();
        flow
    }

    /// All four kinds of flows between two pods.
    pub fn all(client: &Netns, server: &Netns, number: Number) -> Vec<Self> {
        let addresses = [v4(number), v6(number)];
        let tcp = addresses.map(|address| Self::tcp(client, server, address));
        let udp = addresses.map(|address| Self::udp(client, server, address));
        tcp.into_iter().chain(udp).collect()
    }

    /// Sends from one end.
    pub fn send(&self, end: End) {
        let on_the_way = &self.on_the_way[end.other() as usize];
        on_the_way.set(on_the_way.get() + 1);
        match &self.ends {
            Ends::Tcp(ends) => (&ends[end as usize]).write_all(b"x").unwrap(),
            Ends::Udp(ends) => {
                // A refusal that came back meanwhile is told once instead of sending.
                if ends[end as usize].send(b"x").is_err() {
                    ends[end as usize].send(b"x").unwrap();
                }
            }
        }
    }

    /// Takes in what has arrived at one end; whether anything had.
    pub fn has_arrived(&self, end: End) -> bool {
        let mut buffer = [0; 64];
        let received = match &self.ends {
            Ends::Tcp(ends) => (&ends[end as usize]).read(&mut buffer),
            Ends::Udp(ends) => ends[end as usize].recv(&mut buffer),
        };
        match received {
            Ok(0) => panic!("{}: the {end:?} has been told that the other has closed", self.name),
            Ok(n_bytes) => {
                let on_the_way = &self.on_the_way[end as usize];
                on_the_way.set(on_the_way.get().saturating_sub(n_bytes));
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    fn drain(&self) {
        for end in End::BOTH {
            while self.has_arrived(end) {}
        }
    }

    /// Insists that a packet of each end arrives, the first at the first attempt. By TCP what was
    /// dropped before is sent again: all of that has arrived, too.
    pub fn assert_passes(&self, why: &str) {
        for end in End::BOTH {
            self.send(end);
            eventually(&format!("{}, {why}: a packet of the {end:?} arrives", self.name), || {
                self.has_arrived(end.other()) && self.is_all_there(end.other())
            });
        }
    }

    fn is_all_there(&self, end: End) -> bool {
        matches!(self.ends, Ends::Udp(_)) || self.on_the_way[end as usize].get() == 0
    }

    /// Insists that the very next packet of `end` is dropped. `drops` counts, and every packet
    /// adds one at least.
    pub fn assert_dropped(&self, end: End, why: &str, mut drops: impl FnMut() -> u64) {
        assert!(!self.has_arrived(end.other()), "{}, {why}: something is left", self.name);
        let before = drops();
        self.send(end);
        eventually(&format!("{}, {why}: a packet of the {end:?} is dropped", self.name), || {
            let arrived = self.has_arrived(end.other());
            assert!(!arrived, "{}, {why}: a packet of the {end:?} got through", self.name);
            drops() > before
        });
        assert!(!self.has_arrived(end.other()), "{}, {why}: {end:?} got through", self.name);
    }
}

/// A socket connected to `to`, from this port (0: any).
pub fn udp_socket(netns: &Netns, to: SocketAddr, port: u16) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let bind = || {
        let socket = bound(|| UdpSocket::bind((any, port)));
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    netns.run(bind).unwrap()
}
