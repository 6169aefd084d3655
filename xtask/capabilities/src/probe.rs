//! Asks the kernel itself whether it accepts what the tests do: raw bpf(2) and unshare(2).
//!
//! This is the one place below xtask with unsafe code, because no safe interface covers bpf(2)
//! without pulling the whole of aya into every `cargo xtask`. It must leave nothing behind:
//! every object it makes is closed when the probe returns.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Commands of bpf(2), from include/uapi/linux/bpf.h; they never change.
const BPF_MAP_CREATE: c_long = 0;
const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;

/// `r0 = -1; exit`: a classifier that passes every packet on to the next program.
const PASS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];

/// bpf(2)'s argument as words; the kernel accepts a longer one whose rest is zero.
struct Attribute([u32; 36]);

impl Attribute {
    fn new() -> Self {
        Self([0; 36])
    }

    /// Sets the 32-bit field at a byte offset.
    fn set(mut self, offset: usize, value: u32) -> Self {
        self.0[offset / 4] = value;
        self
    }

    /// Sets the 64-bit field at a byte offset to an address.
    fn set_address(self, offset: usize, address: *const u8) -> Self {
        let value = address as u64;
        let (low, high) = (value as u32, (value >> 32) as u32);
        let (first, second) =
            if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        self.set(offset, first).set(offset + 4, second)
    }
}

/// Calls bpf(2) with a command that creates something.
fn create(command: c_long, attribute: &Attribute) -> io::Result<OwnedFd> {
    let size = size_of_val(&attribute.0);
    // SAFETY: the kernel reads `size` bytes, which the array has, and writes nothing there for
    // these commands. Addresses inside point to buffers that the callers keep alive meanwhile.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.0.as_ptr(), size) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates an array map of one entry.
pub(crate) fn bpf_map() -> io::Result<()> {
    let attribute = Attribute::new().set(0, BPF_MAP_TYPE_ARRAY).set(4, 4).set(8, 8).set(12, 1);
    create(BPF_MAP_CREATE, &attribute).map(drop)
}

/// Loads a two-instruction classifier.
pub(crate) fn bpf_program() -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attribute = Attribute::new()
        .set(0, BPF_PROG_TYPE_SCHED_CLS)
        .set(4, 2)
        .set_address(8, PASS.as_ptr().cast())
        .set_address(16, license.as_ptr().cast());
    create(BPF_PROG_LOAD, &attribute)
}

/// Attaches a classifier to an interface with TCX, and detaches it.
pub(crate) fn tcx(ifindex: u32) -> io::Result<()> {
    let program = bpf_program()?;
    let fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    let attribute = Attribute::new().set(0, fd).set(4, ifindex).set(8, BPF_TCX_INGRESS);
    create(BPF_LINK_CREATE, &attribute).map(drop)
}

/// Moves the calling thread into a network and a mount namespace of its own; both end with it.
pub(crate) fn own_namespaces() -> io::Result<()> {
    // SAFETY: with these flags unshare(2) touches no memory of ours, and the file descriptor
    // table stays shared, so descriptors keep their meaning in every thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
