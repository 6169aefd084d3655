//! Image archives, read back: what is in them, that digests are true, that bytes repeat, and that
//! what no tool would understand is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Read;

use netpol_image::{Content, Entry, Image};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn image() -> Image {
    Image {
        names: vec!["localhost:5000/demo:v1".into(), "registry.example/a/demo:v2".into()],
        architecture: "amd64".into(),
        entries: vec![
            Entry::text("/etc/passwd", "root:x:0:0::/:/none\n"),
            Entry::program("usr/bin/demo", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")),
            Entry::symlink("/bin", "usr/bin"),
            Entry::directory("/tmp", 0o1777),
            Entry {
                path: format!("/very/{}/{}", "long".repeat(30), "name".repeat(30)),
                mode: 0o600,
                content: Content::Bytes(vec![7]),
            },
        ],
        entrypoint: vec!["/usr/bin/demo".into()],
        command: vec!["serve".into()],
        environment: vec!["A=b".into()],
        user: "12:34".into(),
        labels: vec![("x".into(), "y".into())],
    }
}

/// Every file of a tar by its path.
fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, bytes)
        })
        .collect()
}

/// The blob that a descriptor or a path names, after checking its digest and size.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let bytes = &files[&format!("blobs/sha256/{digest}")];
    let found: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, digest);
    assert_eq!(descriptor["size"], json!(bytes.len()));
    bytes
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn both_formats_lead_to_the_same_config_and_layer() {
    let files = files(&image().to_bytes().unwrap());
    assert_eq!(json(&files["oci-layout"]), json!({"imageLayoutVersion": "1.0.0"}));
    let index = json(&files["index.json"]);
    let names: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let annotations = &one["annotations"];
            (
                &annotations["io.containerd.image.name"],
                &annotations["org.opencontainers.image.ref.name"],
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            (&json!("localhost:5000/demo:v1"), &json!("v1")),
            (&json!("registry.example/a/demo:v2"), &json!("v2"))
        ]
    );
    let manifest = json(blob(&files, &index["manifests"][0]));
    let config = json(blob(&files, &manifest["config"]));
    let layer = blob(&files, &manifest["layers"][0]);
    assert_eq!(config["rootfs"]["diff_ids"], json!([manifest["layers"][0]["digest"]]));
    assert_eq!(config["architecture"], "amd64");
    assert_eq!(
        config["config"],
        json!({
            "User": "12:34", "Env": ["A=b"], "Entrypoint": ["/usr/bin/demo"], "Cmd": ["serve"],
            "WorkingDir": "/", "Labels": {"x": "y"},
        })
    );
    let docker = &json(&files["manifest.json"])[0];
    assert_eq!(docker["RepoTags"], json!(image().names));
    assert_eq!(json(&files[docker["Config"].as_str().unwrap()]), config);
    assert_eq!(files[docker["Layers"][0].as_str().unwrap()], layer);
}

#[test]
fn the_layer_unpacks_to_what_was_asked_for() {
    let files = files(&image().to_bytes().unwrap());
    let docker = &json(&files["manifest.json"])[0];
    let layer = &files[docker["Layers"][0].as_str().unwrap()];
    let mut archive = tar::Archive::new(layer.as_slice());
    let listed: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, 0));
            let kind = header.entry_type();
            let path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
            (path, header.mode().unwrap(), kind)
        })
        .collect();
    use tar::EntryType::{Directory, Regular, Symlink};
    let long = format!("very/{}", "long".repeat(30));
    let expected = [
        ("bin".into(), 0o777, Symlink),
        ("etc".into(), 0o755, Directory),
        ("etc/passwd".into(), 0o644, Regular),
        ("tmp".into(), 0o1777, Directory),
        ("usr".into(), 0o755, Directory),
        ("usr/bin".into(), 0o755, Directory),
        ("usr/bin/demo".into(), 0o755, Regular),
        ("very".into(), 0o755, Directory),
        (long.clone(), 0o755, Directory),
        (format!("{long}/{}", "name".repeat(30)), 0o600, Regular),
    ];
    assert_eq!(listed, expected);
}

#[test]
fn equal_input_gives_equal_bytes_in_whatever_order() {
    let image = image();
    let mut other = image.clone();
    other.entries.reverse();
    assert!(image.to_bytes().unwrap() == other.to_bytes().unwrap());
}

#[test]
fn names_and_paths_that_tools_would_read_differently_are_refused() {
    for name in ["netpol", "netpol:v1", "registry.example/netpol", "localhost:5000/netpol", "a/b:c"]
    {
        let image = Image { names: vec![name.into()], ..image() };
        assert!(image.to_bytes().unwrap_err().to_string().contains(name), "{name}");
    }
    assert!(Image { names: Vec::new(), ..image() }.to_bytes().is_err());
    for path in ["", "/", "../x", "/a/./b", "/etc/passwd", "//usr//bin/demo", "bin/sh"] {
        let mut image = image();
        image.entries.push(Entry::text(path, ""));
        assert!(image.to_bytes().is_err(), "{path}");
    }
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("new/demo.tar");
    image().write(&output).unwrap();
    assert!(std::fs::read(&output).unwrap() == image().to_bytes().unwrap());
    let mut broken = image();
    broken.entries.push(Entry::program("/x", "/nonexistent/file"));
    let error = format!("{:#}", broken.write(&output).unwrap_err());
    assert!(error.contains("/nonexistent/file"), "{error}");
    assert_eq!(std::fs::read_dir(output.parent().unwrap()).unwrap().count(), 1);
}
