//! Loads the programs of this build, onto pinned maps where there are any.

use std::fs;
use std::io::Read as _;

use aya::programs::{ProgramError, ProgramInfo, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netpol_common::layout::{self, FLOW4_BUCKETS, FLOW6_BUCKETS, names};

use super::clock::timeouts_in_ticks;
use super::control::ControlEntry;
use super::error::{DatapathError, bpf_error, io_error};
use super::limits::Limits;

use super::pinned::{check_pinned, pinned_buckets};
use super::pins::Pins;

/// The eBPF object, as `cargo xtask build` has built it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol-ebpf.o"));

/// Name of the program for traffic towards pods, on the tc egress hook.
pub(crate) const INGRESS: &str = "netpol_ingress";
/// Name of the program for traffic from pods, on the tc ingress hook.
pub(crate) const EGRESS: &str = "netpol_egress";
/// Name of the program for stamped packets on their way, on the tc egress hook.
pub(crate) const TRANSIT: &str = "netpol_transit";
/// The same for devices whose packets have no link-layer header.
pub(crate) const TRANSIT_RAW: &str = "netpol_transit_raw";
/// The programs for stamped packets.
pub(crate) const TRANSITS: [&str; 2] = [TRANSIT, TRANSIT_RAW];
/// Name of the program for traffic from pods that no policy selects, on the tc ingress hook.
pub(crate) const GUARD: &str = "netpol_guard";
/// Name of the program for traffic towards those of them that share their link with others, on the
/// tc egress hook.
pub(crate) const SHIELD: &str = "netpol_shield";
/// The programs that are attached on nodes.
pub(crate) const ATTACHED: [&str; 6] = [INGRESS, EGRESS, TRANSIT, TRANSIT_RAW, GUARD, SHIELD];

/// Choices fixed when the programs are loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Flows outlive the policy that allowed them.
    pub keep_established: bool,
    /// Pods may send from their own addresses only.
    pub check_source: bool,
    /// Buckets for all endpoints of the IPv4 and IPv6 flow tables (powers of two): tables of another
    /// size that are pinned make room for such, with their flows. `None`: whatever is pinned, else
    /// the least that agents choose.
    pub flow_buckets: Option<[u32; 2]>,
    /// The bit of a packet's mark that netpol uses ([`layout::STAMP_MARK`]).
    pub stamp_mark: u32,
    /// How much the other tables may hold.
    pub limits: Limits,
    /// So many times as long as usual an idle flow is remembered: for tests that must not depend
    /// on how fast they are.
    pub patience: u64,
    /// Write debug lines to the AYA_LOGS ring.
    pub log: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            keep_established: false,
            check_source: true,
            flow_buckets: None,
            stamp_mark: layout::STAMP_MARK,
            limits: Limits::default(),
            patience: 1,
            log: false,
        }
    }
}

