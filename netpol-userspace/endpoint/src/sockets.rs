//! The connections a pod already has when netpol first sees its packets, read from the kernel's
//! socket tables in the pod's namespace. Must never touch a socket.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use netlink_packet_core::{NLM_F_DUMP, Parseable as _};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::Asker;
use netpol_isolation::netns::Netns;
use netpol_model::Direction;

/// One connection of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// IP protocol number, TCP or UDP.
    pub protocol: u8,
    /// The pod's address.
    pub local: IpAddr,
    /// The pod's port.
    pub local_port: u16,
    /// The other end's address.
    pub remote: IpAddr,
    /// The other end's port.
    pub remote_port: u16,
    /// Who opened it: ingress if the pod listens on the port, or if its port is none that the
    /// kernel would choose for a client while the other end's is one; egress otherwise. (The
    /// kernel does not remember it. A server that has stopped to listen on a port from the
    /// clients' range is taken for a client.)
    pub opened: Direction,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// State numbers (include/net/tcp_states.h).
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
/// The last one that is of interest: a connection whose second packet was sent.
const NEW_SYN_RECV: u8 = 12;
/// Length of `inet_diag_msg` (linux/inet_diag.h).
const INET_DIAG_LEN: usize = 72;

/// What clients' ports are chosen from where the namespace does not say
/// (Documentation/networking/ip-sysctl.rst: ip_local_port_range).
const CLIENT_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// The connections of a namespace. UDP sockets count if they are connected; where one that is not
/// has sent to is nowhere recorded.
pub fn connections(netns: &Netns) -> io::Result<Vec<Connection>> {
    netns.run(|| {
        // A kernel may have been built without sock_diag.
        let tcp = ask_tcp().or_else(|_| read_rows("tcp"))?;
        let udp = read_rows("udp")?;
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let clients = range.ok().and_then(|text| parse_range(&text)).unwrap_or(CLIENT_PORTS);
        let mut all = connections_among(TCP, &tcp, &clients);
        all.extend(connections_among(UDP, &udp, &clients));
        Ok(all)
    })?
}

/// The TCP sockets of the calling thread's namespace, but those that are closed. To read them from
/// /proc/net/tcp takes a hundred times as long: it looks at every bucket of the whole machine's
/// table of sockets, one by one, for each read.
fn ask_tcp() -> io::Result<Vec<SocketRow>> {
    let mut asker = Asker::open(NETLINK_SOCK_DIAG)?;
    let states = (1..=NEW_SYN_RECV).filter(|state| !matches!(*state, TIME_WAIT | CLOSE));
    let states = states.fold(0, |mask, state| mask | 1 << state);
    let mut rows = Vec::new();
    let families = [(libc::AF_INET, SocketId::new_v4()), (libc::AF_INET6, SocketId::new_v6())];
    for (family, socket_id) in families {
        let request = InetRequest {
            family: u8::try_from(family).expect("invariant: both families are small numbers"),
            protocol: TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::from_bits_retain(states),
            socket_id,
        };
        asker.ask(SockDiagMessage::InetRequest(request), NLM_F_DUMP, |_, body| {
            rows.extend(row_of(body));
        })?;
    }
    Ok(rows)
}

/// The row of a sock_diag answer.
fn row_of(body: &[u8]) -> Option<SocketRow> {
    let header = InetResponseHeader::parse(body.get(..INET_DIAG_LEN)?).ok()?;
    let id = header.socket_id;
    Some(SocketRow {
        // An IPv4-mapped address (a dual-stack socket) is IPv4 on the wire.
        local: (id.source_address.to_canonical(), id.source_port),
        remote: (id.destination_address.to_canonical(), id.destination_port),
        state: header.state,
    })
}

