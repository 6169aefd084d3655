//! Runs a loaded program on a frame of our own (BPF_PROG_TEST_RUN), for traces, tests and
//! measurements. The program runs on whatever maps it was loaded with.

use std::time::Duration;

use aya::TestRunOptions;
use aya::programs::{ProgramError, SchedClassifier, TestRun as _};

use super::error::{DatapathError, bpf_error};

/// Where a frame is pretended to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The interface whose hook runs the program; must exist in the caller's network namespace.
    pub ifindex: u32,
    /// The interface by which the frame entered this host; 0: this host made it.
    pub ingress_ifindex: u32,
}

/// What the program said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunResult {
    /// Whether the frame passes.
    pub is_allowed: bool,
    /// Mean duration of one run.
    pub duration: Duration,
    /// The packet's mark after the run.
    pub mark: u32,
}

/// Byte offsets in `struct __sk_buff` (include/uapi/linux/bpf.h).
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const CONTEXT_LENGTH: usize = 192;
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;

/// Runs `program` `repeat` times on `frame` (Ethernet header first, at least 14 bytes).
pub fn run(
    program: &SchedClassifier,
    frame: &[u8],
    place: Place,
    repeat: u32,
) -> Result<RunResult, DatapathError> {
    run_marked(program, frame, place, 0, repeat)
}

/// [`run`] on a packet with this mark.
pub fn run_marked(
    program: &SchedClassifier,
    frame: &[u8],
    place: Place,
    mark: u32,
    repeat: u32,
) -> Result<RunResult, DatapathError> {
    let mut context = [0u8; CONTEXT_LENGTH];
    context[MARK..][..4].copy_from_slice(&mark.to_ne_bytes());
    let mut context_after = context;
    context[INGRESS_IFINDEX..][..4].copy_from_slice(&place.ingress_ifindex.to_ne_bytes());
    context[IFINDEX..][..4].copy_from_slice(&place.ifindex.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        ctx_out: Some(&mut context_after),
        repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(|error| match &error {
        ProgramError::SyscallError(syscall)
            if syscall.io_error.raw_os_error() == Some(libc::ENODEV) =>
        {
            DatapathError::Missing(format!(
                "there is no interface {} here: run this command in the agent's network namespace, \
                 as by `nsenter --net=/proc/PID/ns/net netpol ...` with the agent's PID",
                place.ifindex
            ))
        }
        _ => bpf_error(format!("run the program on a frame of {} bytes", frame.len()))(error),
    })?;
    let mark = u32::from_ne_bytes(std::array::from_fn(|i| context_after[MARK + i]));
    Ok(RunResult { is_allowed: result.return_value != SHOT, duration: result.duration, mark })
}
