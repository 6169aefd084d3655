//! What the addresses of classes match, in words. There may be hundreds of thousands of classes, so
//! that all words are in one text. Plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// Between the words of one class. (No selector, block or port name has it.)
const BETWEEN: char = '\n';

/// The words of each class, by number. Written as a map of lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<u32, Vec<String>>")]
pub struct ClassWords {
    text: String,
    /// Numbers, each with where its words end.
    ends: Vec<(u32, usize)>,
}

impl ClassWords {
    /// The number of each class and its words, in the order of numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Vec<&str>)> {
        let mut begin = 0;
        self.ends.iter().map(move |&(class, end)| {
            let words = &self.text[begin..end];
            begin = end;
            (class, words.split_terminator(BETWEEN).collect())
        })
    }
}

impl<S: AsRef<str>> FromIterator<(u32, Vec<S>)> for ClassWords {
    /// Of distinct classes in the order of their numbers.
    fn from_iter<I: IntoIterator<Item = (u32, Vec<S>)>>(classes: I) -> Self {
        let mut all = Self::default();
        for (class, words) in classes {
            for word in words {
                all.text.push_str(word.as_ref());
                all.text.push(BETWEEN);
            }
            all.ends.push((class, all.text.len()));
        }
        all.text.shrink_to_fit();
        all.ends.shrink_to_fit();
        all
    }
}

impl From<BTreeMap<u32, Vec<String>>> for ClassWords {
    fn from(classes: BTreeMap<u32, Vec<String>>) -> Self {
        classes.into_iter().collect()
    }
}

impl Serialize for ClassWords {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn they_are_a_map_of_lists_to_who_reads_them() {
        let classes = [(2, vec!["10.0.0.0/8", "pods"]), (7, vec![]), (9, vec!["a"])];
        let words: ClassWords = classes.clone().into_iter().collect();
        assert!(words.iter().eq(classes));
        let text = serde_json::to_string(&words).unwrap();
        assert_eq!(text, r#"{"2":["10.0.0.0/8","pods"],"7":[],"9":["a"]}"#);
        assert_eq!(serde_json::from_str::<ClassWords>(&text).unwrap(), words);
    }
}
