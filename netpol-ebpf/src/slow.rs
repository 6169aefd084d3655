//! Every packet that is not plainly part of an established flow.
//!
//! The work is cut into functions with global linkage: the verifier checks each of them once, on
//! its own, with arguments it knows nothing about. Inlined into one program, their paths would
//! multiply. Arguments are plain numbers and pointers to plain structs, as that requires; a null
//! pointer, which no caller passes, is answered by a drop.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use netpol_common::flow::{self, Inserted};
use netpol_common::layout::{self, Direction, Reason};
use netpol_common::neighbour::is_link_local;
use netpol_common::packet::{self, Frame, Outcome, Packet};
use netpol_common::verdict::{
    self, Answers, Arrival, Endpoint, Judge, Known, Looked, Maps as _, Verdict,
};

use crate::frame::{RawSkb, Skb};
use crate::maps::{self, Kernel};
use crate::shield::is_astray;
use crate::{ALLOW, DENY, Seen, events, stamp};

/// How often a packet is judged at most because its endpoint's policies changed meanwhile. Each
/// time takes about a microsecond, and a change much more.
const MOST_TIMES: u32 = 4;

/// Not a tc return code: the endpoint's policies changed while the packet was judged by them.
pub const AGAIN: i32 = 0x100;

/// What [`Verdict::pack`] never gives: not a verdict yet, or one with which nothing is left to do.
const NO_VERDICT: u64 = 1 << 24;
/// The packet was read, and has a flow by which to judge it.
pub const FLOW: u64 = NO_VERDICT;
/// It was read, and is for neighbours.
pub const TALK: u64 = NO_VERDICT | 1;
/// It passes as it is.
pub const PASSED: u64 = NO_VERDICT | 2;
/// It is dropped, and was counted.
pub const DROPPED: u64 = NO_VERDICT | 3;

/// What there is to do about a packet one after the other, each a function of its own.
pub struct Steps<Read, Judge, Talk, Settle> {
    /// Reads it to its end; [`FLOW`] and [`TALK`] say whose it then is.
    pub read: Read,
    /// The verdict on one that has a flow.
    pub judge: Judge,
    /// What becomes of one that is for neighbours, as a tc return code.
    pub talk: Talk,
    /// Does what a verdict says: a tc return code, or [`AGAIN`].
    pub settle: Settle,
}

/// The verdict, as a tc return code, on a packet that is in `seen` already (`is_read`) or is read
/// first. One step comes after another rather than one calls the next, so that their stacks do not
/// add up: a verdict is 64 bits, a frame up to a third of all the stack there is.
#[inline(always)]
pub fn judge(
    direction: Direction,
    mut is_read: bool,
    seen: &mut MaybeUninit<Seen>,
    steps: Steps<
        impl Fn(&mut MaybeUninit<Seen>) -> u64,
        impl Fn(&Seen) -> u64,
        impl Fn(&Seen) -> i32,
        impl Fn(&Seen, u64) -> i32,
    >,
) -> i32 {
    let mut times = 0;
    while times < MOST_TIMES {
        let mut word = if is_read { FLOW } else { (steps.read)(seen) };
        if word == FLOW {
            // SAFETY: whoever says so has written it.
            word = (steps.judge)(unsafe { seen.assume_init_ref() });
        }
        if word == PASSED {
            return ALLOW;
        }
        if word == DROPPED {
            return DENY;
        }
        // SAFETY: as above, and so has whoever gave a verdict.
        let seen = unsafe { seen.assume_init_ref() };
        if word == TALK {
            return (steps.talk)(seen);
        }
        let code = (steps.settle)(seen, carry_out(seen, word));
        if code != AGAIN {
            return code;
        }
        is_read = false;
        times += 1;
    }
    events::count(0, direction, Reason::Inconsistent);
    DENY
}

/// Whether the entry of the endpoint with this interface is another one now.
#[inline(always)]
pub fn has_changed(ifindex: u32, endpoint: &Endpoint) -> bool {
    maps::endpoint_at(ifindex).is_some_and(|now| now != *endpoint)
}

