//! One attack: what is sent, and that it is held. Must never wait for something not to happen: it
//! has been dropped and counted, or has been seen, and what came after it has arrived.

use std::cell::Cell;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::MutexGuard;
use std::thread;
use std::time::{Duration, Instant};

use super::frames::{Marker, ethertype, frame};
use super::observers::hex;
use super::sender::Sender;
use super::stage::{BEFORE, OPEN, Stage};
use super::ways::Way;
use crate::lab::Pod;
use crate::lab::wire::send_packet;
use crate::world::{PATIENCE, eventually};

/// The kernel keeps so many packets for a processor that is behind, and forgets further ones
/// (net.core.netdev_max_backlog).
const MOST_UNDER_WAY: u64 = 500;
const A_LITTLE: Duration = Duration::from_millis(1);

/// What an attacker does to one stage, alone.
pub struct Attack<'a> {
    pub stage: &'a Stage,
    /// A pod of node 1.
    pub attacker: &'a Pod,
    pub sender: Sender,
    /// The link-layer address of what it takes for its gateway.
    pub gateway: [u8; 6],
    pub marker: Marker,
    /// Frames that the attacker has sent, and those that netpol had dropped before.
    n_sent: Cell<u64>,
    n_dropped_before: u64,
    /// Nobody else attacks meanwhile. Absent in a part of an attack.
    _alone: Option<MutexGuard<'a, ()>>,
}

impl<'a> Attack<'a> {
    pub(super) fn new(stage: &'a Stage, alone: MutexGuard<'a, ()>) -> Self {
        stage.observers.forget();
        Self {
            stage,
            attacker: &stage.attacker,
            sender: Sender::of(&stage.attacker),
            gateway: stage.gateway,
            marker: Marker::new(),
            n_sent: Cell::new(0),
            n_dropped_before: stage.n_dropped(&stage.attacker),
            _alone: Some(alone),
        }
    }

    /// The same by another pod of node 1, with the same marker.
    pub fn by<'b>(&'b self, attacker: &'b Pod) -> Attack<'b> {
        let sender = Sender::of(attacker);
        self.through(attacker, sender)
    }

    /// The same by another socket.
    pub fn through<'b>(&'b self, attacker: &'b Pod, sender: Sender) -> Attack<'b> {
        Attack {
            stage: self.stage,
            attacker,
            sender,
            gateway: self.gateway,
            marker: self.marker,
            n_sent: Cell::new(0),
            n_dropped_before: self.stage.n_dropped(attacker),
            _alone: None,
        }
    }

    /// By which link-layer addresses somebody gets a frame of the attacker.
    pub fn links(&self) -> Vec<[u8; 6]> {
        self.stage.links(self.gateway)
    }

    // === From the attacker ===

    /// A whole frame, from link-layer header on.
    pub fn fire(&self, frame: &[u8]) {
        self.sender.send(frame);
        let n_sent = self.n_sent.get() + 1;
        self.n_sent.set(n_sent);
        if n_sent.is_multiple_of(MOST_UNDER_WAY) {
            self.catch_up();
        }
    }

