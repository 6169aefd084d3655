//! How results come out of a virtual machine: frames on a serial line of their own, each with a
//! word that nobody inside could guess before, a length and a sum. What is not exactly that is no
//! result. Pure: reads and makes bytes.
//!
//! A frame is `WORD KIND NAME CODE LENGTH SUM\n` and LENGTH bytes.

use std::fmt::Write as _;

/// One message of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// Whose it is: a job's name.
    pub name: String,
    /// How the job ended.
    pub code: i32,
    /// What it printed.
    pub body: Vec<u8>,
}

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The machine is up; the body is its kernel's release.
    Up,
    /// A job begins.
    Begin,
    /// A job ended; the body is what it printed.
    End,
    /// A job took too long and was killed.
    TooLong,
    /// All jobs are done.
    Done,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Up, "up"),
    (Kind::Begin, "begin"),
    (Kind::End, "end"),
    (Kind::TooLong, "too-long"),
    (Kind::Done, "done"),
];

/// More is no frame.
const LONGEST: usize = 1 << 22;

impl Frame {
    /// As it is sent.
    #[must_use]
    pub fn encode(&self, word: &str) -> Vec<u8> {
        let kind = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        let name = if self.name.is_empty() { "-" } else { &self.name };
        let mut header = String::new();
        let (code, length, sum) = (self.code, self.body.len(), sum(&self.body));
        let _ = writeln!(header, "{word} {kind} {name} {code} {length} {sum:016x}");
        let mut bytes = header.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// FNV-1a, which finds what a serial line loses or doubles.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What there is so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// A frame, and how many bytes it took.
    Frame(Frame, usize),
    /// The rest of it has yet to come.
    Partly,
    /// This is no frame: why.
    Garbled(String),
}

/// The frame at the start of `bytes`.
#[must_use]
pub fn read(bytes: &[u8], word: &str) -> Read {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() > 4096 { garbled(bytes) } else { Read::Partly };
    };
    let header = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let words: Vec<&str> = header.split(' ').collect();
    let [first, kind, name, code, length, check] = words[..] else { return garbled(bytes) };
    let kind = KINDS.iter().find(|(_, name)| *name == kind).map(|(kind, _)| *kind);
    let (Some(kind), Ok(code), Ok(length), Ok(check)) =
        (kind, code.parse(), length.parse::<usize>(), u64::from_str_radix(check, 16))
    else {
        return garbled(bytes);
    };
    if first != word || length > LONGEST {
        return garbled(bytes);
    }
    let Some(body) = bytes.get(end + 1..end + 1 + length) else { return Read::Partly };
    if sum(body) != check {
        return Read::Garbled(format!("the {length} bytes of {name} are not those that were sent"));
    }
    let name = if name == "-" { String::new() } else { name.to_owned() };
    Read::Frame(Frame { kind, name, code, body: body.to_vec() }, end + 1 + length)
}

fn garbled(bytes: &[u8]) -> Read {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    Read::Garbled(format!("the machine sent what is no result: {start:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Frame {
        Frame { kind: Kind::End, name: "wire_icmp".to_owned(), code: 1, body: body.to_vec() }
    }

    #[test]
    fn a_frame_is_read_back_whatever_is_in_it() {
        let inside = frame(b"x").encode("secret");
        let mut bytes = frame(&inside).encode("secret");
        let length = bytes.len();
        for cut in 0..length {
            assert_eq!(read(&bytes[..cut], "secret"), Read::Partly, "{cut}");
        }
        bytes.extend_from_slice(b"next");
        assert_eq!(read(&bytes, "secret"), Read::Frame(frame(&inside), length));
    }

    #[test]
    fn what_is_not_exactly_a_frame_is_none() {
        let good = frame(b"body").encode("secret");
        for (place, _) in good.iter().enumerate() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            let is_good =
                matches!(read(&bad, "secret"), Read::Frame(found, _) if found == frame(b"body"));
            assert!(!is_good, "{place}");
        }
        assert!(matches!(read(&good, "another"), Read::Garbled(_)));
        assert!(matches!(read(b"[   1.0] a kernel's line\n", "secret"), Read::Garbled(_)));
    }
}