/// Reads the packet to its end, and judges one that has no flow.
#[inline(never)]
pub fn read(skb: *mut __sk_buff, direction: u32, seen: &mut MaybeUninit<Seen>) -> u64 {
    // SAFETY: the context pointer is valid for the run of the program.
    let ifindex = unsafe { (*skb).ifindex };
    let Some(endpoint) = maps::endpoint_at(ifindex) else {
        events::count(0, direction_of(direction), Reason::UnknownEndpoint);
        return DROPPED;
    };
    let mut inner = Packet::default();
    let seen = seen.write(Seen { ifindex, endpoint, packet: Packet::default() });
    let parsed = netpol_parse(skb, direction, &mut seen.packet, &mut inner);
    if parsed == NEIGHBOUR {
        return TALK;
    }
    let Seen { endpoint, packet, .. } = seen;
    let verdict = if direction == Direction::Ingress as u32 && is_astray(skb, packet) {
        Verdict::drop(Reason::DestinationAddress, 0)
    } else if parsed == PASS {
        return PASSED;
    } else if parsed < PACKET {
        let arrival = arrival_of_packet(skb, direction_of(direction), packet);
        let arrival = Arrival { is_from_node: false, ..arrival };
        return netpol_refused(endpoint, arrival_word(arrival), packet, parsed);
    } else {
        let arrival = arrival_of_packet(skb, direction_of(direction), packet);
        if verdict::has_flow(&Kernel, endpoint, arrival, packet) {
            return FLOW;
        }
        let inner = if parsed == RELATED { Some(&inner) } else { None };
        verdict::judge_apart(&Kernel, endpoint, arrival, packet, inner)
    };
    verdict.pack()
}

/// Judges a packet that has a flow.
#[inline(never)]
pub fn judge_flow(skb: *mut __sk_buff, direction: u32, seen: &Seen) -> u64 {
    let direction = direction_of(direction);
    let verdict = if direction as u8 == Direction::Ingress as u8 && is_astray(skb, &seen.packet) {
        Verdict::drop(Reason::DestinationAddress, 0)
    } else {
        let arrival = arrival_of_packet(skb, direction, &seen.packet);
        verdict::judge_tracked(&Kernel, &seen.endpoint, arrival, &seen.packet)
    };
    verdict.pack()
}

/// Does what is to be done with what a pod says to its neighbours; `reason`: [`PASS`] or the number of
/// a reason.
#[inline(never)]
pub fn settle_talk(skb: *mut __sk_buff, seen: &Seen, reason: u32) -> i32 {
    if reason == PASS {
        return ALLOW;
    }
    let verdict = Verdict::drop(refusal_reason(reason), 0);
    events::note(skb, &seen.endpoint, Direction::Egress, &seen.packet, &verdict);
    DENY
}

#[inline(always)]
fn arrival_of_packet(skb: *mut __sk_buff, direction: Direction, packet: &Packet) -> Arrival {
    match direction {
        // What the pod sent to itself through a Service may come from a node's address, but
        // bears its stamp.
        Direction::Ingress => Arrival::ingress(
            is_generated_here(skb, packet.has_fragment_header)
                || stamp::is_own(skb, &packet.remote),
        ),
        Direction::Egress => {
            // SAFETY: the context pointer is valid for the run of the program.
            let ifindex = unsafe { (*skb).ifindex };
            let own = maps::own4(ifindex);
            let is_own_source = own != 0 && own == layout::own4(&packet.local)
                || is_link_local(&packet.local) && maps::is_link_local_of(ifindex, &packet.local)
                || maps::may_forward(ifindex, &packet.local);
            Arrival { is_own_source, ..Arrival::egress() }
        }
    }
}

/// Does what the verdict says, if it still holds.
#[inline(never)]
pub fn settle(skb: *mut __sk_buff, direction: u32, seen: &Seen, verdict: u64) -> i32 {
    let (direction, verdict) = (direction_of(direction), Verdict::unpack(verdict));
    // Rows are complete for the policy sets that are in use. A packet that was held up while its
    // endpoint got others may have met classes that its own sets know nothing of.
    if has_changed(seen.ifindex, &seen.endpoint) {
        return AGAIN;
    }
    if verdict.is_noted {
        events::note(skb, &seen.endpoint, direction, &seen.packet, &verdict);
    } else if verdict.has_evicted {
        events::count(seen.endpoint.id, direction, Reason::FlowEvicted);
    }
    // A packet that cannot be stamped must not pass for one that need not be.
    if verdict.is_allowed && (!verdict.is_stamped || stamp::put(skb)) { ALLOW } else { DENY }
}

/// Enters the packet's flow, or notes what became of it; the verdict and what that did to others.
#[inline(never)]
fn carry_out(seen: &Seen, verdict: u64) -> u64 {
    verdict::carry_out(&Kernel, &seen.endpoint, &seen.packet, Verdict::unpack(verdict)).pack()
}

