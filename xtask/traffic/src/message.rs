//! The messages: of one size, with a number and their sender's name. Must never take what is not
//! a whole message for one.

/// Bytes of every message.
pub const SIZE: usize = 80;
const MAGIC: &[u8; 8] = b"netpol-1";

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counts up from 0 in each flow.
    pub number: u64,
    /// The sending pod's name, cut to 64 bytes.
    pub sender: String,
}

impl Message {
    pub fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_be_bytes());
        let name = self.sender.as_bytes();
        let length = name.len().min(SIZE - 16);
        bytes[16..16 + length].copy_from_slice(&name[..length]);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        if bytes[..8] != *MAGIC {
            return None;
        }
        let number = u64::from_be_bytes(bytes[8..16].try_into().ok()?);
        let name = &bytes[16..];
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let sender = String::from_utf8_lossy(&name[..end]).into_owned();
        Some(Self { number, sender })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_nothing_else_is_one() {
        let message = Message { number: 0x0102_0304, sender: "web-7d9c-x2x4z".to_owned() };
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Some(message));
        assert_eq!(Message::decode(&bytes[..SIZE - 1]), None);
        let mut other = bytes;
        other[0] ^= 1;
        assert_eq!(Message::decode(&other), None);
        let long = Message { number: 1, sender: "x".repeat(100) };
        assert_eq!(Message::decode(&long.encode()).map(|it| it.sender), Some("x".repeat(64)));
    }
}
