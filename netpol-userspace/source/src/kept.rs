//! Copies of manifest files as they were last good, for a start at which one is not: what it defined
//! before then stays in force, as it does while an agent runs. Must never keep of a file what was
//! refused, and never be the reason for which a source stops.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{FileState, Files};
use super::directory::parse_bytes;
use super::parse::{Contents, Originals};

/// Where the copies are.
fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("kept-manifests")
}

/// Removes the copies, if there are any.
pub fn remove(run_dir: &Path) {
    let directory = directory(run_dir);
    // What else has such a name is somebody else's.
    if directory.join(ROOT).is_file() {
        let _ = fs::remove_dir_all(directory);
    }
}

/// Which directory the copies are of; no manifest has such a name.
const ROOT: &str = ".root";

/// A directory of copies, named like the files, with `%2F` for `/` and `%25` for `%`.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    /// By the files' names.
    copies: BTreeMap<String, Arc<[u8]>>,
    /// Files of which it was told that no copy can be kept.
    unkept: BTreeSet<String>,
    is_broken: bool,
}

impl Kept {
    /// The copies that an earlier agent has left of the files in `root`, below `run_dir`.
    pub fn open(run_dir: &Path, root: &Path) -> Self {
        let directory = directory(run_dir);
        let (copies, unkept) = Default::default();
        let mut kept = Self { directory, copies, unkept, is_broken: false };
        if let Err(error) = kept.read(root) {
            kept.give_up(&error);
        }
        kept
    }

    fn read(&mut self, root: &Path) -> io::Result<()> {
        let parent = self.directory.parent().map(fs::canonicalize).transpose()?;
        let own = parent.unwrap_or_default().join(self.directory.file_name().unwrap_or_default());
        let (root, resolved) = (std::path::absolute(root)?, fs::canonicalize(root)?);
        if own.starts_with(&resolved) || resolved.starts_with(&own) {
            let why = "the run directory and that of the manifests are within each other";
            return Err(io::Error::other(why));
        }
        let root = root.as_os_str().as_bytes();
        let note = self.directory.join(ROOT);
        match fs::read(&note) {
            Ok(of) if of == root => return self.read_copies(),
            // Of another directory's files.
            Ok(_) => fs::remove_dir_all(&self.directory)?,
            Err(_) if fs::read_dir(&self.directory).is_ok_and(|mut all| all.next().is_some()) => {
                return Err(io::Error::other("it holds what netpol has not put there"));
            }
            Err(_) => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        write(&note, root)
    }

    fn read_copies(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let label = name.to_str().filter(|name| *name != ROOT).and_then(label);
            if let Some(label) = label {
                self.copies.insert(label, fs::read(entry.path())?.into());
            }
        }
        Ok(())
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(
            directory = %self.directory.display(),
            %error,
            "cannot keep copies of manifests: after a restart one that cannot be read is missing"
        );
        self.is_broken = true;
    }

    /// The files with copies in place of those that are not good now; `None` if all are, or of none
    /// of the others there is a copy.
    pub fn earlier(&self, files: &Files) -> Option<Files> {
        let is_bad = |state: &FileState| match state {
            FileState::Read(contents) => !is_good(contents),
            FileState::Unreadable(_) => true,
        };
        let mut earlier = files.clone();
        let mut any = false;
        for (label, state) in files.iter().filter(|(_, state)| is_bad(state)) {
            let is_within = |copy: &str| match state {
                FileState::Unreadable(_) => is_at_or_below(label, copy),
                FileState::Read(_) => copy == label,
            };
            for (copy, bytes) in self.copies.iter().filter(|(copy, _)| is_within(copy)) {
                let contents = Arc::new(parse_bytes(copy, bytes, Originals::Dropped));
                earlier.insert(copy.clone(), FileState::Read(contents));
                any = true;
            }
        }
        any.then_some(earlier)
    }

    /// Keeps the files that were `read`, as far as they are good, and forgets those that are gone.
    pub fn keep<'a>(
        &mut self,
        files: &Files,
        read: impl Iterator<Item = (&'a str, &'a Arc<[u8]>, &'a Contents)>,
    ) {
        if self.is_broken {
            return;
        }
        let unreadable = files.iter().filter_map(|(label, state)| match state {
            FileState::Unreadable(_) => Some(label),
            FileState::Read(_) => None,
        });
        let unreadable: Vec<&String> = unreadable.collect();
        let is_gone = |copy: &&String| {
            !files.contains_key(*copy) && !unreadable.iter().any(|at| is_at_or_below(at, copy))
        };
        let gone: Vec<String> = self.copies.keys().filter(is_gone).cloned().collect();
        for (label, bytes, contents) in read {
            let copy = self.copies.get(label);
            if copy.is_some_and(|copy| Arc::ptr_eq(copy, bytes)) || !is_good(contents) {
                continue;
            }
            if copy != Some(bytes)
                && let Err(error) = write(&self.path(label), bytes)
            {
                // No copy is better than one of an earlier state.
                if self.unkept.insert(label.to_owned()) {
                    tracing::warn!(file = label, %error, "cannot keep a copy of a manifest");
                }
                self.forget(label);
                continue;
            }
            self.copies.insert(label.to_owned(), bytes.clone());
        }
        for label in gone {
            self.forget(&label);
        }
    }

    fn forget(&mut self, label: &str) {
        if self.copies.remove(label).is_some()
            && let Err(error) = fs::remove_file(self.path(label))
        {
            // All of them are void then.
            let _ = fs::remove_file(self.directory.join(ROOT));
            self.give_up(&error);
        }
    }

    fn path(&self, label: &str) -> PathBuf {
        self.directory.join(label.replace('%', "%25").replace('/', "%2F"))
    }
}

