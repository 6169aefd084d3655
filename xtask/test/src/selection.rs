//! Which tests a run selects, and what those need. Must never run a test.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use netpol_arguments::test::Scope;
use netpol_needs::{FOR_KERNELS, Need, TABLE, programs_in_kernels};
use netpol_run::{self as run, Workspace};

use crate::output;

/// The test programs of [`Scope::Hostile`].
const ATTACKERS: [&str; 1] = ["hostile"];

/// The test programs of [`Scope::Fuzz`].
const FUZZERS: [&str; 1] = ["fuzz"];

/// The names of test programs that run on this machine: all but `inside`.
/// (`cargo test` by itself leaves that out, too, unless it is named.)
const HERE: &str = "[!i]*";

/// Test programs that wait more than they compute: for agents, timeouts, the kernel. They run beside all
/// others.
const WAITING: [&str; 2] = ["agent", "wire"];

/// The names of test programs that run on this machine, but for those.
const OTHERS: &str = "[!aiw]*";

/// A part of all tests; parts run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All that are selected.
    All,
    /// [`WAITING`].
    Waiting,
    /// The other programs.
    Others,
    /// Examples in the documentation, which cargo does not run beside programs.
    Doc,
}

/// The rows of the table whose tests stand beside the code.
const UNIT: [&str; 2] = ["netpol_capabilities", "netpol_endpoint"];

/// The tests that a run selects.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// Which part of them.
    pub(crate) scope: Scope,
    /// Those of one package only.
    pub(crate) package: Option<String>,
    /// Those whose name contains this only.
    pub(crate) filter: Option<String>,
    /// The package has a library.
    pub(crate) has_library: bool,
}

impl Selection {
    /// What runs side by side, each one part after the other.
    pub(crate) fn lanes(&self) -> Vec<Vec<Part>> {
        match (self.scope, &self.package) {
            (Scope::All, None) => vec![vec![Part::Others, Part::Doc], vec![Part::Waiting]],
            _ => vec![vec![Part::All]],
        }
    }

    /// `cargo test` of a part of the selected programs, likewise. All parts are built at once before, and
    /// so with the same features.
    pub(crate) fn cargo_test_of(&self, workspace: &Workspace, part: Part) -> Command {
        let mut command = self.cargo_test(workspace);
        match part {
            Part::All => &mut command,
            Part::Waiting => named(&mut command, &WAITING),
            Part::Others => command.args(["--lib", "--bins", "--test", OTHERS]),
            Part::Doc => command.arg("--doc"),
        };
        command
    }

    /// `cargo test` of the selected programs, without what follows the programs' names.
    pub(crate) fn cargo_test(&self, workspace: &Workspace) -> Command {
        let mut command = run::cargo();
        command.current_dir(workspace.root()).args(["test", "--no-fail-fast"]);
        match &self.package {
            Some(package) => command.args(["--package", package]),
            None => command.arg("--workspace"),
        };
        match self.scope {
            Scope::All => &mut command,
            // cargo refuses `--lib` for a package that has no library.
            Scope::Unit if !self.has_library => command.arg("--bins"),
            Scope::Unit => command.args(["--lib", "--bins"]),
            Scope::Root => command.args(["--test", HERE]),
            Scope::Doc => command.arg("--doc"),
            Scope::Fuzz => named(&mut command, &FUZZERS),
            Scope::Hostile => named(&mut command, &ATTACKERS),
            Scope::Kernels => named(&mut command, &programs_in_kernels()),
        };
        command
    }

    /// The same for the programs that run inside other kernels: with those of all packages they are
    /// built anyway, and so need not be built in another way.
    pub(crate) fn in_kernels(&self) -> Self {
        match self.package {
            None => self.clone(),
            Some(_) => Self {
                scope: Scope::Kernels,
                package: Some("netpol-userspace".to_owned()),
                filter: None,
                has_library: true,
            },
        }
    }

    /// What the selected programs need if the filter leaves out none of them.
    pub(crate) fn possible_needs(&self) -> BTreeSet<Need> {
        if self.scope == Scope::Kernels {
            return FOR_KERNELS.into();
        }
        let rows = TABLE.iter().filter(|(program, _, package, _)| {
            self.has(program) && self.package.as_ref().is_none_or(|wanted| wanted == package)
        });
        rows.flat_map(|row| row.3).copied().collect()
    }

    /// What those programs need that have a selected test. They have to be built.
    pub(crate) fn needs(&self, workspace: &Workspace) -> Result<BTreeSet<Need>> {
        if self.scope == Scope::Doc {
            return Ok(BTreeSet::new());
        }
        let mut command = self.cargo_test(workspace);
        if self.scope == Scope::All {
            // Examples in the documentation need nothing, and listing them takes long.
            command.args(["--lib", "--bins", "--tests"]);
        }
        command.args(["--", "--list"]).args(&self.filter).env("CARGO_TERM_COLOR", "never");
        let modules = with_tests(command)?;
        Ok(modules.iter().flat_map(|(program, module)| netpol_needs::of(program, module)).collect())
    }

