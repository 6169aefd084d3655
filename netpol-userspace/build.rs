//! Copies the eBPF object that `cargo xtask build` made to where the crate embeds it.
fn main() {
    let object = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/bpfel-unknown-none/release/netpol-ebpf");
    println!("cargo:rerun-if-changed={}", object.display());
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("netpol-ebpf.o");
    std::fs::copy(&object, &out).expect("run `cargo xtask build`");
}
