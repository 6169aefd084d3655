//! The programs of other packages that the benchmark runs, always inside one of its own
//! namespaces. Must never run one in the namespace that the benchmark was started in.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use netpol_isolation::netns::Netns;

/// Programs, and the Debian packages that have them.
const PACKAGES: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-nft-restore", "iptables"),
    ("ipset", "ipset"),
];
/// Administrators' directories that a user's PATH may lack.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Lines of an error that are shown: of ten thousand rules all may be wrong.
const ERROR_LINES: usize = 5;

/// Says which programs are missing and how to get them, before anything is measured.
pub fn require() -> Result<()> {
    let is_missing = |program: &&(&str, &str)| {
        let found = PATH.split(':').any(|dir| std::path::Path::new(dir).join(program.0).exists());
        !found
    };
    let missing: Vec<&(&str, &str)> = PACKAGES.iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    bail!(
        "what netpol is measured beside needs {}: apt-get install {}",
        names.join(", "),
        packages.join(" ")
    )
}

/// Runs a program in the namespace with this text as its input, and insists on success.
pub fn feed(netns: &Netns, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let output = netns.run(|| run(program, arguments, text))??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    let said: Vec<&str> = said.lines().take(ERROR_LINES).collect();
    Err(anyhow!("{program} {}: {}", arguments.join(" "), said.join("\n")))
}

fn run(program: &str, arguments: &[&str], text: &str) -> Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut input = child.stdin.take().context("invariant: its input is a pipe")?;
    // By a thread of its own: what the program writes meanwhile must not fill its pipes.
    thread::scope(|scope| {
        let writer = scope.spawn(move || input.write_all(text.as_bytes()));
        let output = child.wait_with_output()?;
        match writer.join() {
            // A program that gave up says why itself.
            Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            Err(_) => Err(anyhow!("the thread that wrote to {program} panicked")),
            Ok(_) => Ok(output),
        }
    })
}

/// Runs lines of `ip` in the namespace.
pub fn ip(netns: &Netns, script: &str) -> Result<()> {
    feed(netns, "ip", &["-batch", "-"], script)
}

/// Writes settings below /proc/sys/net of the namespace.
pub fn set(netns: &Netns, settings: &[(&str, &str)]) -> Result<()> {
    netns.run(|| {
        for (name, value) in settings {
            let path = format!("/proc/sys/net/{name}");
            std::fs::write(&path, value).with_context(|| format!("cannot write to {path}"))?;
        }
        Ok(())
    })?
}
