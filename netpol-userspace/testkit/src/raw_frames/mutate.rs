//! Damages frames: bits, bytes, lengths, ends, headers twice, two frames in one, and bytes from
//! nowhere. In place, because millions are needed. Must never know what becomes of them.

use crate::generate::Rng;

/// A frame that may be changed and grow up to a limit.
pub struct Buffer {
    bytes: [u8; CAPACITY],
    length: usize,
}

const CAPACITY: usize = 1024;
/// Ethernet header.
const LINK: usize = 14;

impl Buffer {
    pub fn new() -> Self {
        Self { bytes: [0; CAPACITY], length: LINK }
    }

    pub fn frame(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Becomes one of `frames`, damaged more often than not.
    pub fn fill(&mut self, rng: &mut Rng, frames: &[Vec<u8>]) {
        if rng.below(40) == 0 {
            self.fill_from_nowhere(rng);
        } else {
            let frame = rng.pick(frames);
            self.length = frame.len().min(CAPACITY);
            self.bytes[..self.length].copy_from_slice(&frame[..self.length]);
            let n_steps = [0, 1, 1, 1, 2, 2, 3, 5][rng.below(8)];
            for _ in 0..n_steps {
                self.damage(rng, frames);
            }
        }
        self.pad();
    }

    fn damage(&mut self, rng: &mut Rng, frames: &[Vec<u8>]) {
        match rng.below(16) {
            0..=3 => {
                let at = self.position(rng);
                self.bytes[at] ^= 1 << rng.below(8);
            }
            4 | 5 => {
                let at = self.position(rng);
                self.bytes[at] = rng.bits() as u8;
            }
            6 | 7 => {
                let at = self.position(rng);
                self.bytes[at] = *rng.pick(&TELLING);
            }
            8 => self.lie_about_length(rng),
            9 => self.alter_fragment(rng),
            10 => self.swap_ends(),
            11 | 12 => self.length = LINK + rng.below(self.length - LINK + 1),
            13 => self.grow(rng),
            14 => self.repeat(rng),
            _ => {
                let other = &frames[rng.below(frames.len())];
                self.splice(rng, other);
            }
        }
    }

    /// Somewhere behind the link-layer addresses, headers more often than payload.
    fn position(&self, rng: &mut Rng) -> usize {
        let last = if rng.chance(70) { self.length.min(LINK + 64) } else { self.length };
        12 + rng.below(last.max(LINK) - 12)
    }

    fn lie_about_length(&mut self, rng: &mut Rng) {
        let truth = (self.length - LINK) as u16;
        let lie = match rng.below(8) {
            0 => 0,
            1 => truth.wrapping_add(1),
            2 => truth.wrapping_sub(1),
            3 => 20,
            4 => 0xffff,
            5 => rng.below(64) as u16,
            6 => truth.wrapping_sub(rng.below(48) as u16),
            _ => rng.bits() as u16,
        };
        // Total length of IPv4, payload length of IPv6, of UDP, or the header length.
        match rng.below(5) {
            0 | 1 => self.write(LINK + 2, &lie.to_be_bytes()),
            2 | 3 => self.write(LINK + 4, &lie.to_be_bytes()),
            _ => self.write(LINK, &[0x40 | rng.below(16) as u8]),
        }
    }

    fn alter_fragment(&mut self, rng: &mut Rng) {
        let words = [0x2000, 0x2001, 0x0001, 0x00b9, 0x1fff, 0x8000, 0x4000];
        let word: u16 = *rng.pick(&words);
        self.write(LINK + 6, &word.to_be_bytes());
    }

    /// Source and destination change places.
    fn swap_ends(&mut self) {
        let (first, size) = match self.bytes[LINK] >> 4 {
            4 => (LINK + 12, 4),
            _ => (LINK + 8, 16),
        };
        if first + 2 * size <= self.length {
            let (sources, rest) = self.bytes[first..].split_at_mut(size);
            sources.swap_with_slice(&mut rest[..size]);
        }
    }

    fn grow(&mut self, rng: &mut Rng) {
        let n = 1 + rng.below(60);
        let end = (self.length + n).min(CAPACITY);
        for at in self.length..end {
            self.bytes[at] = rng.bits() as u8;
        }
        self.length = end;
    }

    /// A part of the frame stands there twice: a header in front of itself, an option again.
    fn repeat(&mut self, rng: &mut Rng) {
        let first = 12 + rng.below(self.length - 12);
        let n = (1 + rng.below(48)).min(self.length - first);
        let end = (self.length + n).min(CAPACITY);
        self.bytes.copy_within(first..end - n, first + n);
        self.length = end;
    }

    /// The beginning of this frame and the end of another.
    fn splice(&mut self, rng: &mut Rng, other: &[u8]) {
        let here = 12 + rng.below(self.length - 12);
        let there = 12 + rng.below(other.len() - 12);
        let tail = &other[there..];
        let end = (here + tail.len()).min(CAPACITY);
        self.bytes[here..end].copy_from_slice(&tail[..end - here]);
        self.length = end.max(LINK);
    }

    fn fill_from_nowhere(&mut self, rng: &mut Rng) {
        self.length = LINK + rng.below(200);
        for at in 0..self.length {
            self.bytes[at] = rng.bits() as u8;
        }
        let ethertype: &[u8] = match rng.below(4) {
            0 => return,
            1 => &[0x08, 0x00],
            2 => &[0x86, 0xdd],
            _ => &[0x81, 0x00],
        };
        self.write(12, ethertype);
        if rng.chance(70) && self.length > LINK {
            self.bytes[LINK] = if ethertype[0] == 8 { 0x45 } else { 0x60 };
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if at + bytes.len() <= self.length {
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// The kernel runs programs on nothing shorter than the IP header that is announced.
    fn pad(&mut self) {
        let least = match [self.bytes[12], self.bytes[13]] {
            [0x86, 0xdd] => LINK + 40,
            [0x08, 0x00] => LINK + 20,
            _ => LINK + 1,
        };
        if self.length < least {
            self.bytes[self.length..least].fill(0);
            self.length = least;
        }
    }
}

/// Values that mean something in some header.
const TELLING: [u8; 24] = [
    0, 1, 2, 4, 5, 6, 8, 17, 41, 43, 44, 50, 51, 58, 59, 60, 64, 0x45, 0x60, 132, 135, 137, 254,
    255,
];
