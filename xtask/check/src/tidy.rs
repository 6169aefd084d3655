//! `cargo xtask tidy`: the repository's own rules, those that no lint knows.
//!
//! It is a unit test too, so that `cargo xtask test` holds them. It only reads.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_run::{self as run, Workspace};

use crate::lines::CRATES;
use crate::references;
use crate::source::{Source, files_under};

/// Files longer than this are listed: not wrong, but worth a hard look.
const LONG_FILE: usize = 500;

/// Where unsafe code may be.
const UNSAFE_DIRS: &[&str] = &["netpol-ebpf", "netpol-userspace/datapath"];

/// Single files that may hold unsafe code, each with the reason.
const UNSAFE_FILES: &[(&str, &str)] = &[
    (
        "netpol-userspace/isolation/src/netns.rs",
        "unshare(2) is unsafe to rustix because of one other flag",
    ),
    ("netpol-userspace/isolation/src/mounts.rs", "the same, for a mount namespace"),
    (
        "netpol-userspace/tests/agent/attach_foreign.rs",
        "plays somebody who detaches netpol's links",
    ),
    ("xtask/capabilities/src/probe.rs", "bpf(2) has no safe interface short of all of aya"),
];

/// Words that mark unfinished work. Written in pieces so that this file has none.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Code that stands for code not written yet, or for a test that does not run.
const FORBIDDEN_CODE: &[(&str, &str)] = &[
    (concat!("to", "do!"), "write the code"),
    (concat!("unimpl", "emented!"), "write the code"),
    (concat!("#[ig", "nore"), "a test runs or is deleted"),
    (concat!("db", "g!("), "it is left over from debugging"),
];

/// Top-level files and folders with text that is held to the same form.
const OTHER_TEXT: &[&str] =
    &["Cargo.toml", "README.md", "ARCHITECTURE.md", "rustfmt.toml", ".ci", ".cargo", "deploy"];

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

