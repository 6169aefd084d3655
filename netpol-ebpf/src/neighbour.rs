//! What a pod says to its neighbours, judged by `netpol_common::neighbour` with what the maps and
//! the node's routes say of who it is. Must never decide a verdict.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup};
use aya_ebpf::helpers::generated;
use netpol_common::layout::{Address, LINK_ADDRESS, Reason};
use netpol_common::neighbour::{self, Talk, link_word};
use netpol_common::packet::Frame as _;
use netpol_common::verdict::Maps as _;

use crate::frame::Skb;
use crate::maps::{Kernel, Speaker, may_forward, two_words};
use crate::parse::PASS;

/// [`neighbour::refuses`]: [`PASS`], or the number of the reason.
#[inline(always)]
pub fn judge(skb: *mut __sk_buff) -> u32 {
    match neighbour::talk(&Skb(skb)) {
        Talk::Arp => netpol_arp(skb),
        Talk::Discovery => netpol_discovery(skb),
        Talk::Report => netpol_report(skb),
        Talk::Other => Reason::Neighbour as u32,
    }
}

/// Defines the separately verified functions of [`neighbour`].
macro_rules! judges {
    ($name:ident, $refuses:path) => {
        /// As [`judge`], of this kind of talk.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
            // SAFETY: the context pointer is valid for the run of the program.
            let Some(speaker) = Speaker::on(unsafe { (*skb).ifindex }) else {
                return Reason::UnknownEndpoint as u32;
            };
            match $refuses(&Skb(skb), &OnInterface { skb, speaker }) {
                Some(reason) => reason as u32,
                None => PASS,
            }
        }
    };
}

judges!(netpol_arp, neighbour::refuses_arp);
judges!(netpol_discovery, neighbour::refuses_discovery);
judges!(netpol_report, neighbour::refuses_report);

struct OnInterface {
    skb: *mut __sk_buff,
    speaker: Speaker,
}

impl neighbour::Speaker for OnInterface {
    #[inline(always)]
    fn is_own(&self, address: &Address) -> bool {
        speaks_as(self.speaker, address)
    }

    #[inline(always)]
    fn is_own_link_address(&self, address: [u8; 6]) -> bool {
        let own = self.speaker.link() & LINK_ADDRESS;
        own == 0 || own == link_word(address) || !Kernel.checks_source()
    }

    #[inline(always)]
    fn is_on_link(&self, source: &Address, destination: &Address) -> bool {
        is_on_link(self.skb, self.speaker.routed_by(), source, destination)
    }

    #[inline(always)]
    fn is_routed(&self, destination: &Address) -> bool {
        is_routed(self.skb, self.speaker.routed_by(), destination)
    }
}

/// Whether the endpoint may speak as this address. A function of its own for its stack.
#[inline(never)]
pub fn speaks_as(speaker: Speaker, address: &Address) -> bool {
    if !Kernel.checks_source() {
        return true;
    }
    let is_known = if address.family == 6 {
        let words = two_words(address);
        speaker.is_own6(words) || speaker.is_link_local(words)
    } else {
        speaker.is_own4(address.words[0])
    };
    is_known || Kernel.owns(speaker.id(), address) || may_forward(speaker.ifindex(), address)
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// A flag of the helper: by this interface, instead of what came in by it.
const OUTPUT: u32 = 2;
/// Return values of the helper (include/uapi/linux/bpf.h).
const SUCCESS: i64 = 0;
const NOT_FORWARDED: i64 = 4;
const FORWARDING_DISABLED: i64 = 5;
const NO_NEIGHBOUR: i64 = 7;

/// Asks the node's routes: what comes in by `routed_by` and is for the node itself, or would leave
/// by the same interface without a gateway, is on the link.
#[inline(never)]
fn is_on_link(
    skb: *mut __sk_buff,
    routed_by: u32,
    source: &Address,
    destination: &Address,
) -> bool {
    if routed_by == 0 {
        return neighbour::is_same_subnet(source, destination);
    }
    // SAFETY: plain numbers, for which zero is a value.
    let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    question.family = AF_INET6;
    question.ifindex = routed_by;
    // Of a link-local source the kernel says only that it never forwards it, wherever to.
    if !neighbour::is_link_local(source) {
        question.__bindgen_anon_3.ipv6_src = source.words;
    }
    question.__bindgen_anon_4.ipv6_dst = destination.words;
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper reads and writes the struct that it is given, whose length that is.
    let answer = unsafe { generated::bpf_fib_lookup(skb.cast(), &raw mut question, length, 0) };
    match answer {
        SUCCESS | NO_NEIGHBOUR => {
            // SAFETY: the helper has left the address, or put a gateway's in its place.
            let next = unsafe { question.__bindgen_anon_4.ipv6_dst };
            question.ifindex == routed_by && Address::v6(next).is_same(destination)
        }
        // It is the node's own, or nobody's: no router forwards it.
        NOT_FORWARDED => true,
        // The node does not route what comes in here: who does is not known.
        FORWARDING_DISABLED => neighbour::is_same_subnet(source, destination),
        _ => false,
    }
}

/// Whether the frame is for the node, which reaches this IPv6 address by `routed_by`. (The kernel
/// tells its own link-layer address there only if it knows the neighbour's.)
#[inline(never)]
fn is_routed(skb: *mut __sk_buff, routed_by: u32, destination: &Address) -> bool {
    if routed_by == 0 {
        return false;
    }
    // SAFETY: plain numbers, for which zero is a value.
    let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    question.family = AF_INET6;
    question.ifindex = routed_by;
    question.__bindgen_anon_4.ipv6_dst = destination.words;
    let length = size_of::<bpf_fib_lookup>() as i32;
    let question = &raw mut question;
    // SAFETY: the helper reads and writes the struct that it is given, whose length that is.
    let answer = unsafe { generated::bpf_fib_lookup(skb.cast(), question, length, OUTPUT) };
    // SAFETY: it was written above.
    answer == SUCCESS && is_for(skb, unsafe { (*question).smac })
}

/// Whether the frame is for this link-layer address.
#[inline(always)]
fn is_for(skb: *mut __sk_buff, link: [u8; 6]) -> bool {
    Skb(skb).load::<6>(0).is_none_or(|to| link_word(to) == link_word(link))
}

/// Whether by the node's routes what comes in by `routed_by` for this IPv4 address goes no further
/// than the node: it is all of a subnet of its, or the node itself.
#[inline(never)]
pub fn is_of_node(skb: *mut __sk_buff, routed_by: u32, to: &Address) -> bool {
    if routed_by == 0 {
        return false;
    }
    // SAFETY: plain numbers, for which zero is a value.
    let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    question.family = AF_INET;
    question.ifindex = routed_by;
    question.__bindgen_anon_4.ipv4_dst = to.words[0];
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper reads and writes the struct that it is given, whose length that is.
    let answer = unsafe { generated::bpf_fib_lookup(skb.cast(), &raw mut question, length, 0) };
    answer == NOT_FORWARDED
}
