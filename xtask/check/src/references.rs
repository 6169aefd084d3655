//! What documents and comments refer to has to be there: paths, links, and items of the sources.
//!
//! `tidy` calls it. It must only read, and never guess what a reference that fails was meant to be.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use crate::source::{Source, files_under};

/// What makes a word in backquotes a path even without a slash.
const PATH_ENDINGS: &[&str] = &[".rs", ".md", ".sh", ".yaml"];

/// Documents whose items are looked for in the sources, besides all below `docs/`.
const ITEM_DOCUMENTS: &[&str] = &["ARCHITECTURE.md"];

/// Every reference of the checkout that leads nowhere, as `FILE:LINE: ...`.
pub(crate) fn examine(root: &Path) -> Result<Vec<String>> {
    let tree = Tree::read(root)?;
    let mut errors = Vec::new();
    for path in tree.files.iter().filter(|path| path.ends_with(".md")) {
        let text = fs::read_to_string(root.join(path)).with_context(|| path.clone())?;
        errors.extend(examine_document(&tree, path, &text));
    }
    for source in &tree.sources {
        errors.extend(examine_comments(&tree, source));
    }
    Ok(errors)
}

/// The files of a checkout, by their names and by what the sources among them mention.
struct Tree {
    /// Relative to the checkout, with slashes.
    files: Vec<String>,
    sources: Vec<Source>,
    /// For each source the words of its code and of its path.
    words: Vec<HashSet<String>>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut sources = Vec::new();
        for file in files_under(root)? {
            let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
            if name.ends_with(".rs") {
                let text = fs::read_to_string(&file).with_context(|| name.clone())?;
                sources.push(Source::new(&name, text));
            }
            files.push(name);
        }
        Ok(Self::new(files, sources))
    }

    fn new(files: Vec<String>, sources: Vec<Source>) -> Self {
        let words = sources.iter().map(words_of).collect();
        Self { files, sources, words }
    }

    /// Whether a path is there: from the root, from the file that mentions it, or as the end of the
    /// path of one file or directory alone, or of any below where it is mentioned. `src/` may be left out, `*` stands for the end of a name.
    fn has_path(&self, mentioned_in: &str, path: &str) -> bool {
        let beside = Path::new(mentioned_in).parent().unwrap_or(Path::new("")).join(path);
        let wanted = path.trim_end_matches('/');
        [normal(Path::new(wanted)), normal(&beside)]
            .iter()
            .flatten()
            .any(|full| self.is_there(full))
            || self.is_end_of_one(mentioned_in, wanted)
    }

    /// Whether this ends the path of one file or directory alone, or of some beside who mentions it.
    fn is_end_of_one(&self, mentioned_in: &str, ending: &str) -> bool {
        let found = self.with_ending(ending);
        let dir = parent_of(mentioned_in);
        found.len() == 1
            || !dir.is_empty() && found.iter().any(|path| Path::new(path).starts_with(dir))
    }

    /// Whether this is a file, a directory of files, or with `*` the beginning of some.
    fn is_there(&self, path: &str) -> bool {
        path.is_empty()
            || self.files.iter().any(|file| match path.strip_suffix('*') {
                Some(beginning) => file.starts_with(beginning),
                None => file.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('/')),
            })
    }

    /// The files and directories whose path ends like this.
    fn with_ending(&self, ending: &str) -> HashSet<String> {
        let mut found = HashSet::new();
        let ending = without_src(ending);
        for file in &self.files {
            for (at, _) in file.match_indices('/').chain([(file.len(), "")]) {
                let path = without_src(&file[..at]);
                let is_end = match ending.strip_suffix('*') {
                    Some(beginning) => is_glob_end(&path, beginning),
                    None => path
                        .strip_suffix(&ending)
                        .is_some_and(|before| before.is_empty() || before.ends_with('/')),
                };
                if is_end {
                    // All that `*` stands for counts as one.
                    let one = if ending.ends_with('*') { parent_of(&path) } else { &file[..at] };
                    found.insert(one.to_owned());
                }
            }
        }
        found
    }

    /// Whether some source has all words of `a::b`, in its code or its path.
    fn has_item(&self, item: &str) -> bool {
        let wanted: Vec<&str> = item.trim_end_matches("()").split("::").collect();
        self.words.iter().any(|words| wanted.iter().all(|word| words.contains(*word)))
    }
}

