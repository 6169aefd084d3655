//! What one small UDP packet costs on its whole path, from the call that sends it to the one that
//! receives it: both by one thread on one processor, so that nothing is woken and nothing waits.
//! The kernel delivers a packet between veths on the processor that sends it. Must never count a
//! packet that did not arrive.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::pair::Pair;
use super::population::OPEN;
use super::traffic::{End, PATIENCE, SMALL, bind, dial_here, establish, pin, undisturbed};

/// Packets that are sent before any is received, and timed together.
const BATCH: usize = 64;
/// Where first packets of flows go: no other measurement has such flows.
const FRESH: u16 = OPEN + 1;
/// Flows of which each is seen once in a round.
const FRESH_FLOWS: u16 = 2_048;
/// The first port they come from; sixteen rounds later they are used up.
const FIRST_PORT: u16 = 12_000;

/// Whether the server has answered a flow's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// It has: conntrack calls such flows established.
    Answered,
    /// It never does.
    Unanswered,
}

/// Nanoseconds per packet of this many flows, visited in turn.
pub fn cost(pair: &Pair, flows: usize, kind: Flows, time: Duration) -> Result<f64> {
    let server = bind(pair, OPEN)?;
    let dial_all = || (0..flows).map(|_| dial_here(0, OPEN)).collect::<Result<Vec<_>>>();
    let clients = pair.client.run(dial_all)??;
    if kind == Flows::Answered {
        for client in &clients {
            establish(client, &server)?;
        }
    }
    let clients = &clients;
    on_one_processor(move || {
        let mut senders = clients.iter().cycle();
        // Once around before the clock starts: what the first packet of a flow costs is another
        // figure.
        batches(&server, &mut senders, |count, _| count * BATCH < 2 * flows)?;
        batches(&server, &mut senders, |_, passed| passed < time)
    })
}

/// Nanoseconds per packet where each is the first of its flow. The flows of each round are others
/// than those before.
pub fn cost_of_new_flows(pair: &Pair, round: usize) -> Result<f64> {
    let server = bind(pair, FRESH)?;
    let round = u16::try_from(round % 16)?;
    let ports = (0..FRESH_FLOWS).map(|port| FIRST_PORT + round * FRESH_FLOWS + port);
    let dial_all = || ports.map(|port| dial_here(port, FRESH)).collect::<Result<Vec<_>>>();
    let clients = pair.client.run(dial_all)??;
    on_one_processor(move || {
        let mut senders = clients.iter();
        batches(&server, &mut senders, |count, _| count < usize::from(FRESH_FLOWS) / BATCH)
    })
}

fn on_one_processor(work: impl FnOnce() -> Result<f64> + Send) -> Result<f64> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(End::Client)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

/// Nanoseconds per packet in batches, as long as it is to go on: asked with the number of batches
/// and the time since the first.
fn batches<'a>(
    server: &UdpSocket,
    senders: &mut impl Iterator<Item = &'a UdpSocket>,
    go_on: impl Fn(usize, Duration) -> bool,
) -> Result<f64> {
    server.set_nonblocking(true)?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while go_on(times.len(), begin.elapsed()) {
        times.push(batch(server, senders)?.as_nanos() as f64 / BATCH as f64);
    }
    undisturbed(times)
}

fn batch<'a>(
    server: &UdpSocket,
    senders: &mut impl Iterator<Item = &'a UdpSocket>,
) -> Result<Duration> {
    let begin = Instant::now();
    let mut on_their_way = 0_usize;
    for sender in senders.by_ref().take(BATCH) {
        sender.send(&SMALL)?;
        on_their_way += 1;
    }
    let mut buffer = [0; SMALL.len()];
    while on_their_way > 0 {
        match server.recv(&mut buffer) {
            Ok(_) => on_their_way -= 1,
            // The kernel has left them to a thread of its own, which needs this processor.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
        if begin.elapsed() > PATIENCE {
            bail!("{on_their_way} of {BATCH} packets never arrived");
        }
    }
    Ok(begin.elapsed())
}
