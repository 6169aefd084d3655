//! The binary as people meet it first: help, mistakes, nothing running.

use std::process::{Command, Output};

fn netpol(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netpol")).args(arguments).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_and_version_works() {
    let help = netpol(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in [
        "agent",
        "status",
        "endpoints",
        "policies",
        "rules",
        "flows",
        "services",
        "trace",
        "monitor",
        "check",
        "cleanup",
        "playground",
        "completions",
        "version",
    ] {
        let line = format!("\n  {command} ");
        assert!(stdout(&help).contains(&line), "{command} is not in:\n{}", stdout(&help));
        let own = netpol(&[command, "--help"]);
        assert_eq!(own.status.code(), Some(0), "{command}");
        assert!(stdout(&own).contains("Example"), "{command}");
    }
    // In whichever way people ask.
    assert_eq!(stdout(&netpol(&["help"])), stdout(&help));
    assert_eq!(stdout(&netpol(&["help", "check"])), stdout(&netpol(&["check", "--help"])));
    let nested = netpol(&["help", "cni", "install"]);
    assert!(stdout(&nested).contains("--on-unreachable"), "{}", stderr(&nested));
    assert_eq!(netpol(&["help", "frobnicate"]).status.code(), Some(2));
    let version = netpol(&["--version"]);
    assert_eq!(stdout(&version), format!("netpol {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_version_is_told_with_that_of_the_layout() {
    let text = stdout(&netpol(&["version"]));
    assert!(text.starts_with(&format!("netpol {}", env!("CARGO_PKG_VERSION"))), "{text}");
    let json = stdout(&netpol(&["version", "-o", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["layout"].as_u64().is_some_and(|layout| layout > 0), "{json}");
    assert!(json.get("commit").is_some(), "{json}");
    assert!(stdout(&netpol(&["version", "-o", "yaml"])).contains("layout: "));
}

#[test]
fn mistakes_on_the_command_line_are_errors_with_usage() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["status", "--frobnicate"],
        &["status", "--timeout", "soon"],
        &["endpoints", "-o", "xml"],
        &["rules"],
        &["check"],
        &["agent", "--kubeconfig", "a", "--manifests", "b"],
        &["agent", "--metrics-address", "nowhere"],
    ] {
        let output = netpol(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains("--help") || arguments.is_empty(), "{}", stderr(&output));
        assert!(stdout(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn with_nothing_running_each_command_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let run_dir = dir.path().join("run");
    let run_dir = run_dir.to_str().expect("text");
    for command in
        [&["status", "--bpffs", run_dir][..], &["endpoints"], &["policies"], &["rules", "web"]]
    {
        let output = netpol(&[command, &["--run-dir", run_dir]].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        assert!(said.starts_with("netpol: ") && said.contains("start `netpol agent`"), "{said}");
        assert!(said.contains(run_dir) && said.contains("--run-dir"), "{said}");
    }
    for command in ["flows", "services", "monitor"] {
        let output = netpol(&[command, "--run-dir", run_dir, "--bpffs", run_dir]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{command}: {said}");
        assert!(said.contains("no netpol maps") && said.contains(run_dir), "{said}");
    }
    let output = netpol(&["cleanup", "--run-dir", run_dir, "--bpffs", run_dir]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("nothing to remove"), "{}", stdout(&output));
}

#[test]
fn waiting_for_an_agent_that_never_comes_ends_with_the_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let run_dir = dir.path().to_str().expect("text");
    let output = netpol(&["status", "--wait", "--timeout", "100ms", "--run-dir", run_dir]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no agent answered at"), "{}", stderr(&output));
}

#[test]
fn a_state_file_that_is_none_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("state.json"), "{").expect("write");
    let run_dir = dir.path().to_str().expect("text");
    let output = netpol(&["endpoints", "--run-dir", run_dir]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("state.json") && said.contains("not a state file"), "{said}");
    let output = netpol(&["cleanup", "--run-dir", run_dir, "--bpffs", run_dir]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!dir.path().join("state.json").exists());
}

#[test]
fn check_answers_by_its_exit_code() {
    let dir = tempfile::tempdir().expect("a directory");
    let policy = |name: &str, cidr: &str| {
        let path = dir.path().join(name);
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: a}}\n\
             spec: {{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}\n"
        );
        std::fs::write(&path, text).expect("write");
        path.to_str().expect("text").to_owned()
    };
    let (good, bad) = (policy("good.yaml", "10.0.0.0/8"), policy("bad.yaml", "10.0.0.0/99"));
    assert_eq!(netpol(&["check", &good]).status.code(), Some(0));
    let refused = netpol(&["check", &bad, "-o", "json"]);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    serde_json::from_str::<serde_json::Value>(&stdout(&refused)).expect("it is JSON");
    let yaml = netpol(&["check", &bad, "-o", "yaml"]);
    assert_eq!(yaml.status.code(), Some(1), "{}", stderr(&yaml));
    assert!(stdout(&yaml).contains("field: spec.ingress[0].from[0].ipBlock.cidr"), "{yaml:?}");
    for old in ["010.0.0.0/8", "::ffff:10.0.0.0/104", "10.1.0.0/8"] {
        let old = policy("old.yaml", &format!("'{old}'"));
        assert_eq!(netpol(&["check", &old]).status.code(), Some(0), "{old}");
        let strict = netpol(&["check", "--strict", &old]);
        assert_eq!(strict.status.code(), Some(1), "{old}");
        assert!(stdout(&strict).contains("it means 10.0.0.0/8"), "{}", stdout(&strict));
    }
    assert_eq!(netpol(&["check", "/nonexistent.yaml"]).status.code(), Some(2));
}

#[test]
fn warnings_alone_are_findings_only_if_asked_for() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = |name: &str| root.join(name).to_str().expect("text").to_owned();
    for (file, warnings) in [("tutorial.yaml", 1), ("skeleton.yaml", 3)] {
        let file = path(&format!("tests/fixtures/first/{file}"));
        let relaxed = netpol(&["check", &file]);
        let said = stdout(&relaxed);
        assert_eq!(relaxed.status.code(), Some(0), "{said}");
        assert_eq!(said.matches("\n  warning: spec.").count(), warnings, "{said}");
        assert_eq!(netpol(&["check", "--strict", &file]).status.code(), Some(1));
        let json = netpol(&["check", "--strict", "-o", "json", &file]);
        assert_eq!(json.status.code(), Some(1));
        let list: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("JSON");
        assert_eq!(list[0]["warnings"].as_array().expect("a list").len(), warnings, "{list}");
        assert_eq!(list[0]["errors"].as_array().expect("a list").len(), 0, "{list}");
    }
    let examples = netpol(&["check", "--strict", &path("examples")]);
    let said = stdout(&examples);
    assert_eq!(examples.status.code(), Some(0), "{said}");
    assert!(said.ends_with(": 0 errors, 0 warnings\n"), "{said}");
}

/// What is offered for the last of `words` in a directory.
fn completed(words: &[&str], directory: &std::path::Path) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_netpol"))
        .arg("--")
        .args(words)
        .current_dir(directory)
        .env("NETPOL_COMPLETE", "fish")
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", stderr(&output));
    let lines = stdout(&output);
    lines.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn completions_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = netpol(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("NETPOL_COMPLETE"), "{shell}: {}", stdout(&output));
    }
    assert_eq!(netpol(&["completions", "abacus"]).status.code(), Some(2));
}

#[test]
fn commands_flags_values_and_files_are_completed() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("policy.yaml"), "").expect("write");
    for (words, candidate) in [
        (&["netpol", "mon"][..], "monitor"),
        (&["netpol", "status", "--bp"], "--bpffs"),
        (&["netpol", "check", "-o", ""], "yaml"),
        (&["netpol", "check", "pol"], "policy.yaml"),
        (&["netpol", "check", "--strict", ""], "policy.yaml"),
        (&["netpol", "help", "che"], "check"),
    ] {
        let found = completed(words, dir.path());
        assert!(found.iter().any(|found| found == candidate), "{words:?}: {found:?}");
    }
    let none = completed(&["netpol", "rules", "--run-dir", "/nonexistent", "s"], dir.path());
    assert!(none.is_empty(), "{none:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for arguments in [&["completions", "bash"][..], &["cleanup", "--bpffs", "/nonexistent"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_netpol"))
            .args(arguments)
            .args(["--run-dir", "/nonexistent"].iter().filter(|_| arguments[0] == "cleanup"))
            .stdout(writer)
            .output()
            .expect("the binary runs");
        assert_eq!(
            (output.status.code(), stderr(&output).as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}
