//! The Go that builds Kubernetes' programs: the machine's own if it is new enough, else the one that
//! Go's module proxy has, which any Go can fetch. Must never change the Go that is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::run;

/// The oldest version of Go 1 that upstream's modules accept: minor version and patch.
const MINIMUM: (u32, u32) = (26, 6);
const RELEASE: &str = "go1.26.6";

/// A `go` that is new enough.
///
/// # Errors
/// There is none at all, or a newer one cannot be fetched.
pub(crate) fn find() -> Result<PathBuf> {
    let all: Vec<PathBuf> = netpol_run::gos().collect();
    if let Some(new) = all.iter().find(|go| version(go) >= Some(MINIMUM)) {
        return Ok(new.clone());
    }
    let old = all.first().context(
        "Kubernetes' programs are built with Go, and there is none: install the package golang-go \
         (any version: it fetches a newer one), or give a directory of programs in \
         KUBEBUILDER_ASSETS",
    )?;
    fetch(old).with_context(|| {
        format!(
            "{} is older than {RELEASE} and cannot fetch a newer one; install one, or give a \
             directory of programs in KUBEBUILDER_ASSETS",
            old.display()
        )
    })
}

/// Where this `go` keeps what it compiled.
///
/// # Errors
/// It does not say.
pub(crate) fn cache(go: &Path) -> Result<PathBuf> {
    let said = run(Command::new(go).args(["env", "GOCACHE"]).current_dir("/"))?;
    Ok(PathBuf::from(said.trim()))
}

/// 26 and 8 of "go version go1.26.8 linux/amd64".
fn version(go: &Path) -> Option<(u32, u32)> {
    // Not the version that some go.mod above asks for.
    let mut command = Command::new(go);
    let text = run(command.arg("version").env("GOTOOLCHAIN", "local").current_dir("/")).ok()?;
    let mut numbers = text.split("go1.").nth(1)?.split(' ').next()?.split(['.', 'r', 'b']);
    let minor = numbers.next()?.parse().ok()?;
    Some((minor, numbers.next().and_then(|patch| patch.parse().ok()).unwrap_or(0)))
}

/// The toolchain as a Go module: what a newer Go would do by itself.
fn fetch(old: &Path) -> Result<PathBuf> {
    let architecture = netpol_image::host_architecture();
    let module = format!("golang.org/toolchain@v0.0.1-{RELEASE}.linux-{architecture}");
    eprintln!("fetching {RELEASE}, since {} is older", old.display());
    let mut command = Command::new(old);
    command.args(["mod", "download", "-json", &module]).current_dir("/");
    let answer = run(command.env("GOFLAGS", "-mod=mod").env("GOTOOLCHAIN", "local"))?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let Some(directory) = answer["Dir"].as_str().map(PathBuf::from) else {
        bail!("{module} has no directory: {answer}");
    };
    // Modules have no executable files; those of a toolchain are made so by who uses it.
    for programs in ["bin", &format!("pkg/tool/linux_{architecture}")] {
        for entry in fs::read_dir(directory.join(programs))? {
            fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o555))?;
        }
    }
    Ok(directory.join("bin/go"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn pretender(directory: &Path, version: &str) -> PathBuf {
        let path = directory.join("go");
        fs::write(&path, format!("#!/bin/sh\necho go version {version} linux/amd64\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_are_read_from_what_go_says() {
        let directory = tempfile::tempdir().unwrap();
        for (said, numbers) in [("go1.26.8", (26, 8)), ("go1.19", (19, 0)), ("go1.27rc1", (27, 0))]
        {
            assert_eq!(version(&pretender(directory.path(), said)), Some(numbers), "{said}");
        }
        assert_eq!(version(&pretender(directory.path(), "devel")), None);
        assert_eq!(version(&directory.path().join("none")), None);
    }
}
