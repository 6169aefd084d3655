//! How far long work is: a line every few seconds, for the person who started it and for whoever
//! waits for it in another process. Must never be what decides anything.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How often a person hears of it.
pub const WORD_EVERY: Duration = Duration::from_secs(5);
/// Words of a command that are shown: it may have thousands.
const SHOWN_WORDS: usize = 8;
/// Lines of a failed program that are shown.
const TAIL_LINES: usize = 15;

/// Tells how far it is.
pub struct Progress {
    started: Instant,
    /// Where others read the last word.
    file: PathBuf,
}

impl Progress {
    /// Others read it in this file.
    pub fn new(file: PathBuf) -> Self {
        Self { started: Instant::now(), file }
    }

    /// Says it now.
    pub fn say(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        eprintln!("    {what}, after {} min {:02} s", seconds / 60, seconds % 60);
        // Nobody reads it most of the time; what fails here fails elsewhere with a reason.
        let _ = fs::write(&self.file, what);
    }
}

/// Runs a program, and says every few seconds what `word` makes of the lines that it writes to
/// standard error so far, also while it writes none. Returns its standard output.
///
/// # Errors
/// It cannot be started, or it fails: the error has its last lines.
pub fn watch(
    mut command: Command,
    progress: &Progress,
    mut word: impl FnMut(&str, usize) -> String,
) -> Result<String> {
    let words = [command.get_program()].into_iter().chain(command.get_args()).take(SHOWN_WORDS);
    let program: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let program = program.join(" ");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let mut stdout = child.stdout.take().context("invariant: standard output is a pipe")?;
    let stderr = child.stderr.take().context("invariant: standard error is a pipe")?;
    let printed = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut tail = VecDeque::new();
    let (mut count, mut said) = (0, Instant::now());
    let mut last = word("go: ", 0);
    progress.say(&last);
    loop {
        match lines.recv_timeout(WORD_EVERY.saturating_sub(said.elapsed())) {
            Ok(line) => {
                count += 1;
                last = word(&line, count);
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                progress.say(&last);
                said = Instant::now();
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().with_context(|| format!("wait for {program}"))?;
    let printed = printed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if !status.success() {
        let tail: Vec<String> = tail.into();
        bail!("`{program} ...` failed ({status}):\n{}", tail.join("\n"));
    }
    printed.with_context(|| format!("read what {program} printed"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_was_said_last_is_there_for_others_and_output_is_returned() {
        let directory = tempfile::tempdir().unwrap();
        let progress = Progress::new(directory.path().join("progress"));
        let mut lines = Vec::new();
        let command = sh("echo one >&2; echo out; echo two >&2");
        let printed = watch(command, &progress, |line, count| {
            lines.push((line.to_owned(), count));
            "at work".to_owned()
        });
        assert_eq!(printed.unwrap(), "out\n");
        assert_eq!(lines[1..], [("one".to_owned(), 1), ("two".to_owned(), 2)]);
        assert_eq!(fs::read_to_string(directory.path().join("progress")).unwrap(), "at work");
    }

    #[test]
    fn a_failure_has_the_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let progress = Progress::new(directory.path().join("progress"));
        let command = sh("for i in $(seq 40); do echo line $i >&2; done; exit 3");
        let error = watch(command, &progress, |_, _| String::new()).unwrap_err().to_string();
        assert!(error.contains("line 40") && !error.contains("line 25\n"), "{error}");
    }
}
