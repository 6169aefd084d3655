//! One virtual machine from its start to its end: QEMU without disk, network and display, two serial
//! lines into files. Must never outlive its time, nor this process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netpol_debian::Arch;

use crate::frames::{self, Frame, Kind, Read};
use crate::packages::Kernel;

/// What a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Memory, in MiB.
    pub memory: u64,
    /// How many processors.
    pub processors: u8,
}

/// What the tests take.
pub const FOR_TESTS: Size = Size { memory: 2560, processors: 1 };
/// What a cluster takes, with its nodes' pods.
pub const FOR_CLUSTER: Size = Size { memory: 6144, processors: 2 };
/// What QEMU takes besides, in MiB.
const OVERHEAD: u64 = 512;
/// What every kernel is told.
const KERNEL_LINE: &str = "panic=-1 loglevel=5 mitigations=off";
/// And one for x86: it must not check its clocks against each other at the start. On a host that is
/// busy the machine stands still for long, and the kernel gives up on its timer.
const KERNEL_LINE_X86: &str = "console=ttyS0 tsc=reliable no_timer_check";
const KERNEL_LINE_ARM: &str = "console=ttyAMA0";
/// A kernel that has not come so far hangs.
const BOOT: Duration = Duration::from_secs(600);
/// How long a machine that was killed may take to be gone.
const ENDING: Duration = Duration::from_secs(10);
/// With hardware acceleration it takes a second; some devices promise it and hang.
const ACCELERATED_BOOT: Duration = Duration::from_secs(20);

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself.
    Software,
}

/// The file of what a machine's kernel writes, in the directory of the machine.
pub(crate) const CONSOLE: &str = "console";

/// How a machine ended, if not by itself after its last job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// After the last job.
    Done,
    /// Before: why.
    Broken(String),
}

/// Fails with what to do if no machine can be started here.
///
/// # Errors
/// There is no QEMU, or not enough memory.
pub fn check(arch: Arch, size: Size) -> Result<()> {
    let qemu = arch.emulator();
    if netpol_run::on_path(qemu).next().is_none() {
        let package = arch.emulator_package();
        bail!("{qemu} is not here, which runs the kernels: apt-get install {package}");
    }
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    check_memory(size, available(&text))
}

fn check_memory(size: Size, available: Option<u64>) -> Result<()> {
    let needed = size.memory + OVERHEAD;
    match available {
        Some(free) if free < needed => bail!(
            "a kernel with the tests takes {needed} MiB of memory, and {free} MiB are available: end \
             something that runs, or use a larger machine"
        ),
        _ => Ok(()),
    }
}

/// How many machines with tests this one carries at a time: each takes a processor and its memory.
#[must_use]
pub fn room() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    room_for(processors, available(&text))
}

fn room_for(processors: usize, available: Option<u64>) -> usize {
    let memory = available.map_or(1, |free| free / (FOR_TESTS.memory + OVERHEAD));
    processors.min(usize::try_from(memory).unwrap_or(usize::MAX)).max(1)
}

/// MiB that are available.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// What to try first: the processor, where it is the same, its device is there and did not hang since
/// this machine started.
#[must_use]
pub fn accelerator(arch: Arch, cache: &Path) -> Accelerator {
    if !arch.is_host() {
        return Accelerator::Software;
    }
    let is_there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let hangs = fs::read_to_string(note(cache)).is_ok_and(|text| text == boot());
    if is_there && !hangs { Accelerator::Kvm } else { Accelerator::Software }
}