/// The loaded programs.
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the programs, creating and pinning the maps that are not pinned yet.
    pub fn load(pins: &Pins, options: &LoadOptions) -> Result<Self, DatapathError> {
        check_pinned(pins)?;
        let buckets = flow_buckets(pins, options)?;
        // A zero secret is that of a first load that was interrupted before it stored one; the
        // tables are then still empty.
        let known = if pins.exist() { pinned_secret(pins)? } else { [0; 2] };
        let secret = if known == [0; 2] { random_secret()? } else { known };
        let programs = Self::load_with(pins, options, &names::ALL, secret, buckets)?;
        if secret != known {
            let control = ControlEntry::open(pins)?;
            control.set_secret(secret);
        }
        Ok(programs)
    }

    /// Loads the programs onto the pinned maps in `shared` and new, unpinned ones otherwise.
    pub fn load_scratch(
        pins: &Pins,
        options: &LoadOptions,
        shared: &[&str],
    ) -> Result<Self, DatapathError> {
        let buckets = options.flow_buckets.unwrap_or([FLOW4_BUCKETS, FLOW6_BUCKETS]);
        Self::load_with(pins, options, shared, random_secret()?, buckets)
    }

    fn load_with(
        pins: &Pins,
        options: &LoadOptions,
        pinned: &[&str],
        secret: [u64; 2],
        buckets: [u32; 2],
    ) -> Result<Self, DatapathError> {
        let mut programs = Self::object(pins, options, pinned, secret, buckets)?;
        for name in [INGRESS, EGRESS] {
            programs.load_program(name)?;
        }
        Ok(programs)
    }

    /// Makes the maps, or opens those that are pinned.
    fn object(
        pins: &Pins,
        options: &LoadOptions,
        pinned: &[&str],
        secret: [u64; 2],
        buckets: [u32; 2],
    ) -> Result<Self, DatapathError> {
        let masks = buckets.map(|count| count - 1);
        let reserves = buckets.map(|count| layout::reserve_buckets(count) - 1);
        let timeouts = timeouts_in_ticks().map(|ticks| ticks * options.patience);
        let (keep, check) = (u8::from(options.keep_established), u8::from(options.check_source));
        let log_level: u8 = if options.log { 4 } else { 0 };
        let mut loader = EbpfLoader::new();
        loader
            .override_global("SECRET", &secret, true)
            .override_global("FLOW4_MASK", &masks[0], true)
            .override_global("FLOW6_MASK", &masks[1], true)
            .override_global("RESERVE4_MASK", &reserves[0], true)
            .override_global("RESERVE6_MASK", &reserves[1], true)
            .override_global("TIMEOUTS", &timeouts, true)
            .override_global("KEEP_ESTABLISHED", &keep, true)
            .override_global("CHECK_SOURCE", &check, true)
            .override_global("STAMP_MARK", &options.stamp_mark, true)
            .override_global("AYA_LOG_LEVEL", &log_level, false)
            .map_max_entries(names::FLOWS4, layout::flow_map_entries(buckets[0]))
            .map_max_entries(names::FLOWS6, layout::flow_map_entries(buckets[1]));
        for (name, size) in options.limits.sizes() {
            loader.map_max_entries(name, size);
        }
        for name in names::ALL.iter().filter(|name| pinned.contains(name)) {
            loader.map_pin_path(name, pins.map(name));
        }
        let ebpf = loader.load(OBJECT).map_err(bpf_error("load the eBPF object"))?;
        Ok(Self { ebpf })
    }

    /// The object, with no program loaded and maps that nobody else knows.
    pub(crate) fn unloaded() -> Result<Self, DatapathError> {
        let (options, buckets) = (LoadOptions::default(), [FLOW4_BUCKETS, FLOW6_BUCKETS]);
        Self::object(&Pins::new("/"), &options, &[], random_secret()?, buckets)
    }

    /// Loads a program that the agent does not, for measurements.
    pub fn load_program(&mut self, name: &str) -> Result<&mut SchedClassifier, DatapathError> {
        load_patiently(self.program(name)?).map_err(bpf_error(format!("load program {name}")))?;
        self.program(name)
    }

    /// A program that is loaded when it is first asked for: a transit program, or the guard.
    pub fn when_needed(&mut self, name: &str) -> Result<&mut SchedClassifier, DatapathError> {
        if self.program(name)?.fd().is_ok() {
            return self.program(name);
        }
        self.load_program(name)
    }

    /// A program that is loaded, or loaded by whoever asks for it.
    pub fn program(&mut self, name: &str) -> Result<&mut SchedClassifier, DatapathError> {
        program_mut(&mut self.ebpf, name)
    }

    /// The kernel's facts about a program.
    pub fn info(&mut self, name: &str) -> Result<ProgramInfo, DatapathError> {
        self.program(name)?.info().map_err(bpf_error(format!("read info of program {name}")))
    }

    /// Pins the programs, so that observers can run them; replaces older pins atomically enough:
    /// the links hold the programs, the pins are only for looking.
    pub fn pin(&mut self, pins: &Pins) -> Result<(), DatapathError> {
        for name in ATTACHED {
            let path = pins.program(name);
            let _ = fs::remove_file(&path);
            if self.program(name)?.fd().is_ok() {
                self.pin_program(pins, name)?;
            }
        }
        Ok(())
    }

    /// Pins a program that was loaded later.
    pub(crate) fn pin_program(&mut self, pins: &Pins, name: &str) -> Result<(), DatapathError> {
        let path = pins.program(name);
        if path.exists() {
            return Ok(());
        }
        self.program(name)?.pin(&path).map_err(bpf_error(format!("pin program {}", path.display())))
    }

    /// The whole object, for logs and maps that are not pinned.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// How often the verifier is asked at most. It gives up with EAGAIN when a signal is on its way to
/// the thread (kernel/bpf/verifier.c: do_check), which says nothing of the program. libbpf asks as
/// often (tools/lib/bpf/bpf.c: bpf_prog_load).
const ATTEMPTS: usize = 5;

fn load_patiently(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    let mut attempt = 1;
    loop {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if attempt < ATTEMPTS && io_error.raw_os_error() == Some(libc::EAGAIN) =>
            {
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn program_mut<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    ebpf.program_mut(name)
        .expect("invariant: the object of this build has this program")
        .try_into()
        .map_err(bpf_error(format!("program {name}")))
}

fn flow_buckets(pins: &Pins, options: &LoadOptions) -> Result<[u32; 2], DatapathError> {
    let [flows4, flows6] = options.flow_buckets.unwrap_or([FLOW4_BUCKETS, FLOW6_BUCKETS]);
    Ok([
        pinned_buckets(pins, names::FLOWS4)?.unwrap_or(flows4),
        pinned_buckets(pins, names::FLOWS6)?.unwrap_or(flows6),
    ])
}

fn random_secret() -> Result<[u64; 2], DatapathError> {
    let mut bytes = [0u8; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(io_error("read /dev/urandom"))?;
    let (low, high) = bytes.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
    Ok([word(low), word(high)])
}

fn pinned_secret(pins: &Pins) -> Result<[u64; 2], DatapathError> {
    Ok(ControlEntry::open(pins)?.secret())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    extern "C" fn heed(_signal: libc::c_int) {}

    /// Root, as all tests of the datapath.
    #[test]
    fn a_signal_while_the_verifier_is_at_work_is_no_reason_to_give_up() {
        // SAFETY: the handler does nothing, and nobody else in this program has one for this signal.
        unsafe { libc::signal(libc::SIGUSR1, heed as *const () as libc::sighandler_t) };
        // SAFETY: it has no preconditions.
        let loader = unsafe { libc::pthread_self() };
        let mut programs = Programs::unloaded().unwrap();
        let signals = thread::spawn(move || {
            // Aya asks twice.
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(10));
                // SAFETY: the thread joins this one before it ends.
                unsafe { libc::pthread_kill(loader, libc::SIGUSR1) };
            }
        });
        let loaded = programs.load_program(INGRESS).map(drop);
        signals.join().unwrap();
        loaded.unwrap();
    }
}