fn words_of(source: &Source) -> HashSet<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let path = source.path.to_string_lossy().replace('-', "_");
    let mut words: HashSet<String> =
        path.split(['/', '.']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let in_code = source.code.split(|c| !is_part(c)).filter(|word| !word.is_empty());
    words.extend(in_code.map(str::to_owned));
    words
}

/// A path without `.` and `..`; nothing if it leaves the checkout.
fn normal(path: &Path) -> Option<String> {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !parts.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.to_string_lossy().into_owned())
}

fn without_src(path: &str) -> String {
    path.split('/').filter(|part| *part != "src").collect::<Vec<_>>().join("/")
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether the path is `.../BEGINNING` and the rest of one name.
fn is_glob_end(path: &str, beginning: &str) -> bool {
    path.match_indices(beginning).any(|(at, _)| {
        (at == 0 || path[..at].ends_with('/')) && !path[at + beginning.len()..].contains('/')
    })
}

fn examine_document(tree: &Tree, name: &str, text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let with_items = ITEM_DOCUMENTS.contains(&name) || name.starts_with("docs/");
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        for word in quoted(line) {
            if is_path(word) && !tree.has_path(name, word) {
                errors.push(format!("{name}:{number}: there is no `{word}`"));
            }
            if with_items && is_item(word) && !tree.has_item(word) {
                errors.push(format!("{name}:{number}: the sources have no `{word}`"));
            }
        }
        for link in links(line) {
            let beside = Path::new(name).parent().unwrap_or(Path::new("")).join(link);
            if !normal(&beside).is_some_and(|path| tree.is_there(&path)) {
                errors.push(format!("{name}:{number}: the link to {link} leads nowhere"));
            }
        }
    }
    errors
}

/// Files that comments mention, in backquotes. (Words with a slash alone are names of objects.)
fn examine_comments(tree: &Tree, source: &Source) -> Vec<String> {
    let name = source.path.to_string_lossy();
    let mut errors = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        let comment = line.trim_start();
        if !comment.starts_with("//") {
            continue;
        }
        for word in quoted(comment) {
            let is_file = PATH_ENDINGS.iter().any(|ending| word.ends_with(ending));
            if is_file && is_path(word) && !tree.has_path(&name, word) {
                errors.push(format!("{name}:{number}: there is no `{word}`"));
            }
        }
    }
    errors
}

/// What stands in backquotes in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    let closed = line.matches('`').count() / 2;
    line.split('`').skip(1).step_by(2).take(closed)
}

/// Where the links of a line lead within the repository, without what follows `#`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let (target, _) = rest.split_once(')')?;
        let target = target.split('#').next().unwrap_or_default();
        (!target.is_empty() && !target.contains("://")).then_some(target)
    })
}

