//! Builds the eBPF object with the compiler that `setup` found.
//!
//! The object is copied to its final place only when its bytes changed, so that the userspace
//! crate, which embeds it, is rebuilt only then.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use netpol_run::{self as run, Workspace};
use netpol_setup::{
    PACKAGED_CARGO, PACKAGED_CLIPPY, PACKAGED_RUSTC, Toolchain, Version, linker_path,
};

/// The target: the kernel's instruction set, little endian.
const TARGET: &str = "bpfel-unknown-none";

/// The crates that may use unstable features when a stable compiler builds them. A list, not
/// `1`: with `1` some build scripts conclude that `core` has to be built from source.
const UNSTABLE_CRATES: &str = "aya_ebpf,netpol_ebpf";

const ADVICE: &str = "fix the error above; if it is about the compiler or the linker rather than \
                      the code, look at `cargo xtask setup --print`";

/// Builds the object and returns where it is.
pub(crate) fn build(workspace: &Workspace, toolchain: Toolchain) -> Result<PathBuf> {
    let manifest = workspace.ebpf_crate().join("Cargo.toml");
    if !manifest.exists() {
        bail!("{} is missing: this checkout is incomplete, clone it again", manifest.display());
    }
    let mut command = cargo(workspace, toolchain, "build")?;
    command.arg("--release");
    if env::var_os("CI").is_some() {
        command.arg("--locked");
    }
    run::visible(command, ADVICE)?;
    let built = workspace.ebpf_target().join(TARGET).join("release/netpol-ebpf");
    let object = workspace.ebpf_object();
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// `cargo SUBCOMMAND` for the eBPF crate: compiler, linker, flags and directories all set.
///
/// # Errors
/// The compiler or the linker is gone.
pub fn cargo(workspace: &Workspace, toolchain: Toolchain, subcommand: &str) -> Result<Command> {
    let mut command = match toolchain {
        // Called by its own name: cargo would prefer another toolchain's clippy in CARGO_HOME.
        Toolchain::Packaged if subcommand == "clippy" => {
            let mut command = Command::new(PACKAGED_CLIPPY);
            command.arg(subcommand);
            command
        }
        Toolchain::Packaged => {
            let mut command = Command::new(PACKAGED_CARGO);
            command.arg(subcommand);
            command
        }
        Toolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", subcommand, "-Z", "build-std=core"]);
            command
        }
    };
    run::scrub(&mut command, run::selects_toolchain);
    if toolchain == Toolchain::Packaged {
        command.env("CARGO", PACKAGED_CARGO).env("RUSTC", PACKAGED_RUSTC);
        command.env("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
    }
    command
        .current_dir(workspace.ebpf_crate())
        .args(["--target", TARGET, "--target-dir"])
        .arg(workspace.ebpf_target())
        // Line information in verifier logs and BTF for the maps both need debug information.
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(env::consts::ARCH));
    let linker = linker_path().context("bpf-linker is gone; run `cargo xtask setup`")?;
    command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    if let Some(dir) = llvm_dir(workspace, toolchain)? {
        command.env("LD_LIBRARY_PATH", dir);
    }
    Ok(command)
}

/// The flags that aya-build gives a crate with eBPF programs.
fn rustflags(arch: &str) -> String {
    let arch = if arch.starts_with("riscv64") { "riscv64" } else { arch };
    [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ]
    .join("\u{1f}")
}

/// A directory that holds a link to the very LLVM library the compiler uses, and nothing else.
/// `None` if the compiler has none as a shared library: bpf-linker may then be a static build.
fn llvm_dir(workspace: &Workspace, toolchain: Toolchain) -> Result<Option<PathBuf>> {
    let (major, sysroot) = compiler_llvm(toolchain)?;
    let Some(library) = find_llvm(&sysroot, major) else { return Ok(None) };
    let dir = workspace.llvm_dir();
    let link = dir.join("libLLVM.so");
    if fs::read_link(&link).ok().as_deref() != Some(&library) {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
        }
        std::os::unix::fs::symlink(&library, &link)
            .with_context(|| format!("cannot link {} to {}", link.display(), library.display()))?;
    }
    Ok(Some(dir))
}

