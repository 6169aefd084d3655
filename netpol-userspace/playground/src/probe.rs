//! Real connections between hosts, and what came of them. Must never take slowness for a
//! verdict: silence counts only after repeated attempts, and only while answers are quick.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::sctp::{Kind, Packet, without_ip_header};
use super::sockets;
use super::space::Space;
use netpol_model::Protocol;

/// One connection to try.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Where the client's sockets are.
    pub space: Arc<Space>,
    /// The client's address.
    pub source: IpAddr,
    /// The server.
    pub destination: SocketAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The name that the right server answers with.
    pub server: String,
    /// Whether an answer is expected: then it is waited for longer.
    pub expected: bool,
}

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Observed {
    /// The right server answered.
    Allowed,
    /// Silence.
    Blocked,
    /// The connection was refused: packets arrive, but nobody listens.
    Refused,
    /// Anything else, in words.
    Error(String),
}

/// A result and how long it took.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was seen.
    pub observed: Observed,
    /// When the deciding attempt ended, counted from its own start.
    pub took: Duration,
}

/// How long silence must last before it counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Where no answer is expected. A second attempt starts half way.
    pub blocked: Duration,
    /// Where an answer is expected: attempts start after 0, 1/16, 1/8, 1/4 and 1/2 of it.
    pub allowed: Duration,
    /// Probes at the same time.
    pub at_once: usize,
}

impl Patience {
    /// For the first look.
    pub const FIRST: Self =
        Self { blocked: Duration::from_millis(400), allowed: Duration::from_secs(4), at_once: 192 };
    /// For a second look at what was not as expected.
    pub(crate) const SECOND: Self =
        Self { blocked: Duration::from_millis(1500), allowed: Duration::from_secs(8), at_once: 16 };

    fn attempts(self, expected: bool) -> (Vec<Duration>, Duration) {
        if expected {
            let starts = [0, 1, 2, 4, 8].map(|part| self.allowed * part / 16);
            (starts.to_vec(), self.allowed)
        } else {
            (vec![Duration::ZERO, self.blocked / 2], self.blocked)
        }
    }
}

/// Tries all probes and returns the answers in their order.
pub async fn run_all(
    probes: Vec<Probe>,
    patience: Patience,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Answer>> {
    let numbered = probes.into_iter().enumerate();
    let running = numbered.map(|(index, probe)| async move {
        // Its own task, so that answers are timed when they come and not when we look.
        (index, tokio::spawn(run(probe, patience)).await)
    });
    let mut answers = futures::stream::iter(running).buffer_unordered(patience.at_once);
    let mut sorted = Vec::new();
    while let Some((index, answer)) = answers.next().await {
        sorted.push((index, answer?));
        progress(sorted.len());
    }
    sorted.sort_by_key(|(index, _)| *index);
    Ok(sorted.into_iter().map(|(_, answer)| answer).collect())
}

/// One probe: attempts, each on a socket of its own, until one is answered or time is up.
async fn run(probe: Probe, patience: Patience) -> Answer {
    let (starts, limit) = patience.attempts(probe.expected);
    let probe = &probe;
    let mut attempts: FuturesUnordered<_> = starts
        .into_iter()
        .map(|start| async move {
            sleep(start).await;
            let begun = Instant::now();
            let observed = match attempt(probe).await {
                Ok(observed) => observed,
                Err(error) => from_error(&error),
            };
            Answer { observed, took: begun.elapsed() }
        })
        .collect();
    let mut last = Answer { observed: Observed::Blocked, took: limit };
    let decided = timeout(limit, async {
        while let Some(answer) = attempts.next().await {
            last = answer;
            if last.observed == Observed::Allowed {
                break;
            }
        }
    });
    // Out of time: what the last finished attempt saw stands, silence if none finished.
    let _ = decided.await;
    last
}

fn from_error(error: &io::Error) -> Observed {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Observed::Refused,
        io::ErrorKind::TimedOut => Observed::Blocked,
        _ => Observed::Error(error.to_string()),
    }
}

async fn attempt(probe: &Probe) -> io::Result<Observed> {
    let server = match probe.protocol {
        Protocol::Tcp => tcp(probe).await?,
        Protocol::Udp => udp(probe).await?,
        Protocol::Sctp => return sctp(probe).await,
    };
    match server.trim_end() {
        name if name == probe.server => Ok(Observed::Allowed),
        name => Ok(Observed::Error(format!("reached {name:?} instead of {}", probe.server))),
    }
}

/// Opens a socket in the client's namespace.
async fn open<T: Send + 'static>(
    probe: &Probe,
    make: impl FnOnce(IpAddr, SocketAddr) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (source, destination) = (probe.source, probe.destination);
    let made = probe.space.run(move || Ok(make(source, destination))).await;
    made.map_err(io::Error::other)?
}

async fn tcp(probe: &Probe) -> io::Result<String> {
    let stream = TcpStream::from_std(open(probe, sockets::tcp_connecting).await?)?;
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    let mut name = String::new();
    stream.take(512).read_to_string(&mut name).await?;
    Ok(name)
}

