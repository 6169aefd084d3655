//! New numbers, written down before they are used, one line for each plan that brings some. The
//! state file says the same and more, but takes too long to write while a change waits to be put
//! in force; once it is written, the journal is void. Must never give a number two meanings: one
//! that seems to have two has none.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, OpenOptions};
use std::hash::Hash;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use netpol_compile::ids::Ids;

/// Where it is.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("numbers.jsonl")
}

/// Adds a line. Returns how long it is.
pub(crate) fn append(run_dir: &Path, news: &Ids) -> Result<usize> {
    let path = path(run_dir);
    let mut line = serde_json::to_vec(news).context("encode new numbers")?;
    line.push(b'\n');
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(&line))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(line.len())
}

/// The state file has all of it now.
pub(crate) fn clear(run_dir: &Path) -> Result<()> {
    let path = path(run_dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Adds what the journal says to what the state file says.
pub(crate) fn read(run_dir: &Path, ids: &mut Ids) {
    let text = fs::read_to_string(path(run_dir)).unwrap_or_default();
    let mut written = Written::of(std::mem::take(ids));
    // A line that is not whole was being written, and nothing in it was used yet.
    for news in text.lines().filter_map(|line| serde_json::from_str::<Ids>(line).ok()) {
        written.add(news);
    }
    *ids = written.ids;
}

/// What is written down, and which numbers that names.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The numbers and what they stand for.
    pub(crate) ids: Ids,
    /// How much of it is in the journal.
    pub(crate) n_bytes: usize,
    sets: HashSet<u16>,
    classes: HashSet<u32>,
}

impl Written {
    /// What the state file says.
    pub(crate) fn of(ids: Ids) -> Self {
        let sets = ids.sets.values().copied().collect();
        let classes = ids.classes.values().copied().collect();
        Self { ids, n_bytes: 0, sets, classes }
    }

    /// Adds numbers that were written down later.
    pub(crate) fn add(&mut self, news: Ids) {
        let ids = &mut self.ids;
        if !news.sets.is_empty() {
            // What was edited under the number before was another set.
            let given: HashSet<u16> = news.sets.values().copied().collect();
            ids.edits.retain(|(id, _)| !given.contains(id));
        }
        add_kind(&mut ids.sets, &mut self.sets, news.sets);
        add_kind(&mut ids.classes, &mut self.classes, news.classes);
        ids.edits.extend(news.edits);
        (ids.next_set, ids.next_class) = (news.next_set, news.next_class);
    }
}

fn add_kind<K: Clone + Ord, N: Copy + Eq + Hash>(
    ids: &mut BTreeMap<K, N>,
    numbers: &mut HashSet<N>,
    news: BTreeMap<K, N>,
) {
    for (content, id) in news {
        let is_other = |(other, known): &(&K, &N)| **known == id && **other != content;
        // A look at all of them only for the few numbers that were given before.
        let other = if numbers.insert(id) { None } else { ids.iter().find(is_other) };
        match other.map(|(other, _)| other.clone()) {
            Some(other) => {
                // Who uses it now keeps it from everybody until it is out of the maps.
                ids.remove(&other);
                ids.remove(&content);
            }
            None => {
                ids.insert(content, id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn ids(sets: &[(&str, u16)], next_set: u32) -> Ids {
        let sets = sets.iter().map(|&(content, id)| (content.into(), id)).collect();
        Ids { sets, next_set, ..Ids::default() }
    }

    #[test]
    fn what_is_new_is_written_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let written = ids(&[("a", 1), ("b", 2)], 3);
        append(dir.path(), &ids(&[("c", 3)], 4)).unwrap();
        append(dir.path(), &ids(&[("a", 4)], 5)).unwrap();
        let mut found = written;
        read(dir.path(), &mut found);
        assert_eq!(found, ids(&[("a", 4), ("b", 2), ("c", 3)], 5), "the later number counts");
        clear(dir.path()).unwrap();
        clear(dir.path()).unwrap();
        let before = found.clone();
        read(dir.path(), &mut found);
        assert_eq!(found, before, "nothing is left");
    }

    #[test]
    fn edits_are_kept_in_their_order_until_their_number_is_given_anew() {
        let edited = |id, what: &str| Ids { edits: vec![(id, what.to_owned())], ..Ids::default() };
        let mut written = Written::of(ids(&[("a", 1), ("b", 2)], 3));
        for (id, what) in [(1, "x"), (2, "y"), (1, "z")] {
            written.add(edited(id, what));
        }
        let texts = |written: &Written| {
            written.ids.edits.iter().map(|(id, what)| format!("{id}{what}")).collect::<Vec<_>>()
        };
        assert_eq!(texts(&written), ["1x", "2y", "1z"]);
        written.add(Ids { edits: vec![(1, "w".to_owned())], ..ids(&[("a", 1)], 3) });
        assert_eq!(texts(&written), ["2y", "1w"]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_as_if_it_had_not_been_begun() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), &ids(&[("a", 1)], 2)).unwrap();
        let whole = fs::read(path(dir.path())).unwrap();
        append(dir.path(), &ids(&[("b", 2)], 3)).unwrap();
        let both = fs::read(path(dir.path())).unwrap();
        for length in whole.len()..both.len() - 1 {
            fs::write(path(dir.path()), &both[..length]).unwrap();
            let mut found = Ids::default();
            read(dir.path(), &mut found);
            assert_eq!(found, ids(&[("a", 1)], 2), "{length} bytes");
        }
    }

    #[test]
    fn a_number_with_two_meanings_has_none() {
        let mut written = Written::of(ids(&[("a", 1), ("b", 2)], 3));
        written.add(ids(&[("c", 1)], 3));
        assert_eq!(written.ids, ids(&[("b", 2)], 3));
    }
}