/// Drops a packet, whatever it is, and says so: for one on an interface of no known endpoint, and
/// for one whose frame is not its pod's.
#[inline(never)]
pub fn refuse(
    skb: *mut __sk_buff,
    direction: u32,
    reason: u32,
    seen: &mut MaybeUninit<Seen>,
) -> i32 {
    // SAFETY: the context pointer is valid for the run of the program.
    let ifindex = unsafe { (*skb).ifindex };
    let endpoint = maps::endpoint_at(ifindex).unwrap_or(Endpoint::NOBODY);
    let seen = seen.write(Seen { ifindex, endpoint, packet: Packet::default() });
    let mut inner = Packet::default();
    // Who sent what to whom is all that is wanted of it.
    let _ = netpol_parse(skb, direction, &mut seen.packet, &mut inner);
    let verdict = Verdict::drop(refusal_reason(reason), 0);
    events::note(skb, &seen.endpoint, direction_of(direction), &seen.packet, &verdict);
    DENY
}

/// Whether this host generated the packet itself. Only then it has no interface that it came in
/// by: forwarding, bridging and decapsulation all set it (net/core/dev.c:
/// __netif_receive_skb_core). The one exception: when the kernel cuts a forwarded IPv6 packet
/// anew, even into one piece, what it makes forgets where it came from (net/ipv6/ip6_output.c:
/// ip6_copy_metadata); but what it cuts for a socket of this host still belongs to the socket.
#[inline(always)]
fn is_generated_here(skb: *mut __sk_buff, has_fragment_header: bool) -> bool {
    // SAFETY: the context pointer is valid for the run of the program.
    let has_come_in = unsafe { (*skb).ingress_ifindex } != 0;
    !has_come_in && (!has_fragment_header || stamp::has_socket(skb))
}

/// [`Outcome`] as a number: below these, the reason of a refusal.
pub const PACKET: u32 = 0x100;
/// What an ICMP error is about was filled in, too.
pub const RELATED: u32 = 0x101;
/// It passes always.
pub const PASS: u32 = 0x102;
/// It is [`crate::neighbour`]'s to judge.
pub const NEIGHBOUR: u32 = 0x103;

/// Added to the direction for [`netpol_parse`]: a VLAN tag does not matter.
pub const IN_TAG: u32 = 2;

/// [`packet::parse`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_parse(
    skb: *mut __sk_buff,
    direction: u32,
    packet: *mut Packet,
    inner: *mut Packet,
) -> u32 {
    parse(&Skb(skb), direction, packet, inner)
}

/// [`packet::parse`] on a device without link-layer header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_parse_raw(
    skb: *mut __sk_buff,
    direction: u32,
    packet: *mut Packet,
    inner: *mut Packet,
) -> u32 {
    parse(&RawSkb(skb), direction, packet, inner)
}

#[inline(always)]
fn parse(frame: &impl Frame, direction: u32, packet: *mut Packet, inner: *mut Packet) -> u32 {
    // SAFETY: the verifier lets only null or a writable Packet through, and the caller's two are
    // different.
    let (Some(packet), Some(inner)) = (unsafe { (packet.as_mut(), inner.as_mut()) }) else {
        return Reason::Inconsistent as u32;
    };
    if direction & IN_TAG == 0 && frame.has_vlan_tag() {
        return Reason::Ethertype as u32;
    }
    outcome_word(packet::parse_in_tag(frame, direction_of(direction & 1), packet, inner))
}

#[inline(always)]
fn outcome_word(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Packet => PACKET,
        Outcome::Related => RELATED,
        Outcome::Pass => PASS,
        Outcome::Neighbour => NEIGHBOUR,
        Outcome::Refuse(reason) => reason as u32,
    }
}

/// [`verdict::judge_refused`], packed; `reason` as from [`netpol_parse`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_refused(
    endpoint: *const Endpoint,
    arrival: u32,
    packet: *const Packet,
    reason: u32,
) -> u64 {
    // SAFETY: the verifier lets only null or readable structs through.
    let (Some(endpoint), Some(packet)) = (unsafe { (endpoint.as_ref(), packet.as_ref()) }) else {
        return Verdict::drop(Reason::Inconsistent, 0).pack();
    };
    let (arrival, reason) = (arrival_of(arrival), refusal_reason(reason));
    verdict::judge_refused(&Kernel, endpoint, arrival, packet, reason).pack()
}

/// The inverse of `reason as u32` for the reasons that parsing gives.
#[inline(always)]
pub fn refusal_reason(number: u32) -> Reason {
    Reason::from_number(number as u8).unwrap_or(Reason::Inconsistent)
}

impl Judge for Kernel {
    #[inline(always)]
    fn judge_in4(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        answers: Answers,
    ) -> Looked {
        let Answers { ingress, egress } = answers;
        let word = netpol_judge4(endpoint, arrival_word(arrival), packet, ingress, egress);
        verdict::unpack_looked(word)
    }

