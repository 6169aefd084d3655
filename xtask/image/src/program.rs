//! What an executable needs to run: its architecture, and the shared libraries beside it if it is
//! not static. Reads the file's first page; must never run it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program's ELF header and program headers fit in this many bytes.
const START: u64 = 4096;
/// Type of the program header that names the dynamic loader.
const INTERPRETER: u32 = 3;

/// What the start of an executable says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Go's name of its architecture.
    pub architecture: &'static str,
    /// It needs nothing but the kernel.
    pub is_static: bool,
}

impl Program {
    /// Looks at a file.
    ///
    /// # Errors
    /// It cannot be read, or is no 64-bit Linux executable of an architecture that netpol runs on.
    pub fn read(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(START).read_to_end(&mut start))
            .with_context(|| format!("cannot read the program {}", path.display()))?;
        Self::parse(&start).with_context(|| {
            format!(
                "{} is no 64-bit Linux executable for amd64 or arm64; build one with \
                 `cargo xtask image`",
                path.display()
            )
        })
    }

    fn parse(start: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_le_bytes(start.get(at..at + 2)?.try_into().ok()?));
        // 64 bit, little endian.
        if start.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let architecture = match short(18)? {
            62 => "amd64",
            183 => "arm64",
            _ => return None,
        };
        let table = u64::from_le_bytes(start.get(32..40)?.try_into().ok()?);
        let (size, number) = (usize::from(short(54)?), usize::from(short(56)?));
        let table = usize::try_from(table).ok()?;
        let mut is_static = true;
        for index in 0..number {
            let at = table.checked_add(index * size)?;
            let kind = start.get(at..at.checked_add(4)?)?;
            is_static &= kind != INTERPRETER.to_le_bytes();
        }
        Some(Self { architecture, is_static })
    }
}

/// The shared libraries and the loader of a program of this machine, where `ldd` finds them.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .context("cannot start `ldd`, which lists the libraries that a program needs")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || text.contains("not found") {
        bail!("`ldd {}` does not find every library:\n{text}", program.display());
    }
    // `libc.so.6 => /lib/libc.so.6 (0x7f...)`, `/lib64/ld-linux.so.2 (0x7f...)`; what has no path
    // is the kernel's.
    let paths = text.lines().filter_map(|line| {
        let path = line.split(" => ").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut start = vec![0; 64 + 56 * kinds.len()];
        start[..6].copy_from_slice(b"\x7fELF\x02\x01");
        start[18..20].copy_from_slice(&machine.to_le_bytes());
        start[32..40].copy_from_slice(&64_u64.to_le_bytes());
        start[54..56].copy_from_slice(&56_u16.to_le_bytes());
        start[56..58].copy_from_slice(&u16::try_from(kinds.len()).expect("a few").to_le_bytes());
        for (index, kind) in kinds.iter().enumerate() {
            start[64 + 56 * index..][..4].copy_from_slice(&kind.to_le_bytes());
        }
        start
    }

    #[test]
    fn architecture_and_linkage_are_read() {
        let parse = |machine, kinds: &[u32]| Program::parse(&elf(machine, kinds));
        let expected = |architecture, is_static| Some(Program { architecture, is_static });
        assert_eq!(parse(62, &[6, 3, 1]), expected("amd64", false));
        assert_eq!(parse(183, &[6, 1]), expected("arm64", true));
        assert_eq!(parse(40, &[1]), None);
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_nothing() {
        let whole = elf(62, &[6, 1]);
        for length in 0..120 {
            assert_eq!(Program::parse(&whole[..length]), None, "{length}");
        }
        assert_eq!(Program::parse(b"#!/bin/sh\necho this is a script that is long enough"), None);
    }

    #[test]
    fn the_test_itself_is_a_program_with_libraries() {
        let own = std::env::current_exe().expect("a path");
        let program = Program::read(&own).expect("a program");
        assert_eq!(program.architecture, crate::host_architecture());
        if !program.is_static {
            let libraries = libraries(&own).expect("libraries");
            assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")));
            assert!(libraries.iter().all(|path| path.exists()), "{libraries:?}");
        }
    }
}
