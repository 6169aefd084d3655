//! What this kernel has of what netpol rests on, asked of the kernel itself: distributions bring
//! features to older kernels, and take some out of newer ones. Must leave nothing behind, and never
//! read a feature off a version.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Instant;

use aya::maps::MapType;
use aya::programs::{ProgramInfo, ProgramType, SchedClassifier, TcAttachType, tc};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use serde::Serialize;

use super::error::DatapathError;
use super::grace;
use super::load::{ATTACHED, Programs};
use super::probe;
use netpol_isolation::netns::Netns;

/// One thing that a kernel may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// A word.
    pub name: &'static str,
    /// The kernel has it.
    pub present: bool,
    /// Without it netpol cannot work.
    pub required: bool,
    /// What it is, and since when Linux has it.
    pub what: &'static str,
    /// What it means that it is missing.
    pub without: &'static str,
}

/// A program that the kernel was given.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loaded {
    /// Its name.
    pub name: &'static str,
    /// Why the kernel refused it.
    pub refused: Option<String>,
    /// How many instructions the verifier looked at.
    pub verified_instructions: u32,
    /// How long that and all else took.
    pub load_ms: f64,
    /// Bytes of machine code; 0: the kernel interprets it.
    pub jitted_bytes: u32,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Capabilities {
    /// The kernel's release.
    pub kernel: String,
    /// netpol works here.
    pub supported: bool,
    /// Why not.
    pub reason: Option<String>,
    /// What the kernel has.
    pub features: Vec<Feature>,
    /// The programs; none if something that they need is missing.
    pub programs: Vec<Loaded>,
}

/// The name of the feature that pinned links to interfaces are.
pub const TCX: &str = "tcx";

/// What is asked for.
struct Probe {
    name: &'static str,
    what: &'static str,
    without: &'static str,
    is_required: bool,
    ask: fn() -> bool,
}

const PROBES: [Probe; 8] = [
    Probe {
        name: "atomics",
        what: "an instruction that compares and swaps in memory (Linux 5.12)",
        without: "flows could not be entered by several processors at once",
        is_required: true,
        ask: || load(&COMPARE_AND_SWAP).is_ok(),
    },
    Probe {
        name: "bpf_loop",
        what: "the kernel's own loop (Linux 5.17)",
        without: "the backends of a Service could not all be judged",
        is_required: true,
        ask: || has_helper(BpfHelper::BPF_FUNC_loop),
    },
    Probe {
        name: "ring-buffer",
        what: "a ring of events (Linux 5.8)",
        without: "nobody would hear of drops",
        is_required: true,
        ask: || is_map_supported(MapType::RingBuf).unwrap_or(true),
    },
    Probe {
        name: "jiffies",
        what: "the cheap clock (Linux 5.5)",
        without: "idle flows could not be told",
        is_required: true,
        ask: || has_helper(BpfHelper::BPF_FUNC_jiffies64),
    },
    Probe {
        name: "membarrier",
        what: "waiting for packets in flight (membarrier; not with nohz_full)",
        without: "entries could not be removed while packets may still be judged by them",
        is_required: true,
        ask: || grace::grace_period().is_ok(),
    },
    Probe {
        name: "bpffs",
        what: "the BPF filesystem",
        without: "enforcement would end with the agent",
        is_required: true,
        ask: has_bpffs,
    },
    Probe {
        name: TCX,
        what: "pinned links to interfaces (Linux 6.6)",
        without: "programs are filters on a clsact qdisc: others can take them off, and an interface \
                  that gets its first one loses what is under way",
        is_required: false,
        ask: has_tcx,
    },
    Probe {
        name: "short-grace-periods",
        what: "a way to put programs on interfaces quickly (/sys/kernel/rcu_expedited, writable)",
        without: "each program takes 18 ms to attach, on a node of 110 pods all of them 6 s",
        is_required: false,
        ask: grace::can_expedite,
    },
];

/// The other way to put programs on interfaces.
const CLSACT: Probe = Probe {
    name: "clsact",
    what: "filters on interfaces (the modules sch_ingress and cls_bpf)",
    without: "`--attach clsact` cannot be used",
    is_required: false,
    ask: has_clsact,
};

/// What the kernel has; what only somebody who asks wants to know, only if `is_thorough`.
fn features(is_thorough: bool) -> Vec<Feature> {
    let mut features: Vec<Feature> = PROBES.iter().map(Probe::ask).collect();
    let has_links = features.iter().any(|feature| feature.name == TCX && feature.present);
    // One of the two ways is enough.
    if has_links && is_thorough {
        features.push(CLSACT.ask());
    } else if !has_links {
        let without = "there is no way to put programs on interfaces";
        features.push(Probe { is_required: true, without, ..CLSACT }.ask());
    }
    features
}

impl Probe {
    fn ask(&self) -> Feature {
        Feature {
            name: self.name,
            present: (self.ask)(),
            required: self.is_required,
            what: self.what,
            without: self.without,
        }
    }
}

/// Why netpol cannot work with these, if it cannot.
fn reason(kernel: &str, features: &[Feature]) -> Option<String> {
    let missing = features.iter().filter(|feature| feature.required && !feature.present);
    let missing: Vec<String> = missing
        .map(|feature| {
            format!("{}, {}, without which {}", feature.name, feature.what, feature.without)
        })
        .collect();
    if missing.is_empty() {
        return None;
    }
    Some(format!(
        "this kernel ({kernel}) lacks {}: netpol needs Linux 6.1 or later",
        missing.join("; and ")
    ))
}