/// The major version of the compiler's LLVM and the compiler's installation directory.
fn compiler_llvm(toolchain: Toolchain) -> Result<(u32, PathBuf)> {
    let rustc = |arguments: &[&str]| {
        let mut command = match toolchain {
            Toolchain::Packaged => Command::new(PACKAGED_RUSTC),
            Toolchain::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
        };
        run::scrub(&mut command, run::selects_toolchain);
        command.args(arguments);
        run::output(command, "run `cargo xtask setup`")
    };
    let version = rustc(&["-vV"])?;
    let line = version.lines().find(|line| line.starts_with("LLVM version"));
    let llvm = line.and_then(Version::find_in).context("rustc -vV names no LLVM version")?;
    Ok((llvm.major(), PathBuf::from(rustc(&["--print", "sysroot"])?.trim())))
}

/// Looks in the compiler's library directory, and for a distribution's compiler also in the
/// per-architecture and per-version directories that distributions use.
fn find_llvm(sysroot: &Path, major: u32) -> Option<PathBuf> {
    let lib = sysroot.join("lib");
    let multiarch = fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path());
    let multiarch = multiarch.filter(|dir| dir.to_string_lossy().ends_with("-linux-gnu"));
    let others = [sysroot.join("lib64"), lib.join(format!("llvm-{major}/lib"))];
    let dirs = std::iter::once(lib.clone()).chain(multiarch).chain(others);
    dirs.into_iter().find_map(|dir| {
        let entries = fs::read_dir(&dir).ok()?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        pick_llvm(&names, major).map(|name| dir.join(name))
    })
}

/// Picks the LLVM shared library of major version `major` among a directory's file names.
///
/// bpf-linker takes the first `libLLVM*` that it finds in a directory, which with several
/// versions side by side, as Debian has them, may be one that cannot read the compiler's output.
fn pick_llvm<'a>(names: &[&'a str], major: u32) -> Option<&'a str> {
    let real = format!("libLLVM.so.{major}.");
    let link = format!("libLLVM.so.{major}");
    let old_style = format!("libLLVM-{major}.so");
    let find = |test: &dyn Fn(&str) -> bool| names.iter().copied().find(|name| test(name));
    find(&|name| name.starts_with(&real))
        .or_else(|| find(&|name| name == link || name.starts_with(&format!("{link}-"))))
        .or_else(|| find(&|name| name.starts_with(&old_style)))
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let built = fs::read(from).with_context(|| {
        format!("the build succeeded but left no object at {}: is the binary target of netpol-ebpf still named netpol-ebpf?", from.display())
    })?;
    if fs::read(to).ok().as_ref() == Some(&built) {
        return Ok(());
    }
    let dir = to.parent().expect("invariant: the object's path has a directory");
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Written aside and renamed, so that a build that runs at the same time never embeds half.
    let partial = to.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, built).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_is_left_alone_and_a_changed_one_replaced() {
        let dir = env::temp_dir().join(format!("netpol-xtask-copy-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let (from, to) = (dir.join("from"), dir.join("sub/to"));
        fs::write(&from, b"one").expect("write");
        copy_if_changed(&from, &to).expect("first copy");
        let inode =
            |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("there"));
        let before = inode(&to);
        copy_if_changed(&from, &to).expect("second copy");
        assert_eq!(inode(&to), before);
        fs::write(&from, b"two").expect("write");
        copy_if_changed(&from, &to).expect("third copy");
        assert_eq!(fs::read(&to).expect("there"), b"two");
        fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_missing_object_says_where_it_was_expected() {
        let text = format!(
            "{:#}",
            copy_if_changed(Path::new("/nonexistent/o"), Path::new("/x/y")).expect_err("no object")
        );
        assert!(text.contains("/nonexistent/o"), "{text}");
    }

    #[test]
    fn flags_ask_for_type_information() {
        assert_eq!(
            rustflags("x86_64"),
            "--cfg=bpf_target_arch=\"x86_64\"\u{1f}-Cdebuginfo=2\u{1f}-Clink-arg=--btf"
        );
    }

    #[test]
    fn the_compilers_own_llvm_is_picked_among_several() {
        let debian = ["libLLVM-14.so.1", "libLLVM-15.so", "libLLVM-22.so", "libLLVM.so.22.1"];
        assert_eq!(pick_llvm(&debian, 22), Some("libLLVM.so.22.1"));
        assert_eq!(pick_llvm(&debian, 14), Some("libLLVM-14.so.1"));
        assert_eq!(pick_llvm(&debian, 2), None);
        // rustup's `libLLVM-22-rust-*.so` is a linker script, not a library.
        let rustup = ["libLLVM-22-rust-1.95.0-stable.so", "libLLVM.so.22.1-rust-1.95.0-stable"];
        assert_eq!(pick_llvm(&rustup, 22), Some("libLLVM.so.22.1-rust-1.95.0-stable"));
    }
}
