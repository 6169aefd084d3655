//! `cargo xtask bench`: measurements that anyone can repeat, as ratios within one run. What is
//! measured and how it is shown is in `xtask/bench`; here it is only built and started.
//!
//! At the end this process becomes that program, so that Ctrl-C and signals reach it and nobody
//! else, its exit code is the command's, and no parent returns to the prompt while it cleans up.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use netpol_arguments::bench::{Args, Subject};
use netpol_needs::Need;
use netpol_run::{self as run, Workspace, announce};
use netpol_setup::Wanted;

use crate::{build, capabilities};

/// Of `datapath` the kernel's part is what is measured; optimising userspace would only take longer.
fn is_optimised(subject: Subject) -> bool {
    subject != Subject::Datapath
}

/// What is measured beside netpol.
fn needs(subject: Subject) -> &'static [Need] {
    if subject == Subject::System { &[Need::Translation] } else { &[] }
}

/// Whether the program `netpol` itself is run.
fn has_agent(subject: Subject) -> bool {
    matches!(subject, Subject::Agent | Subject::Latency | Subject::Load)
}

pub(crate) fn command(workspace: &Workspace, args: &Args, words: &[OsString]) -> Result<ExitCode> {
    let subject = args.subject;
    // Before anything is built, which takes minutes.
    if !run::is_root() {
        bail!(
            "measuring loads eBPF programs and makes network namespaces, which only root may do; \
             nothing was built or measured. Run it as root: sudo -E cargo xtask bench {}",
            subject.name()
        );
    }
    let needs = needs(subject);
    let _object = build::object_for(workspace, &Wanted::with(needs.iter().copied()))?;
    capabilities::require(needs)?;
    let netpol = match has_agent(subject) {
        true => Some(build::netpol(workspace, is_optimised(subject))?),
        false => None,
    };
    // The caller's directory stays the one that names of files are relative to.
    let mut command = build::package(workspace, "netpol-bench");
    if is_optimised(subject) {
        command.arg("--release");
    }
    if let Some(program) = netpol {
        command.env("NETPOL_PROGRAM", program);
    }
    command.arg("--").args(words);
    announce(format_args!("building and measuring: {}", subject.name()));
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", run::display(&command)))
}
