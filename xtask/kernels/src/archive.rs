//! Writes what the kernel unpacks into memory before it starts the first program: cpio's format
//! "newc". Must never hold more than one file in memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written.
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    next: u32,
    known: BTreeSet<PathBuf>,
}

impl Archive<BufWriter<File>> {
    /// Into a new file.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Archive<W> {
    /// Into this.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, next: 1, known: BTreeSet::new() }
    }

    /// A directory and those it is in.
    ///
    /// # Errors
    /// Writing fails, as for all that follow.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        let mut parts = PathBuf::new();
        for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            parts.push(part);
            if self.known.insert(parts.clone()) {
                self.entry(&parts, DIRECTORY, 0, &mut io::empty())?;
            }
        }
        Ok(())
    }

    /// A file with these bytes.
    ///
    /// # Errors
    /// As above.
    pub fn bytes(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        self.put(path, FILE | mode, bytes.len() as u64, &mut &*bytes)
    }

    /// A copy of a file of this machine, once.
    ///
    /// # Errors
    /// As above, or it cannot be read.
    pub fn copy(&mut self, path: &Path, from: &Path) -> Result<()> {
        let mut file = File::open(from).with_context(|| format!("open {}", from.display()))?;
        let data = file.metadata().with_context(|| format!("look at {}", from.display()))?;
        let mode = data.permissions().mode() & 0o777;
        self.put(path, FILE | mode, data.len(), &mut file)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As above.
    pub fn link(&mut self, path: &Path, target: &str) -> Result<()> {
        self.put(path, LINK, target.len() as u64, &mut target.as_bytes())
    }

    /// Ends the archive; returns how many bytes it has.
    ///
    /// # Errors
    /// As above.
    pub fn finish(mut self) -> Result<u64> {
        self.end()?;
        Ok(self.written)
    }

    /// Ends the archive; returns what it was written into.
    ///
    /// # Errors
    /// As above.
    pub fn into_inner(mut self) -> Result<W> {
        self.end()?;
        Ok(self.out)
    }

    fn end(&mut self) -> Result<()> {
        self.entry(Path::new(TRAILER), 0, 0, &mut io::empty())?;
        // The kernel takes several archives in one file if each begins at such a place.
        self.pad(512)?;
        self.out.flush().context("write the archive")
    }

    fn put(&mut self, path: &Path, mode: u32, size: u64, data: &mut dyn io::Read) -> Result<()> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        if self.known.insert(path.to_owned()) { self.entry(path, mode, size, data) } else { Ok(()) }
    }

    fn entry(&mut self, path: &Path, mode: u32, size: u64, data: &mut dyn io::Read) -> Result<()> {
        let name = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
        let size = u32::try_from(size).with_context(|| format!("{name} is too large"))?;
        let length = u32::try_from(name.len() + 1).context("a long name")?;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [self.next, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0]
            .map(|n| format!("{n:08X}"));
        self.next += 1;
        self.write(b"070701")?;
        self.write(fields.concat().as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.pad(4)?;
        let copied = io::copy(&mut data.take(size.into()), &mut self.out)
            .with_context(|| format!("copy {name}"))?;
        anyhow::ensure!(copied == u64::from(size), "{name} became shorter while it was read");
        self.written += copied;
        self.pad(4)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).context("write the archive")
    }

    fn pad(&mut self, to: u64) -> Result<()> {
        let rest = (to - self.written % to) % to;
        self.write(&vec![0; usize::try_from(rest)?])
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn another_program_reads_back_what_was_written() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.bytes(Path::new("/a/b/c"), 0o644, b"hello").unwrap();
        archive.bytes(Path::new("/a/b/c"), 0o644, b"a second time").unwrap();
        archive.link(Path::new("/a/l"), "b/c").unwrap();
        assert_eq!(archive.finish().unwrap() % 512, 0);
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-i"])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(directory.path().join("a/l")).unwrap(), b"hello");
    }
}
