//! An image archive that every tool reads: an OCI image layout (`ctr images import`, skopeo,
//! podman) that also has the `manifest.json` of `docker save` (`docker load`), about the same
//! blobs. One layer, not compressed: a layer's digest is then that of its content.
//!
//! It must never need a registry or a daemon, and the same input gives the same bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::layer::{self, Entry};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// An image: what is in it, how it starts, and what it is called.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Its full names, each with registry and tag: `registry.example/netpol:v1`.
    pub names: Vec<String>,
    /// The architecture, as Go calls it: `amd64`, `arm64`.
    pub architecture: String,
    /// Everything in its file system.
    pub entries: Vec<Entry>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments that somebody who starts it may replace.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// User or `user:group`, by number or name; empty is root.
    pub user: String,
    /// Names and values for people and tools.
    pub labels: Vec<(String, String)>,
}

/// Go's name of the architecture that this program was built for.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// One file of the archive, named by the digest of its bytes.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { digest, bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.bytes.len(),
        })
    }
}

impl Image {
    /// One program of this host's architecture, `file`, that starts as `/name`.
    pub fn of_program(image: &str, name: &str, file: impl AsRef<Path>) -> Self {
        let path = format!("/{name}");
        Self {
            names: vec![image.to_owned()],
            architecture: host_architecture().to_owned(),
            entries: vec![Entry::program(path.clone(), file.as_ref())],
            entrypoint: vec![path],
            ..Self::default()
        }
    }

    /// Writes the archive to a file, which is there whole or not at all.
    pub fn write(&self, output: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        let cannot = || format!("cannot write the image to {}", output.display());
        let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(directory) = directory {
            fs::create_dir_all(directory).with_context(cannot)?;
        }
        let mut partial = output.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, output));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written.with_context(cannot)
    }

    /// The archive.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check()?;
        let layer = Blob::new(layer::tar(&self.entries)?);
        let config = Blob::json(&self.config(&layer));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(CONFIG_TYPE),
            "layers": [layer.descriptor(LAYER_TYPE)],
        }));
        let docker = json!([{
            "Config": config.path(),
            "RepoTags": self.names,
            "Layers": [layer.path()],
        }]);
        let mut archive = tar::Builder::new(Vec::with_capacity(layer.bytes.len() + (64 << 10)));
        append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut archive, "index.json", self.index(&manifest).to_string().as_bytes())?;
        append(&mut archive, "manifest.json", docker.to_string().as_bytes())?;
        for blob in [&manifest, &config, &layer] {
            append(&mut archive, &blob.path(), &blob.bytes)?;
        }
        archive.into_inner().context("cannot finish the image archive")
    }

    /// A name without a tag or a registry means something else to every tool.
    fn check(&self) -> Result<()> {
        if self.names.is_empty() {
            bail!("the image has no name; give it one, such as registry.example/name:tag");
        }
        for name in &self.names {
            let full = name.split_once('/').is_some_and(|(registry, rest)| {
                (registry == "localhost" || registry.contains(['.', ':'])) && tag(rest).is_some()
            });
            if !full {
                bail!("`{name}` is no full image name; write registry.example/name:tag");
            }
        }
        Ok(())
    }

    /// One descriptor of the one manifest for each name; containerd takes the name from the first
    /// annotation, others the tag from the second.
    fn index(&self, manifest: &Blob) -> Value {
        let named = self.names.iter().map(|name| {
            let mut descriptor = manifest.descriptor(MANIFEST_TYPE);
            descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
            descriptor["annotations"] = json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": tag(name).unwrap_or_default(),
            });
            descriptor
        });
        let named: Vec<Value> = named.collect();
        json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": named})
    }

    fn config(&self, layer: &Blob) -> Value {
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": self.environment,
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
        })
    }
}

/// The tag of an image's name; a colon before the last slash belongs to the registry's port.
fn tag(name: &str) -> Option<&str> {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split_once(':').map(|(_, tag)| tag).filter(|tag| !tag.is_empty())
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    archive
        .append_data(&mut header, path, bytes)
        .with_context(|| format!("cannot put {path} into the image archive"))
}
