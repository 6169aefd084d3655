//! What a machine of another processor has in memory besides the tests: Debian's packages for it, as
//! they are unpacked, without what nobody reads there. Must never run a program of them here.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::archive::Archive;

/// The packages with the programs that tests run. The last one is in place of a package that would
/// merge directories when it is installed, and brings Perl.
pub(crate) const PACKAGES: [&str; 13] = [
    "busybox-static",
    "iproute2",
    "wireguard-tools",
    "nftables",
    "iptables",
    "conntrack",
    "ipset",
    "python3-minimal",
    "util-linux",
    "coreutils",
    "procps",
    "libgcc-s1",
    "usr-is-merged",
];

/// Directories of them that only take memory.
const UNREAD: [&str; 10] = [
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
    "usr/lib/systemd",
    "var/lib/dpkg",
];

/// Names that an installation would have made: the name and what has it. The last ones are where
/// packages no longer have them but programs look for them.
const NAMES: [(&str, &str); 6] = [
    ("usr/sbin/iptables", "iptables-nft"),
    ("usr/sbin/iptables-restore", "iptables-nft-restore"),
    ("usr/sbin/ip6tables", "ip6tables-nft"),
    ("usr/sbin/ip6tables-restore", "ip6tables-nft-restore"),
    ("bin/busybox", "../usr/bin/busybox"),
    ("lib/ld-linux-aarch64.so.1", "../usr/lib/ld-linux-aarch64.so.1"),
];

/// Packs the unpacked packages.
pub(crate) fn pack<W: Write>(archive: &mut Archive<W>, root: &Path) -> Result<()> {
    let mut rest = vec![root.to_owned()];
    while let Some(directory) = rest.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
            let place = path.strip_prefix(root).context("a place")?;
            let kind = path.symlink_metadata().context("look at a package's file")?.file_type();
            if kind.is_symlink() {
                let target = fs::read_link(&path).context("read a package's link")?;
                archive.link(place, &target.to_string_lossy())?;
            } else if kind.is_file() {
                archive.copy(place, &path)?;
            } else if kind.is_dir() && !UNREAD.iter().any(|unread| Path::new(unread) == place) {
                rest.push(path);
            }
        }
    }
    // A name that is there stays what it is.
    NAMES.iter().try_for_each(|(name, target)| archive.link(Path::new(name), target))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn links_stay_links_and_what_nobody_reads_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        for place in ["usr/bin", "usr/share/doc/x"] {
            fs::create_dir_all(root.path().join(place)).unwrap();
        }
        fs::write(root.path().join("usr/bin/ip"), "program").unwrap();
        fs::write(root.path().join("usr/share/doc/x/copyright"), "unread").unwrap();
        std::os::unix::fs::symlink("ip", root.path().join("usr/bin/link")).unwrap();
        let mut archive = Archive::new(Vec::new());
        pack(&mut archive, root.path()).unwrap();
        let bytes = archive.into_inner().unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(has("program") && has("usr/bin/ip\0") && has("iptables-nft"));
        assert!(!has("unread"));
        assert!(has("usr/bin/link\0"));
    }
}
