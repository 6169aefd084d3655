//! Reads Rust source just well enough to tell code from comments, strings and tests.
//!
//! Not a parser: it knows comments, literals and braces. `lines` and `tidy` build on it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file of Rust source, split into what is code and what is not.
pub(crate) struct Source {
    /// Relative to the checkout.
    pub(crate) path: PathBuf,
    /// The text as it is.
    pub(crate) text: String,
    /// The text with comments and the contents of literals replaced by blanks, line for line.
    pub(crate) code: String,
}

impl Source {
    /// Splits a text.
    pub(crate) fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let text = text.into();
        let code = blank(&text);
        Self { path: path.into(), text, code }
    }

    /// Every file of Rust source of the given crates, sorted by path.
    pub(crate) fn read_all(root: &Path, crates: &[&str]) -> Result<Vec<Self>> {
        let mut sources = Vec::new();
        for name in crates {
            for file in files_under(&root.join(name))? {
                if file.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&file)
                        .with_context(|| format!("cannot read {}", file.display()))?;
                    sources.push(Self::new(file.strip_prefix(root).unwrap_or(&file), text));
                }
            }
        }
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(sources)
    }

    /// For each line whether it belongs to tests: a file of tests, or an item under `cfg(test)`.
    pub(crate) fn test_lines(&self) -> Vec<bool> {
        let lines: Vec<&str> = self.code.lines().collect();
        let mut tests = vec![self.is_test_file(); lines.len()];
        let mut start = 0;
        while start < lines.len() {
            if lines[start].trim_start().starts_with("#[cfg(test)]") {
                let end = item_end(&lines, start);
                tests[start..=end].fill(true);
                start = end;
            }
            start += 1;
        }
        tests
    }

    fn is_test_file(&self) -> bool {
        let is_tests = |part: &std::ffi::OsStr| part == "tests" || part == "tests.rs";
        self.path.iter().any(is_tests) || self.path.iter().any(|part| part == "benches")
    }
}

/// The files under a directory that belong to the checkout.
pub(crate) fn files_under(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        if !dir.is_dir() {
            continue;
        }
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == "target" || name == ".git" {
                continue;
            }
            let kind = entry.file_type().with_context(|| format!("cannot stat {name}"))?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The last line of the item that starts at `start`: where its braces close, or its semicolon.
fn item_end(lines: &[&str], start: usize) -> usize {
    let mut depth = 0_i32;
    for (number, line) in lines.iter().enumerate().skip(start) {
        let line =
            if number == start { line.replacen("#[cfg(test)]", "", 1) } else { (*line).into() };
        for c in line.chars() {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => {
                    depth -= 1;
                    if depth == 0 && c == '}' {
                        return number;
                    }
                }
                ';' if depth == 0 => return number,
                _ => {}
            }
        }
    }
    lines.len().saturating_sub(1)
}

/// Replaces comments, and what is inside of literals, by blanks; keeps every line break.
fn blank(text: &str) -> String {
    let mut scanner = Scanner { rest: text, out: String::with_capacity(text.len()) };
    while !scanner.rest.is_empty() {
        scanner.step();
    }
    scanner.out
}

struct Scanner<'a> {
    rest: &'a str,
    out: String,
}

impl Scanner<'_> {
    fn step(&mut self) {
        if self.rest.starts_with("//") {
            self.hide(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.hide(block_comment_length(self.rest));
        } else if let Some(length) = raw_string_length(self.rest).filter(|_| self.at_word_start()) {
            self.hide_inside(length);
        } else if self.rest.starts_with('"') {
            self.hide_inside(quoted_length(self.rest, '"'));
        } else if let Some(length) = char_literal_length(self.rest) {
            self.hide_inside(length);
        } else {
            let c = self.rest.chars().next().unwrap_or(' ');
            self.out.push(c);
            self.rest = &self.rest[c.len_utf8()..];
        }
    }

    /// Whether what comes next begins a word, so that the `r` of `for"` starts no raw string.
    fn at_word_start(&self) -> bool {
        // The `b` and `c` of `br"` and `cr"` were copied as code just before; they are no word.
        let before = self.out.strip_suffix(['b', 'c']).unwrap_or(&self.out);
        !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
    }

    fn hide(&mut self, length: usize) {
        let (hidden, rest) = self.rest.split_at(length);
        self.out.extend(hidden.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }

    /// Hides a literal but leaves a quote at each end, so that its lines still count as code.
    fn hide_inside(&mut self, length: usize) {
        let inside = self.rest[1..length].chars();
        self.out.push('"');
        self.out.extend(inside.map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.out.push('"');
        self.rest = &self.rest[length..];
    }
}

fn block_comment_length(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a raw string at the start of `text`, if there is one.
fn raw_string_length(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let opening = text.len() - body.len();
    Some(body.find(&end).map_or(text.len(), |at| opening + at + end.len()))
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal at the start of `text`; a lifetime is none.
fn char_literal_length(text: &str) -> Option<usize> {
    let mut chars = text.strip_prefix('\'')?.chars();
    match chars.next()? {
        '\\' => Some(quoted_length(text, '\'')),
        c => chars.as_str().starts_with('\'').then(|| c.len_utf8() + 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        let source = Source::new("a.rs", text);
        assert_eq!(source.code.lines().count(), text.lines().count());
        source.code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_are_blank() {
        assert_eq!(code("a // b\nc /* d /* e */ f */ g"), "a c g");
        assert_eq!(code("/// doc \"x\n//! doc\nfn f() {}"), "fn f() {}");
        assert_eq!(code("a /* never ends\n"), "a");
    }

    #[test]
    fn what_is_inside_literals_is_no_code() {
        assert_eq!(code(r#"let a = "// no { \" }"; b"#), "let a = \" \"; b");
        assert_eq!(code("r#\"a \" // b\"# c"), "\" \" c");
        assert_eq!(code("br\"a\" c"), "b\" \" c");
        assert_eq!(code("['{', '\\'', 'é'] x"), "[\" \", \" \", \" \"] x");
    }

    #[test]
    fn lifetimes_are_code() {
        assert_eq!(code("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
    }

    #[test]
    fn items_under_cfg_test_are_tests() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { \"}\"; }\n}\nfn c() {}\n\
                    #[cfg(test)]\nuse x;\nfn d() {}\n#[cfg(test)]\n#[expect(x)]\nfn e() {\n}\nfn f() {}";
        let tests = Source::new("src/a.rs", text).test_lines();
        let expected = [0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0].map(|n| n == 1);
        assert_eq!(tests, expected);
    }

    #[test]
    fn files_of_tests_are_tests() {
        assert_eq!(Source::new("c/tests/a.rs", "x\n").test_lines(), [true]);
        assert_eq!(Source::new("c/src/a/tests.rs", "x\n").test_lines(), [true]);
        assert_eq!(Source::new("c/src/test.rs", "x\n").test_lines(), [false]);
    }
}