    fn has(&self, program: &str) -> bool {
        match self.scope {
            Scope::All => true,
            Scope::Unit => UNIT.contains(&program),
            Scope::Root => !UNIT.contains(&program),
            Scope::Doc => false,
            Scope::Fuzz => FUZZERS.contains(&program),
            Scope::Hostile => ATTACKERS.contains(&program),
            Scope::Kernels => programs_in_kernels().contains(&program),
        }
    }
}

/// `command` of these test programs.
fn named<'a>(command: &'a mut Command, programs: &[&str]) -> &'a mut Command {
    programs.iter().fold(command, |command, name| command.args(["--test", name]))
}

/// The programs among those that cargo runs which list a test, with its module.
fn with_tests(command: Command) -> Result<BTreeSet<(String, String)>> {
    let shown = run::display(&command);
    let mut text = String::new();
    let mut programs = BTreeSet::new();
    let mut program = None;
    let status = output::each_line(command, |bytes| {
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end();
        if let Some(next) = running(line) {
            program = Some(next);
        } else if let Some(test) = line.strip_suffix(": test")
            && let Some(program) = &program
        {
            let module = test.split("::").next().unwrap_or_default();
            programs.insert((program.clone(), module.to_owned()));
        }
        text.push_str(line);
        text.push('\n');
    })?;
    if !status.success() {
        bail!("`{shown}` failed ({status}):\n{text}");
    }
    Ok(programs)
}

/// The test program that cargo says it runs:
/// `Running tests/wire_icmp.rs (target/debug/deps/wire_icmp-0123456789abcdef)`.
fn running(line: &str) -> Option<String> {
    let rest = line.trim_start().strip_prefix("Running ")?;
    let (_, path) = rest.strip_suffix(')')?.rsplit_once('(')?;
    netpol_needs::test_program(Path::new(path)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(scope: Scope, package: Option<&str>) -> Selection {
        Selection { scope, package: package.map(str::to_owned), filter: None, has_library: true }
    }

    #[test]
    fn a_part_of_the_tests_needs_a_part_of_what_all_need() {
        let needs = |scope, package| selection(scope, package).possible_needs();
        assert!(needs(Scope::All, None).contains(&Need::Nodes));
        assert!(!needs(Scope::Unit, None).contains(&Need::Nodes));
        assert!(needs(Scope::Fuzz, None).is_empty() && needs(Scope::Doc, None).is_empty());
        assert!(needs(Scope::Hostile, None).contains(&Need::Python));
        assert!(needs(Scope::Kernels, None).contains(&Need::Kernels));
        assert!(!needs(Scope::Kernels, None).contains(&Need::Nodes));
        assert!(needs(Scope::All, Some("netpol-common")).is_empty());
        let userspace = needs(Scope::Root, Some("netpol-userspace"));
        assert!(userspace.contains(&Need::Translation) && !userspace.contains(&Need::Kubectl));
    }

    #[test]
    fn only_what_runs_inside_other_kernels_alone_is_left_out_here() {
        let is_left_out = |name: &str| name.starts_with('i');
        let inside: Vec<_> = programs_in_kernels();
        assert_eq!(inside.iter().filter(|name| is_left_out(name)).count(), 1);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let below = ["netpol-userspace", "xtask"].map(|name| root.join(name));
        let below = below.iter().flat_map(|path| std::fs::read_dir(path).expect("a directory"));
        let packages = ["netpol-common", "netpol-userspace"].map(|name| root.join(name));
        let packages = packages.into_iter().chain(below.flatten().map(|entry| entry.path()));
        for package in packages.filter(|package| package.join("Cargo.toml").exists()) {
            for entry in std::fs::read_dir(package.join("tests")).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                let is_program = path.extension().is_some_and(|extension| extension == "rs")
                    || path.join("main.rs").exists();
                assert!(!is_program || !is_left_out(name) || inside.contains(&name), "{name}");
                // Each is of one part.
                let is_other = !name.starts_with(['a', 'i', 'w']);
                let is_one = is_other || is_left_out(name) || WAITING.contains(&name);
                assert!(!is_program || is_one, "{name} would not be run: see OTHERS");
            }
        }
    }

    #[test]
    fn programs_are_taken_from_what_cargo_says_and_count_only_with_a_test() {
        let line = |name: &str| {
            format!("     Running tests/{name}.rs (target/debug/deps/{name}-0123456789abcdef)")
        };
        let mut command = Command::new("printf");
        command.arg("%s\\n").args([line("a"), "x::y: test".to_owned(), line("b")]);
        command.args(["", "0 tests, 0 benchmarks"]);
        let programs = with_tests(command).expect("printf runs");
        assert_eq!(programs, BTreeSet::from([("a".to_owned(), "x".to_owned())]));
        assert_eq!(running("     Running unittests src/lib.rs (x/y-1)"), None);
    }

    #[test]
    fn what_cannot_be_listed_is_told_with_the_reason() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo because >&2; exit 3"]);
        let error = with_tests(command).expect_err("it fails").to_string();
        assert!(error.contains("because") && error.contains("exit status: 3"), "{error}");
    }
}
