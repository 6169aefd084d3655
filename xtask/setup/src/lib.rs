//! `cargo xtask setup`: looks at the machine, and installs what a command lacks or says how. Every
//! command asks for all that it is going to need, at once and before it begins.
//!
//! It must be safe to run at any time: when nothing is missing it changes nothing and takes
//! a few hundredths of a second. The decision what is missing is `plan`'s.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use netpol_debian::Arch;
use netpol_needs::Need;
use netpol_run::{self as run, announce, find_program, is_root};

mod library;
mod plan;

pub use library::{LibrarySource, other, way};
pub use plan::{Toolchain, Version, Wanted};

use plan::{CrossFacts, Facts, MINIMUM_RUST, Plan, Step, plan};

/// The distribution's compiler and the directory of its ready-made libraries.
pub const PACKAGED_RUSTC: &str = "/usr/bin/rustc";
/// The cargo that belongs to `PACKAGED_RUSTC`.
pub const PACKAGED_CARGO: &str = "/usr/bin/cargo";
/// The clippy that belongs to `PACKAGED_RUSTC`; few machines have it.
pub const PACKAGED_CLIPPY: &str = "/usr/bin/cargo-clippy";
const PACKAGED_CORE_DIR: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// Where distributions and upstream put CNI plugins.
const CNI_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Where dpkg keeps what it was at when it was interrupted.
const DPKG_UPDATES: &str = "/var/lib/dpkg/updates";

/// Options of `setup`.
#[derive(clap::Args)]
pub struct Args {
    /// Print what would be installed and how, and change nothing
    #[arg(long)]
    print: bool,
    /// Also what building and testing for this other processor needs: amd64 or arm64
    #[arg(long)]
    arch: Option<Arch>,
}

/// Does what was asked for.
///
/// # Errors
/// Something is missing and cannot be installed.
pub fn command(args: &Args) -> Result<ExitCode> {
    let wanted = Wanted { cross: other(args.arch), ..Wanted::with(Need::ALL) };
    if args.print {
        let plan = plan(&facts(&wanted), &wanted);
        run::say(describe(&plan));
        return Ok(ExitCode::SUCCESS);
    }
    ensure(&wanted)?;
    Ok(ExitCode::SUCCESS)
}

/// Installs what is wanted and missing, or fails with the commands to run; returns the compiler to
/// use.
///
/// # Errors
/// Something is missing and cannot be installed; the error says how to.
pub fn ensure(wanted: &Wanted) -> Result<Toolchain> {
    let before = plan(&facts(wanted), wanted);
    if before.steps.is_empty() {
        announce(describe(&before));
        return Ok(before.toolchain);
    }
    if !before.automatic {
        bail!(
            "{}\nRun the commands above and start again. (On Debian as root they are run for you.)",
            describe(&before)
        );
    }
    let _turn = turn()?;
    // Who had the turn before may have installed it.
    for step in &plan(&facts(wanted), wanted).steps {
        install(step)?;
    }
    let after = plan(&facts(wanted), wanted);
    if !after.steps.is_empty() {
        bail!(
            "everything was installed without an error, and yet {}\nThe distribution's Rust must be \
             {MINIMUM_RUST} or newer (Debian has it in its security updates); with rustup, \
             `rustup toolchain install nightly --component rust-src` works too",
            describe(&after)
        );
    }
    announce(describe(&after));
    Ok(after.toolchain)
}

/// The compiler to use, when everything is there.
#[must_use]
pub fn toolchain() -> Toolchain {
    plan(&facts(&Wanted::build()), &Wanted::build()).toolchain
}

