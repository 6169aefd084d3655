//! Reads a directory of manifests: which files count, and what they say. Must never follow a
//! link into a loop, and never take "cannot read" for "is not there".

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::Event;
use super::catalog::{Catalog, FileState, Files};
use super::cluster_policy::ClusterNetworkPolicy;
use super::parse::{self, Contents, Object, Originals};
use netpol_model::Cluster;

/// Everything a directory of manifests defines.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The namespaces defined, as they were written (not those that are only referred to).
    pub namespaces: Vec<Namespace>,
    /// The pods, as they were written.
    pub pods: Vec<Pod>,
    /// The policies in force, as they were written.
    pub policies: Vec<NetworkPolicy>,
    /// The ClusterNetworkPolicies, as they were written.
    pub cluster_policies: Vec<ClusterNetworkPolicy>,
    /// The Services, as they were written.
    pub services: Vec<Service>,
    /// The EndpointSlices, as they were written (not those that are derived from selectors).
    pub slices: Vec<EndpointSlice>,
    /// The nodes, as they were written.
    pub nodes: Vec<Node>,
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
    let files = Reader::new(dir, Originals::Kept).read(&BTreeSet::new(), |_| {}).files;
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
                Some(Object::Namespace(raw, ..)) => {
                    loaded.namespaces.extend(raw.as_deref().cloned());
                }
                Some(Object::Pod(raw, ..)) => loaded.pods.extend(raw.as_deref().cloned()),
                Some(Object::Policy(raw, ..)) => loaded.policies.extend(raw.as_deref().cloned()),
                Some(Object::ClusterPolicy(raw, ..)) => {
                    loaded.cluster_policies.extend(raw.as_deref().cloned());
                }
                Some(Object::Service(raw, ..)) => loaded.services.extend(raw.as_deref().cloned()),
                Some(Object::Slice(raw, ..)) => loaded.slices.extend(raw.as_deref().cloned()),
                Some(Object::Node(raw, ..)) => loaded.nodes.extend(raw.as_deref().cloned()),
                None => {}
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
    originals: Originals,
    cache: Cache,
}

type Cache = BTreeMap<String, (Arc<[u8]>, Arc<Contents>)>;

/// One look at the directory.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// What the files say.
    pub files: Files,
    /// Files that had content in the look before and are empty now: many programs write a file
    /// by emptying it first.
    pub emptied: BTreeSet<String>,
    cache: Cache,
}

impl Reader {
    /// A reader of `root`.
    pub fn new(root: &Path, originals: Originals) -> Self {
        Self { root: root.to_owned(), originals, cache: BTreeMap::new() }
    }

    /// What the files say now. Files in `busy` are being written: they count as they were in the
    /// last look that was kept. `enter` is told each directory before it is listed, so that it
    /// can be watched first.
    pub fn read(&self, busy: &BTreeSet<PathBuf>, enter: impl FnMut(&Path)) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut walk = Walk { reader: self, busy, enter, visited: HashSet::new() };
        walk.directory(&self.root, "", &mut snapshot);
        snapshot
    }

    /// The files as they were in the last look that counts.
    pub fn last(&self) -> impl Iterator<Item = (&str, &Arc<[u8]>, &Contents)> {
        self.cache.iter().map(|(label, (bytes, contents))| (&**label, bytes, &**contents))
    }

    /// Makes `snapshot` the last look that counts, and returns what its files say.
    pub fn keep(&mut self, snapshot: Snapshot) -> Files {
        self.cache = snapshot.cache;
        snapshot.files
    }
}

struct Walk<'a, F> {
    reader: &'a Reader,
    busy: &'a BTreeSet<PathBuf>,
    enter: F,
    visited: HashSet<(u64, u64)>,
}

impl<F: FnMut(&Path)> Walk<'_, F> {
    fn directory(&mut self, path: &Path, prefix: &str, to: &mut Snapshot) {
        let label = if prefix.is_empty() { "." } else { prefix };
        match fs::metadata(path) {
            Ok(metadata) if self.visited.insert((metadata.dev(), metadata.ino())) => {}
            Ok(_) => return,
            Err(error) => return unreadable(to, label, &error),
        }
        (self.enter)(path);
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return unreadable(to, label, &error),
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.entry(&entry, prefix, to),
                Err(error) => return unreadable(to, label, &error),
            }
        }
    }

    fn entry(&mut self, entry: &fs::DirEntry, prefix: &str, to: &mut Snapshot) {
        let Ok(name) = entry.file_name().into_string() else { return };
        if is_hidden(&name) {
            return;
        }
        let label = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => self.directory(&path, &label, to),
            Ok(metadata) if metadata.is_file() && is_manifest(&name) => self.file(&path, label, to),
            Ok(_) => {}
            // Vanished since it was listed, or a link that points nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => unreadable(to, &label, &error),
        }
    }

    fn file(&mut self, path: &Path, label: String, to: &mut Snapshot) {
        let cached = self.reader.cache.get(&label);
        if self.busy.contains(path) {
            // Half written and never read before: as if it were not there yet.
            if let Some((bytes, contents)) = cached {
                to.add(label, bytes.clone(), contents.clone());
            }
            return;
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return unreadable(to, &label, &error),
        };
        match cached {
            Some((before, contents)) if **before == *bytes => {
                to.add(label, before.clone(), contents.clone());
            }
            _ => {
                if bytes.is_empty() && cached.is_some() {
                    to.emptied.insert(label.clone());
                }
                let bytes: Arc<[u8]> = bytes.into();
                let contents = Arc::new(parse_bytes(&label, &bytes, self.reader.originals));
                to.add(label, bytes, contents);
            }
        }
    }
}

impl Snapshot {
    fn add(&mut self, label: String, bytes: Arc<[u8]>, contents: Arc<Contents>) {
        self.cache.insert(label.clone(), (bytes, contents.clone()));
        self.files.insert(label, FileState::Read(contents));
    }
}

/// Parses the bytes of a file; its name tells JSON from YAML.
pub fn parse_bytes(name: &str, bytes: &[u8], originals: Originals) -> Contents {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse::file(name, text, originals),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            let malformed = Some(format!("line {}: is not UTF-8 text", line + 1));
            Contents { malformed, ..Contents::default() }
        }
    }
}

fn unreadable(to: &mut Snapshot, label: &str, error: &io::Error) {
    let reason = format!("cannot be read: {error}");
    to.files.insert(label.to_owned(), FileState::Unreadable(reason));
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
        let mut reader = Reader::new(dir.path(), Originals::Kept);
        let busy = BTreeSet::from([path.clone()]);
        let entries = |snapshot: &Snapshot| match &snapshot.files["a.yaml"] {
            FileState::Read(contents) => contents.entries.len(),
            FileState::Unreadable(_) => panic!("{snapshot:?}"),
        };
        assert!(reader.read(&busy, |_| {}).files.is_empty(), "never read: not there yet");
        let good = reader.read(&BTreeSet::new(), |_| {});
        assert_eq!(entries(&good), 1);
        reader.keep(good);
        fs::write(&path, "").unwrap();
        let empty = reader.read(&BTreeSet::new(), |_| {});
        assert_eq!(entries(&empty), 0);
        assert!(empty.emptied.contains("a.yaml"));
        let kept = reader.read(&busy, |_| {});
        assert_eq!(entries(&kept), 1, "a look that was not kept does not count");
        reader.keep(kept);
        assert_eq!(entries(&reader.read(&busy, |_| {})), 1);
    }
}
