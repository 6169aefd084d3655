//! Real servers on the ports of every host. Each answers with the name of its host, so
//! that a probe knows whom it reached. Must never answer for another host or port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::plan::Host;
use super::pods::Port;
use super::sctp::{Kind, Packet, without_ip_header};
use super::sockets;
use super::space::Space;
use super::wiring::Network;
use netpol_model::{ObjectName, Protocol};

/// The servers of all hosts.
#[derive(Debug, Default)]
pub struct Servers {
    running: BTreeMap<ObjectName, Running>,
}

#[derive(Debug)]
struct Running {
    host: Host,
    /// Ended when dropped.
    tasks: JoinSet<()>,
}

impl Servers {
    /// Ends the servers of hosts that are gone or changed, and waits until their ports are free.
    /// To be called before the network changes, so that no socket keeps an old namespace.
    pub async fn retain(&mut self, hosts: &[Host]) {
        let stays = |running: &Running| {
            hosts.iter().any(|host| {
                let old = &running.host;
                host.id == old.id
                    && (host.place, &host.addresses, &host.ports)
                        == (old.place, &old.addresses, &old.ports)
            })
        };
        let all = std::mem::take(&mut self.running);
        let (stay, end): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, running)| stays(running));
        self.running = stay;
        for mut running in end.into_values() {
            running.tasks.shutdown().await;
        }
    }

    /// Starts the servers of hosts that have none yet.
    pub async fn start(&mut self, hosts: &[Host], network: &Network) -> Result<()> {
        for host in hosts {
            if !self.running.contains_key(&host.id) {
                let tasks = serve(host, network.space(host)?)
                    .await
                    .with_context(|| format!("cannot start the servers of {host}"))?;
                self.running.insert(host.id.clone(), Running { host: host.clone(), tasks });
            }
        }
        Ok(())
    }
}

/// What is opened inside the namespace.
enum Listening {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
    Sctp(std::net::UdpSocket, IpAddr, Vec<u16>),
}

async fn serve(host: &Host, space: &Space) -> Result<JoinSet<()>> {
    let (addresses, ports) = (host.addresses.clone(), host.ports.clone());
    let opened = space.run(move || listen(&addresses, &ports)).await?;
    let name: Arc<str> = format!("{host}\n").into();
    let mut tasks = JoinSet::new();
    for listening in opened {
        match listening {
            Listening::Tcp(socket) => {
                tasks.spawn(serve_tcp(TcpListener::from_std(socket)?, name.clone()));
            }
            Listening::Udp(socket) => {
                tasks.spawn(serve_udp(UdpSocket::from_std(socket)?, name.clone()));
            }
            Listening::Sctp(socket, address, ports) => {
                tasks.spawn(serve_sctp(UdpSocket::from_std(socket)?, address, ports));
            }
        }
    }
    Ok(tasks)
}

fn listen(addresses: &[IpAddr], ports: &[Port]) -> Result<Vec<Listening>> {
    let mut opened = Vec::new();
    for &address in addresses {
        let of = |protocol| ports.iter().filter(move |port| port.protocol == protocol);
        for port in of(Protocol::Tcp) {
            let local = SocketAddr::new(address, port.number);
            let socket = sockets::tcp_listener(local);
            opened.push(Listening::Tcp(socket.with_context(|| format!("on TCP {local}"))?));
        }
        for port in of(Protocol::Udp) {
            let local = SocketAddr::new(address, port.number);
            let socket = sockets::udp(local, None);
            opened.push(Listening::Udp(socket.with_context(|| format!("on UDP {local}"))?));
        }
        // A raw socket has no port: one socket serves them all.
        let numbers: Vec<u16> = of(Protocol::Sctp).map(|port| port.number).collect();
        if !numbers.is_empty() {
            let socket = sockets::sctp(address, None);
            let socket = socket.with_context(|| format!("for SCTP on {address}"))?;
            opened.push(Listening::Sctp(socket, address, numbers));
        }
    }
    Ok(opened)
}

async fn serve_tcp(listener: TcpListener, name: Arc<str>) {
    loop {
        // An error belongs to one connection that is gone already (or to a shortage of files,
        // which passes); the server stays.
        let Ok((mut connection, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let name = name.clone();
        tokio::spawn(async move {
            let _ = connection.write_all(name.as_bytes()).await;
        });
    }
}

async fn serve_udp(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = [0; 512];
    loop {
        if let Ok((_, client)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(name.as_bytes(), client).await;
        }
    }
}

async fn serve_sctp(socket: UdpSocket, address: IpAddr, ports: Vec<u16>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let payload = without_ip_header(&buffer[..length], address.is_ipv4());
        let Some(packet) = payload.and_then(Packet::parse) else { continue };
        if let Kind::Init(tag) = packet.kind
            && ports.contains(&packet.destination)
        {
            let answer = Packet {
                source: packet.destination,
                destination: packet.source,
                tag,
                kind: Kind::InitAck,
            };
            let _ = socket.send_to(&answer.to_bytes(), client).await;
        }
    }
}
