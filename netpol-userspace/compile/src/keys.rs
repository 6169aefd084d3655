//! What a class stands for, in little room: there may be hundreds of thousands, and each number is
//! kept with it. Must never be equal for two contents, nor differ for one: then a restarted agent
//! would take rows for another class's.

use std::fmt::{self, Write as _};
use std::io;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The content of a class: of most the one block that they are in, of others a digest. To be stored
/// and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    /// It has one atom, which is this block.
    Block(IpNet),
    /// The first half of SHA-256 of its text. Who wanted another namespace's class to have the digest
    /// of one of theirs would have to find a second text for a digest of 128 bits.
    Digest([u8; 16]),
}

/// Before a digest, as it is written.
const DIGEST: char = '#';
/// Around the block in the text of a class of one block.
const BLOCK: (&str, &str) = ("[{\"Cidr\":\"", "\"}]");

impl ClassKey {
    /// The class that has one atom, which is this block.
    pub(super) fn of_block(block: IpNet) -> Self {
        Self(Kind::Block(block))
    }

    /// The class with this text. For one of a single block likewise.
    pub fn of_text(text: &str) -> Self {
        let block = text.strip_prefix(BLOCK.0).and_then(|rest| rest.strip_suffix(BLOCK.1));
        match block.and_then(block_of) {
            Some(block) => Self::of_block(block),
            None => Self::digest(Sha256::digest(text)),
        }
    }

    /// The class of which that is the text as JSON, and which is not of a single block.
    pub(super) fn of_json(text: &impl Serialize) -> Self {
        let mut hasher = Hasher(Sha256::new());
        serde_json::to_writer(&mut hasher, text)
            .expect("invariant: keys hold nothing that JSON cannot");
        Self::digest(hasher.0.finalize())
    }

    fn digest(whole: impl AsRef<[u8]>) -> Self {
        let half = whole.as_ref().first_chunk().expect("invariant: it is longer");
        Self(Kind::Digest(*half))
    }
}

struct Hasher(Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A block as it is always written.
fn block_of(text: &str) -> Option<IpNet> {
    let block: IpNet = text.parse().ok()?;
    (block.to_string() == text).then_some(block)
}

fn digest_of(text: &str) -> Option<[u8; 16]> {
    let hex = text.strip_prefix(DIGEST).filter(|hex| hex.len() == 32)?;
    let number = u128::from_str_radix(hex, 16).ok()?;
    Some(number.to_be_bytes())
}

impl fmt::Display for ClassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Block(block) => write!(f, "{block}"),
            Kind::Digest(digest) => {
                f.write_char(DIGEST)?;
                write!(f, "{:032x}", u128::from_be_bytes(digest))
            }
        }
    }
}

impl From<&str> for ClassKey {
    /// As it is written now, or as it was by earlier releases: with its whole text.
    fn from(written: &str) -> Self {
        match (digest_of(written), block_of(written)) {
            (Some(digest), _) => Self(Kind::Digest(digest)),
            (None, Some(block)) => Self::of_block(block),
            (None, None) => Self::of_text(written),
        }
    }
}

impl Serialize for ClassKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClassKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl serde::de::Visitor<'_> for Written {
            type Value = ClassKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the content of a class")
            }

            fn visit_str<E>(self, written: &str) -> Result<ClassKey, E> {
                Ok(ClassKey::from(written))
            }
        }
        deserializer.deserialize_str(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_texts_of_earlier_releases_mean_the_same() {
        for text in [
            "[{\"Cidr\":\"10.0.0.0/8\"}]",
            "[{\"Cidr\":\"2001:db8::/32\"}]",
            "[{\"Cidr\":\"10.0.0.0/8\"},{\"Cidr\":\"10.1.0.0/16\"}]",
            "[[{\"Cidr\":\"10.0.0.0/8\"},3]]",
            "[{\"Port\":[6,\"http\",80]}]",
            "unknown 7",
            "",
        ] {
            let key = ClassKey::of_text(text);
            let written = key.to_string();
            assert_eq!(ClassKey::from(text), key, "{text}");
            assert_eq!(ClassKey::from(written.as_str()), key, "{text}: {written}");
            assert!(written.len() <= 43, "{written}");
        }
        assert_eq!(ClassKey::of_text("[{\"Cidr\":\"10.0.0.0/8\"}]").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn what_only_looks_like_a_block_or_a_digest_is_a_text() {
        let block = ClassKey::from("10.0.0.0/8");
        let digest = ClassKey::of_text("x");
        let texts = ["[{\"Cidr\":\"10.0.0.0/08\"}]", "[{\"Cidr\":\"10.0.0.0/8\"}", "#0", "#"];
        for text in texts.into_iter().chain([format!("{digest} ").as_str()]) {
            let key = ClassKey::from(text);
            assert!(key != block && key != digest && matches!(key.0, Kind::Digest(_)), "{text}");
        }
        assert_eq!(digest.to_string(), "#2d711642b726b04401627ca9fbac32f5");
    }
}
