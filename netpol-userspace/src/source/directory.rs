//! Reads a directory of manifests: which files count, and what they say. Must never follow a
//! link into a loop, and never take "cannot read" for "is not there".

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::Event;
use super::catalog::{Catalog, FileState, Files};
use super::parse::{self, Contents, Object};
use crate::model::Cluster;

/// Everything a directory of manifests defines.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The namespaces defined, as they were written (not those that are only referred to).
    pub namespaces: Vec<Namespace>,
    /// The pods, as they were written.
    pub pods: Vec<Pod>,
    /// The policies in force, as they were written.
    pub policies: Vec<NetworkPolicy>,
    /// All of it as policy sees it, with the namespaces that are only referred to.
    pub cluster: Cluster,
    /// What cannot be used, and why: object or file, and message.
    pub problems: Vec<(String, String)>,
}

/// Reads the manifests in `dir` once.
pub fn load_dir(dir: &Path) -> anyhow::Result<Loaded> {
    let metadata =
        fs::metadata(dir).with_context(|| format!("cannot read manifests in {}", dir.display()))?;
    ensure!(metadata.is_dir(), "cannot read manifests in {}: not a directory", dir.display());
    let files = Reader::new(dir).read(&BTreeSet::new(), |_| {});
    let mut loaded = Loaded::default();
    let mut seen = BTreeSet::new();
    for state in files.values() {
        let FileState::Read(contents) = state else { continue };
        for entry in &contents.entries {
            let Some(key) = &entry.key else { continue };
            if !seen.insert(key.clone()) {
                continue;
            }
            match &entry.object {
                Some(Object::Namespace(raw, _)) => loaded.namespaces.push((**raw).clone()),
                Some(Object::Pod(raw, _)) => loaded.pods.push((**raw).clone()),
                Some(Object::Policy(raw, _)) => loaded.policies.push((**raw).clone()),
                Some(Object::Unused) | None => {}
            }
        }
    }
    let mut catalog = Catalog::default();
    for event in catalog.update(&files) {
        if let Event::Changes(changes) = event {
            for change in changes {
                loaded.cluster.apply(change);
            }
        }
    }
    loaded.problems = catalog.problems().clone().into_iter().collect();
    Ok(loaded)
}

/// Whether a file of that name holds manifests. Hidden files are editors' and ConfigMap volumes'.
pub fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    !is_hidden(name) && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name.starts_with('#') || name.ends_with('~')
}

/// Reads one directory again and again, parsing only what has changed.
#[derive(Debug)]
pub struct Reader {
    root: PathBuf,
    cache: BTreeMap<String, (Vec<u8>, Arc<Contents>)>,
}

impl Reader {
    /// A reader of `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), cache: BTreeMap::new() }
    }

    /// What the files say now. Files in `busy` are being written: they count as they were read
    /// last. `enter` is told each directory before it is listed, so that it can be watched first.
    pub fn read(&mut self, busy: &BTreeSet<PathBuf>, mut enter: impl FnMut(&Path)) -> Files {
        let mut files = Files::new();
        let mut visited = HashSet::new();
        let root = self.root.clone();
        self.directory(&root, "", busy, &mut enter, &mut visited, &mut files);
        self.cache.retain(|name, _| files.contains_key(name));
        files
    }

    fn directory(
        &mut self,
        path: &Path,
        prefix: &str,
        busy: &BTreeSet<PathBuf>,
        enter: &mut impl FnMut(&Path),
        visited: &mut HashSet<(u64, u64)>,
        files: &mut Files,
    ) {
        let label = || if prefix.is_empty() { ".".to_owned() } else { prefix.to_owned() };
        match fs::metadata(path) {
            Ok(metadata) if visited.insert((metadata.dev(), metadata.ino())) => {}
            Ok(_) => return,
            Err(error) => return unreadable(files, label(), &error),
        }
        enter(path);
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return unreadable(files, label(), &error),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return unreadable(files, label(), &error),
            };
            let Ok(name) = entry.file_name().into_string() else { continue };
            let label = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            let path = entry.path();
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Vanished since it was listed, or a link that points nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) if is_hidden(&name) => continue,
                Err(error) => {
                    unreadable(files, label, &error);
                    continue;
                }
            };
            if metadata.is_dir() && !is_hidden(&name) {
                self.directory(&path, &label, busy, enter, visited, files);
            } else if metadata.is_file() && is_manifest(&name) {
                self.file(&path, label, busy.contains(&path), files);
            }
        }
    }

    fn file(&mut self, path: &Path, label: String, busy: bool, files: &mut Files) {
        let cached = self.cache.get(&label);
        if busy {
            // Half written and never read before: as if it were not there yet.
            if let Some((_, contents)) = cached {
                files.insert(label, FileState::Read(contents.clone()));
            }
            return;
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return unreadable(files, label, &error),
        };
        let contents = match cached {
            Some((before, contents)) if *before == bytes => contents.clone(),
            _ => Arc::new(parse_bytes(&label, &bytes)),
        };
        self.cache.insert(label.clone(), (bytes, contents.clone()));
        files.insert(label, FileState::Read(contents));
    }
}

