//! Traffic between pods: servers that answer, attempts, and streams that miss nothing.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netpol_isolation::netns::Netns;

use super::{PATIENCE, eventually};

/// How long an attempt waits for an answer before it counts as unanswered.
const ATTEMPT: Duration = Duration::from_millis(250);
const PERIOD: Duration = Duration::from_millis(20);

/// Answers everything on a port, TCP and UDP, until dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// On every address of the namespace, of either family.
    pub fn start(netns: &Netns, port: u16) -> Self {
        Self::start_at(netns, (Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// On this address alone: a server on all of several may answer from another one.
    pub fn start_at(netns: &Netns, address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = netns
            .run(|| (bound(|| TcpListener::bind(address)), bound(|| UdpSocket::bind(address))))
            .unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(PERIOD)).unwrap();
        let (tcp_stop, udp_stop) = (stop.clone(), stop.clone());
        let threads = vec![
            thread::spawn(move || serve_tcp(&tcp, &tcp_stop)),
            thread::spawn(move || serve_udp(&udp, &udp_stop)),
        ];
        Self { stop, threads }
    }
}

/// The socket, once its port is free: a process that another test has just forked holds the one
/// before until it executes its program.
pub fn bound<S>(bind: impl Fn() -> std::io::Result<S>) -> S {
    let end = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(PERIOD);
            }
            result => return result.unwrap(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    let mut streams: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            streams.push(stream);
        }
        streams.retain_mut(|stream| {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
        thread::sleep(Duration::from_millis(1));
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// One question by UDP from a new port.
pub fn asks(from: &Netns, to: &str) -> bool {
    asks_for(from, to, ATTEMPT)
}

fn asks_for(from: &Netns, to: &str, limit: Duration) -> bool {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(limit)).unwrap();
        if socket.connect(to).is_err() || socket.send(b"?").is_err() {
            return false;
        }
        socket.recv(&mut [0; 8]).is_ok()
    })
    .unwrap()
}

/// One TCP connection that carries a byte there and back.
pub fn connects(from: &Netns, to: &str) -> bool {
    from.run(|| exchange(to, ATTEMPT).is_ok()).unwrap()
}

fn exchange(to: &str, limit: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Insists that both protocols get through: at the first attempt that the machine's pace allows.
pub fn assert_allowed(from: &Netns, to: &str) {
    assert!(asks_for(from, to, PATIENCE), "UDP to {to} is not answered");
    assert!(from.run(|| exchange(to, PATIENCE)).unwrap().is_ok(), "TCP to {to} fails");
}

/// Insists that neither protocol gets through.
pub fn assert_denied(from: &Netns, to: &str) {
    assert!(!asks(from, to), "UDP to {to} is answered");
    assert!(!connects(from, to), "TCP to {to} connects");
}

/// Sends a frame as it is from inside a pod, so many times (AF_PACKET: tc of the pod's own side
/// aside).
pub fn send_frames(pod: &Netns, frame: &[u8], count: usize) {
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
         s.bind(('eth0', 0))\nframe = bytes.fromhex('{hex}')\n\
         for _ in range({count}): s.send(frame)\n"
    );
    let output = pod.run(|| Command::new("python3").args(["-c", &script]).output().unwrap());
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A long-lived flow: a numbered message every 20 ms, each to be answered.
pub struct Stream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Stream {
    pub fn udp(from: &Netns, to: &str) -> Self {
        Self::udp_every(from, to, PERIOD)
    }

    pub fn tcp(from: &Netns, to: &str) -> Self {
        Self::tcp_every(from, to, PERIOD)
    }

    /// With so much time between two messages.
    pub fn udp_every(from: &Netns, to: &str, period: Duration) -> Self {
        let to = to.to_owned();
        Self::spawn(from, move |stop, answered| udp_stream(&to, period, stop, answered))
    }

    /// With so much time between two messages.
    pub fn tcp_every(from: &Netns, to: &str, period: Duration) -> Self {
        let to = to.to_owned();
        Self::spawn(from, move |stop, answered| tcp_stream(&to, period, stop, answered))
    }

    fn spawn(
        from: &Netns,
        work: impl FnOnce(&AtomicBool, &AtomicU64) -> Result<u64, String> + Send + 'static,
    ) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (inner_stop, inner_answered) = (stop.clone(), answered.clone());
        let thread = from.spawn("stream", move || work(&inner_stop, &inner_answered)).unwrap();
        let stream = Self { stop, answered, thread };
        stream.moves();
        stream
    }

    /// How many messages were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until messages sent from now on have been answered.
    pub fn moves(&self) {
        let before = self.answered();
        eventually("the stream moves", || {
            self.answered() > before + 3 || self.thread.is_finished()
        });
    }

    /// Ends it and insists that not one message or answer was lost.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join().unwrap() {
            Ok(count) => count,
            Err(error) => panic!("{error}"),
        }
    }
}

