//! `cargo xtask conformance --kernel V`: a cluster with netpol, and upstream's suite on it, in one
//! virtual machine with a kernel of Debian's. Only for what this machine's kernel lacks. Must never
//! do inside anything else than `cargo xtask conformance` does outside.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use netpol_cluster::{binaries, conformance, manifests, prepare};
use netpol_debian::Arch;
use netpol_needs::Need;

use crate::frames::Kind;
use crate::guest::{self, Job};
use crate::machine::{self, Accelerator, Ending, Machine};
use crate::packages::{self, Kernel};
use crate::programs::{self, Contents, Item};
use crate::run::{join, random_word, seconds};

/// How many times as long to wait inside where the processor is emulated.
const EMULATED: u32 = 8;
/// The most a run may take.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Where things are inside.
const CLUSTER: &str = "/usr/bin/netpol-cluster";
const KUBERNETES: &str = "/kubernetes";
const OUTPUT: &str = "/output";
/// Programs of a cluster that tests do not run, each with its package.
const TOOLS: [(&str, &str); 10] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables-save", "iptables"),
    ("ip6tables-save", "iptables"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
];
/// Where Debian has the container network's plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Tells on the kernel's line what a program prints, as it comes.
const SHOWN: &str = "#!/bin/sh\n\
    busybox --install -s /bin\n\
    mkfifo /tmp/shown\n\
    tee /dev/console </tmp/shown &\n\
    \"$@\" >/tmp/shown 2>&1\n\
    code=$?\n\
    wait\n\
    exit $code\n";
/// The loader lists a program's libraries.
const LDD: &str = "#!/bin/sh\nexec /lib64/ld-linux-x86-64.so.2 --list \"$@\"\n";

/// The words after `conformance`.
#[derive(Parser)]
#[command(name = "cargo xtask conformance", bin_name = "cargo xtask conformance")]
struct Cli {
    #[command(flatten)]
    args: conformance::Args,
}

/// Runs it; whether all was well.
///
/// # Errors
/// It could not be run.
pub fn command(words: &[String]) -> Result<bool> {
    let name = ["conformance".to_owned()];
    let cli = Cli::parse_from(name.iter().chain(words));
    let version = cli.args.kernel().context("--kernel is not given")?;
    let arch = Arch::host().context("no kernels are known for this processor")?;
    machine::check(arch, machine::FOR_CLUSTER)?;
    let kernel = packages::ensure_kernel(arch, version)?;
    let needs = [Need::Nodes, Need::TierSuite];
    prepare::ensure(&needs)?;
    let cache = netpol_debian::cache()?.join("kernels");
    let accelerator = machine::accelerator(arch, &cache);
    let patience = if accelerator == Accelerator::Kvm { 1 } else { EMULATED };
    let mut inside = without_own(words);
    inside.extend(cli.args.inside(patience)?);
    let directory = tempfile::tempdir().context("a temporary directory")?;
    let base = directory.path().join("base.cpio");
    let items = items(&needs)?;
    programs::pack(
        &Contents {
            first: &env::current_exe().context("cannot tell where this program is")?,
            netpol: &given("NETPOL_PROGRAM")?,
            tests: &[],
            more: &items,
            other: None,
        },
        &base,
    )?;
    let output = std::path::absolute(cli.args.output())?;
    fs::create_dir_all(&output).with_context(|| format!("create {}", output.display()))?;
    boot(&kernel, accelerator, &base, &inside, directory.path(), &output)
}

/// The words for the inside: those without the kernel and this machine's directory, and one mode of
/// the proxy if none is named, for time's sake.
fn without_own(words: &[String]) -> Vec<String> {
    let mut inside = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--kernel" | "--output" => drop(words.next()),
            it if it.starts_with("--kernel=") || it.starts_with("--output=") => {}
            _ => inside.push(word.clone()),
        }
    }
    if !inside.iter().any(|word| word.starts_with("--proxy-mode")) {
        inside.push("--proxy-mode=iptables".to_owned());
    }
    inside.push(format!("--output={OUTPUT}"));
    inside
}

fn given(variable: &str) -> Result<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .with_context(|| format!("{variable} is not set: start this by `cargo xtask conformance`"))
}

/// What a cluster takes besides what tests do.
fn items(needs: &[Need]) -> Result<Vec<Item>> {
    let mut items: Vec<Item> =
        TOOLS.iter().map(|(name, package)| Item::Tool(name, package)).collect();
    items.push(Item::Program(PathBuf::from(CLUSTER), given("NETPOL_CLUSTER")?));
    for program in needs.iter().flat_map(|need| binaries::of(*need)) {
        let to = Path::new(KUBERNETES).join(program.name);
        items.push(Item::File(to, binaries::find(*program)?));
    }
    // The program looks for them where this checkout is.
    let deploy = manifests::deploy();
    let deploy = deploy.canonicalize().with_context(|| format!("find {}", deploy.display()))?;
    // By a way that leads through its own.
    items.push(Item::Directory(deploy.with_file_name("xtask/cluster")));
    for directory in [deploy.as_path(), Path::new(PLUGINS)] {
        files(directory, &mut items)?;
    }
    items.push(Item::Script("/usr/bin/ldd", LDD.to_owned()));
    items.push(Item::Script("/usr/bin/shown", SHOWN.to_owned()));
    items.push(Item::Script(guest::OWN_ROOT, String::new()));
    let directories = ["/opt/cni/bin", "/var/lib", "/var/log", OUTPUT];
    items.extend(directories.map(|path| Item::Directory(PathBuf::from(path))));
    Ok(items)
}

