//! Running other programs: what is shown while they run, and what is said when they fail; and what
//! it takes: where they are, who runs them, where the checkout is.
//!
//! No child gets this process's standard input: CI has none, and a prompt nobody sees hangs.
//! `cargo xtask` is linked with this, so it must have no dependency that a first build would feel.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

mod find;
mod user;
mod workspace;

pub use find::{find_program, gos, on_path};
pub use user::is_root;
pub use workspace::Workspace;

/// How many of a failed command's last lines are repeated in the error.
const TAIL_LINES: usize = 15;

/// Says what happens next, on standard error, in a form that stands out from command output.
pub fn announce(text: impl fmt::Display) {
    if io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none() {
        eprintln!("\x1b[1;36m==>\x1b[0m \x1b[1m{text}\x1b[0m");
    } else {
        eprintln!("==> {text}");
    }
}

/// Writes a command's result to standard output. A reader that went away, as `head` does, is no
/// error and no reason to panic.
pub fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// One announced stage of work; says how long it took when it is done.
#[must_use]
pub struct Stage {
    name: String,
    started: Instant,
}

impl Stage {
    /// Announces the stage and starts its clock.
    pub fn start(name: impl Into<String>) -> Self {
        let name = name.into();
        announce(&name);
        Self { name, started: Instant::now() }
    }

    /// Says how long the stage took.
    pub fn done(self) {
        announce(format_args!("{}: {:.1} s", self.name, self.started.elapsed().as_secs_f64()));
    }
}

/// How often a wait says that it still waits.
const WORD_EVERY: Duration = Duration::from_secs(5);

/// Waits until nobody else has the lock of this file, and says every few seconds what it waits for:
/// `whom` completes "waiting for ...". The lock ends with the file, or with this process.
///
/// # Errors
/// The file cannot be locked.
pub fn take_turn(file: &File, whom: &str) -> io::Result<()> {
    let started = Instant::now();
    let mut next = Duration::ZERO;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
        if started.elapsed() >= next {
            announce(format_args!("waiting for {whom} ({} s)", next.as_secs()));
            next += WORD_EVERY;
        }
        sleep(Duration::from_millis(100));
    }
}

/// Runs a command whose output belongs on the terminal as it is.
///
/// # Errors
/// It cannot be started, or it fails; the error has this advice.
pub fn visible(mut command: Command, advice: &str) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`; {advice}", display(&command)))?;
    if status.success() { Ok(()) } else { Err(failure(&command, status, &[], advice)) }
}

/// Runs a command, shows its output indented as it comes, and repeats the end of it on failure.
///
/// # Errors
/// As above.
pub fn indented(mut command: Command, advice: &str) -> Result<()> {
    // One pipe for both streams keeps their lines in the order in which they were written.
    let (reader, writer) = io::pipe().context("cannot create a pipe")?;
    let stderr = writer.try_clone().context("cannot duplicate a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot start `{}`; {advice}", display(&command)))?;
    let shown = display(&command);
    // The command holds the pipe's write ends; without dropping it the read below never ends.
    drop(command);
    let tail = forward(BufReader::new(reader))?;
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    if status.success() { Ok(()) } else { Err(failure_of(&shown, status, &tail, advice)) }
}

/// Prints every line indented and returns the last ones.
fn forward(mut reader: impl BufRead) -> Result<Vec<String>> {
    let mut tail = VecDeque::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("cannot read a command's output")? > 0 {
        let text = last_state(&String::from_utf8_lossy(&line)).to_owned();
        line.clear();
        eprintln!("    {text}");
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    Ok(tail.into())
}

/// What a terminal would show in the end of a line that a progress display wrote over.
fn last_state(line: &str) -> &str {
    let line = line.trim_end();
    line.rsplit_once('\r').map_or(line, |(_, last)| last)
}

/// Runs a command silently and returns its standard output; its standard error goes into the
/// error when it fails.
///
/// # Errors
/// As above.
pub fn output(mut command: Command, advice: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`; {advice}", display(&command)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<String> = stderr.lines().map(str::to_owned).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Err(failure(&command, output.status, tail, advice))
}