/// The rows of both families' tables in /proc.
fn read_rows(protocol: &str) -> io::Result<Vec<SocketRow>> {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let text = read(protocol)? + &read(&format!("{protocol}6")).unwrap_or_default();
    Ok(parse(&text))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

/// One line of a table.
struct SocketRow {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: u8,
}

/// The rows of concatenated IPv4 and IPv6 tables.
fn parse(text: &str) -> Vec<SocketRow> {
    text.lines().filter_map(parse_row).collect()
}

/// Connections among the sockets of one protocol.
fn connections_among(
    protocol: u8,
    rows: &[SocketRow],
    clients: &RangeInclusive<u16>,
) -> Vec<Connection> {
    let is_unconnected = |row: &SocketRow| row.remote.0.is_unspecified() || row.remote.1 == 0;
    let listening: HashSet<u16> = rows
        .iter()
        .filter(|row| match protocol {
            TCP => row.state == LISTEN,
            _ => is_unconnected(row),
        })
        .map(|row| row.local.1)
        .collect();
    let is_served = |row: &SocketRow| {
        listening.contains(&row.local.1)
            || !clients.contains(&row.local.1) && clients.contains(&row.remote.1)
    };
    let is_connection = |row: &&SocketRow| {
        !is_unconnected(row)
            && !row.local.0.is_loopback()
            && (protocol != TCP || !matches!(row.state, TIME_WAIT | CLOSE | LISTEN))
    };
    rows.iter()
        .filter(is_connection)
        .map(|row| Connection {
            protocol,
            local: row.local.0,
            local_port: row.local.1,
            remote: row.remote.0,
            remote_port: row.remote.1,
            opened: if is_served(row) { Direction::Ingress } else { Direction::Egress },
        })
        .collect()
}

/// `sl local remote state ...`; the header line and anything else yields `None`.
fn parse_row(line: &str) -> Option<SocketRow> {
    let mut fields = line.split_whitespace().skip(1);
    let local = parse_end(fields.next()?)?;
    let remote = parse_end(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some(SocketRow { local, remote, state })
}

/// `0100007F:0050`: the address as 32-bit words in host order, the port in hexadecimal. An
/// IPv4-mapped address (a dual-stack socket) is IPv4 on the wire.
fn parse_end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for index in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(index..index + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn reads_both_families_and_who_opened() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:0050 00000000:0000 0A 00000000:00000000
   1: 0101010A:0050 0201010A:C350 01 00000000:00000000
   2: 0101010A:C351 0201010A:01BB 01 00000000:00000000
   3: 0101010A:C352 0201010A:01BB 06 00000000:00000000
   4: 0000000000000000FFFF00000101010A:0050 0000000000000000FFFF00000301010A:1000 08 0:0
";
        let all = connections_among(TCP, &parse(text), &CLIENT_PORTS);
        let seen: Vec<_> =
            all.iter().map(|c| (c.remote.to_string(), c.remote_port, c.opened)).collect();
        assert_eq!(
            seen,
            [
                ("10.1.1.2".to_owned(), 50_000, Direction::Ingress),
                ("10.1.1.2".to_owned(), 443, Direction::Egress),
                ("10.1.1.3".to_owned(), 4_096, Direction::Ingress),
            ]
        );
    }

    #[test]
    fn a_server_that_has_stopped_to_listen_is_known_by_its_port() {
        let text = "\
   1: 0101010A:0050 0201010A:C350 01 00000000:00000000
   2: 0101010A:02BC 0201010A:0801 01 00000000:00000000
   3: 0101010A:C351 0201010A:C352 01 00000000:00000000
";
        for protocol in [TCP, UDP] {
            let all = connections_among(protocol, &parse(text), &CLIENT_PORTS);
            let opened: Vec<_> = all.iter().map(|connection| connection.opened).collect();
            // A client may have chosen a port for itself, and both may be of the clients' range.
            assert_eq!(opened, [Direction::Ingress, Direction::Egress, Direction::Egress]);
        }
        // Where clients are given other ports.
        let all = connections_among(TCP, &parse(text), &(1_024..=40_000));
        let opened: Vec<_> = all.iter().map(|connection| connection.opened).collect();
        assert_eq!(opened, [Direction::Egress, Direction::Ingress, Direction::Egress]);
        assert_eq!(parse_range("32768\t60999\n"), Some(CLIENT_PORTS));
        assert_eq!(parse_range("much"), None);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_no_connection() {
        for line in ["", "x", " 0: 0101:0050 0201010A:C350 01", " 0: 0101010A 0201010A:C350 01"] {
            assert!(parse_row(line).is_none(), "{line}");
        }
    }

    #[test]
    fn agrees_with_the_kernel() -> io::Result<()> {
        let netns = Netns::create_anonymous()?;
        let (listener, streams, servers, udp) = netns.run(|| -> io::Result<_> {
            for arguments in [
                "link set lo up",
                "address add 10.7.0.1/32 dev lo",
                "-6 address add fd00:7::1/128 dev lo nodad",
            ] {
                let status =
                    std::process::Command::new("ip").args(arguments.split_whitespace()).status()?;
                assert!(status.success(), "ip {arguments}");
            }
            let listener = TcpListener::bind("[::]:80")?;
            // The kernel brings an IPv6 address into use a moment after it was added.
            let connect = |to: &str| {
                let mut tries = (0..500).map(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    TcpStream::connect(to)
                });
                tries.find(Result::is_ok).expect("an attempt succeeds")
            };
            let streams = [connect("10.7.0.1:80")?, connect("[fd00:7::1]:80")?];
            // The server's sides exist for sure once they were accepted.
            let servers = [listener.accept()?, listener.accept()?];
            let udp = UdpSocket::bind("10.7.0.1:0")?;
            udp.connect("10.7.0.1:53")?;
            Ok((listener, streams, servers, udp))
        })??;
        let found: HashSet<Connection> = connections(&netns)?.into_iter().collect();
        for stream in &streams {
            let (ours, theirs) = (stream.local_addr()?, stream.peer_addr()?);
            let client = Connection {
                protocol: TCP,
                local: ours.ip(),
                local_port: ours.port(),
                remote: theirs.ip(),
                remote_port: 80,
                opened: Direction::Egress,
            };
            let server = Connection {
                local: theirs.ip(),
                local_port: 80,
                remote: ours.ip(),
                remote_port: ours.port(),
                opened: Direction::Ingress,
                ..client
            };
            assert!(found.contains(&client), "{client:?} in {found:?}");
            assert!(found.contains(&server), "{server:?} in {found:?}");
        }
        assert!(found.iter().any(|c| c.protocol == UDP && c.remote_port == 53));
        let (asked, read) = netns.run(|| (ask_tcp(), read_rows("tcp")))?;
        let of = |rows: &[SocketRow]| {
            connections_among(TCP, rows, &CLIENT_PORTS).into_iter().collect::<HashSet<_>>()
        };
        assert_eq!(of(&asked?), of(&read?), "both ways tell the same");
        drop((listener, streams, servers, udp));
        Ok(())
    }

    /// Its answer to the client's first packet may be the first one that the programs see.
    #[test]
    fn a_connection_that_is_being_opened_is_one() -> io::Result<()> {
        let netns = Netns::create_anonymous()?;
        let sockets = netns.run(|| -> io::Result<_> {
            for command in [
                "ip link set lo up",
                "ip address add 10.7.0.1/32 dev lo",
                "nft add table ip t",
                "nft add chain ip t c { type filter hook output priority 0; }",
                "nft add rule ip t c tcp sport 80 drop",
            ] {
                let mut words = command.split_whitespace();
                let program = words.next().expect("a command");
                let status = std::process::Command::new(program).args(words).status()?;
                assert!(status.success(), "{command}");
            }
            let listener = TcpListener::bind("[::]:80")?;
            let client = std::thread::spawn(|| {
                let to = "10.7.0.1:80".parse().expect("an address");
                TcpStream::connect_timeout(&to, std::time::Duration::from_secs(60))
            });
            Ok((listener, client))
        })??;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let opened = loop {
            let found = connections(&netns)?;
            let served = found.into_iter().find(|c| c.local_port == 80);
            match served {
                Some(connection) => break connection.opened,
                None => assert!(std::time::Instant::now() < end, "it was never seen"),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        assert_eq!(opened, Direction::Ingress);
        // The client's attempt ends with the server's namespace, and nobody waits for it.
        drop(sockets);
        Ok(())
    }
}