fn note(cache: &Path) -> PathBuf {
    cache.join("kvm-hangs")
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Notes that the device promises more than it holds, until this machine starts anew.
pub fn remember_hang(cache: &Path) {
    // Without the note the next run tries again, which only takes longer.
    let _ = fs::write(note(cache), boot());
}

/// QEMU's arguments for such a machine, but for what is in it; its two serial lines go into files.
fn arguments(arch: Arch, size: Size, accelerator: Accelerator, lines: [&Path; 2]) -> Vec<OsString> {
    let [console, results] = lines.map(|path| format!("file:{}", path.display()));
    let (memory, processors) = (size.memory.to_string(), size.processors.to_string());
    let mut words = vec!["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
    words.extend(["-nic", "none", "-smp", &processors, "-m", &memory]);
    words.extend(match (arch, accelerator) {
        (_, Accelerator::Kvm) => ["-accel", "kvm", "-cpu", "host"],
        // Five levels of page tables would only cost.
        (Arch::Amd64, Accelerator::Software) => ["-accel", "tcg", "-cpu", "max,la57=off"],
        // Pointers are signed by the algorithm that costs least: nobody here forges one.
        (Arch::Arm64, Accelerator::Software) => ["-accel", "tcg", "-cpu", "max,pauth-impdef=on"],
    });
    let own = match arch {
        Arch::Amd64 => KERNEL_LINE_X86,
        Arch::Arm64 => KERNEL_LINE_ARM,
    };
    let told = format!("{own} {KERNEL_LINE}");
    words.extend(["-append", &told, "-serial", &console]);
    let second = match arch {
        Arch::Amd64 => vec!["-serial".to_owned(), results],
        // That board has one line, and any number of devices.
        Arch::Arm64 => {
            words.extend(["-machine", "virt,gic-version=max"]);
            let path = results.replacen("file:", "file,id=results,path=", 1);
            ["-chardev", &path, "-device", "pci-serial,chardev=results"].map(str::to_owned).into()
        }
    };
    words.into_iter().map(OsString::from).chain(second.into_iter().map(OsString::from)).collect()
}

/// A started machine.
pub struct Machine {
    child: Child,
    word: String,
    console: PathBuf,
    results: File,
    read: Vec<u8>,
    started: Instant,
    is_up: bool,
    accelerator: Accelerator,
}

impl Machine {
    /// Starts one; its lines go into files of `directory`.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(
        kernel: &Kernel,
        memory: &Path,
        word: &str,
        size: Size,
        accelerator: Accelerator,
        directory: &Path,
    ) -> Result<Self> {
        let (console, results) = (directory.join(CONSOLE), directory.join("results"));
        for path in [&console, &results] {
            File::create(path).with_context(|| format!("create {}", path.display()))?;
        }
        // What is killed takes the machine with it.
        let qemu = kernel.arch.emulator();
        let mut command = match netpol_run::on_path("setpriv").next() {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--", qemu]);
                command
            }
            None => Command::new(qemu),
        };
        command.args(arguments(kernel.arch, size, accelerator, [&console, &results]));
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(memory);
        let errors = File::create(directory.join("qemu")).context("create a file for QEMU")?;
        command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        let child = command.spawn().with_context(|| format!("start {qemu}"))?;
        Ok(Self {
            child,
            word: word.to_owned(),
            console,
            results: File::open(&results).context("open the results")?,
            read: Vec::new(),
            started: Instant::now(),
            is_up: false,
            accelerator,
        })
    }

    /// Waits for the machine's end, or ends it when it has hung or sends what is no result, and
    /// tells each frame as it comes. `patience`: for how long it may be silent.
    ///
    /// # Errors
    /// Files cannot be read.
    pub fn wait(&mut self, patience: Duration, mut tell: impl FnMut(Frame)) -> Result<Ending> {
        let first = match self.accelerator {
            Accelerator::Kvm => ACCELERATED_BOOT,
            Accelerator::Software => BOOT,
        };
        let mut until = self.started + first;
        let mut at = "the kernel's start".to_owned();
        let mut has_ended = false;
        loop {
            self.results.read_to_end(&mut self.read).context("read the results")?;
            loop {
                match frames::read(&self.read, &self.word) {
                    Read::Frame(frame, length) => {
                        self.read.drain(..length);
                        self.is_up = true;
                        if frame.kind == Kind::Done {
                            return Ok(Ending::Done);
                        }
                        at = if frame.name.is_empty() { at } else { frame.name.clone() };
                        until = Instant::now() + patience;
                        tell(frame);
                    }
                    Read::Partly => break,
                    Read::Garbled(why) => return Ok(Ending::Broken(why)),
                }
            }
            if has_ended {
                return Ok(Ending::Broken(format!("the machine ended during {at}")));
            }
            has_ended = self.child.try_wait().context("wait for QEMU")?.is_some();
            if !has_ended && Instant::now() > until {
                return Ok(Ending::Broken(format!("the machine hung during {at}")));
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Its first process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// The last lines that the kernel wrote.
    #[must_use]
    pub fn last_words(&self) -> String {
        let Ok(mut file) = File::open(&self.console) else { return String::new() };
        let length = file.metadata().map_or(0, |data| data.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // A device that hangs may hold even a process that was killed: that one is left to the kernel.
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < ENDING {
            sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_processor_has_its_board_and_its_two_lines() {
        let words = |arch, accelerator| {
            let lines = [Path::new("/c"), Path::new("/r")];
            let words = arguments(arch, FOR_TESTS, accelerator, lines);
            words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let x86 = words(Arch::Amd64, Accelerator::Software);
        assert!(x86.contains("-serial file:/c -serial file:/r"), "{x86}");
        assert!(x86.contains("console=ttyS0") && !x86.contains("-machine"), "{x86}");
        let arm = words(Arch::Arm64, Accelerator::Software);
        assert!(arm.contains("-machine virt") && arm.contains("console=ttyAMA0"), "{arm}");
        assert!(
            arm.contains("-chardev file,id=results,path=/r -device pci-serial,chardev=results"),
            "{arm}"
        );
        assert!(arm.contains("-serial file:/c") && arm.contains("-accel tcg"), "{arm}");
        assert!(words(Arch::Arm64, Accelerator::Kvm).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn too_little_memory_is_told_before_anything_is_started() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n"), Some(4096));
        let check = |available| check_memory(FOR_TESTS, available);
        assert!(check(Some(4096)).is_ok() && check(None).is_ok());
        assert!(check_memory(FOR_CLUSTER, Some(4096)).is_err());
        let text = check(Some(100)).map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(room_for(8, Some(3 * (FOR_TESTS.memory + OVERHEAD))), 3);
        assert_eq!(
            (room_for(2, Some(u64::MAX)), room_for(2, None), room_for(2, Some(9))),
            (2, 1, 1)
        );
        assert!(text.contains("3072 MiB") && text.contains("100 MiB are available"), "{text}");
    }
}