/// Whether a word is meant as a path of this repository.
fn is_path(word: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./*".contains(c);
    let ends_like_one = PATH_ENDINGS.iter().any(|ending| word.ends_with(ending));
    let first = word.split('/').next().unwrap_or_default();
    // `example.org/label` is the name of a label or an annotation, `target/x` is made by commands.
    let is_elsewhere = !word.starts_with('.') && first.contains('.') && word.contains('/');
    // `NAME.md` stands for many.
    let is_pattern = !word.contains('/')
        && word.split('.').next().is_some_and(|stem| ["NAME", "FILE", "DIR"].contains(&stem));
    word.chars().all(is_plain)
        && (word.contains('/') || ends_like_one)
        && !word.starts_with(['/', '-'])
        && !word.starts_with("...")
        && first != "target"
        && !is_elsewhere
        && !is_pattern
        && !word.chars().all(|c| c.is_ascii_digit() || "./".contains(c))
}

/// Whether a word is meant as an item: `Type::member`, `module::item` or `function()`.
fn is_item(word: &str) -> bool {
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let bare = word.strip_suffix("()").unwrap_or(word);
    (bare.contains("::") || bare != word) && bare.split("::").all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let files = ["README.md", "docs/limits.md", "a/src/one.rs", "a/src/mod.rs", "b/src/mod.rs"];
        let code = "pub struct Table;\nimpl Table { fn look_up() {} }\n// Gone::by\n";
        let mut tree =
            Tree::new(files.map(str::to_owned).to_vec(), vec![Source::new("a/src/one.rs", code)]);
        for test in ["t/wire_icmp.rs", "t/wire_ports.rs", "t/first.yaml"] {
            tree.files.push(test.to_owned());
        }
        tree
    }

    fn found(name: &str, text: &str) -> Vec<String> {
        examine_document(&tree(), name, text)
    }

    #[test]
    fn a_path_that_is_there_is_not_found() {
        for there in [
            "docs/limits.md",
            "a/src/one.rs",
            "a/one.rs",
            "one.rs",
            "a/src",
            "a/",
            "t/wire_*",
            "wire_icmp.rs",
            "first.yaml",
            "../README.md",
        ] {
            assert_eq!(found("docs/x.md", &format!("see `{there}`.\n")), Vec::<String>::new());
        }
        assert!(
            found("docs/x.md", "[limits](limits.md#rows), [web](https://x.org/y)\n").is_empty()
        );
    }

    #[test]
    fn a_path_that_is_missing_is_found() {
        for missing in [
            "docs/limit.md",
            "a/src/two.rs",
            "two.rs",
            "ne.rs",      // the end of a name is not a name
            "src/mod.rs", // two of them
            "c/d",
            "t/cable_*",
            "../../README.md",
        ] {
            let errors = found("docs/x.md", &format!("\nsee `{missing}`.\n"));
            assert!(errors.len() == 1, "{missing}: {errors:?}");
            assert!(errors[0].starts_with("docs/x.md:2: "), "{errors:?}");
        }
        assert_eq!(found("docs/x.md", "[limits](docs/limits.md)\n").len(), 1);
    }

    #[test]
    fn what_is_no_path_of_the_repository_is_left_alone() {
        for other in [
            "netpol.dev/source-prefixes",
            "/sys/fs/bpf",
            "~/.cache/netpol",
            "target/x.tar",
            "NAME.md",
            ".../model",
            "cargo xtask test a/b",
            "<run-dir>/kept",
            "10.0.0.0/8",
            "state.json",
            "`",
        ] {
            assert!(found("x.md", &format!("see `{other}`.\n")).is_empty(), "{other}");
        }
        assert!(found("x.md", "```sh\nsee `a/b/c`\n```\n").is_empty());
    }

    #[test]
    fn an_item_has_to_be_in_the_code() {
        for there in ["Table::look_up", "look_up()", "one::Table", "a::one::Table", "Table"] {
            assert!(found("ARCHITECTURE.md", &format!("`{there}`\n")).is_empty(), "{there}");
        }
        for missing in ["Table::gone", "gone()", "two::Table", "Gone::by"] {
            let text = format!("`{missing}`\n");
            assert_eq!(found("ARCHITECTURE.md", &text).len(), 1, "{missing}");
            assert_eq!(found("docs/x.md", &text).len(), 1, "{missing}");
            assert!(found("README.md", &text).is_empty(), "{missing}");
        }
    }

    #[test]
    fn comments_are_read_too() {
        let text = "//! See `one.rs` and `a/src/two.rs`.\nlet a = \"`three.rs`\"; // x/y\n";
        let errors = examine_comments(&tree(), &Source::new("a/src/mod.rs", text));
        assert!(errors.len() == 1 && errors[0].starts_with("a/src/mod.rs:1: "), "{errors:?}");
    }
}