/// Every file below a directory; programs with their libraries.
fn files(directory: &Path, items: &mut Vec<Item>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files(&path, items)?;
        } else {
            items.push(Item::File(path.clone(), path));
        }
    }
    Ok(())
}

fn boot(
    kernel: &Kernel,
    accelerator: Accelerator,
    base: &Path,
    inside: &[String],
    directory: &Path,
    output: &Path,
) -> Result<bool> {
    let started = Instant::now();
    let word = random_word()?;
    let memory = directory.join("memory.cpio");
    join(&[base, &kernel.modules], &guest::encode(&word, &jobs(inside)), &memory)?;
    fs::remove_file(base).context("remove what is in the machine's memory now")?;
    eprintln!("==> Linux {}: the cluster is in a virtual machine", kernel.release);
    let size = machine::FOR_CLUSTER;
    let mut machine = Machine::start(kernel, &memory, &word, size, accelerator, directory)?;
    let console = directory.join(machine::CONSOLE);
    let has_ended = AtomicBool::new(false);
    let mut code = None;
    let mut archive = None;
    let ending = thread::scope(|scope| {
        scope.spawn(|| follow(&console, &has_ended));
        let ending = machine.wait(LONGEST + Duration::from_secs(60), |frame| {
            match (frame.kind, frame.name.as_str()) {
                (Kind::End, guest::FILES) => archive = Some(frame.body),
                (Kind::End | Kind::TooLong, _) => code = Some(frame.code),
                _ => {}
            }
        });
        has_ended.store(true, Ordering::Relaxed);
        ending
    })?;
    eprintln!("==> the virtual machine: {:.0} s", seconds(started));
    if let Ending::Broken(why) = ending {
        bail!("{why}; the kernel's last lines:\n{}", machine.last_words());
    }
    unpack(&archive.context("the machine sent no files")?, output)?;
    eprintln!("==> reports and logs are in {}", output.display());
    match code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("the run inside did not come to its end: see above"),
    }
}

fn jobs(inside: &[String]) -> [Job; 2] {
    let variables = [format!("KUBEBUILDER_ASSETS={KUBERNETES}"), "NETPOL_CACHE=/cache".to_owned()];
    let program = ["/bin/env".to_owned()].into_iter().chain(variables);
    let program = program.chain(["/usr/bin/shown", CLUSTER, "conformance"].map(str::to_owned));
    let files = ["/bin/busybox", "tar", "-czf", "-", "-C", OUTPUT, "."];
    [
        Job {
            name: "conformance".to_owned(),
            seconds: LONGEST.as_secs(),
            words: program.chain(inside.iter().cloned()).collect(),
        },
        Job { name: guest::FILES.to_owned(), seconds: 600, words: files.map(str::to_owned).into() },
    ]
}

/// Shows what programs print inside, but not what the kernel says.
fn follow(console: &Path, has_ended: &AtomicBool) {
    let Ok(mut file) = File::open(console) else { return };
    let mut line = Vec::new();
    loop {
        let is_last = has_ended.load(Ordering::Relaxed);
        let mut more = Vec::new();
        let _ = file.read_to_end(&mut more);
        for byte in more {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if !text.starts_with('[') {
                eprintln!("    {text}");
            }
            line.clear();
        }
        if is_last {
            return;
        }
        sleep(Duration::from_millis(500));
    }
}

fn unpack(archive: &[u8], output: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg("-xzf").arg("-").arg("-C").arg(output).stdin(Stdio::piped());
    let mut child = command.spawn().context("start tar")?;
    let mut input = child.stdin.take().context("invariant: standard input is a pipe")?;
    let written = input.write_all(archive);
    drop(input);
    let status = child.wait().context("wait for tar")?;
    ensure!(status.success() && written.is_ok(), "the machine's files cannot be unpacked");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn inside_nothing_is_known_of_the_kernel_and_of_this_machines_directories() {
        let given = words("--kernel 6.1 --suite cluster-network-policy --output /x --focus=y");
        assert_eq!(
            without_own(&given).join(" "),
            "--suite cluster-network-policy --focus=y --proxy-mode=iptables --output=/output"
        );
        let given = words("--kernel=7 --proxy-mode nftables --output=/x");
        assert_eq!(without_own(&given).join(" "), "--proxy-mode nftables --output=/output");
    }

    #[test]
    fn the_machine_runs_the_suite_and_then_sends_its_files() {
        let [suite, files] = jobs(&words("--suite x"));
        let line = suite.words.join(" ");
        assert!(line.ends_with("/usr/bin/netpol-cluster conformance --suite x"), "{line}");
        assert!(files.name == guest::FILES && files.words.contains(&OUTPUT.to_owned()));
    }

    #[test]
    fn files_come_out_as_they_were() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a")).expect("a directory");
        fs::create_dir(&to).expect("a directory");
        fs::write(from.join("a/b"), "text").expect("a file");
        let mut command = Command::new("busybox");
        let packed = command.args(["tar", "-czf", "-", "-C"]).arg(&from).arg(".").output();
        unpack(&packed.expect("busybox runs").stdout, &to).expect("it is an archive");
        assert_eq!(fs::read_to_string(to.join("a/b")).expect("it is there"), "text");
        assert!(unpack(b"no archive", &to).is_err());
    }
}
