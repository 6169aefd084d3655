//! Who is on an interface, and on which one an address is. Must never read an entry by more than
//! one load for each word: the agent stores them so.

use core::ptr::read_volatile;

use netpol_common::layout::{self, Address};
use netpol_common::verdict::Endpoint;

use super::{ENDPOINTS, SOURCES};

/// The slot that the endpoint with this interface has: its index, where it is, and its words.
#[inline(always)]
fn find_slot(ifindex: u32) -> Option<(u32, *const layout::Endpoint, EndpointWords)> {
    let first = ifindex & (layout::ENDPOINT_SLOTS - 1);
    let mut probe = 0;
    while probe < layout::ENDPOINT_PROBES {
        let index = first + probe;
        let slot = ENDPOINTS.get_ptr(index)?;
        let words = words_of(slot);
        probe += 1;
        if words.ifindex() == ifindex {
            return Some((index, slot, words));
        }
    }
    None
}

/// The endpoint with this interface.
#[inline(always)]
pub fn endpoint_at(ifindex: u32) -> Option<Endpoint> {
    find_slot(ifindex)?.2.endpoint()
}

/// The same, and [`layout::Endpoint::link`].
#[inline(always)]
pub fn endpoint_and_link(ifindex: u32) -> Option<(Endpoint, u64)> {
    let (_, slot, words) = find_slot(ifindex)?;
    // SAFETY: as for the other words, see words_of.
    Some((words.endpoint()?, unsafe { read_volatile(&raw const (*slot).link) }))
}

/// The index of the slot that the endpoint with this interface has.
#[inline(always)]
pub fn slot_of(ifindex: u32) -> Option<u32> {
    find_slot(ifindex).map(|(index, ..)| index)
}

/// [`layout::Endpoint::own4`] of the endpoint with this interface; 0: not known here.
#[inline(always)]
pub fn own4(ifindex: u32) -> u32 {
    let Some((_, slot, _)) = find_slot(ifindex) else { return 0 };
    // SAFETY: as for the other words, see words_of.
    unsafe { read_volatile(&raw const (*slot).own4) as u32 }
}

/// What a slot of the endpoint table holds.
pub struct EndpointWords {
    identity: u64,
    policy: u64,
    born: u64,
}

impl EndpointWords {
    /// The endpoint's interface, 0 if the slot is free.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        (self.identity >> 32) as u32
    }

    /// The endpoint, if it was completely written.
    #[inline(always)]
    pub fn endpoint(&self) -> Option<Endpoint> {
        Endpoint::from_words(self.identity, self.policy, self.born)
    }
}

/// Reads a slot of the endpoint table.
#[inline(always)]
pub fn endpoint_words(slot: u32) -> Option<EndpointWords> {
    ENDPOINTS.get_ptr(slot).map(words_of)
}

#[inline(always)]
fn words_of(slot: *const layout::Endpoint) -> EndpointWords {
    // SAFETY: array values live as long as the map; words are read one by one, each with a single
    // load, because the agent stores them so.
    unsafe {
        EndpointWords {
            identity: read_volatile(&raw const (*slot).identity),
            policy: read_volatile(&raw const (*slot).policy),
            born: read_volatile(&raw const (*slot).born),
        }
    }
}

/// The interface of the local endpoint that has this address.
#[inline(always)]
pub fn interface_of(address: &Address) -> Option<u32> {
    let key = on_stack(address);
    // SAFETY: a 32-bit value is read with one load. One that is being reused names another
    // endpoint, as after the address has changed hands.
    unsafe { SOURCES.get(key).map(|ifindex| read_volatile(ifindex)) }
}

/// A copy on the stack of what a function was given a pointer to: only since Linux 6.2 may such a
/// pointer itself be a map's key (kernel/bpf/verifier.c: map_key_value_types).
#[inline(always)]
fn on_stack(address: &Address) -> Address {
    *address
}
