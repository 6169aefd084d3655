//! The uid of an object. Nearly always a UUID, of which a cluster has a hundred thousand: as text one
//! takes four times as much. Pure.

use std::fmt;

use super::Str;

/// A uid, as the text that it was given as.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Kept);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kept {
    /// A UUID in the form that Kubernetes writes: lower case, in five groups.
    Uuid([u8; 16]),
    Text(Str),
}

/// Before which bytes of a UUID there is a hyphen.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];
const UUID_LENGTH: usize = 36;

impl Uid {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Kept::Text(text) if text.is_empty())
    }
}

/// The bytes of a UUID, if the text is just what they are written as.
fn parse(text: &str) -> Option<[u8; 16]> {
    let text: &[u8; UUID_LENGTH] = text.as_bytes().try_into().ok()?;
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut rest = text.iter().copied();
    let mut bytes = [0; 16];
    for (index, byte) in bytes.iter_mut().enumerate() {
        if HYPHENS.contains(&index) && rest.next() != Some(b'-') {
            return None;
        }
        *byte = digit(rest.next()?)? << 4 | digit(rest.next()?)?;
    }
    Some(bytes)
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(parse(text).map_or_else(|| Kept::Text(text.into()), Kept::Uuid))
    }
}

impl From<String> for Uid {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl PartialEq<str> for Uid {
    fn eq(&self, other: &str) -> bool {
        match &self.0 {
            Kept::Uuid(bytes) => parse(other).as_ref() == Some(bytes),
            Kept::Text(text) => **text == *other,
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match &self.0 {
            Kept::Uuid(bytes) => bytes,
            Kept::Text(text) => return f.write_str(text),
        };
        for (index, byte) in bytes.iter().enumerate() {
            if HYPHENS.contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_the_text_that_it_was() {
        let uuid = "0b36ea19-7e58-4ab5-9a36-c7ba11bb0a0c";
        let upper = uuid.to_uppercase();
        let (joined, long) = (uuid.replace('-', ""), format!("{uuid}0"));
        let moved = "0b36ea197-e58-4ab5-9a36-c7ba11bb0a0c";
        let texts = [uuid, &upper, &joined, &long, moved, "shop/web", "", "ä"];
        for (index, text) in texts.iter().enumerate() {
            let uid = Uid::from(*text);
            assert_eq!(uid.to_string(), *text);
            assert_eq!(uid.is_empty(), text.is_empty());
            assert_eq!(matches!(uid.0, Kept::Uuid(_)), index == 0, "{text}");
            for (other_index, other) in texts.iter().enumerate() {
                assert_eq!(uid == **other, index == other_index, "{text} {other}");
                let other = Uid::from(*other);
                assert_eq!(uid == other, index == other_index, "{text} {other}");
            }
        }
    }
}