/// Prints what breaks a rule.
///
/// # Errors
/// The checkout cannot be read.
pub fn command(workspace: &Workspace) -> Result<ExitCode> {
    let findings = examine(workspace.root())?;
    for warning in &findings.warnings {
        run::say(format_args!("note: {warning}"));
    }
    for error in &findings.errors {
        run::say(format_args!("error: {error}"));
    }
    if findings.errors.is_empty() {
        run::say("tidy: every rule holds");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn examine(root: &Path) -> Result<Findings> {
    let mut findings = Findings::default();
    for source in Source::read_all(root, CRATES)? {
        examine_source(&source, &mut findings);
    }
    for file in other_text(root)? {
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy();
        examine_form(&name, &text, &mut findings);
    }
    for name in CRATES {
        examine_licence(root, name, &mut findings);
    }
    findings.errors.extend(references::examine(root)?);
    Ok(findings)
}

fn other_text(root: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for name in OTHER_TEXT {
        let path = root.join(name);
        if path.is_dir() { files.extend(files_under(&path)?) } else { files.push(path) }
    }
    for name in CRATES {
        for file in files_under(&root.join(name))? {
            if file
                .extension()
                .is_some_and(|e| ["toml", "yaml", "yml", "md"].iter().any(|t| e == *t))
            {
                files.push(file);
            }
        }
    }
    files.retain(|file| file.is_file() && fs::read_to_string(file).is_ok());
    Ok(files)
}

fn examine_source(source: &Source, findings: &mut Findings) {
    let name = source.path.to_string_lossy();
    examine_form(&name, &source.text, findings);
    if !source.text.starts_with("//!") {
        findings.errors.push(format!(
            "{name}:1: opens without a `//!` comment that says what the file is for"
        ));
    }
    let length = source.text.lines().count();
    if length > LONG_FILE {
        findings.warnings.push(format!("{name} has {length} lines; can it be divided?"));
    }
    for (number, (text, code)) in (1..).zip(source.text.lines().zip(source.code.lines())) {
        for word in UNFINISHED.iter().filter(|word| has_word(text, word)) {
            findings.errors.push(format!("{name}:{number}: {word} marks unfinished work"));
        }
        for (found, advice) in FORBIDDEN_CODE.iter().filter(|(found, _)| code.contains(found)) {
            findings.errors.push(format!("{name}:{number}: `{found}`: {advice}"));
        }
        if has_word(code, "unsafe") && !may_be_unsafe(&name) {
            findings.errors.push(format!(
                "{name}:{number}: unsafe code belongs into {}",
                UNSAFE_DIRS.join(" or ")
            ));
        }
    }
}

/// Tabs, trailing blanks and a missing last line break, in any text.
fn examine_form(name: &str, text: &str, findings: &mut Findings) {
    for (number, line) in (1..).zip(text.lines()) {
        if line.contains('\t') {
            findings.errors.push(format!("{name}:{number}: a tab; use blanks"));
        }
        if line.ends_with([' ', '\r']) {
            findings.errors.push(format!("{name}:{number}: a blank at the end of the line"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        findings.errors.push(format!("{name}: no line break at the end of the file"));
    }
}

fn examine_licence(root: &Path, name: &str, findings: &mut Findings) {
    let manifest = root.join(name).join("Cargo.toml");
    match fs::read_to_string(&manifest) {
        Ok(text) if has_licence(&text) => {}
        Ok(_) => findings.errors.push(format!("{name}/Cargo.toml: no `license` field")),
        Err(error) => findings.errors.push(format!("{name}/Cargo.toml: {error}")),
    }
}

fn has_licence(manifest: &str) -> bool {
    manifest.lines().any(|line| {
        let key = line.split('=').next().unwrap_or_default().trim();
        key == "license" || key == "license.workspace"
    })
}

fn may_be_unsafe(name: &str) -> bool {
    UNSAFE_FILES.iter().any(|(file, _)| *file == name)
        || UNSAFE_DIRS.iter().any(|dir| Path::new(name).starts_with(dir))
        || name == format!("{}.rs", UNSAFE_DIRS[1])
}

/// Whether `word` stands in `text` as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_keeps_its_rules() {
        let workspace = Workspace::locate().expect("workspace");
        let findings = examine(workspace.root()).expect("readable checkout");
        assert!(findings.errors.is_empty(), "\n{}", findings.errors.join("\n"));
    }

    fn errors(path: &str, text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        examine_source(&Source::new(path, text), &mut findings);
        findings.errors
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let path = "netpol-userspace/model/src/a.rs";
        assert_eq!(errors(path, "//! Fine.\nfn a() {}\n"), Vec::<String>::new());
        for (text, complaint) in [
            ("fn a() {}\n".to_owned(), "opens without"),
            ("//! a\n\tfn a() {}\n".to_owned(), ":2: a tab"),
            ("//! a\nfn a() {} \n".to_owned(), ":2: a blank"),
            ("//! a\nfn a() {}".to_owned(), "no line break"),
            (format!("//! a\n// {}: later\n", UNFINISHED[0]), "unfinished"),
            (format!("//! a\nfn a() {{ {}() }}\n", FORBIDDEN_CODE[0].0), "write the code"),
            (format!("//! a\n{} = \"slow\"]\n", FORBIDDEN_CODE[2].0), "runs or is deleted"),
            (format!("//! a\nfn a() {{ {} {{}} }}\n", "unsafe"), "unsafe code belongs"),
        ] {
            let errors = errors(path, &text);
            assert!(errors.len() == 1 && errors[0].contains(complaint), "{text:?}: {errors:?}");
        }
    }

    #[test]
    fn unsafe_is_allowed_where_it_has_to_be() {
        let text = "//! a\nfn a() { unsafe {} }\n";
        for path in ["netpol-ebpf/src/main.rs", "netpol-userspace/datapath/src/maps.rs"] {
            assert!(errors(path, text).is_empty(), "{path}");
        }
        let root = Workspace::locate().expect("workspace");
        for (path, reason) in UNSAFE_FILES {
            assert!(errors(path, text).is_empty() && !reason.is_empty(), "{path}");
            let listed =
                fs::read_to_string(root.root().join(path)).expect("a listed file is there");
            let code = Source::new(*path, listed).code;
            assert!(has_word(&code, "unsafe"), "{path} has none any more; take it off the list");
        }
        let mentioned = "//! unsafe\nfn a() { \"unsafe {}\"; unsafe_op(); }\n";
        assert!(errors("netpol-common/src/lib.rs", mentioned).is_empty());
    }

    #[test]
    fn a_long_file_is_only_noted() {
        let mut findings = Findings::default();
        let text = format!("//! a\n{}", "fn a() {}\n".repeat(LONG_FILE));
        examine_source(&Source::new("xtask/src/a.rs", text), &mut findings);
        assert!(findings.errors.is_empty() && findings.warnings.len() == 1);
    }

    #[test]
    fn licences_are_found_in_either_form() {
        assert!(has_licence("[package]\nlicense = \"MIT\"\n"));
        assert!(has_licence("[package]\nlicense.workspace = true\n"));
        assert!(!has_licence("[package]\nname = \"a\"\n"));
    }
}