fn udp_stream(
    to: &str,
    period: Duration,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Result<u64, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(period)).unwrap();
    let mut missing = BTreeSet::new();
    let mut sent = 0u64;
    let receive = |missing: &mut BTreeSet<u64>| {
        let mut buffer = [0; 8];
        while socket.recv(&mut buffer).is_ok() {
            missing.remove(&u64::from_be_bytes(buffer));
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    while !stop.load(Ordering::Relaxed) {
        missing.insert(sent);
        socket.send(&sent.to_be_bytes()).map_err(|error| format!("message {sent}: {error}"))?;
        sent += 1;
        receive(&mut missing);
    }
    let end = Instant::now() + Duration::from_secs(5);
    while !missing.is_empty() && Instant::now() < end {
        receive(&mut missing);
    }
    if missing.is_empty() { Ok(sent) } else { Err(format!("of {sent} no answer to {missing:?}")) }
}

fn tcp_stream(
    to: &str,
    period: Duration,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Result<u64, String> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE)
        .map_err(|error| format!("connect: {error}"))?;
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut count = 0u64;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&count.to_be_bytes()).map_err(|error| format!("{count}: {error}"))?;
        let mut buffer = [0; 8];
        stream.read_exact(&mut buffer).map_err(|error| format!("after {count}: {error}"))?;
        if u64::from_be_bytes(buffer) != count {
            return Err(format!("{count} was answered by {buffer:?}"));
        }
        count += 1;
        answered.fetch_add(1, Ordering::Relaxed);
        thread::sleep(period);
    }
    Ok(count)
}

/// Tries again and again, from new ports, what must never work, and remembers if it did.
pub struct Attempts {
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    thread: JoinHandle<u64>,
}

impl Attempts {
    /// UDP and TCP to `to`.
    pub fn start(from: &Netns, to: &str) -> Self {
        let (stop, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (inner_stop, inner_tried, to) = (stop.clone(), tried.clone(), to.to_owned());
        let thread =
            from.spawn("attempts", move || attempt(&to, &inner_stop, &inner_tried)).unwrap();
        Self { stop, tried, thread }
    }

    /// Waits until more attempts have been made.
    pub fn go_on(&self) {
        let before = self.tried.load(Ordering::Relaxed);
        eventually("attempts go on", || self.tried.load(Ordering::Relaxed) > before + 2);
    }

    /// Ends it and insists that none succeeded; how many rounds there were.
    pub fn finish(self) -> u64 {
        self.go_on();
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.thread.join().unwrap(), 0, "denied traffic got through");
        self.tried.load(Ordering::Relaxed)
    }
}

fn attempt(to: &str, stop: &AtomicBool, tried: &AtomicU64) -> u64 {
    let mut successes = 0;
    while !stop.load(Ordering::Relaxed) {
        // Each from a port of its own; answers to any of them count.
        let sockets: Vec<UdpSocket> = (0..8)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.send_to(b"?", to);
                socket
            })
            .collect();
        if TcpStream::connect_timeout(&to.parse().unwrap(), PERIOD * 2).is_ok() {
            successes += 1;
        }
        successes +=
            sockets.iter().filter(|socket| socket.recv(&mut [0; 8]).is_ok()).count() as u64;
        tried.fetch_add(1, Ordering::Relaxed);
    }
    successes
}