/// Parses the bytes of a file; its name tells JSON from YAML.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Contents {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse::file(name, text),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            let malformed = Some(format!("line {}: is not UTF-8 text", line + 1));
            Contents { malformed, ..Contents::default() }
        }
    }
}

fn unreadable(files: &mut Files, label: String, error: &io::Error) {
    files.insert(label, FileState::Unreadable(format!("cannot be read: {error}")));
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::symlink;

    use super::*;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: NAME}\n";

    fn write(path: PathBuf, name: &str) {
        fs::write(path, NAMESPACE.replace("NAME", name)).unwrap();
    }

    #[test]
    fn files_are_found_recursively_and_editors_leftovers_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        for (path, name) in [
            ("b.yaml", "b"),
            ("sub/a.yml", "a"),
            ("sub/deep/c.json.yaml", "c"),
            (".hidden.yaml", "x"),
            (".git/x.yaml", "x"),
            ("x.yaml~", "x"),
            ("#x.yaml", "x"),
            ("x.txt", "x"),
            (".b.yaml.swp", "x"),
            ("4913", "x"),
        ] {
            write(root.join(path), name);
        }
        // As a ConfigMap volume is built.
        fs::create_dir(root.join("..2026")).unwrap();
        write(root.join("..2026/linked.yaml"), "linked");
        symlink("..2026", root.join("..data")).unwrap();
        symlink("..data/linked.yaml", root.join("linked.yaml")).unwrap();
        symlink("nowhere.yaml", root.join("dangling.yaml")).unwrap();
        symlink("..", root.join("sub/loop")).unwrap();
        let loaded = load_dir(root).unwrap();
        let names: Vec<_> =
            loaded.namespaces.iter().map(|n| n.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["b", "linked", "a", "c"]);
        assert_eq!(loaded.problems, []);
        assert_eq!(loaded.cluster.namespaces.len(), 4);
    }

    #[test]
    fn problems_are_named_and_the_rest_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("a.yaml"), "a");
        write(dir.path().join("again.yaml"), "a");
        fs::write(dir.path().join("latin.yaml"), b"a: b\nc: \xe9\n").unwrap();
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        let loaded = load_dir(dir.path()).unwrap();
        let objects: Vec<_> = loaded.problems.iter().map(|(object, _)| object.as_str()).collect();
        assert_eq!(
            objects,
            ["Namespace a (a.yaml)", "Namespace a (again.yaml)", "bad.json", "latin.yaml"]
        );
        assert!(loaded.problems[3].1.starts_with("line 2: is not UTF-8 text"));
        assert_eq!(loaded.namespaces.len(), 1);
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_it() {
        let error = load_dir(Path::new("/nonexistent/manifests")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/manifests"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(format!("{:#}", load_dir(file.path()).unwrap_err()).contains("not a directory"));
    }

    #[test]
    fn a_busy_file_counts_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        write(path.clone(), "a");
        let mut reader = Reader::new(dir.path());
        let busy = BTreeSet::from([path.clone()]);
        assert!(reader.read(&busy, |_| {}).is_empty(), "never read: not there yet");
        let entries = |files: &Files| match &files["a.yaml"] {
            FileState::Read(contents) => contents.entries.len(),
            FileState::Unreadable(_) => panic!("{files:?}"),
        };
        assert_eq!(entries(&reader.read(&BTreeSet::new(), |_| {})), 1);
        fs::write(&path, "").unwrap();
        assert_eq!(entries(&reader.read(&busy, |_| {})), 1);
        assert_eq!(entries(&reader.read(&BTreeSet::new(), |_| {})), 0);
    }
}