    #[inline(always)]
    fn judge_in6(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        answers: Answers,
    ) -> Looked {
        let Answers { ingress, egress } = answers;
        let word = netpol_judge6(endpoint, arrival_word(arrival), packet, ingress, egress);
        verdict::unpack_looked(word)
    }

    #[inline(always)]
    fn enter4(&self, endpoint: &Endpoint, packet: &Packet, bits: u64) -> Inserted {
        let mut inserted = netpol_enter4(endpoint, packet, bits as u32);
        if inserted == FULL {
            let best = netpol_choose4(endpoint, packet, bits);
            inserted = netpol_take4(endpoint, packet, bits as u32, best);
        }
        Inserted::from_number(inserted)
    }

    #[inline(always)]
    fn settle4(&self, endpoint: &Endpoint, packet: &Packet) -> Inserted {
        let state = netpol_mark4(endpoint, packet);
        if state == 0 {
            return Inserted::Free;
        }
        let best = netpol_choose4(endpoint, packet, state);
        Inserted::from_number(netpol_move_out4(endpoint, packet, best))
    }

    #[inline(always)]
    fn enter6(&self, endpoint: &Endpoint, packet: &Packet, bits: u64) -> Inserted {
        let mut inserted = netpol_enter6(endpoint, packet, bits as u32);
        if inserted == FULL {
            let best = netpol_choose6(endpoint, packet, bits);
            inserted = netpol_take6(endpoint, packet, bits as u32, best);
        }
        Inserted::from_number(inserted)
    }

    #[inline(always)]
    fn settle6(&self, endpoint: &Endpoint, packet: &Packet) -> Inserted {
        let state = netpol_mark6(endpoint, packet);
        if state == 0 {
            return Inserted::Free;
        }
        let best = netpol_choose6(endpoint, packet, state);
        Inserted::from_number(netpol_move_out6(endpoint, packet, best))
    }

    #[inline(always)]
    fn bar4(&self, endpoint: &Endpoint, packet: &Packet, is_barred: bool) {
        netpol_bar4(endpoint, packet, is_barred.into());
    }

    #[inline(always)]
    fn bar6(&self, endpoint: &Endpoint, packet: &Packet, is_barred: bool) {
        netpol_bar6(endpoint, packet, is_barred.into());
    }

    #[inline(always)]
    fn is_related4(&self, endpoint: &Endpoint, inner: &Packet) -> Known {
        known_of(netpol_judge_related(endpoint, inner, netpol_related4(endpoint, inner)))
    }

    #[inline(always)]
    fn is_related6(&self, endpoint: &Endpoint, inner: &Packet) -> Known {
        known_of(netpol_judge_related(endpoint, inner, netpol_related6(endpoint, inner)))
    }
}

/// Beside the values of [`Inserted`]: there is no free slot.
const FULL: u32 = 0x100;

/// Defines a separately verified function of an endpoint, a packet of its and more numbers, which
/// answers `$otherwise` where one of the former is null.
macro_rules! global {
    (
        $(#[$doc:meta])*
        fn $name:ident($endpoint:ident, $packet:ident $(, $number:ident: $type:ty)*) -> $result:ty,
        or $otherwise:expr;
        $body:expr
    ) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(
            $endpoint: *const Endpoint,
            $packet: *const Packet
            $(, $number: $type)*
        ) -> $result {
            // SAFETY: the verifier lets only null or readable structs through.
            let (Some($endpoint), Some($packet)) =
                (unsafe { ($endpoint.as_ref(), $packet.as_ref()) })
            else {
                return $otherwise;
            };
            $body
        }
    };
}

global! {
    /// [`verdict::judge_related`], as a number.
    fn netpol_judge_related(endpoint, packet, state: u64) -> u32, or 0;
    verdict::judge_related(&Kernel, endpoint, packet, state) as u32
}

