//! What cargo and the tests that it runs write, line by line. Must never mix up the order: cargo says on
//! standard error which program it runs, and the program writes to standard output.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use netpol_run as run;

/// Runs a command, and hands on each line of its output and errors, with its end.
///
/// # Errors
/// It cannot be started, or not be read.
pub(crate) fn each_line(mut command: Command, mut take: impl FnMut(Vec<u8>)) -> Result<ExitStatus> {
    let shown = run::display(&command);
    // One pipe keeps the order.
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    let errors = writer.try_clone().context("cannot duplicate a pipe")?;
    let spawned = command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn();
    let mut child = spawned.with_context(|| format!("cannot start `{shown}`"))?;
    // It holds the pipe's write ends; without dropping it the reading below never ends.
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("cannot read the tests' output")? > 0 {
        take(std::mem::take(&mut line));
    }
    child.wait().with_context(|| format!("cannot wait for `{shown}`"))
}
