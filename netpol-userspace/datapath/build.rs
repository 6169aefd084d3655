//! Hands the eBPF object, which `cargo xtask build` makes, to the crate that embeds it.
//!
//! It only finds and copies. Building the object needs another compiler than this crate's, and
//! a cargo inside of a cargo's build script is more than anyone wants to debug.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Names another object than the one in the target directory.
const OBJECT_VARIABLE: &str = "NETPOL_EBPF_OBJECT";

/// Where `cargo xtask build` puts the object, under cargo's target directory.
const OBJECT_PATH: &str = "bpfel-unknown-none/release/netpol-ebpf";

fn main() {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("invariant: cargo sets OUT_DIR"));
    let object = find_object(&out_dir);
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = out_dir.join("netpol-ebpf.o");
    if let Err(error) = fs::copy(&object, &copy) {
        // Cargo runs a failed build script again the next time, whatever was printed above.
        println!(
            "cargo::error=the eBPF object is missing: run `cargo xtask build` (looked for {}: {error})",
            object.display()
        );
    }
}

/// The named object, else the one in the target directory that this build runs in.
fn find_object(out_dir: &Path) -> PathBuf {
    if let Some(named) = env::var_os(OBJECT_VARIABLE) {
        return PathBuf::from(named);
    }
    let candidates = out_dir.ancestors().skip(1).map(|dir| dir.join(OBJECT_PATH));
    let found = candidates.into_iter().find(|object| object.is_file());
    found.unwrap_or_else(|| {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
        PathBuf::from(manifest_dir).join("../target").join(OBJECT_PATH)
    })
}
