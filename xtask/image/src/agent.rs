//! netpol's own image: the program and nothing else, no shell, no other user's file. What the
//! DaemonSet in deploy/ starts.

use std::path::Path;

use anyhow::Result;

use crate::archive::Image;
use crate::layer::Entry;
use crate::program::{Program, libraries};

/// Where the program is in the image.
pub const PROGRAM: &str = "/usr/local/bin/netpol";

/// The image around a binary `netpol`. One that is not static brings the libraries that it needs
/// from this machine, which is for tests: a binary that is built already need not be built again.
///
/// # Errors
/// The binary cannot be read, or not all of its libraries are found.
pub fn netpol(binary: &Path, names: Vec<String>) -> Result<Image> {
    let program = Program::read(binary)?;
    let mut entries = vec![
        Entry::program(PROGRAM, binary),
        // Tools that look up who runs find a name.
        Entry::text("/etc/passwd", "root:x:0:0:root:/:/sbin/nologin\n"),
        Entry::text("/etc/group", "root:x:0:\n"),
    ];
    if !program.is_static {
        let libraries = libraries(binary)?;
        entries.extend(libraries.iter().map(|path| Entry::program(path.to_string_lossy(), path)));
    }
    let label =
        |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.into());
    Ok(Image {
        names,
        architecture: program.architecture.into(),
        entries,
        entrypoint: vec![PROGRAM.into()],
        // So that `kubectl exec POD -- netpol status` finds it.
        environment: vec!["PATH=/usr/local/bin".into()],
        labels: vec![
            label("title", "netpol"),
            label("description", "Kubernetes NetworkPolicy enforced by eBPF"),
            label("version", env!("CARGO_PKG_VERSION")),
            label("licenses", "Apache-2.0 OR MIT"),
        ],
        ..Image::default()
    })
}
