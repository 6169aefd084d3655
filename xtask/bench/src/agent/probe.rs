//! When a change is in force, as packets tell: a stream of numbered packets, and the first one
//! that is judged otherwise than those before. Must never count a packet of an earlier change.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_isolation::netns::Netns;

/// Where the pod listens.
pub const PORT: u16 = 80;
/// Time between two packets, about.
const PACE: Duration = Duration::from_micros(100);
/// What a packet is given to arrive.
const FLIGHT: Duration = Duration::from_millis(2);
/// So many packets in a row are missing before it counts: one may only be late.
const MISSING: u64 = 3;
/// A hang guard.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both ends of the stream.
pub struct Probe {
    client: UdpSocket,
    server: UdpSocket,
    n_sent: u64,
    /// The last that has arrived.
    last: u64,
}

impl Probe {
    /// From one namespace to another.
    pub fn new(from: &Netns, to: &Netns, address: Ipv4Addr) -> Result<Self> {
        let server = to.run(|| UdpSocket::bind((address, PORT)))??;
        let client = from.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        client.connect((address, PORT))?;
        server.set_nonblocking(true)?;
        Ok(Self { client, server, n_sent: 0, last: 0 })
    }

    /// Sends one packet; when it was sent, and whether it arrived.
    fn send(&mut self, is_awaited: bool) -> (Instant, bool) {
        self.n_sent += 1;
        let sent = Instant::now();
        // One that cannot be sent has not arrived.
        let _ = self.client.send(&self.n_sent.to_be_bytes());
        let mut buffer = [0; 8];
        loop {
            match self.server.recv(&mut buffer) {
                Ok(_) => {
                    self.last = u64::from_be_bytes(buffer);
                    if self.last == self.n_sent {
                        return (sent, true);
                    }
                }
                // It is delivered by the sending processor, before the call returns, unless that
                // is busy: only what would be news is waited for.
                Err(_) if !is_awaited || sent.elapsed() > FLIGHT => return (sent, false),
                Err(_) => {}
            }
        }
    }

    /// Goes on for so long.
    pub fn send_for(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.send(false);
            std::thread::sleep(PACE);
        }
    }

    /// Sends until packets arrive, or do not; from `since` to when the first such one was sent.
    pub fn until(&mut self, arrives: bool, since: Instant) -> Result<Duration> {
        let mut missing: Option<(u64, Instant)> = None;
        loop {
            let (sent, has_arrived) = self.send(!arrives);
            if has_arrived && arrives {
                return Ok(sent.saturating_duration_since(since));
            }
            // Of those that are to be dropped, the first after the last that has arrived.
            missing = missing.filter(|(number, _)| self.last < *number);
            if !has_arrived && !arrives {
                let (first, sent) = *missing.get_or_insert((self.n_sent, sent));
                if self.n_sent - first + 1 >= MISSING {
                    return Ok(sent.saturating_duration_since(since));
                }
            }
            ensure!(
                since.elapsed() < PATIENCE,
                "packets {}: a change never came into force",
                if arrives { "that are allowed do not arrive" } else { "that are denied arrive" },
            );
            std::thread::sleep(PACE);
        }
    }
}