/// The error for a command that ran and failed: the command, its exit, its last words, advice.
fn failure(command: &Command, status: ExitStatus, tail: &[String], advice: &str) -> anyhow::Error {
    failure_of(&display(command), status, tail, advice)
}

fn failure_of(command: &str, status: ExitStatus, tail: &[String], advice: &str) -> anyhow::Error {
    let mut text = format!("`{command}` failed ({status})");
    if tail.is_empty() {
        text.push_str("; ");
    } else {
        text.push_str("; its last lines:\n");
        for line in tail {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push_str(advice);
    anyhow!(text)
}

/// A command as one would type it.
#[must_use]
pub fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quote).collect::<Vec<_>>().join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The cargo that `cargo xtask` was started by, for building the workspace itself.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    scrub(&mut command, left_by_cargo_run);
    command
}

/// Removes from a child's environment every inherited variable that `unwanted` names.
pub fn scrub(command: &mut Command, unwanted: fn(&str) -> bool) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(unwanted) {
            command.env_remove(name);
        }
    }
}

/// What `cargo run` sets for the program it starts. A cargo started by that program must not
/// see it: build scripts that watch these variables would run again each time.
#[must_use]
pub fn left_by_cargo_run(name: &str) -> bool {
    name == "CARGO"
        || name == "CARGO_CRATE_NAME"
        || name == "CARGO_PRIMARY_PACKAGE"
        || name == "RUST_RECURSION_COUNT"
        || ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| name.starts_with(p))
}

/// What selects or changes the compiler of the outer cargo, besides the above. A cargo of
/// another toolchain that inherits it would pick the wrong compiler, flags or directory.
#[must_use]
pub fn selects_toolchain(name: &str) -> bool {
    left_by_cargo_run(name)
        || name == "LD_LIBRARY_PATH"
        || name == "RUSTUP_TOOLCHAIN"
        || name == "CARGO_TARGET_DIR"
        || name == "CARGO_ENCODED_RUSTFLAGS"
        || ["RUSTC", "RUSTDOC", "RUSTFLAGS", "CARGO_BUILD_", "CARGO_PROFILE_"]
            .iter()
            .any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_command_exit_last_lines_and_advice() {
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 40); do echo line $i; done; echo bad >&2; exit 3"]);
        let text = format!("{:#}", indented(command, "try again").expect_err("must fail"));
        assert!(text.contains("`sh -c '"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(!text.contains("line 25\n") && text.contains("line 40\n"), "{text}");
        assert!(text.contains("bad\n"), "{text}");
        assert!(text.ends_with("try again"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let text = format!(
            "{:#}",
            visible(Command::new("/nonexistent/x"), "install x").expect_err("no such program")
        );
        assert!(text.contains("cannot start `/nonexistent/x`; install x"), "{text}");
    }

    #[test]
    fn output_is_returned_and_stderr_reported() {
        let mut echo = Command::new("echo");
        echo.arg("hello");
        assert_eq!(output(echo, "").expect("echo works"), "hello\n");
        let mut fail = Command::new("sh");
        fail.args(["-c", "echo why >&2; exit 1"]);
        assert!(format!("{:#}", output(fail, "").expect_err("it exits with 1")).contains("why"));
    }

    #[test]
    fn of_a_progress_display_only_the_end_is_shown() {
        assert_eq!(last_state("Reading ... 5%\rReading ... 100%\rdone\r\n"), "done");
        assert_eq!(last_state("plain\n"), "plain");
    }

    #[test]
    fn children_get_no_standard_input() {
        // `cat` would wait for ever if it inherited a terminal or an open pipe.
        visible(Command::new("cat"), "").expect("cat ends at once");
    }

    #[test]
    fn only_what_misleads_another_cargo_is_removed() {
        for name in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "RUSTUP_TOOLCHAIN", "RUSTC"] {
            assert!(selects_toolchain(name), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR"]
        {
            assert!(!selects_toolchain(name), "{name}");
        }
        assert!(!left_by_cargo_run("RUSTUP_TOOLCHAIN"));
    }

    #[test]
    fn words_are_quoted_so_that_they_can_be_pasted() {
        let mut command = Command::new("a b");
        command.args(["--x=1", "it's", ""]);
        assert_eq!(display(&command), r"'a b' --x=1 'it'\''s' ''");
    }
}
