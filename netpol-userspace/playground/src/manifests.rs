//! The manifests of a directory as separate documents. Must never change what a policy says:
//! policies and namespaces are handed on as the text that was written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One object of a file.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file, for messages.
    pub path: PathBuf,
    /// The subdirectory of the read directory it is in, empty at the top: one example each.
    pub section: String,
    /// The object.
    pub value: Value,
    /// How it was written (for an item of a List, the item as JSON).
    pub text: String,
}

impl Document {
    /// `kind`, empty if absent.
    pub fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }
}

/// Reads every .yaml, .yml and .json file below `dir`, in the order of their paths.
pub fn read(dir: &Path) -> Result<Vec<Document>> {
    let mut files = Vec::new();
    find(dir, &mut files)?;
    files.sort();
    if files.is_empty() {
        bail!("no manifests in {}: expected files ending in .yaml, .yml or .json", dir.display());
    }
    let mut documents = Vec::new();
    for path in files {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let relative = path.strip_prefix(dir).unwrap_or(&path);
        let section = match relative.components().count() {
            0 | 1 => String::new(),
            _ => relative.iter().next().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let found =
            parse(&path, &section, &text).with_context(|| format!("in {}", path.display()))?;
        documents.extend(found);
    }
    Ok(documents)
}

/// Whether the file name is one that is read as a manifest.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// All directories at and below `dir` (also what has to be watched).
pub fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while next < all.len() {
        let entries = fs::read_dir(&all[next])
            .with_context(|| format!("cannot read the directory {}", all[next].display()))?;
        for entry in entries {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
            if path.is_dir() && !path.is_symlink() && !hidden {
                all.push(path);
            }
        }
        next += 1;
    }
    Ok(all)
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for dir in directories(dir)? {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if is_manifest(&path) && path.is_file() {
                files.push(path);
            }
        }
    }
    Ok(())
}

fn parse(path: &Path, section: &str, text: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (line, part) in split(text) {
        let options = serde_saphyr::options! {
            // kubectl reads YAML 1.1, and so does what reads policies: `port: 010` is 8.
            legacy_octal_numbers: true,
            with_snippet: false,
        };
        let value: Value = serde_saphyr::from_str_with_options(&part, options)
            .with_context(|| format!("the document at line {line} is not valid YAML"))?;
        let object = |value: Value, text: String| Document {
            path: path.to_owned(),
            section: section.to_owned(),
            value,
            text,
        };
        match (&value, value["kind"].as_str()) {
            (Value::Null, _) => {}
            (Value::Object(_), Some("List")) => {
                for item in value["items"].as_array().into_iter().flatten() {
                    documents.push(object(item.clone(), item.to_string()));
                }
            }
            (Value::Object(_), Some(_)) => documents.push(object(value, part)),
            _ => bail!("the document at line {line} is not a Kubernetes object: it has no `kind`"),
        }
    }
    Ok(documents)
}

/// The documents of a YAML stream as text, with the line each begins at. Comment-only and empty
/// ones are left out.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = BTreeMap::new();
    let mut start = 1;
    let mut current = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("---")
            && (rest.is_empty() || rest.starts_with([' ', '\t']))
        {
            parts.insert(start, std::mem::take(&mut current));
            start = index + 1;
            current.push_str(rest.trim_start());
        } else if line.trim_end() != "..." {
            current.push_str(line);
        }
        current.push('\n');
    }
    parts.insert(start, current);
    let says_something = |part: &String| {
        part.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    };
    parts.into_iter().filter(|(_, part)| says_something(part)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn documents_keep_their_text() {
        let text = "# head\n---\nkind: A\nx: '1'\n--- # note\nkind: B\n---\n# nothing\n---\n";
        let documents = parse(Path::new("f.yaml"), "s", text).unwrap();
        let seen: Vec<(&str, &str)> =
            documents.iter().map(|document| (document.kind(), &*document.text)).collect();
        assert_eq!(seen, [("A", "\nkind: A\nx: '1'\n"), ("B", "# note\nkind: B\n")]);
    }

    #[test]
    fn a_list_is_its_items() {
        let text = r#"{"kind": "List", "items": [{"kind": "Pod"}, {"kind": "Namespace"}]}"#;
        let documents = parse(Path::new("f.json"), "", text).unwrap();
        let kinds: Vec<&str> = documents.iter().map(Document::kind).collect();
        assert_eq!(kinds, ["Pod", "Namespace"]);
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_line() {
        for text in ["kind: A\n---\n- a\n", "kind: A\n---\nfoo: bar\n", "kind: A\n---\na: [\n"] {
            let error = parse(Path::new("f.yaml"), "", text).unwrap_err();
            assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        }
    }

    #[test]
    fn sections_are_the_first_directories() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("one/deep")).unwrap();
        fs::write(dir.path().join("top.yaml"), "kind: A").unwrap();
        fs::write(dir.path().join("one/deep/b.yml"), "kind: B").unwrap();
        fs::write(dir.path().join("one/.hidden.yaml"), "kind: [").unwrap();
        fs::write(dir.path().join("one/README.md"), "kind: [").unwrap();
        let documents = read(dir.path()).unwrap();
        let seen: Vec<(&str, &str)> =
            documents.iter().map(|document| (&*document.section, document.kind())).collect();
        assert_eq!(seen, [("one", "B"), ("", "A")]);
    }

    #[test]
    fn a_directory_without_manifests_says_what_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(".yaml"), "{error}");
    }
}
