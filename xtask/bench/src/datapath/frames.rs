//! Frames and the programs that they are run by. Pure.

use std::net::IpAddr;

use netpol_common::spread::{EGRESS, FRESH, Spread};
use netpol_observe::frames::{Transport, frame, packet};

use super::cluster::{POD, POD6};

/// The program that does nothing.
pub const NOTHING: &str = "netpol_nothing";
/// It on a packet that is another one in each run.
pub const SPREAD_NOTHING: &str = "netpol_spread_nothing";
/// The one for traffic towards pods, likewise.
pub const SPREAD_INGRESS: &str = "netpol_spread_ingress";
/// The one for traffic from pods, likewise.
pub const SPREAD_EGRESS: &str = "netpol_spread_egress";

/// The one for traffic from pods that no policy selects.
pub const GUARD: &str = "netpol_guard";

/// A port of clients; those of new flows begin here and count up.
pub const CLIENT_PORT: u16 = 20_000;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// A packet of a flow to or from the pod.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Who is at the other end.
    pub remote: IpAddr,
    /// Whether the pod sends it.
    pub is_out: bool,
    /// Whether the pod opened the flow, so that the port is the other end's.
    pub is_client: bool,
    /// The port of the server.
    pub port: u16,
    /// TCP flags; `None`: UDP.
    pub tcp: Option<u8>,
}

impl Shape {
    /// The first packet of a TCP connection.
    pub fn syn(remote: IpAddr, is_out: bool, port: u16) -> Self {
        Self { remote, is_out, is_client: is_out, port, tcp: Some(SYN) }
    }

    /// A UDP packet that opens a flow, and any later one.
    pub fn udp(remote: IpAddr, is_out: bool, port: u16) -> Self {
        Self { tcp: None, ..Self::syn(remote, is_out, port) }
    }

    /// The first packet of its flow.
    pub fn opening(self) -> Self {
        Self { is_out: self.is_client, tcp: self.tcp.map(|_| SYN), ..self }
    }

    /// The answer to it.
    pub fn answer(self) -> Self {
        Self { is_out: !self.is_out, tcp: self.tcp.map(|_| SYN_ACK), ..self }
    }

    /// A later packet of the same direction.
    pub fn later(self) -> Self {
        Self { tcp: self.tcp.map(|_| ACK), ..self }
    }

    /// Ethernet header first.
    pub fn frame(self) -> Vec<u8> {
        let pod = if self.remote.is_ipv4() { POD } else { POD6 }.parse().expect("an address");
        let ends = if self.is_out { (pod, self.remote) } else { (self.remote, pod) };
        let is_from_client = self.is_out == self.is_client;
        let ports =
            if is_from_client { (CLIENT_PORT, self.port) } else { (self.port, CLIENT_PORT) };
        let (source, destination) = ports;
        let transport = match self.tcp {
            Some(flags) => Transport::Tcp { source, destination, flags },
            None => Transport::Udp { source, destination },
        };
        frame(&packet(ends.0, ends.1, &transport))
    }

    /// The same with the note for the programs that change it in each run. `n_before` runs of
    /// other ports were there.
    pub fn frame_with(self, mut spread: Spread, n_before: u32) -> Vec<u8> {
        let mut bytes = self.frame();
        if self.is_out {
            spread.flags |= EGRESS;
        }
        for (place, word) in bytes.chunks_exact_mut(4).zip(spread.words()) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        if spread.has(FRESH) {
            let at = if self.remote.is_ipv4() { 34 } else { 54 };
            let port = CLIENT_PORT.wrapping_add(n_before as u16);
            bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
        }
        bytes
    }
}
