//! Everyone who would notice: packet sockets at pods, nodes, the underlay and the outside host, read
//! by one thread. Must never judge what they see.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use netpol_isolation::netns::Netns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, sockopt};

use crate::lab::wire::packet_socket;

/// Room for what comes while the thread has no processor, in bytes.
const BUFFER: usize = 64 << 20;
/// How long the thread sleeps at most before it looks whether it is still wanted.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A place where frames are seen.
pub struct Place {
    pub name: String,
    socket: OwnedFd,
}

impl Place {
    /// Sees frames of this ethertype in the namespace; [`EVERYTHING`] before any program could drop
    /// them, others only after the programs of the interface that they come in by.
    ///
    /// [`EVERYTHING`]: crate::lab::wire::EVERYTHING
    pub fn new(name: String, netns: &Netns, ethertype: u16) -> Self {
        let socket = netns.run(|| packet_socket(ethertype)).unwrap();
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
        Self { name, socket }
    }
}

/// A frame and the number of the place that saw it.
pub struct Seen {
    pub place: usize,
    pub frame: Vec<u8>,
}

/// All places, and what they have seen since it was last forgotten.
pub struct Observers {
    names: Vec<String>,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observers {
    pub fn new(places: Vec<Place>) -> Self {
        let names = places.iter().map(|place| place.name.clone()).collect();
        let (seen, stop) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicBool>::default());
        let (into, until) = (seen.clone(), stop.clone());
        let thread = Some(thread::spawn(move || watch(&places, &into, &until)));
        Self { names, seen, stop, thread }
    }

    pub fn name(&self, place: usize) -> &str {
        &self.names[place]
    }

    /// The number of the place with this name.
    pub fn place(&self, name: &str) -> usize {
        let found = self.names.iter().position(|known| known == name);
        found.unwrap_or_else(|| panic!("nobody observes at {name}"))
    }

    pub fn n_places(&self) -> usize {
        self.names.len()
    }

    /// Frames of earlier attacks are of no use any more.
    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// How many frames that hold these bytes each place has seen.
    pub fn counts(&self, needle: &[u8]) -> Vec<usize> {
        let mut counts = vec![0; self.names.len()];
        for seen in self.seen.lock().unwrap().iter().filter(|seen| holds(&seen.frame, needle)) {
            counts[seen.place] += 1;
        }
        counts
    }

    /// How many of them one place has seen.
    pub fn count(&self, place: usize, needle: &[u8]) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.place == place && holds(&seen.frame, needle)).count()
    }

    /// How many frames have been seen so far.
    pub fn n_seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Whether one place has seen such a frame, but for the first `start` of all.
    pub fn has_seen(&self, start: usize, place: usize, needle: &[u8]) -> bool {
        let seen = self.seen.lock().unwrap();
        seen[start..].iter().any(|seen| seen.place == place && holds(&seen.frame, needle))
    }

    /// The first frame that holds these bytes at this place.
    pub fn first(&self, place: usize, needle: &[u8]) -> Option<Vec<u8>> {
        let seen = self.seen.lock().unwrap();
        let mut found = seen.iter().filter(|seen| seen.place == place);
        found.find(|seen| holds(&seen.frame, needle)).map(|seen| seen.frame.clone())
    }

    /// Such frames at this place, for people: each that is different, and how often.
    pub fn kinds(&self, place: usize, needle: &[u8]) -> String {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        let seen = self.seen.lock().unwrap();
        for seen in seen.iter().filter(|seen| seen.place == place && holds(&seen.frame, needle)) {
            *kinds.entry(hex(&seen.frame)).or_default() += 1;
        }
        let lines = kinds.iter().take(20).map(|(frame, count)| format!("\n{count} x {frame}"));
        lines.collect()
    }

    /// Takes what was seen since the last time.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// For people who want to know what passed.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the frame has these bytes anywhere.
pub fn holds(frame: &[u8], needle: &[u8]) -> bool {
    // Most bytes are not the first one: it is looked for by what libraries have optimised.
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn watch(places: &[Place], seen: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 17];
    while !stop.load(Ordering::Relaxed) {
        let mut ready: Vec<PollFd<'_>> =
            places.iter().map(|place| PollFd::new(&place.socket, PollFlags::IN)).collect();
        let _ = poll(&mut ready, Some(&NAP));
        let ready = ready.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<bool>>();
        for (number, place) in places.iter().enumerate().filter(|(number, _)| ready[*number]) {
            while let Ok((length, _)) =
                rustix::net::recv(&place.socket, &mut buffer, RecvFlags::DONTWAIT)
            {
                let frame = buffer[..length].to_vec();
                seen.lock().unwrap().push(Seen { place: number, frame });
            }
        }
    }
}
