//! Long-lived flows through a Service, which know their backend and miss nothing. Must never
//! reconnect: a flow is one flow.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Client;
use super::backend::{NAME, name_in};
use super::volley::{Ports, Protocol, any, connecting_from};
use crate::world::{PATIENCE, eventually};

/// Between two messages.
const PERIOD: Duration = Duration::from_millis(20);

/// A numbered message every 20 ms, each to be answered by the same backend.
pub struct Stream {
    /// Who answers.
    pub backend: String,
    pub protocol: Protocol,
    stop: Arc<Stop>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<u64, String>>>,
}

/// How it shall end.
#[derive(Default)]
struct Stop {
    /// Once every answer is there.
    finish: AtomicBool,
    /// At once.
    abandon: AtomicBool,
}

impl Stop {
    fn is_set(&self) -> bool {
        self.finish.load(Ordering::SeqCst) || self.abandon.load(Ordering::SeqCst)
    }

    fn is_abandoned(&self) -> bool {
        self.abandon.load(Ordering::SeqCst)
    }
}

impl Stream {
    /// Connects; `None` if the answer to the first message does not come at once: then the flow
    /// led to a backend that must not be reached.
    pub fn open(
        client: &Client,
        ports: &Ports,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Option<Self> {
        let (stop, answered) = (Arc::<Stop>::default(), Arc::new(AtomicU64::new(0)));
        let (inner_stop, inner_answered) = (stop.clone(), answered.clone());
        let netns = &client.pod.netns;
        let (backend, thread) = match protocol {
            Protocol::Udp => {
                let socket =
                    netns.run(|| ports.bound(|port| UdpSocket::bind(any(to, port)))).unwrap();
                socket.connect(to).unwrap();
                let backend = first_datagram(&socket)?;
                let name = backend.clone();
                let work = move || udp(&socket, &name, &inner_stop, &inner_answered);
                (backend, thread::spawn(work))
            }
            Protocol::Tcp => {
                let mut stream = netns.run(|| connecting_from(ports, to)).unwrap();
                let backend = first_answer(&mut stream)?;
                let name = backend.clone();
                let work = move || tcp(stream, &name, &inner_stop, &inner_answered);
                (backend, thread::spawn(work))
            }
        };
        Some(Self { backend, protocol, stop, answered, thread: Some(thread) })
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Messages that are sent from now on are answered.
    pub fn moves(&self) {
        let before = self.answered();
        let what = format!("the {:?} flow to {} moves", self.protocol, self.backend);
        let ended = || self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        eventually(&what, || self.answered() > before + 2 || ended());
    }

    /// Ends it and insists that not one message or answer was lost.
    pub fn finish(mut self) {
        self.stop.finish.store(true, Ordering::SeqCst);
        let end = self.thread.take().unwrap().join().unwrap();
        if let Err(error) = end {
            panic!("the {:?} flow to {}: {error}", self.protocol, self.backend);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.abandon.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Long enough for any answer on a slow machine; who does not answer is asked no more.
const FIRST: Duration = Duration::from_millis(500);

fn first_datagram(socket: &UdpSocket) -> Option<String> {
    socket.set_read_timeout(Some(FIRST)).unwrap();
    let mut buffer = [0; 64];
    socket.send(&u64::MAX.to_be_bytes()).ok()?;
    let length = socket.recv(&mut buffer).ok()?;
    Some(name_in(&buffer[..length]))
}

fn first_answer(stream: &mut TcpStream) -> Option<String> {
    let end = Instant::now() + FIRST;
    while stream.peer_addr().is_err() {
        if Instant::now() > end {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    stream.set_nonblocking(false).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&u64::MAX.to_be_bytes()).ok()?;
    let mut buffer = [0; NAME + 8];
    stream.read_exact(&mut buffer).ok()?;
    Some(name_in(&buffer))
}

fn udp(
    socket: &UdpSocket,
    backend: &str,
    stop: &Stop,
    answered: &AtomicU64,
) -> Result<u64, String> {
    socket.set_read_timeout(Some(PERIOD)).unwrap();
    let (mut missing, mut sent) = (BTreeSet::new(), 0u64);
    let receive = |missing: &mut BTreeSet<u64>| {
        let mut buffer = [0; NAME + 8];
        while socket.recv(&mut buffer).is_ok() {
            let number = u64::from_be_bytes(buffer[NAME..].try_into().unwrap());
            if name_in(&buffer) != backend {
                return Err(format!("{number} was answered by {}", name_in(&buffer)));
            }
            missing.remove(&number);
            answered.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    };
    while !stop.is_set() {
        missing.insert(sent);
        // An error that came back for an earlier one is no reason to stop.
        let _ = socket.send(&sent.to_be_bytes());
        sent += 1;
        receive(&mut missing)?;
    }
    let end = Instant::now() + Duration::from_secs(5);
    while !missing.is_empty() && Instant::now() < end && !stop.is_abandoned() {
        receive(&mut missing)?;
    }
    if missing.is_empty() { Ok(sent) } else { Err(format!("of {sent} no answer to {missing:?}")) }
}

fn tcp(
    mut stream: TcpStream,
    backend: &str,
    stop: &Stop,
    answered: &AtomicU64,
) -> Result<u64, String> {
    stream.set_read_timeout(Some(PERIOD)).unwrap();
    let (mut count, mut waits) = (0u64, 0);
    while !stop.is_set() {
        stream.write_all(&count.to_be_bytes()).map_err(|error| format!("{count}: {error}"))?;
        let mut buffer = [0; NAME + 8];
        let mut length = 0;
        while length < buffer.len() {
            match stream.read(&mut buffer[length..]) {
                Ok(0) => return Err(format!("closed after {count}")),
                Ok(more) => length += more,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    waits += u32::from(stop.is_set());
                    if stop.is_abandoned() || PERIOD * waits > PATIENCE {
                        return Err(format!("no answer to {count}"));
                    }
                }
                Err(error) => return Err(format!("after {count}: {error}")),
            }
        }
        if name_in(&buffer) != backend || buffer[NAME..] != count.to_be_bytes() {
            return Err(format!("{count} was answered by {buffer:?}"));
        }
        count += 1;
        answered.fetch_add(1, Ordering::SeqCst);
        thread::sleep(PERIOD);
    }
    Ok(count)
}
