//! How a run ends that does not come to its end: at once, with a word of why, and with nothing left
//! behind. The kernel tells what is left: processes, programs, maps and mounts.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netpol-bench");
/// A hang guard.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nobody's user id.
const NOBODY: u32 = 65_534;

/// A run that measures packets right now.
struct Run {
    child: Child,
    /// What it said so far.
    said: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Run {
    fn start() -> Self {
        let mut child = Command::new(PROGRAM)
            .arg("datapath")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut run = Self { child, said: String::new(), stderr };
        while !run.said.contains("packets: round 1") {
            let n = run.stderr.read_line(&mut run.said).unwrap();
            assert!(n > 0, "it has ended: {}", run.said);
        }
        run
    }

    /// How it ended, and all that it said.
    fn end(mut self) -> (std::process::ExitStatus, String) {
        while self.stderr.read_line(&mut self.said).unwrap() > 0 {}
        (self.child.wait().unwrap(), self.said)
    }
}

/// What a run has made that others could still see.
#[derive(Debug)]
struct Traces {
    network: String,
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Traces {
    fn of(run: &Run) -> Self {
        let outer = run.child.id();
        let unshare = *children_of(outer).first().expect("the program that makes namespaces");
        let inner = *children_of(unshare).first().expect("the process that measures");
        let ids = |key: &str| -> BTreeSet<u32> {
            let dir = format!("/proc/{inner}/fdinfo");
            let files = fs::read_dir(dir).unwrap().flatten();
            // A descriptor may be closed by now.
            let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
            texts
                .filter_map(|text| {
                    let line = text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
                    Some(line?.parse().unwrap())
                })
                .collect()
        };
        let traces = Self {
            network: network_of(inner).unwrap(),
            programs: ids("prog_id:"),
            maps: ids("map_id:"),
        };
        assert!(!traces.programs.is_empty() && !traces.maps.is_empty(), "{traces:?}");
        assert_ne!(Some(&traces.network), network_of(outer).as_ref());
        assert_eq!(traces.left().len(), 1 + traces.programs.len() + traces.maps.len());
        traces
    }

    /// Those that are there.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        if processes().into_iter().any(|pid| network_of(pid).as_ref() == Some(&self.network)) {
            left.push(format!("a process in {}", self.network));
        }
        let programs = aya::programs::loaded_programs().filter_map(Result::ok).map(|p| p.id());
        left.extend(
            programs.filter(|id| self.programs.contains(id)).map(|id| format!("program {id}")),
        );
        let maps = aya::maps::loaded_maps().filter_map(Result::ok).map(|map| map.id());
        left.extend(maps.filter(|id| self.maps.contains(id)).map(|id| format!("map {id}")));
        left
    }

    /// The kernel takes programs and maps down some time after their last user.
    fn vanish(&self) {
        let begun = Instant::now();
        while !self.left().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "left behind: {:?}", self.left());
            std::thread::sleep(Duration::from_millis(50));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("netpol-bench /"), "{mounts}");
    }
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn children_of(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields.to_owned());
        let parent_field = fields.and_then(|f| f.split_whitespace().nth(1)?.parse().ok());
        parent_field == Some(parent)
    };
    processes().into_iter().filter(is_child).collect()
}

fn network_of(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

fn signal(run: &Run, signal: Signal) {
    kill_process(Pid::from_child(&run.child), signal).unwrap();
}

#[test]
fn ctrl_c_ends_it_and_leaves_nothing_behind() {
    for (number, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let run = Run::start();
        let traces = Traces::of(&run);
        signal(&run, number);
        let (status, said) = run.end();
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(said.trim_end().ends_with("nothing is left behind"), "{said}");
        traces.vanish();
    }
}

#[test]
fn one_that_is_killed_leaves_nothing_behind_either() {
    let run = Run::start();
    let traces = Traces::of(&run);
    signal(&run, Signal::KILL);
    run.end();
    traces.vanish();
}

#[test]
fn a_reader_that_goes_away_does_not_keep_it_from_cleaning_up() {
    let run = Run::start();
    let traces = Traces::of(&run);
    let Run { mut child, stderr, .. } = run;
    drop(stderr);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    child.wait().unwrap();
    traces.vanish();
}

/// Where nobody may read the checkout, its copy can be run.
fn copy_for_all(directory: &Path) -> std::path::PathBuf {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.join("netpol-bench");
    fs::copy(PROGRAM, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert_eq!(output.stdout, b"", "{text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn without_root_it_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let copy = copy_for_all(directory.path());
    let output =
        Command::new(copy).arg("datapath").current_dir("/").uid(NOBODY).gid(NOBODY).output();
    refused(&output.unwrap(), &["only root may do", "sudo -E cargo xtask bench"]);
}

#[test]
fn a_program_that_is_missing_is_named_with_its_package() {
    let empty = tempfile::tempdir().unwrap();
    let run = |path: &Path| Command::new(PROGRAM).arg("datapath").env("PATH", path).output();
    refused(&run(empty.path()).unwrap(), &["`unshare`", "util-linux"]);
    let unshare = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|directory| directory.join("unshare"))
        .find(|file| file.exists())
        .unwrap();
    symlink(unshare, empty.path().join("unshare")).unwrap();
    refused(&run(empty.path()).unwrap(), &["`ip`", "iproute2"]);
}