    /// Whole frames, each behind a header that tells the kernel how to cut it.
    pub fn fire_offloaded(&self, frames: &[Vec<u8>]) {
        let lines: Vec<String> = frames.iter().map(|frame| hex(frame) + "\n").collect();
        // 263 and 15: SOL_PACKET and PACKET_VNET_HDR of linux/if_packet.h.
        let script = "import socket, sys\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                      s.setsockopt(263, 15, 1)\ns.bind(('eth0', 0))\n\
                      for line in sys.stdin: s.send(bytes.fromhex(line))\n";
        let python = || {
            let mut command = Command::new("python3");
            command.args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let output = self.attacker.netns.run(python).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.n_sent.set(self.n_sent.get() + frames.len() as u64);
    }

    /// An IP packet to this link-layer address, from the attacker's own.
    pub fn fire_at(&self, link: [u8; 6], packet: &[u8]) {
        self.fire(&frame(link, self.sender.link, ethertype(packet), packet));
    }

    /// A packet for each way to everyone, in each family.
    pub fn spray(&self, make: impl Fn(&Way) -> Vec<u8>) {
        let destinations = self.stage.destinations();
        self.spray_to(&destinations, &self.links(), |way| Some(make(way)));
    }

    /// Only to a host of each kind and by the node: for attacks of many kinds of packets.
    pub fn sweep(&self, make: impl Fn(&Way) -> Vec<u8>) {
        let destinations = self.stage.main_destinations();
        self.spray_to(&destinations, &[self.gateway], |way| Some(make(way)));
    }

    /// Like [`Self::spray`], of one family.
    pub fn spray_v4(&self, make: impl Fn(&Way) -> Vec<u8>) {
        let destinations = self.stage.destinations();
        let make = |way: &Way| way.to.is_ipv4().then(|| make(way));
        self.spray_to(&destinations, &self.links(), make);
    }

    /// Like [`Self::spray`], of one family.
    pub fn spray_v6(&self, make: impl Fn(&Way) -> Vec<u8>) {
        let destinations = self.stage.destinations();
        let make = |way: &Way| way.to.is_ipv6().then(|| make(way));
        self.spray_to(&destinations, &self.links(), make);
    }

    /// To these addresses by these link-layer addresses.
    pub fn spray_to(
        &self,
        destinations: &[IpAddr],
        links: &[[u8; 6]],
        make: impl Fn(&Way) -> Option<Vec<u8>>,
    ) {
        let marker = self.marker;
        for &to in destinations {
            let own = self.attacker.address(to);
            for &link in links {
                if let Some(packet) = make(&Way { own, to, link, marker }) {
                    self.fire_at(link, &packet);
                }
            }
        }
    }

    /// The same for other frames than those of IP: `make` returns everything behind the link-layer
    /// addresses.
    pub fn spray_frames(&self, make: impl Fn(&Way) -> Vec<u8>) {
        let marker = self.marker;
        for to in self.stage.main_destinations() {
            let own = self.attacker.address(to);
            for link in self.links() {
                let rest = make(&Way { own, to, link, marker });
                self.fire(&[&link[..], &self.sender.link, &rest].concat());
            }
        }
    }

    // === Judgement ===

    /// A number for names, of no other attack.
    pub fn number(&self) -> u32 {
        let Marker([a, b, c, d, ..]) = self.marker;
        u32::from_be_bytes([a, b, c, d])
    }

    /// Everything that the attacker has sent was dropped by netpol at once, each frame counted, and
    /// nobody has seen any of it.
    pub fn is_held(&self) {
        self.is_held_as(&self.marker.0);
    }

    /// The same for frames that are known by these bytes.
    pub fn is_held_as(&self, needle: &[u8]) {
        let n_sent = self.n_sent.get();
        assert!(n_sent > 0, "nothing was sent");
        self.catch_up();
        self.is_heard();
        self.is_unseen(needle);
        let n_dropped = self.n_dropped();
        assert_eq!(n_dropped, n_sent, "frames dropped, of those that were sent");
        // The observer on the node sees them before anything drops them.
        let place = self.stage.observers.place(BEFORE);
        let n_seen = self.stage.observers.count(place, needle) as u64;
        assert_eq!(n_seen, n_sent, "frames with these bytes that came to the node at all");
    }

    /// As [`Self::is_held`], where another part has sent the same marker before.
    pub fn is_held_in_part(&self) {
        assert!(self.n_sent.get() > 0, "nothing was sent");
        self.catch_up();
        self.is_heard();
        self.is_only_seen_before();
        // The pod's stack may have said something of its own that is dropped.
        let (n_dropped, n_sent) = (self.n_dropped(), self.n_sent.get());
        assert!(n_dropped >= n_sent, "{n_dropped} frames were dropped of {n_sent} that were sent");
    }

    /// The marker was seen nowhere but before the programs of node 1.
    pub fn is_only_seen_before(&self) {
        self.is_seen_at_most(&self.marker.0, usize::MAX);
    }

    /// Nothing of it was seen anywhere but where the attacker's interface enters the node.
    fn is_unseen(&self, needle: &[u8]) {
        self.is_seen_at_most(needle, self.n_sent.get() as usize);
    }

    /// So many frames before the programs of node 1, where the attacker's interface enters it, and
    /// none elsewhere. What the attacker itself sees is its own affair.
    fn is_seen_at_most(&self, needle: &[u8], n_before: usize) {
        let observers = &self.stage.observers;
        let before = observers.place(BEFORE);
        for (place, count) in observers.counts(needle).into_iter().enumerate() {
            let expected = if place == before { n_before } else { 0 };
            let name = observers.name(place);
            assert!(
                count <= expected || name == self.attacker.name,
                "{count} frames are seen at {name}, {n_before} were sent: {}",
                observers.kinds(place, needle)
            );
        }
    }

    /// Frames that are known by these bytes come through the programs of node 1.
    pub fn passes(&self, needle: &[u8]) {
        let observers = &self.stage.observers;
        let before = observers.place(BEFORE);
        eventually("what may pass is seen behind the programs", || {
            observers.counts(needle).iter().enumerate().any(|(place, n)| place != before && *n > 0)
        });
    }

    /// Waits until what was sent has been counted; who counts on it looks again.
    fn catch_up(&self) {
        let end = Instant::now() + Duration::from_secs(2);
        while self.n_dropped() < self.n_sent.get() && Instant::now() < end {
            thread::sleep(A_LITTLE);
        }
    }

    fn n_dropped(&self) -> u64 {
        self.stage.n_dropped(self.attacker) - self.n_dropped_before
    }

    /// Every observer sees what may pass, and that comes after everything before.
    pub fn is_heard(&self) {
        let observers = &self.stage.observers;
        let end = Instant::now() + PATIENCE;
        let start = observers.n_seen();
        let mut awaited = self.stage.proclaim();
        let mut said = Instant::now();
        loop {
            awaited.retain(|(place, needle)| !observers.has_seen(start, *place, needle));
            if awaited.is_empty() {
                return;
            }
            let names: Vec<&str> =
                awaited.iter().map(|(place, _)| observers.name(*place)).collect();
            assert!(Instant::now() < end, "these observers are deaf: {names:?}");
            // The kernel may not know yet who has an address.
            if said.elapsed() > Duration::from_millis(500) {
                let again = self.stage.proclaim();
                awaited = again
                    .into_iter()
                    .filter(|(place, _)| awaited.iter().any(|(missed, _)| missed == place))
                    .collect();
                said = Instant::now();
            }
            thread::sleep(A_LITTLE);
        }
    }

    // === Against the victims ===

    /// What `send` sends is dropped on its way into this pod: at least so many packets are counted
    /// there, and none is seen in it.
    pub fn is_kept_from(&self, pod: &Pod, n_packets: u64, send: impl FnOnce()) {
        let (observers, count) = (&self.stage.observers, || self.stage.n_kept(pod));
        let (place, before) = (observers.place(&pod.name), count());
        send();
        eventually("what is sent is dropped, or arrives", || {
            count() >= before + n_packets || observers.count(place, &self.marker.0) > 0
        });
        self.is_heard();
        let seen = observers.first(place, &self.marker.0);
        assert!(seen.is_none(), "{} gets {}", pod.name, hex(&seen.unwrap_or_default()));
    }

    /// Nothing that is known by the marker has been seen in this pod.
    pub fn never_reaches(&self, pod: &Pod) {
        self.is_heard();
        let observers = &self.stage.observers;
        let seen = observers.first(observers.place(&pod.name), &self.marker.0);
        assert!(seen.is_none(), "{} gets {}", pod.name, hex(&seen.unwrap_or_default()));
    }

    /// The marker arrives in this pod.
    pub fn reaches(&self, pod: &Pod) {
        let observers = &self.stage.observers;
        let place = observers.place(&pod.name);
        eventually(&format!("{} gets it", pod.name), || observers.count(place, &self.marker.0) > 0);
    }

    /// The victims, each with a stranger on its own node and one on the other.
    pub fn victims(&self) -> [(&'a Pod, [&'a Pod; 2]); 2] {
        let Stage { victim, far_victim, free, far_free, .. } = self.stage;
        [(victim, [free, far_free]), (far_victim, [far_free, free])]
    }

    /// The friend's own packet of the form that an attack has gets to the victim, so the form is not
    /// what keeps others out.
    pub fn friend_reaches(
        &self,
        pod: &Pod,
        make: impl Fn(IpAddr, IpAddr, u16, Marker) -> Vec<Vec<u8>>,
    ) {
        let observers = &self.stage.observers;
        let place = observers.place(&pod.name);
        for &to in &pod.addresses {
            let marker = Marker::new();
            let from = self.stage.friend.address(to);
            for packet in make(from, to, OPEN, marker) {
                send_packet(&self.stage.friend.netns, &packet);
            }
            eventually("the friend's packet arrives", || observers.count(place, &marker.0) > 0);
        }
    }
}
