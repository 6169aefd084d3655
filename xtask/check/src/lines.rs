//! `cargo xtask lines`: how much there is of what, per crate and module.
//!
//! Lines of code have neither only blanks nor only a comment on them.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use netpol_run::{self as run, Workspace};

use crate::source::Source;

/// The crates, in the order in which data flows through them.
pub(crate) const CRATES: &[&str] = &["netpol-common", "netpol-ebpf", "netpol-userspace", "xtask"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    files: usize,
    code: usize,
    tests: usize,
    comments: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.code += other.code;
        self.tests += other.tests;
        self.comments += other.comments;
    }
}

/// Prints the table.
///
/// # Errors
/// The checkout cannot be read.
pub fn command(workspace: &Workspace) -> Result<ExitCode> {
    let sources = Source::read_all(workspace.root(), CRATES)?;
    let mut total = Count::default();
    row("crate", "module", ["files", "code", "tests", "comments"].map(str::to_owned));
    for name in CRATES {
        let mut modules: BTreeMap<String, Count> = BTreeMap::new();
        let mut sum = Count::default();
        for source in sources.iter().filter(|source| source.path.starts_with(name)) {
            let count = count(source);
            *modules.entry(module_of(&source.path)).or_default() += count;
            sum += count;
        }
        if modules.len() > 1 {
            for (module, count) in &modules {
                row(name, module, cells(*count));
            }
        }
        row(name, "(all)", cells(sum));
        total += sum;
    }
    row("total", "", cells(total));
    Ok(ExitCode::SUCCESS)
}

fn cells(count: Count) -> [String; 4] {
    [count.files, count.code, count.tests, count.comments].map(|n| n.to_string())
}

fn row(name: &str, module: &str, [files, code, tests, comments]: [String; 4]) {
    run::say(format_args!("{name:<18} {module:<16} {files:>6} {code:>7} {tests:>7} {comments:>9}"));
}

/// What stands after `src`, `(root)` for the crate's root itself, `tests` for all below `tests`.
fn module_of(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    match parts.as_slice() {
        [_, src, file] if src == "src" && (file == "lib.rs" || file == "main.rs") => {
            "(root)".into()
        }
        [_, src, first, ..] if src == "src" => first.trim_end_matches(".rs").to_owned(),
        [_, dir, _, ..] => dir.to_string(),
        _ => "(root)".to_owned(),
    }
}

fn count(source: &Source) -> Count {
    let mut count = Count { files: 1, ..Count::default() };
    let tests = source.test_lines();
    for ((text, code), is_test) in source.text.lines().zip(source.code.lines()).zip(tests) {
        match (code.trim().is_empty(), text.trim().is_empty()) {
            (true, true) => {}
            (true, false) => count.comments += 1,
            (false, _) if is_test => count.tests += 1,
            (false, _) => count.code += 1,
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_tests_and_comments_are_told_apart() {
        let text =
            "//! doc\n\nfn a() { // why\n}\n/* x\ny */\n#[cfg(test)]\nmod tests {\n// z\n}\n";
        let expected = Count { files: 1, code: 2, tests: 3, comments: 4 };
        assert_eq!(count(&Source::new("c/src/a.rs", text)), expected);
    }

    #[test]
    fn modules_are_named_by_the_first_level() {
        for (path, module) in [
            ("c/src/lib.rs", "(root)"),
            ("c/src/model/mod.rs", "model"),
            ("c/src/model/a/b.rs", "model"),
            ("c/src/run.rs", "run"),
            ("c/tests/a.rs", "tests"),
            ("c/build.rs", "(root)"),
        ] {
            assert_eq!(module_of(Path::new(path)), module, "{path}");
        }
    }
}
