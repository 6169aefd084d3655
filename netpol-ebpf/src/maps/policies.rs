//! The policy half of the maps, and functions that ask it, which the verifier checks on their own.
//! Must never decide anything: that is `netpol_common::verdict`'s.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::maps::lpm_trie::Key as LpmKey;
use netpol_common::layout::{
    self, Address, Backend, BlockKey, Direction, ExactClass, RowKey, ServiceKey, ServiceValue,
};
use netpol_common::packet::Packet;
use netpol_common::ports::Intervals;
use netpol_common::service::{BackendScan, ToService};
use netpol_common::verdict::{self, Endpoint, Policies};

use super::{ADDRESSES, BACKENDS, BLOCKS, INTERVALS, Kernel, ROWS, SERVICES};

impl Intervals for Kernel {
    #[inline(always)]
    fn interval(&self, index: u32) -> Option<u64> {
        INTERVALS.get(index).copied()
    }
}

impl Policies for Kernel {
    #[inline(always)]
    fn exact_class(&self, key: &BlockKey) -> Option<ExactClass> {
        // SAFETY: the value is read with one 64-bit load and carries its key's echo, so an
        // element that is reused meanwhile is noticed.
        unsafe { ADDRESSES.get(&key.address).map(|value| read_volatile(value)) }
    }

    #[inline(always)]
    fn block_class(&self, key: &BlockKey) -> Option<u32> {
        const { assert!(size_of::<BlockKey>() == size_of::<LpmKey<Address>>()) };
        // SAFETY: both are the number of bits, then the address, and the other is packed.
        let key = unsafe { &*(&raw const *key).cast::<LpmKey<Address>>() };
        BLOCKS.get(key).copied()
    }

    #[inline(always)]
    fn row(&self, set: u16, class: u32) -> Option<layout::Row> {
        // SAFETY: rows never change, and are removed a grace period after their last use.
        unsafe { ROWS.get(RowKey { set: u32::from(set), class }).copied() }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        // SAFETY: as for exact_class: one load, with an echo of the key.
        unsafe { SERVICES.get(key).map(|value| read_volatile(value)) }
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend> {
        BACKENDS.get(index).copied()
    }
}

/// [`verdict::row_allows`] as 1 or 0, for [`each_backend`]: a function that is verified on its own,
/// since otherwise the steps of the port search would multiply with the paths that lead to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_row_allows(set: u32, class: u32, protocol: u32, port: u32) -> u32 {
    u32::from(verdict::row_allows(&Kernel, set as u16, class, protocol as u8, port as u16))
}

/// Asks one backend of a Service.
unsafe extern "C" fn each_backend(index: u32, scan: *mut c_void) -> i64 {
    // SAFETY: the verifier knows the context as the BackendScan that bpf_loop was given.
    let scan = unsafe { &mut *scan.cast::<BackendScan>() };
    let index = scan.offset.wrapping_add(index);
    let backend = match BACKENDS.get(index) {
        Some(backend) => *backend,
        None => return 1,
    };
    let (set, protocol) = (u32::from(scan.set), u32::from(scan.protocol));
    scan.add(backend, |class, port| netpol_row_allows(set, class, protocol, u32::from(port)) == 1);
    0
}

/// The rest of [`service::judge_service`], as a number, once it is known where the backends stand.
/// The kernel's own loop (Linux 5.17) runs it for any number of them and verifies it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_ask_backends(
    set: u32,
    endpoint: u32,
    protocol: u32,
    offset: u32,
    count: u32,
) -> u32 {
    let mut scan = BackendScan::new(set as u16, endpoint as u16, protocol as u8, offset);
    // SAFETY: the callback and its context are as the helper wants them; count is 16 bits wide,
    // below the helper's limit.
    unsafe {
        bpf_loop(count, each_backend as *mut c_void, (&raw mut scan).cast(), 0);
    }
    scan.answer() as u32
}

/// [`verdict::ask_service`], as a number. `direction`: with bit 1 set, of a translated packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_ask_service(
    endpoint: *const Endpoint,
    direction: u32,
    packet: *const Packet,
) -> u32 {
    // SAFETY: the verifier lets only null or readable structs through.
    let (Some(endpoint), Some(packet)) = (unsafe { (endpoint.as_ref(), packet.as_ref()) }) else {
        return ToService::Denied as u32;
    };
    let (direction, is_translated) = flow_of(direction);
    verdict::ask_service(&Kernel, endpoint, direction, is_translated, packet) as u32
}

/// [`verdict::judge_flow_to`], packed: it is asked about both directions of some flows. `direction`
/// as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_judge_flow(
    endpoint: *const Endpoint,
    direction: u32,
    packet: *const Packet,
    to_service: u32,
) -> u64 {
    // SAFETY: the verifier lets only null or readable structs through.
    let (Some(endpoint), Some(packet)) = (unsafe { (endpoint.as_ref(), packet.as_ref()) }) else {
        return 0;
    };
    let (direction, is_translated) = flow_of(direction);
    let to_service = ToService::from_number(to_service);
    verdict::judge_flow_to(&Kernel, endpoint, direction, is_translated, packet, to_service).pack()
}

#[inline(always)]
fn flow_of(word: u32) -> (Direction, bool) {
    let direction = if word & 1 == 0 { Direction::Ingress } else { Direction::Egress };
    (direction, word & 2 != 0)
}
