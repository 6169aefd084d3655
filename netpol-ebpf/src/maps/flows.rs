//! The flow tables in memory, and functions on them that the verifier checks on their own. Must
//! never decide anything: that is `netpol_common::flow`'s.

use core::ptr::{read_volatile, write_volatile};

use netpol_common::flow::{self, Claim, Clock, Place};
use netpol_common::verdict::Maps as _;

use super::{
    FLOW_USE, FLOW4_MASK, FLOW6_MASK, FLOWS4, FLOWS6, Kernel, RESERVE4_MASK, RESERVE6_MASK, SECRET,
};

/// A flow bucket in an array map.
#[derive(Clone, Copy)]
pub struct Bucket(*mut u64);

impl flow::Bucket for Bucket {
    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: callers index below the bucket's words, which the verifier checks as well.
        unsafe { read_volatile(self.0.add(word)) }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { write_volatile(self.0.add(word), value) }
    }

    #[inline(always)]
    fn store_zero(self, byte: usize) {
        // SAFETY: callers stay within the bucket, which the verifier checks as well.
        unsafe { write_volatile(self.0.cast::<u8>().add(byte), 0) }
    }

    #[inline(always)]
    fn compare_and_swap(self, word: usize, old: u64, new: u64) -> bool {
        let found: u64;
        // SAFETY: as above. rustc has no compare-exchange for this target (it declares it
        // single-threaded); the instruction is BPF_CMPXCHG of the v3 instruction set.
        unsafe {
            core::arch::asm!(
                "r0 = {old}",
                "r0 = cmpxchg_64({address} + 0, r0, {new})",
                old = in(reg) old,
                address = in(reg) self.0.add(word),
                new = in(reg) new,
                out("r0") found,
            );
        }
        found == old
    }
}

/// What an endpoint has of the flow tables.
#[derive(Clone, Copy)]
pub struct Account(*mut u64);

impl flow::Account for Account {
    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: callers index below the words of a FlowUse, which the verifier checks as well.
        unsafe { read_volatile(self.0.add(word)) }
    }

    #[inline(always)]
    fn add(self, word: usize, value: u64) {
        // SAFETY: as above. As for the compare-and-swap, rustc has no instruction for it.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({address} + 0) += {value}",
                address = in(reg) self.0.add(word),
                value = in(reg) value,
            );
        }
    }
}

#[inline(always)]
fn account(endpoint: u16) -> Option<Account> {
    FLOW_USE.get_ptr_mut(u32::from(endpoint)).map(|account| Account(account.cast()))
}

/// The IPv4 flow table.
pub struct Flows4;

/// The IPv6 flow table.
pub struct Flows6;

/// Defines a flow table, and functions for choosing slots, which are verified on their own. They
/// are cut so that nobody knows how a score came about: what is chosen by it would be verified
/// once for each way.
macro_rules! flow_table {
    ($name:ident, $map:ident, $key:path, $masks:expr,
        $score:ident, $count:ident) => {
        impl flow::Table for $name {
            type Bucket = Bucket;
            type Account = Account;

            #[inline(always)]
            fn bucket(&self, index: u32) -> Option<Bucket> {
                $map.get_ptr_mut(index).map(|bucket| Bucket(bucket.cast()))
            }

            #[inline(always)]
            fn masks(&self) -> [u32; 2] {
                $masks
            }

            #[inline(always)]
            fn secret(&self) -> [u64; 2] {
                SECRET.load()
            }

            #[inline(always)]
            fn account(&self, endpoint: u16) -> Option<Account> {
                account(endpoint)
            }

            #[inline(always)]
            fn score<const KEY: usize>(
                &self,
                index: u32,
                place: Place,
                claim: &Claim,
                _: &Clock,
            ) -> u64 {
                $score(index, place.0, claim.bits, claim.held, claim.answered)
            }

            #[inline(always)]
            fn count<const KEY: usize>(&self, index: u32, ports: u64, remote: u64) -> u64 {
                $count(index, ports, remote)
            }
        }

        /// [`flow::score`] in this table; what is known of the claim is the last three.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $score(
            index: u32,
            place: u32,
            bits: u32,
            held: u64,
            answered: u64,
        ) -> u64 {
            let claim = Claim { bits, held, answered };
            flow::score::<_, { $key }>(&$name, index, Place(place), &claim, &Kernel.clock())
        }

        /// [`flow::count`] in this table.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $count(index: u32, ports: u64, remote: u64) -> u64 {
            flow::count::<_, { $key }>(&$name, index, ports, remote)
        }
    };
}

flow_table!(
    Flows4,
    FLOWS4,
    flow::KEY4,
    [FLOW4_MASK.load(), RESERVE4_MASK.load()],
    netpol_score4,
    netpol_count4
);
flow_table!(
    Flows6,
    FLOWS6,
    flow::KEY6,
    [FLOW6_MASK.load(), RESERVE6_MASK.load()],
    netpol_score6,
    netpol_count6
);