/// Of a directory that cannot be listed, everything below it.
fn is_at_or_below(at: &str, label: &str) -> bool {
    at == "." || label.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether everything in the file is used.
fn is_good(contents: &Contents) -> bool {
    !contents.is_incomplete() && contents.entries.iter().all(|entry| entry.object.is_some())
}

fn label(name: &str) -> Option<String> {
    (!name.ends_with(".new")).then(|| name.replace("%2F", "/").replace("%25", "%"))
}

/// Replaces a file in one step.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let mut options = fs::File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&draft)?.write_all(bytes)?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";

    fn parsed(name: &str, text: &str) -> Contents {
        parse_bytes(name, text.as_bytes(), Originals::Dropped)
    }

    fn files(all: &[(&str, &str)]) -> Files {
        let state = |name: &str, text: &str| FileState::Read(Arc::new(parsed(name, text)));
        all.iter().map(|(name, text)| ((*name).to_owned(), state(name, text))).collect()
    }

    fn keep(kept: &mut Kept, all: &[(&str, &str)]) {
        let all: Vec<_> = all
            .iter()
            .map(|(name, text)| {
                let bytes: Arc<[u8]> = text.as_bytes().into();
                (*name, bytes, parsed(name, text))
            })
            .collect();
        let files = all.iter().map(|(name, _, contents)| {
            ((*name).to_owned(), FileState::Read(Arc::new(contents.clone())))
        });
        let read = all.iter().map(|(name, bytes, contents)| (*name, bytes, contents));
        kept.keep(&files.collect(), read);
    }

    fn n_entries(files: &Files, name: &str) -> usize {
        match &files[name] {
            FileState::Read(contents) => contents.entries.len(),
            FileState::Unreadable(why) => panic!("{name}: {why}"),
        }
    }

    #[test]
    fn what_was_good_stands_in_for_what_is_not_after_a_restart() {
        let (run, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut kept = Kept::open(run.path(), root.path());
        keep(&mut kept, &[("a.yaml", GOOD), ("sub/50%.yaml", GOOD), ("never.yaml", "{")]);
        keep(&mut kept, &[("a.yaml", "{"), ("sub/50%.yaml", GOOD), ("never.yaml", "{")]);
        let kept = Kept::open(run.path(), root.path());
        let now = files(&[("a.yaml", "{"), ("sub/50%.yaml", "{"), ("never.yaml", "{")]);
        let earlier = kept.earlier(&now).unwrap();
        assert_eq!(
            ["a.yaml", "sub/50%.yaml", "never.yaml"].map(|n| n_entries(&earlier, n)),
            [1, 1, 0]
        );
        assert!(kept.earlier(&files(&[("a.yaml", GOOD)])).is_none(), "nothing is missing");
        let mut unreadable = Files::new();
        unreadable.insert("sub".to_owned(), FileState::Unreadable("denied".to_owned()));
        let earlier = kept.earlier(&unreadable).unwrap();
        assert_eq!((earlier.len(), n_entries(&earlier, "sub/50%.yaml")), (2, 1));
        // What cannot be read just now is not gone.
        let mut kept = kept;
        kept.keep(&unreadable, std::iter::empty());
        assert!(kept.earlier(&unreadable).is_some() && kept.earlier(&now).is_some());
    }

    #[test]
    fn files_that_are_gone_and_other_directories_leave_nothing() {
        let (run, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut kept = Kept::open(run.path(), root.path());
        keep(&mut kept, &[("a.yaml", GOOD), ("b.yaml", GOOD)]);
        keep(&mut kept, &[("b.yaml", GOOD)]);
        let kept = Kept::open(run.path(), root.path());
        assert!(kept.earlier(&files(&[("a.yaml", "{")])).is_none());
        assert!(kept.earlier(&files(&[("b.yaml", "{")])).is_some());
        let other = tempfile::tempdir().unwrap();
        let kept = Kept::open(run.path(), other.path());
        assert!(kept.earlier(&files(&[("b.yaml", "{")])).is_none());
    }

    #[test]
    fn nowhere_to_keep_them_is_no_reason_to_stop() {
        let root = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(Path::new("/proc/nonexistent"), root.path());
        keep(&mut kept, &[("a.yaml", GOOD)]);
        assert!(kept.earlier(&files(&[("a.yaml", "{")])).is_none());
    }

    #[test]
    fn what_others_have_there_is_left_alone() {
        let run = tempfile::tempdir().unwrap();
        let theirs = run.path().join("kept-manifests");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("a.yaml"), GOOD).unwrap();
        for root in [theirs.as_path(), run.path()] {
            let mut kept = Kept::open(run.path(), root);
            keep(&mut kept, &[("b.yaml", GOOD)]);
            remove(run.path());
            let names = fs::read_dir(&theirs).unwrap().map(|entry| entry.unwrap().file_name());
            assert_eq!(names.collect::<Vec<_>>(), ["a.yaml"]);
        }
        let (empty, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        keep(&mut Kept::open(empty.path(), root.path()), &[("b.yaml", GOOD)]);
        remove(empty.path());
        assert!(!empty.path().join("kept-manifests").exists());
    }

    #[test]
    fn a_file_that_cannot_be_kept_costs_no_other_its_copy() {
        let (run, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let long = format!("{}.yaml", "x".repeat(251));
        keep(&mut Kept::open(run.path(), root.path()), &[(&long, GOOD), ("z.yaml", GOOD)]);
        let kept = Kept::open(run.path(), root.path());
        assert!(kept.earlier(&files(&[("z.yaml", "{")])).is_some());
        assert!(kept.earlier(&files(&[(&long, "{")])).is_none());
    }
}