/// Two that install at once would get in each other's way: package managers do not all wait.
fn turn() -> Result<File> {
    let path = env::temp_dir().join("netpol-setup.lock");
    let open = File::options().create(true).append(true).open(&path);
    let file = open.with_context(|| format!("cannot open {}", path.display()))?;
    run::take_turn(&file, "another `cargo xtask` that installs what is missing")
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn install(step: &Step) -> Result<()> {
    let stage = run::Stage::start(format!("installing {}, to {}", step.what, step.why));
    for words in &step.commands {
        announce(format_args!("running {}", words.join(" ")));
        run::indented(
            installer(words),
            "see above. Nothing is broken by that: run the same command again when the reason is \
             gone, and it goes on with what is missing",
        )?;
    }
    if let Some(arch) = step.library {
        library::fetch_library(arch)?;
    }
    stage.done();
    Ok(())
}

/// The command for one line of a step, in an environment in which it asks nothing and does not
/// mistake itself for a part of the build that started it.
fn installer(words: &[String]) -> Command {
    let (program, arguments) = words.split_first().expect("invariant: a command has a program");
    let mut command = match program.as_str() {
        "cargo" => run::cargo(),
        other => Command::new(other),
    };
    command.args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // Anything built here must not land in, or wait for, the workspace's target directory.
    command.env_remove("CARGO_TARGET_DIR").current_dir("/");
    command
}

/// What a person reads about a plan.
fn describe(plan: &Plan) -> String {
    let compiler = match plan.toolchain {
        Toolchain::Packaged => "the distribution's rustc",
        Toolchain::Nightly => "rustup's nightly with rust-src",
    };
    if plan.steps.is_empty() {
        return format!("setup: nothing missing (eBPF compiler: {compiler})");
    }
    let mut text = String::from("this is missing:");
    for step in &plan.steps {
        text.push_str(&format!("\n  {}, to {}:", step.what, step.why));
        for command in &step.commands {
            text.push_str(&format!("\n    {}", command.join(" ")));
        }
        if step.library.is_some() {
            text.push_str("\n    Debian's package of it is fetched and unpacked, not installed");
        }
    }
    text
}

/// Looks at the machine; starts at most three programs, each of which only prints what is there.
fn facts(wanted: &Wanted) -> Facts {
    Facts {
        debian: is_debian(&fs::read_to_string("/etc/os-release").unwrap_or_default())
            && Path::new("/usr/bin/apt-get").exists(),
        root: is_root(),
        packaged_rust: packaged_rust(),
        packaged_bpf_core: has_file_with_prefix(Path::new(PACKAGED_CORE_DIR), "libcore-"),
        nightly_with_src: nightly_has_src(),
        linker: linker_path().and_then(|path| version_of(&path)),
        iproute2: find_program("ip").is_some() && find_program("tc").is_some(),
        programs: packaged_programs(),
        go: find_program("go").is_some()
            || Path::new("/usr/local/go/bin/go").exists()
            || env::var_os("KUBEBUILDER_ASSETS").is_some(),
        debootstrap: find_program("debootstrap").is_some(),
        interrupted: fs::read_dir(DPKG_UPDATES).is_ok_and(|mut files| files.next().is_some()),
        cross: wanted.cross.map_or_else(CrossFacts::default, cross_facts),
    }
}

/// Those that are there, of all that some need has.
fn packaged_programs() -> BTreeSet<&'static str> {
    let all = Need::ALL.iter().flat_map(|need| need.programs());
    // There are too many bridges: this one is a CNI plugin.
    let is_there = |name: &str| match name {
        "bridge" => CNI_DIRECTORIES.iter().any(|path| Path::new(path).join(name).exists()),
        // Only Debian's static one is found by everyone who needs it.
        "busybox" => Path::new("/bin/busybox").exists(),
        _ => find_program(name).is_some(),
    };
    all.map(|program| program.0).filter(|name| is_there(name)).collect()
}

fn cross_facts(arch: Arch) -> CrossFacts {
    CrossFacts {
        compiler: find_program(&arch.tool("gcc")).is_some()
            && Path::new(&arch.c_library()).exists(),
        library: way(arch).is_some(),
        emulator: find_program(arch.emulator()).is_some(),
    }
}

fn is_debian(os_release: &str) -> bool {
    os_release.lines().any(|line| line.trim() == "ID=debian")
}

fn packaged_rust() -> Option<Version> {
    let both = Path::new(PACKAGED_CARGO).exists() && Path::new(PACKAGED_RUSTC).exists();
    if both { version_of(Path::new(PACKAGED_RUSTC)) } else { None }
}

fn version_of(program: &Path) -> Option<Version> {
    let mut command = Command::new(program);
    command.arg("--version");
    run::output(command, "").ok().as_deref().and_then(Version::find_in)
}

fn nightly_has_src() -> bool {
    let toolchains = rustup_home().join("toolchains");
    let Ok(entries) = fs::read_dir(toolchains) else { return false };
    entries.flatten().any(|entry| {
        let nightly = entry.file_name().to_string_lossy().starts_with("nightly-")
            && !entry.file_name().to_string_lossy().starts_with("nightly-2");
        nightly && entry.path().join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    })
}

fn rustup_home() -> PathBuf {
    home_of("RUSTUP_HOME", ".rustup")
}

fn home_of(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable).map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(default),
        PathBuf::from,
    )
}

/// The bpf-linker to use: where cargo installs it, else wherever PATH has one.
#[must_use]
pub fn linker_path() -> Option<PathBuf> {
    let root = env::var_os("CARGO_INSTALL_ROOT")
        .map_or_else(|| home_of("CARGO_HOME", ".cargo"), PathBuf::from);
    let installed = root.join("bin/bpf-linker");
    if installed.exists() { Some(installed) } else { find_program("bpf-linker") }
}

fn has_file_with_prefix(dir: &Path, prefix: &str) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_is_told_from_its_derivatives() {
        assert!(is_debian("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(!is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn programs_are_asked_for_their_version() {
        assert!(version_of(Path::new(env!("CARGO"))).is_some());
        assert_eq!(version_of(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_plan_that_lacks_something_tells_the_commands() {
        let text = describe(&plan(&Facts::default(), &Wanted::build()));
        assert!(text.contains("rustup toolchain install nightly --component rust-src"), "{text}");
        assert!(text.contains("cargo install bpf-linker"), "{text}");
        assert!(text.contains("iproute2"), "{text}");
    }

    #[test]
    fn installers_ask_nothing_and_run_outside_the_workspace() {
        let command = installer(&["apt-get".to_owned(), "update".to_owned()]);
        assert_eq!(command.get_current_dir(), Some(Path::new("/")));
        assert!(command.get_envs().any(|(name, _)| name == "DEBIAN_FRONTEND"));
    }
}
