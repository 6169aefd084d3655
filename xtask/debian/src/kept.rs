//! Directories of the cache that are whole or not there: filled beside their place, marked, and moved.
//! Must never take one for whole that an interrupted run left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The file in a directory that is written last.
const FINISHED: &str = "finished";

/// Whether all of this directory is there.
#[must_use]
pub fn is_kept(place: &Path) -> bool {
    place.join(FINISHED).exists()
}

/// A directory that is being filled, beside its place. Only one process may have it at a time.
pub struct Draft {
    directory: PathBuf,
    place: PathBuf,
}

impl Draft {
    /// Begins one, without what an interrupted run left of it.
    ///
    /// # Errors
    /// The place has no name, or what was left cannot be removed.
    pub fn of(place: &Path) -> Result<Self> {
        let name = place.file_name().context("invariant: what is kept has a name")?;
        let directory = place.with_file_name(format!("unfinished-{}", name.to_string_lossy()));
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display()))?;
        }
        Ok(Self { directory, place: place.to_owned() })
    }

    /// What is to be filled; who fills it makes it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves it to its place, over what was there.
    ///
    /// # Errors
    /// It cannot be written to, or not be moved.
    pub fn finish(self) -> Result<()> {
        let Self { directory, place } = self;
        // Others than who fetched it use it, too.
        let everyones = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&directory, everyones)
            .with_context(|| format!("open {} to everyone", directory.display()))?;
        fs::write(directory.join(FINISHED), "")
            .with_context(|| format!("mark {}", directory.display()))?;
        let _ = fs::remove_dir_all(&place);
        fs::rename(&directory, &place).with_context(|| format!("move to {}", place.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_finished_is_kept_and_what_was_interrupted_is_begun_anew() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let place = cache.path().join("x-1.2");
        let fill = |name: &str| {
            let draft = Draft::of(&place).expect("a draft");
            fs::create_dir(draft.directory()).expect("it is not there");
            fs::write(draft.directory().join(name), "").expect("write");
            draft
        };
        drop(fill("interrupted"));
        assert!(!is_kept(&place));
        fill("whole").finish().expect("it is moved");
        assert!(is_kept(&place) && place.join("whole").exists());
        assert!(!place.join("interrupted").exists());
        fill("newer").finish().expect("it takes the other's place");
        assert!(place.join("newer").exists() && !place.join("whole").exists());
        assert_eq!(fs::read_dir(cache.path()).expect("list").count(), 1);
    }
}
