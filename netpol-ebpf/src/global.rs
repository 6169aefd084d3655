//! What a verdict is made of, each part a function with global linkage: the verifier checks each of
//! them once, on its own, with arguments it knows nothing about. Inlined into one program, their
//! paths would multiply. Arguments are plain numbers and pointers to plain structs, as that
//! requires; a null pointer, which no caller passes, is answered by a drop. Must never decide
//! anything that `netpol_common::verdict` does not.

use netpol_common::flow::{self, Inserted};
use netpol_common::layout::{Direction, Reason};
use netpol_common::packet::Packet;
use netpol_common::verdict::{
    self, Answers, Arrival, Endpoint, FirstLook, FlowState, Judge, Maps as _, Verdict,
};

use crate::maps::Kernel;
use crate::parse::refusal_reason;

/// [`verdict::judge_refused`], packed; `reason` as [`crate::parse::netpol_parse`] says it.
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

impl Judge for Kernel {
    #[inline(always)]
    fn judge_in(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        answers: Answers,
    ) -> FirstLook {
        if packet.local.family == 6 {
            v6::judge_in(endpoint, arrival, packet, answers)
        } else {
            v4::judge_in(endpoint, arrival, packet, answers)
        }
    }

    #[inline(always)]
    fn enter(&self, endpoint: &Endpoint, packet: &Packet, bits: u64) -> Inserted {
        if packet.local.family == 6 {
            v6::enter(endpoint, packet, bits)
        } else {
            v4::enter(endpoint, packet, bits)
        }
    }

    #[inline(always)]
    fn settle(&self, endpoint: &Endpoint, packet: &Packet) -> Inserted {
        if packet.local.family == 6 {
            v6::settle(endpoint, packet)
        } else {
            v4::settle(endpoint, packet)
        }
    }

    #[inline(always)]
    fn bar(&self, endpoint: &Endpoint, packet: &Packet, is_barred: bool) {
        if packet.local.family == 6 {
            netpol_bar6(endpoint, packet, is_barred.into());
        } else {
            netpol_bar4(endpoint, packet, is_barred.into());
        }
    }

    #[inline(always)]
    fn is_related(&self, endpoint: &Endpoint, inner: &Packet) -> FlowState {
        let state = if inner.local.family == 6 {
            netpol_related6(endpoint, inner)
        } else {
            netpol_related4(endpoint, inner)
        };
        known_of(netpol_judge_related(endpoint, inner, state))
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
        $family:ident, $key:path, $table:ident, $judge:ident, $related:ident,
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

        /// What [`Judge`] asks of this family's table.
        mod $family {
            use super::*;

            #[inline(always)]
            pub fn judge_in(
                endpoint: &Endpoint,
                arrival: Arrival,
                packet: &Packet,
                answers: Answers,
            ) -> FirstLook {
                let Answers { ingress, egress } = answers;
                let word = $judge(endpoint, arrival_word(arrival), packet, ingress, egress);
                verdict::unpack_looked(word)
            }

            #[inline(always)]
            pub fn enter(endpoint: &Endpoint, packet: &Packet, bits: u64) -> Inserted {
                let mut inserted = $enter(endpoint, packet, bits as u32);
                if inserted == FULL {
                    let best = $choose(endpoint, packet, bits);
                    inserted = $take(endpoint, packet, bits as u32, best);
                }
                Inserted::from_number(inserted)
            }

            #[inline(always)]
            pub fn settle(endpoint: &Endpoint, packet: &Packet) -> Inserted {
                let state = $mark(endpoint, packet);
                if state == 0 {
                    return Inserted::Free;
                }
                let best = $choose(endpoint, packet, state);
                Inserted::from_number($move_out(endpoint, packet, best))
            }
        }
    };
}

family!(
    v4,
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
    v6,
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
pub fn direction_of(number: u32) -> Direction {
    if number == 0 { Direction::Ingress } else { Direction::Egress }
}

#[inline(always)]
pub fn arrival_word(arrival: Arrival) -> u32 {
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
fn known_of(number: u32) -> FlowState {
    match number {
        1 => FlowState::Allowed,
        2 => FlowState::Stamped,
        _ => FlowState::Unknown,
    }
}