/// Defines the separately verified functions of one address family.
macro_rules! family {
    (
        $key:path, $table:ident, $judge:ident, $related:ident,
        $enter:ident, $choose:ident, $take:ident, $mark:ident, $move_out:ident, $bar:ident
    ) => {
        /// [`verdict::judge_in`] this family's table, packed; the last two are the answers.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $judge(
            endpoint: *const Endpoint,
            arrival: u32,
            packet: *const Packet,
            ingress: u64,
            egress: u64,
        ) -> u64 {
            // SAFETY: the verifier lets only null or readable structs through.
            let (Some(endpoint), Some(packet)) = (unsafe { (endpoint.as_ref(), packet.as_ref()) })
            else {
                return Verdict::drop(Reason::Inconsistent, 0).pack();
            };
            let key = $key(packet, endpoint.id);
            let arrival = arrival_of(arrival);
            let (table, answers) = (Kernel.$table(), Answers { ingress, egress });
            verdict::pack_looked(verdict::judge_in(
                &Kernel, table, &key, endpoint, arrival, packet, answers,
            ))
        }

        global! {
            /// [`flow::enter`] into this family's table.
            fn $enter(endpoint, packet, bits: u32) -> u32, or Inserted::Contended as u32;
            {
                let key = $key(packet, endpoint.id);
                let (hash, clock) = (flow::hash(&key, Kernel.secret()), Kernel.clock());
                let (table, bits) = (Kernel.$table(), bits.into());
                match flow::enter(table, &key, hash, endpoint.epoch, bits, &clock) {
                    Some(inserted) => inserted as u32,
                    None => FULL,
                }
            }
        }

        global! {
            /// [`flow::choose`] in this family's table.
            fn $choose(endpoint, packet, state: u64) -> u64, or 0;
            {
                let key = $key(packet, endpoint.id);
                let (hash, clock) = (flow::hash(&key, Kernel.secret()), Kernel.clock());
                flow::choose(Kernel.$table(), &key, hash, state, &clock)
            }
        }

        global! {
            /// [`flow::take`] in this family's table.
            fn $take(endpoint, packet, bits: u32, best: u64) -> u32, or Inserted::Contended as u32;
            {
                let key = $key(packet, endpoint.id);
                let (hash, clock) = (flow::hash(&key, Kernel.secret()), Kernel.clock());
                let (table, bits) = (Kernel.$table(), bits.into());
                flow::take(table, &key, hash, endpoint.epoch, bits, best, &clock) as u32
            }
        }

        global! {
            /// [`flow::mark`] in this family's table; 0: nothing is left to do.
            fn $mark(endpoint, packet) -> u64, or 0;
            {
                let key = $key(packet, endpoint.id);
                let hash = flow::hash(&key, Kernel.secret());
                flow::mark(Kernel.$table(), &key, hash).unwrap_or_default()
            }
        }

        global! {
            /// [`flow::move_out`] of its reserve in this family's table.
            fn $move_out(endpoint, packet, best: u64) -> u32, or 0;
            {
                let key = $key(packet, endpoint.id);
                let (hash, clock) = (flow::hash(&key, Kernel.secret()), Kernel.clock());
                flow::move_out(Kernel.$table(), &key, hash, best, &clock) as u32
            }
        }

        global! {
            /// [`verdict::bar`] in this family's table.
            fn $bar(endpoint, packet, is_barred: u32) -> u32, or 0;
            {
                let key = $key(packet, endpoint.id);
                let hash = flow::hash(&key, Kernel.secret());
                verdict::bar(Kernel.$table(), &key, hash, endpoint, is_barred != 0);
                0
            }
        }

        global! {
            /// [`verdict::related_state`] in this family's table.
            fn $related(endpoint, packet) -> u64, or 0;
            {
                let key = $key(packet, endpoint.id);
                verdict::related_state(&Kernel, Kernel.$table(), &key, endpoint)
            }
        }
    };
}

family!(
    flow::key4,
    flows4,
    netpol_judge4,
    netpol_related4,
    netpol_enter4,
    netpol_choose4,
    netpol_take4,
    netpol_mark4,
    netpol_move_out4,
    netpol_bar4
);
family!(
    flow::key6,
    flows6,
    netpol_judge6,
    netpol_related6,
    netpol_enter6,
    netpol_choose6,
    netpol_take6,
    netpol_mark6,
    netpol_move_out6,
    netpol_bar6
);

#[inline(always)]
fn direction_of(number: u32) -> Direction {
    if number == 0 { Direction::Ingress } else { Direction::Egress }
}

#[inline(always)]
fn arrival_word(arrival: Arrival) -> u32 {
    arrival.direction as u32
        | u32::from(arrival.is_from_node) << 1
        | u32::from(arrival.is_translated) << 2
        | u32::from(arrival.is_own_source) << 3
}

#[inline(always)]
fn arrival_of(word: u32) -> Arrival {
    Arrival {
        direction: direction_of(word & 1),
        is_from_node: word & 2 != 0,
        is_translated: word & 4 != 0,
        is_own_source: word & 8 != 0,
    }
}

/// The inverse of `known as u32`; an unknown number knows nothing.
#[inline(always)]
fn known_of(number: u32) -> Known {
    match number {
        1 => Known::Yes,
        2 => Known::Stamped,
        _ => Known::No,
    }
}
