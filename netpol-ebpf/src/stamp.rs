//! The stamp: what a packet carries from the hook where its pod sent it to the hooks where it,
//! translated, leaves the node or enters another pod. A bit of its mark says that it is stamped,
//! which no pod can: the kernel clears the mark where a packet changes its network namespace. Its
//! `tc_index` says who sent it; that stays, but other programs may clear it. Must never decide
//! what a stamp means.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{self, Address};
use netpol_common::verdict::Endpoint;

use crate::maps;

/// Whether the packet is stamped. Only what entered by an interface can be: on what a socket of
/// the node sends the bit is somebody else's. (Of neither kind are IPv6 fragments that the kernel
/// made anew of what entered: see `slow::is_generated_here`.)
#[inline(always)]
pub fn is_on(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context pointer is valid for the run of the program.
    let (mark, has_come_in) = unsafe { ((*skb).mark, (*skb).ingress_ifindex != 0) };
    mark & maps::stamp_mark() != 0 && (has_come_in || !has_socket(skb))
}

/// Whether the packet is being sent by a socket of this host.
#[inline(always)]
pub fn has_socket(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context pointer is valid for the run of the program; the union is one pointer,
    // which is only compared.
    !unsafe { (*skb).__bindgen_anon_2.sk }.is_null()
}

/// Stamps the packet as sent by the endpoint of the interface it is on. False if there is none.
#[inline(never)]
pub fn put(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context pointer is valid for the run of the program.
    let Some(slot) = maps::slot_of(unsafe { (*skb).ifindex }) else { return false };
    // SAFETY: as above; a tc program may write both.
    unsafe {
        (*skb).tc_index = layout::stamp_index(slot);
        (*skb).mark |= maps::stamp_mark();
    }
    true
}

/// Takes the stamp off: an encapsulating device hands the same packet to another one.
#[inline(always)]
pub fn clear(skb: *mut __sk_buff) {
    // SAFETY: the context pointer is valid for the run of the program; it may write both.
    unsafe {
        (*skb).tc_index = 0;
        (*skb).mark &= !maps::stamp_mark();
    }
}

/// The endpoint that stamped the packet, and its interface, if the stamp still says so.
#[inline(always)]
pub fn sender(skb: *mut __sk_buff) -> Option<(u32, Endpoint)> {
    // SAFETY: the context pointer is valid for the run of the program.
    let slot = layout::stamped_slot(unsafe { (*skb).tc_index })?;
    let words = maps::endpoint_words(slot)?;
    if words.ifindex() == 0 {
        return None;
    }
    Some((words.ifindex(), words.endpoint()?))
}

/// Whether the packet from this address is stamped by the very endpoint whose interface it is about
/// to leave by. Where the stamp does not say any more by whom, the address does, if nobody
/// translated it.
#[inline(always)]
pub fn is_own(skb: *mut __sk_buff, source: &Address) -> bool {
    if !is_on(skb) {
        return false;
    }
    // SAFETY: the context pointer is valid for the run of the program.
    let (index, ifindex) = unsafe { ((*skb).tc_index, (*skb).ifindex) };
    let Some(slot) = layout::stamped_slot(index) else {
        return maps::interface_of(source) == Some(ifindex);
    };
    match maps::endpoint_words(slot) {
        Some(words) => words.ifindex() == ifindex,
        None => false,
    }
}