/// What the kernel lacks that netpol can do without, in sentences.
///
/// # Errors
/// It lacks something that netpol cannot do without.
pub fn require() -> Result<Vec<String>, DatapathError> {
    let features = features(false);
    if let Some(reason) = reason(&release(), &features) {
        return Err(DatapathError::Missing(reason));
    }
    let absent = features.iter().filter(|feature| !feature.present);
    Ok(absent
        .map(|feature| {
            format!("this kernel lacks {}, {}: {}", feature.name, feature.what, feature.without)
        })
        .collect())
}

/// Fails if there are no links to interfaces, which were asked for.
pub(crate) fn require_tcx() -> Result<(), DatapathError> {
    if has_tcx() {
        return Ok(());
    }
    Err(DatapathError::Missing(format!(
        "missing feature: {TCX}: this kernel has no links to interfaces (Linux 6.6); use clsact, or \
         leave the choice to netpol"
    )))
}

/// What the kernel has, and whether it takes the programs: they are loaded, with maps of their own.
///
/// # Errors
/// This process may not ask.
pub fn capabilities() -> Result<Capabilities, DatapathError> {
    probe::require_capabilities()?;
    let (kernel, features) = (release(), features(true));
    let mut reason = reason(&kernel, &features);
    let mut programs = Vec::new();
    if reason.is_none() {
        match Programs::unloaded() {
            Ok(mut object) => {
                programs = ATTACHED.iter().map(|name| give(&mut object, name)).collect();
            }
            Err(error) => {
                reason = Some(format!("this kernel ({kernel}) refuses the maps: {error}"));
            }
        }
        let refused = programs.iter().find_map(|program: &Loaded| {
            let why = program.refused.as_ref()?.lines().last().unwrap_or_default();
            Some(format!("this kernel ({kernel}) refuses {}: {why}", program.name))
        });
        reason = reason.or(refused);
    }
    Ok(Capabilities { kernel, supported: reason.is_none(), reason, features, programs })
}

fn give(object: &mut Programs, name: &'static str) -> Loaded {
    let started = Instant::now();
    let refused = object.load_program(name).err().map(|error| error.to_string());
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let info = if refused.is_none() { object.info(name).ok() } else { None };
    let info = info.as_ref();
    Loaded {
        name,
        refused,
        verified_instructions: info
            .and_then(ProgramInfo::verified_instruction_count)
            .unwrap_or_default(),
        load_ms: (load_ms * 10.0).round() / 10.0,
        jitted_bytes: info.map_or(0, ProgramInfo::size_jitted),
    }
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether programs may call it. What could not be asked shows when the programs are loaded.
fn has_helper(helper: BpfHelper) -> bool {
    is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(true)
}

/// Whether interfaces take links: they can be asked for those that they have.
pub(crate) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Whether a qdisc of this kind can be made, in a network namespace that ends with the question.
fn has_clsact() -> bool {
    let made = Netns::create_anonymous().and_then(|space| space.run(|| tc::qdisc_add_clsact("lo")));
    matches!(made, Ok(Ok(())))
}

fn has_bpffs() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some("bpf"))
}

/// `*(u64 *)(r10 - 8) = 0; r0 = cmpxchg_64(r10 - 8, r0, r1); r0 = 0; exit`, with zeroes in both.
const COMPARE_AND_SWAP: [u64; 6] = [
    instruction(0xb7, 0, 0, 0, 0),
    instruction(0xb7, 1, 0, 0, 0),
    instruction(0x7b, 10, 1, -8, 0),
    instruction(0xdb, 10, 1, -8, 0xf1),
    instruction(0xb7, 0, 0, 0, 0),
    instruction(0x95, 0, 0, 0, 0),
];

/// An eBPF instruction as the kernel reads it.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let [o0, o1] = offset.to_ne_bytes();
    let [n0, n1, n2, n3] = number.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, n0, n1, n2, n3])
}

/// bpf(2)'s command, and what a classifier is there (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const SCHED_CLS: u32 = 3;

/// The start of what bpf(2) takes to load a program; what is not given is zero.
#[repr(C)]
struct LoadAttribute {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    version: u32,
    flags: u32,
}

/// Has the verifier look at a classifier.
fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attribute = LoadAttribute {
        kind: SCHED_CLS,
        count: u32::try_from(instructions.len()).expect("invariant: a few"),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
        version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads as many bytes as the attribute has, and what its addresses lead to,
    // which lives until the call returns; it writes nothing.
    let fd = unsafe {
        let size = size_of::<LoadAttribute>();
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attribute, size)
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn feature(name: &'static str, present: bool, required: bool) -> Feature {
        Feature { name, present, required, what: "a thing (Linux 9)", without: "all is lost" }
    }

    #[test]
    fn only_what_is_required_is_a_reason_and_it_is_a_sentence() {
        assert_eq!(reason("5.10", &[feature("x", true, true), feature("y", false, false)]), None);
        let text = reason("5.10", &[feature("x", false, true), feature("y", false, true)]).unwrap();
        assert_eq!(
            text,
            "this kernel (5.10) lacks x, a thing (Linux 9), without which all is lost; and y, a \
             thing (Linux 9), without which all is lost: netpol needs Linux 6.1 or later"
        );
    }

    #[test]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        if cfg!(target_endian = "little") {
            assert_eq!(
                instruction(0x7b, 10, 1, -8, 0).to_le_bytes(),
                [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0]
            );
        }
    }

    /// Root, as all tests of the datapath.
    #[test]
    fn an_instruction_that_no_kernel_has_is_refused_and_a_new_one_taken() {
        let nonsense = [instruction(0xff, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)];
        assert!(load(&nonsense).is_err());
        assert!(load(&COMPARE_AND_SWAP).is_ok());
    }
}
