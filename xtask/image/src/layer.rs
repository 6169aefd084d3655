//! An image's one layer: a tar of files that all belong to root. Nothing in it may depend on when
//! or by whom it was made, so that equal files give equal bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One path of an image.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is in the image; a leading slash makes no difference.
    pub path: String,
    /// Its permission bits; those of a symlink are ignored.
    pub mode: u32,
    /// What is there.
    pub content: Content,
}

/// What stands at a path of an image.
#[derive(Clone, Debug)]
pub enum Content {
    /// A copy of a file of this machine.
    File(PathBuf),
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(String),
    /// A directory. Those above other entries need not be listed; they get mode 0755.
    Directory,
}

impl Entry {
    /// An executable, copied from `source`.
    pub fn program(path: impl Into<String>, source: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: 0o755, content: Content::File(source.into()) }
    }

    /// A file that everybody may read.
    pub fn text(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o644, content: Content::Bytes(text.into().into_bytes()) }
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o777, content: Content::Symlink(target.into()) }
    }

    /// A directory, also an empty one.
    pub fn directory(path: impl Into<String>, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Content::Directory }
    }
}

/// The layer as an uncompressed tar.
pub(crate) fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut by_path = BTreeMap::new();
    for entry in entries {
        let path = relative(&entry.path)?;
        if by_path.insert(path, entry).is_some() {
            bail!("the image has two entries for {}; remove one", entry.path);
        }
    }
    let implied = implied_directories(&by_path)?;
    let mut builder = tar::Builder::new(Vec::new());
    let mut all: Vec<(&Path, Option<&Entry>)> =
        by_path.iter().map(|(path, entry)| (path.as_path(), Some(*entry))).collect();
    all.extend(implied.iter().map(|path| (path.as_path(), None)));
    // Component by component, a directory sorts before what is in it.
    all.sort_by_key(|(path, _)| *path);
    for (path, entry) in all {
        match entry {
            Some(entry) => append(&mut builder, path, entry.mode, &entry.content)?,
            None => append(&mut builder, path, 0o755, &Content::Directory)?,
        }
    }
    builder.into_inner().context("cannot finish the image's layer")
}

/// The directories above entries that are not entries themselves.
fn implied_directories(entries: &BTreeMap<PathBuf, &Entry>) -> Result<BTreeSet<PathBuf>> {
    let mut implied = BTreeSet::new();
    for path in entries.keys() {
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match entries.get(above).map(|entry| &entry.content) {
                None => implied.insert(above.to_owned()),
                Some(Content::Directory) => false,
                // A runtime would follow the link or fail, each in its own way.
                Some(_) => bail!(
                    "the image's entry {} lies below {}, which is no directory",
                    path.display(),
                    above.display()
                ),
            };
        }
    }
    Ok(implied)
}

fn append(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &Path,
    mode: u32,
    content: &Content,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let result = match content {
        Content::File(source) => {
            let bytes = fs::read(source).with_context(|| {
                format!("cannot read {} for the image's {}", source.display(), path.display())
            })?;
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, path, bytes.as_slice())
        }
        Content::Bytes(bytes) => {
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, path, bytes.as_slice())
        }
        Content::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, path, target)
        }
        Content::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, path, [].as_slice())
        }
    };
    result.with_context(|| format!("cannot put {} into the image's layer", path.display()))
}

/// A path as a layer has it: from the root, without the leading slash, nothing that climbs.
fn relative(path: &str) -> Result<PathBuf> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || parts.iter().any(|part| matches!(*part, "." | "..")) {
        bail!("`{path}` is no path of an image; name it from the root, without `.` and `..`");
    }
    Ok(parts.iter().collect())
}
