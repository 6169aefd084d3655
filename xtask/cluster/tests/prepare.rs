//! How Kubernetes' programs are made ready, and what happens when that is cut short, has no room or
//! no network, or is asked for twice: with a `go` that is a script, so that no minutes pass.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use netpol_cluster::binaries;

/// Answers as Go does, and notes what it was asked. `behaviour` runs where it would compile.
fn go(directory: &Path, behaviour: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\n\
         echo \"$1\" >>{0}/asked\n\
         case $1 in\n\
         version) echo go version go1.26.8 linux/amd64;;\n\
         env) echo {0}/gocache;;\n\
         list) echo true fmt fmt; echo false x example/x; echo false main example/main;;\n\
         build)\n\
             case \"$*\" in *' -o '*) ;; *) {behaviour};; esac\n\
             while [ $# -gt 1 ]; do [ \"$1\" = -o ] && echo program >\"$2\"; shift; done;;\n\
         esac\n",
        directory.display()
    );
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let path = bin.join("go");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, behaviour: &str, arguments: &[&str]) -> Command {
        let bin = go(self.path(), behaviour);
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-cluster"));
        command
            .args(arguments)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
            .env("NETPOL_CACHE", self.path().join("cache"))
            .env_remove("KUBEBUILDER_ASSETS")
            .env_remove("NETPOL_KUBERNETES_BIN")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, behaviour: &str, arguments: &[&str]) -> Output {
        self.command(behaviour, arguments).output().unwrap()
    }

    /// How often Go was asked to build something.
    fn builds(&self) -> usize {
        let asked = fs::read_to_string(self.path().join("asked")).unwrap_or_default();
        asked.lines().filter(|line| *line == "build").count()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const BUILD: [&str; 2] = ["build", "kubectl"];

/// The path that the program printed.
fn built(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", said(output));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

#[test]
fn what_is_ready_is_not_built_again_and_what_is_half_written_is() {
    let place = Place::new();
    let first = place.run(":", &BUILD);
    let kubectl = built(&first);
    assert_eq!(fs::read_to_string(&kubectl).unwrap(), "program\n");
    let text = said(&first);
    assert!(text.contains("not built yet: kubectl (once;"), "{text}");
    assert!(text.contains("compiling kubernetes") && text.contains("linking kubectl"), "{text}");
    let builds = place.builds();
    assert_eq!(said(&place.run(":", &BUILD)), "");
    assert_eq!(place.builds(), builds);

    // As after a power failure, or on a disk that was full.
    fs::write(&kubectl, "prog").unwrap();
    built(&place.run(":", &BUILD));
    assert_eq!(fs::read_to_string(&kubectl).unwrap(), "program\n");
    fs::write(kubectl.with_file_name("finished"), "garbage\n8 kubec").unwrap();
    built(&place.run(":", &BUILD));
    assert!(place.builds() > builds);
}

#[test]
fn a_preparation_that_was_killed_is_gone_on_with_and_said() {
    let place = Place::new();
    let behaviour = format!("touch {}/begun; exec sleep 600", place.path().display());
    let mut child = place.command(&behaviour, &BUILD).stderr(Stdio::null()).spawn().unwrap();
    while !place.path().join("begun").exists() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let second = place.run(":", &BUILD);
    built(&second);
    assert!(said(&second).contains("an earlier preparation was interrupted"), "{}", said(&second));
}

#[test]
fn no_room_and_no_network_are_told_with_what_to_do_and_cost_nothing() {
    let place = Place::new();
    for (reason, advice) in [
        ("write /x: no space left on device", "the disk is full"),
        (
            "Get \\\"https://proxy.example/x\\\": dial tcp: lookup proxy.example: no such host",
            "GOPROXY",
        ),
        ("something else", "cannot be built"),
    ] {
        let output = place.run(&format!("echo \"{reason}\" >&2; exit 1"), &BUILD);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(advice) && text.contains("goes on"), "{text}");
    }
    built(&place.run(":", &BUILD));
}

#[test]
fn of_two_at_once_one_builds_and_the_other_says_what_it_waits_for() {
    let place = Place::new();
    let (begun, go_on) = (place.path().join("begun"), place.path().join("go-on"));
    let behaviour = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.05; done",
        begun.display(),
        go_on.display()
    );
    let first = place.command(&behaviour, &BUILD).stderr(Stdio::piped()).spawn().unwrap();
    while !begun.exists() {
        std::thread::yield_now();
    }
    let mut second = place.command(&behaviour, &BUILD).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(second.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for another preparation, which is compiling"), "{line}");
    fs::write(&go_on, "").unwrap();
    assert!(first.wait_with_output().unwrap().status.success());
    assert!(second.wait().unwrap().success());
    // What it is made of, and the program itself.
    assert_eq!(place.builds(), 2);
}

#[test]
fn where_nothing_may_be_built_what_is_missing_is_named_at_once() {
    let place = Place::new();
    let output = place.run(":", &["--no-prepare", "up"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("etcd") && text.contains("cargo xtask cluster build"), "{text}");
    assert_eq!(place.builds(), 0);
    assert!(!place.path().join("cache/clusters").exists());
}

#[test]
fn what_a_test_program_does_not_declare_is_refused_wherever_it_runs() {
    let error = binaries::find(binaries::KUBELET).unwrap_err().to_string();
    assert!(error.contains("the test program prepare uses kubelet"), "{error}");
}