async fn udp(probe: &Probe) -> io::Result<String> {
    let make = |source, destination| sockets::udp(SocketAddr::new(source, 0), Some(destination));
    let socket = UdpSocket::from_std(open(probe, make).await?)?;
    socket.send(b"?").await?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

async fn sctp(probe: &Probe) -> io::Result<Observed> {
    let make = |source, destination: SocketAddr| sockets::sctp(source, Some(destination.ip()));
    let socket = UdpSocket::from_std(open(probe, make).await?)?;
    let port = probe.destination.port();
    let source = ephemeral_port();
    let init = Packet { source, destination: port, tag: 0, kind: Kind::Init(u32::from(source)) };
    socket.send(&init.to_bytes()).await?;
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let payload = without_ip_header(&buffer[..length], probe.source.is_ipv4());
        let Some(packet) = payload.and_then(Packet::parse) else { continue };
        // An ABORT may come from a kernel that has SCTP of its own, beside the real answer.
        if (packet.source, packet.destination) == (port, source) && packet.kind == Kind::InitAck {
            return Ok(Observed::Allowed);
        }
    }
}

/// Raw sockets get no port from the kernel.
fn ephemeral_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    32_768 + NEXT.fetch_add(1, Ordering::Relaxed) % 28_000
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const SHORT: Patience = Patience {
        blocked: Duration::from_millis(50),
        allowed: Duration::from_secs(1),
        at_once: 8,
    };

    /// A namespace with a loopback, an address that swallows everything, and a server on TCP and
    /// UDP 80 that says `someone`.
    async fn world() -> (tempfile::TempDir, Arc<Space>) {
        let dir = tempfile::tempdir().unwrap();
        let space = Arc::new(Space::create(dir.path(), "probe").unwrap());
        let lines = [
            "link set lo up",
            "link add hole type veth peer name other",
            "addr add 10.9.9.1/24 dev hole",
            "link set hole up",
            "link set other up",
            "neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev hole nud permanent",
        ];
        space.ip(lines.map(str::to_owned).to_vec()).await.unwrap();
        (dir, space)
    }

    fn probe(space: &Arc<Space>, to: &str, protocol: Protocol, expected: bool) -> Probe {
        let destination: SocketAddr = to.parse().unwrap();
        let source = if to.starts_with("127") { [127, 0, 0, 1] } else { [10, 9, 9, 1] };
        let server = "a/b".to_owned();
        let space = space.clone();
        Probe { space, source: source.into(), destination, protocol, server, expected }
    }

    async fn observe(probes: Vec<Probe>) -> Vec<Observed> {
        let answers = run_all(probes, SHORT, |_| {}).await.unwrap();
        answers.into_iter().map(|answer| answer.observed).collect()
    }

    #[tokio::test]
    async fn silence_and_refusal_are_told_apart() {
        let (_dir, space) = world().await;
        let probes = Protocol::ALL
            .map(|protocol| probe(&space, "10.9.9.2:80", protocol, false))
            .into_iter()
            .chain([
                probe(&space, "10.9.9.2:80", Protocol::Tcp, true),
                probe(&space, "127.0.0.1:80", Protocol::Tcp, false),
                probe(&space, "127.0.0.1:80", Protocol::Udp, true),
            ]);
        let expected = [
            Observed::Blocked,
            Observed::Blocked,
            Observed::Blocked,
            Observed::Blocked,
            Observed::Refused,
            Observed::Refused,
        ];
        assert_eq!(observe(probes.collect()).await, expected);
    }

    #[tokio::test]
    async fn an_answer_counts_only_from_the_right_server() {
        let (_dir, space) = world().await;
        let listener =
            space.run(|| Ok(sockets::tcp_listener("127.0.0.1:80".parse()?)?)).await.unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"a/other\n").await.unwrap();
            }
        });
        let mut right = probe(&space, "127.0.0.1:80", Protocol::Tcp, true);
        let wrong = right.clone();
        right.server = "a/other".to_owned();
        let seen = observe(vec![right, wrong]).await;
        assert_eq!(seen[0], Observed::Allowed);
        assert!(matches!(&seen[1], Observed::Error(m) if m.contains("a/other")), "{seen:?}");
    }

    #[tokio::test]
    async fn a_server_that_comes_late_is_found() {
        let (_dir, space) = world().await;
        let late = space.clone();
        tokio::spawn(async move {
            sleep(SHORT.allowed / 5).await;
            let make = || Ok(sockets::udp("127.0.0.1:80".parse()?, None)?);
            let socket = UdpSocket::from_std(late.run(make).await.unwrap()).unwrap();
            let (_, client) = socket.recv_from(&mut [0; 8]).await.unwrap();
            socket.send_to(b"a/b\n", client).await.unwrap();
        });
        let seen = observe(vec![probe(&space, "127.0.0.1:80", Protocol::Udp, true)]).await;
        assert_eq!(seen, [Observed::Allowed]);
    }
}
